"""Manifests that are refused, each in `refusals/` with every fault that must be told beside it.

`TRIPOD_WRITE_REFUSALS=1` writes the faults of those that have none yet, to be read by a person.
"""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.kubelet.core import documents, env, manifest, render, volumes
from services.kubelet.core.manifest import Draft
from services.kubelet.core.model import EnvVar, Pod, PodSpec, PodUid

FOLDER = Path(__file__).parent / "refusals"
CASES = sorted(FOLDER.glob("*.yaml"))
FIXED = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_there_are_cases() -> None:
    """The folder is found."""
    assert len(CASES) >= 30


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_a_broken_manifest_is_refused_with_every_fault(case: Path) -> None:
    """Each with its path and in words that say what to do."""
    _, faults = manifest.read(case.read_bytes())
    told = "".join(f"{fault.field}: {fault.description}\n" for fault in faults)
    golden = case.with_suffix(".faults")
    if os.environ.get("TRIPOD_WRITE_REFUSALS") and not golden.exists():
        golden.write_text(told)

    assert told
    assert golden.read_text() == told


BOMBS = {
    "nesting": b"[" * 188_000,
    "nested-mappings": b"{a: " * 47_000,
    "nested-keys": b"? " * 94_000,
    "dashes": b"- " * 94_000,
    "aliases": b"a: &a [x,x,x,x,x,x,x,x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in range(98, 118)),
    "base-60": b"a: 1" + b":1" * 94_000,
    "digits": b"a: " + b"1" * 188_000,
    "underscores": b"a: 1" + b"_" * 188_000,
    "exponent": b"a: 1.0e+" + b"9" * 188_000,
    "values": b"[" + b"a," * 94_000 + b"]",
    "keys": b"apiVersion: v1\nkind: Pod\nspec:\n" + b"".join(b" k%d: 1\n" % i for i in range(15_000)),
    "anchors": b"".join(b"- &a%d x\n" % i for i in range(14_000)),
    "documents": b"---\n" * 47_000,
    "one-text": b"a: '" + b"x" * 188_000 + b"'",
    "one-key": b"apiVersion: v1\nkind: Pod\n" + b"x" * 1000 + b": 1",
    "quotes": b"a: " + b"'' " * 62_000,
    "comments": b"#\n" * 94_000,
    "folded": b"a: >\n" + b" x\n\n" * 47_000,
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_of_188_kilobytes_is_refused_soon(bomb: bytes) -> None:
    """With a bounded answer, and without an end to the process."""
    _, faults = manifest.read(bomb)

    assert faults
    assert len(faults) <= 110
    assert sum(len(fault.description) for fault in faults) < 100_000


def test_aliases_are_counted_before_they_are_written_out() -> None:
    """A bomb of a few hundred bytes takes no more memory than its nodes."""
    tracemalloc.start()
    try:
        _, (fault,) = manifest.read(BOMBS["aliases"])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert fault.description.endswith("aliases count each time they are used")
    assert peak < 32 << 20


def test_a_manifest_beyond_the_limit_is_not_parsed() -> None:
    """The size counts first."""
    _, (fault,) = manifest.read(b"[" * (documents.LIMIT_BYTES + 1))

    assert fault.description.endswith(f"at most {documents.LIMIT_BYTES} are read")


def test_doubling_variables_are_refused_before_they_grow() -> None:
    """Forty of them would be eight terabytes; the first beyond the kernel's limit is named (S47)."""
    chain = [EnvVar("V0", "12345678"), *(EnvVar(f"V{n}", f"$(V{n - 1})" * 2) for n in range(1, 41))]

    with pytest.raises(env.TooLongError, match="the variable 'V14' grows beyond 131072 bytes"):
        env.environment(chain)
    with pytest.raises(env.TooLongError, match="with the variable 'B8' all of them exceed 1048576 bytes"):
        env.environment([EnvVar(f"B{n}", "x" * 130_000) for n in range(20)])


def test_the_longest_that_the_kernel_takes_is_taken() -> None:
    """One byte more is not."""
    fits = 128 * 1024 - len("A=") - 1
    assert env.environment([EnvVar("A", "x" * fits)])["A"] == "x" * fits

    with pytest.raises(env.TooLongError):
        env.environment([EnvVar("A", "x" * (fits + 1))])


# Values of the kinds that YAML has, with texts that look like something else.
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", "web", "no", "017", "1:30", "1e3", "../x", "/proc", "$(A)", "10.0.0.1", "Always"]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [
                    *("name", "image", "containers", "volumes", "env", "value", "ports", "containerPort"),
                    *("volumeMounts", "mountPath", "hostPath", "path", "emptyDir", "livenessProbe"),
                    *("httpGet", "port", "host", "resources", "limits", "cpu", "memory", "command", "x"),
                ]
            ),
            inner,
            max_size=5,
        ),
    ),
    max_leaves=20,
)


