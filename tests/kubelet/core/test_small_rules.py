"""Probes, environment, resources, volumes, logs, allocation: one rule each."""

from __future__ import annotations

from functools import reduce
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kubelet.core import probes, volumes
from services.kubelet.core.allocate import Ranges, Taken, allocate
from services.kubelet.core.env import environment, expand
from services.kubelet.core.logs import parse, tail_offset
from services.kubelet.core.manifest_service import ServiceDraft
from services.kubelet.core.model import (
    EnvVar,
    HttpGet,
    Probe,
    Resources,
    RestartPolicy,
    ServicePort,
    ServiceType,
)
from services.kubelet.core.probes import ProbeKind
from services.kubelet.core.resources import kernel_resources, quality_of_service
from tests.builders import a_container, a_pod

PROBE = Probe(HttpGet(80), success_threshold=2, failure_threshold=3)


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        pytest.param("ff", True, id="two-failures-are-tolerated"),
        pytest.param("fff", False, id="third-failure-in-a-row-fails"),
        pytest.param("ffsff", True, id="one-success-restarts-the-count"),
        pytest.param("fffs", False, id="one-success-is-not-enough"),
        pytest.param("fffss", True, id="two-successes-recover"),
    ],
)
def test_a_verdict_moves_only_after_the_threshold(outcomes: str, *, expected: bool) -> None:
    """A healthy container survives short failures."""
    state = reduce(lambda s, o: probes.step(s, o == "s", PROBE), outcomes, probes.initial(ProbeKind.LIVENESS))

    assert state.verdict is expected


def test_readiness_begins_with_no() -> None:
    """No traffic before the first success."""
    assert probes.initial(ProbeKind.READINESS).verdict is False


@pytest.mark.parametrize(
    ("text", "expected"),
    [("$(A)", "1"), ("$$(A)", "$(A)"), ("$(B)", "$(B)"), ("$A", "$A"), ("a$(A)b$(A)", "a1b1"), ("$", "$")],
)
def test_references_are_replaced_as_in_kubernetes(text: str, expected: str) -> None:
    """An unknown reference stays, two dollars are one."""
    assert expand(text, {"A": "1"}) == expected


def test_a_variable_may_refer_to_one_before_it() -> None:
    """Order matters, and the last of a name wins."""
    variables = [EnvVar("B", "$(A)"), EnvVar("A", "1"), EnvVar("C", "$(A)"), EnvVar("A", "2")]

    assert environment(variables) == {"B": "$(A)", "A": "2", "C": "1"}


@pytest.mark.parametrize(
    ("resources", "quality", "shares", "quota", "score"),
    [
        (Resources(), "BestEffort", 2, 0, 1000),
        (Resources(1000, 1000, 1 << 30, 1 << 30), "Guaranteed", 1024, 100_000, -997),
        (Resources(500, None, 1 << 29, None), "Burstable", 512, 0, 500),
        (Resources(None, 1, None, None), "Burstable", 2, 1000, 999),
    ],
)
def test_resources_become_what_the_kernel_takes(
    resources: Resources, quality: str, shares: int, quota: int, score: int
) -> None:
    """Shares, quota and the out-of-memory score, with the kubelet's numbers."""
    container = a_container(resources=resources)
    pod = a_pod(container)

    made = kernel_resources(pod, container, 1 << 30)

    assert quality_of_service(pod) == quality
    assert (made.cpu_shares, made.cpu_quota_microseconds, made.oom_score_adj) == (shares, quota, score)


def test_init_containers_count_for_the_quality_of_service() -> None:
    """And a sidecar is not killed before the containers that need it; ephemeral ones do not count."""
    main = a_container(resources=Resources(memory_request_bytes=1 << 29))
    side = a_container(name="side", restart_policy=RestartPolicy.ALWAYS)
    whole = a_container(resources=Resources(1000, 1000, 1 << 30, 1 << 30))
    pod = a_pod(main, init_containers=(side,))

    scores = [kernel_resources(pod, container, 1 << 30).oom_score_adj for container in (main, side)]

    assert scores == [500, 500]
    assert quality_of_service(a_pod(whole, init_containers=(a_container(name="plain"),))) == "Burstable"
    assert quality_of_service(a_pod(whole, ephemeral_containers=(a_container(name="x"),))) == "Guaranteed"


def test_a_container_gets_its_hosts_file() -> None:
    """Unless it brings one."""
    own = [volumes.Mount("/x", "/etc/hosts")]

    assert [m.container_path for m in volumes.with_hosts(Path("/s"), a_pod().uid, [])] == ["/etc/hosts"]
    assert volumes.with_hosts(Path("/s"), a_pod().uid, own) == own


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"2026-01-01T00:00:00.1Z stdout F hello", (False, b"hello", False)),
        (b"2026-01-01T00:00:00Z stderr P part", (True, b"part", True)),
        (b"2026-01-01T00:00:00Z stdout F ", (False, b"", False)),
        (b"nonsense", None),
    ],
)
def test_log_entries_are_read(line: bytes, expected: tuple[bool, bytes, bool] | None) -> None:
    """What is no entry is left out, and ends nothing."""
    entry = parse(line)

    assert (None if entry is None else (entry.stderr, entry.line, entry.partial)) == expected


@given(st.lists(st.sampled_from([b"a", b"bb", b""]), max_size=20), st.integers(1, 25))
def test_the_tail_is_the_last_lines(lines: list[bytes], count: int) -> None:
    """Found from the end, whatever the lengths."""
    block = b"".join(line + b"\n" for line in lines)

    offset = tail_offset(block, count)

    wanted = b"".join(line + b"\n" for line in lines[-count:])
    assert block[offset or 0 :] == (wanted if offset is not None else block)
    assert offset is not None or len(lines) <= count


RANGES = Ranges(IPv4Network("10.0.0.0/29"), 30_000, 30_002)
NOBODY = Taken(frozenset(), frozenset())


def draft(**values: object) -> ServiceDraft:
    """Make a service's draft."""
    base = {
        "type": ServiceType.NODE_PORT,
        "cluster_ip": "",
        "ports": (ServicePort(80, 80),),
        "selector": {"a": "b"},
    }
    return ServiceDraft(**{**base, **values})  # type: ignore[arg-type]


def test_a_service_keeps_what_it_has() -> None:
    """Applying again moves nothing."""
    first, _ = allocate(draft(), "web", RANGES, NOBODY, present=None, path="Service web")

    again, faults = allocate(draft(), "web", RANGES, NOBODY, present=first, path="Service web")

    assert faults == []
    assert again == first


def test_addresses_run_out_with_a_fault() -> None:
    """Six addresses, and no seventh."""
    taken: set[str] = set()
    for number in range(6):
        made, faults = allocate(draft(), f"s{number}", RANGES, Taken(taken, ()), present=None, path="s")
        assert faults == []
        taken.add(made.cluster_ip)

    _, faults = allocate(draft(), "one more", RANGES, Taken(taken, ()), present=None, path="s")

    assert len(taken) == 6
    assert "are taken" in faults[0].description


def test_an_address_of_another_service_is_refused() -> None:
    """The fault names the address and the path."""
    _, faults = allocate(
        draft(cluster_ip="10.0.0.3"), "web", RANGES, Taken({"10.0.0.3"}, ()), present=None, path="Service web"
    )

    assert [(f.field, f.description) for f in faults] == [
        ("Service web: spec.clusterIP", "10.0.0.3 belongs to another service")
    ]