@FIXED
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda t: t.encode(errors="replace"))))
def test_any_bytes_give_objects_or_faults(data: bytes) -> None:
    """And never another error."""
    drafts, faults = manifest.read(data)

    assert drafts or faults


@FIXED
@given(st.sampled_from(["Pod", "Service", "List"]), VALUES, VALUES)
def test_any_values_give_objects_or_faults(kind: str, meta: object, spec: object) -> None:
    """Whatever stands where, as YAML and so as JSON."""
    value = {"apiVersion": "v1", "kind": kind, "metadata": meta, "spec": spec, "items": [spec]}
    drafts, faults = manifest.read(yaml.safe_dump(value, allow_unicode=True).encode(errors="replace"))

    assert bool(drafts) or bool(faults)
    assert all(fault.field and fault.description for fault in faults)


def _pod_of(draft: Draft) -> Pod:
    assert isinstance(draft.spec, PodSpec)
    return Pod(PodUid("u"), draft.key.namespace, draft.key.name, draft.spec, draft.labels, draft.annotations)


PATHS = st.lists(st.sampled_from(["a", "b.c", ".", "", "proc2", "data"]), min_size=1, max_size=4).map(
    lambda parts: "/" + "/".join(parts)
)


@FIXED
@given(
    st.lists(st.tuples(st.sampled_from("ABC"), st.sampled_from(["", "x", "$(A)", "$$(B)"])), max_size=4),
    st.lists(PATHS, max_size=3),
    st.sampled_from(["", "Always", "Never"]),
    st.one_of(st.none(), st.integers(0, 100)),
    st.sampled_from(["app", "app:1", "app:latest", "host:5000/app"]),
)
def test_defaults_of_defaults_are_the_defaults(
    variables: list[tuple[str, str]], paths: list[str], policy: str, grace: int | None, image: str
) -> None:
    """What was completed once is valid, and completes to itself."""
    container: dict[str, object] = {
        "name": "app",
        "image": image,
        "env": [{"name": name, "value": value} for name, value in variables],
        "volumeMounts": [{"name": "data", "mountPath": path} for path in paths],
    }
    spec = {"containers": [container], "volumes": [{"name": "data"}], "restartPolicy": policy or None}
    value = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": spec}
    spec["terminationGracePeriodSeconds"] = grace
    drafts, _ = manifest.read(yaml.safe_dump(value).encode())
    for draft in drafts:
        once = render.pod(_pod_of(draft))
        once["metadata"] = {"name": "web", "namespace": "default"}
        (again,), faults = manifest.read(yaml.safe_dump(once).encode())

        assert faults == []
        assert again.spec == draft.spec
        assert render.pod(_pod_of(again))["spec"] == once["spec"]


ODD_NAMES = st.one_of(
    st.text(max_size=300),
    st.text(alphabet="ab./-\0\n%~", max_size=40),
    st.sampled_from(["..", ".", "a/../../b", "a" * 253, "a" * 63, "con", "a\0b", "/etc", "~root", "$(id)"]),
)


@FIXED
@given(ODD_NAMES, ODD_NAMES, ODD_NAMES, ODD_NAMES)
def test_any_name_is_refused_or_stays_below_the_root(
    pod: str, namespace: str, container: str, volume: str
) -> None:
    """Every path that is made of names lies in the state directory, and each part fits (S7)."""
    value = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod, "namespace": namespace},
        "spec": {
            "containers": [{"name": container, "image": "app:1"}],
            "volumes": [{"name": volume, "emptyDir": {}}],
        },
    }
    drafts, faults = manifest.read(yaml.safe_dump(value).encode(errors="replace"))
    assert bool(drafts) is not bool(faults)
    state = Path("/state")
    for draft in drafts:
        made = _pod_of(draft)
        uid = PodUid("01234567-89ab-cdef-0123-456789abcdef")
        made = Pod(uid, made.namespace, made.name, made.spec)
        (box,) = made.spec.containers
        for path in (
            *volumes.directories(state, made),
            volumes.hosts_file(state, uid),
            volumes.log_directory(state, made) / volumes.log_path(box.name, 0),
        ):
            normal = Path(os.path.normpath(path))

            assert normal == path
            assert state in path.parents
            assert all(0 < len(part.encode()) <= 255 for part in path.parts)
