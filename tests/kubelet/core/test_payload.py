"""The files of volumes, tokens and their renewal, pull secrets: what is made of what."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from services.kubelet.core import manifest, render, token, volumes
from services.kubelet.core.brought import (
    DownwardFile,
    DownwardFiles,
    FieldRef,
    FileSource,
    Item,
    ObjectFiles,
    Origin,
    Projected,
    ResourceRef,
    TokenFile,
)
from services.kubelet.core.model import ConfigMap, EmptyDir, PodSpec, Resources, Secret, Volume
from services.kubelet.core.payload import FileContent, is_secret, payload
from services.kubelet.core.pull_secrets import Credential, credentials_for
from services.kubelet.core.resolve import Found, MissingError, Surroundings
from tests.builders import a_container, a_pod

SETTINGS = ConfigMap("u1", "default", "settings", data={"a": "1", "b": "2"}, binary_data={"c": b"\xff"})
KEY = Secret("u2", "default", "key", data={"password": b"hunter2"})
FOUND = Found({(Origin.CONFIG_MAP, "settings"): SETTINGS, (Origin.SECRET, "key"): KEY})


def made(*sources: FileSource, mode: int = 0o644, tokens: dict[TokenFile, str] | None = None) -> Any:
    """Compute the files of a projected volume."""
    pod = a_pod(a_container(resources=Resources(None, 500)), labels={"b": 'x"y\n', "a": "1"})
    volume = Projected("projected", sources, mode)
    return payload(pod, volume, FOUND, Surroundings(), tokens or {})


def test_all_keys_are_files_with_the_default_mode() -> None:
    """Text and bytes alike."""
    assert made(ObjectFiles(Origin.CONFIG_MAP, "settings"), mode=0o400) == {
        "a": FileContent(b"1", 0o400),
        "b": FileContent(b"2", 0o400),
        "c": FileContent(b"\xff", 0o400),
    }


def test_items_choose_keys_paths_and_modes() -> None:
    """A later source wins where two have a file."""
    chosen = ObjectFiles(Origin.CONFIG_MAP, "settings", (Item("a", "x/y", 0o600), Item("b", "z")))
    key = ObjectFiles(Origin.SECRET, "key", (Item("password", "z"),))

    assert made(chosen, key) == {"x/y": FileContent(b"1", 0o600), "z": FileContent(b"hunter2", 0o644)}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (ObjectFiles(Origin.SECRET, "none"), 'secret "none" not found'),
        (
            ObjectFiles(Origin.SECRET, "key", (Item("x", "x"),)),
            "key references non-existent secret key: x",
        ),
        (
            ObjectFiles(Origin.CONFIG_MAP, "settings", (Item("x", "x"),)),
            "settings references non-existent config key: x",
        ),
    ],
)
def test_what_is_missing_is_told_unless_optional(source: ObjectFiles, message: str) -> None:
    """In the words of the kubelet."""
    with pytest.raises(MissingError, match=message):
        made(source)

    assert made(ObjectFiles(source.origin, source.name, source.items, optional=True)) == {}


def test_the_pod_itself_is_files() -> None:
    """Labels one a line, sorted and quoted; amounts divided."""
    files = made(
        DownwardFiles(
            (
                DownwardFile("labels", FieldRef("metadata.labels")),
                DownwardFile("cpu", ResourceRef("limits.cpu", "app", "1m"), 0o440),
            )
        )
    )

    assert files["labels"].data == b'a="1"\nb="x\\"y\\n"'
    assert files["cpu"] == FileContent(b"500", 0o440)


def test_tokens_and_secrets_are_kept_off_the_disk() -> None:
    """A volume with either is a secret one; no value stands in what is printed."""
    wanted = TokenFile("token")

    assert made(wanted, tokens={wanted: "a.b.c"})["token"].data == b"a.b.c"
    assert is_secret(Projected("projected", (wanted,)))
    assert is_secret(Projected("secret", (ObjectFiles(Origin.SECRET, "key"),)))
    assert not is_secret(Projected("configMap", (ObjectFiles(Origin.CONFIG_MAP, "settings"),)))
    assert "hunter2" not in repr(made(ObjectFiles(Origin.SECRET, "key")))


def test_every_volume_is_written_and_read_back_the_same() -> None:
    """The store keeps JSON, and loses nothing."""
    spec = {
        "volumes": [
            {"name": "a", "configMap": {"name": "x", "items": [{"key": "k", "path": "p", "mode": 0}]}},
            {"name": "b", "secret": {"secretName": "x", "optional": True, "defaultMode": 0o400}},
            {
                "name": "c",
                "downwardAPI": {"items": [{"path": "p", "fieldRef": {"fieldPath": "metadata.uid"}}]},
            },
            {
                "name": "d",
                "projected": {
                    "sources": [
                        {"serviceAccountToken": {"path": "t", "audience": "me", "expirationSeconds": 600}},
                        {"configMap": {"name": "x", "optional": True}},
                        {"secret": {"name": "x"}},
                        {
                            "downwardAPI": {
                                "items": [
                                    {
                                        "path": "r",
                                        "resourceFieldRef": {
                                            "resource": "limits.memory",
                                            "containerName": "app",
                                            "divisor": "1Mi",
                                        },
                                    }
                                ]
                            }
                        },
                    ]
                },
            },
            {"name": "e", "emptyDir": {"medium": "Memory", "sizeLimit": "1500k"}},
            {"name": "f", "hostPath": {"path": "/x", "type": "FileOrCreate"}},
            {"name": "g", "image": {"reference": "app:1", "pullPolicy": "Never"}},
        ],
        "enableServiceLinks": False,
        "serviceAccountName": "default",
        "automountServiceAccountToken": False,
        "imagePullSecrets": [{"name": "r"}],
        "containers": [
            {
                "name": "app",
                "image": "app:1",
                "env": [
                    {"name": "A", "valueFrom": {"secretKeyRef": {"name": "x", "key": "k", "optional": True}}},
                    {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a/b']"}}},
                    {
                        "name": "C",
                        "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": 1}},
                    },
                ],
                "envFrom": [{"prefix": "P_", "configMapRef": {"name": "x", "optional": True}}],
                "volumeMounts": [
                    {"name": "e", "mountPath": "/e", "subPathExpr": "$(A)//b/", "readOnly": True},
                    {"name": "f", "mountPath": "/f", "mountPropagation": "HostToContainer"},
                    {"name": "a", "mountPath": "/a", "readOnly": True, "recursiveReadOnly": "IfPossible"},
                ],
            }
        ],
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": spec}
    (draft,), faults = manifest.read(json.dumps(pod).encode())
    assert faults == []
    assert isinstance(draft.spec, PodSpec)

    (again,), none = manifest.read(json.dumps({**pod, "spec": render.pod_spec(draft.spec)}).encode())

    assert none == []
    assert again.spec == draft.spec
    assert draft.spec.containers[0].volume_mounts[0].sub_path == "$(A)/b"


@pytest.mark.parametrize(
    ("limit", "memory", "expected"),
    [
        pytest.param(1 << 20, (1 << 30,), 1 << 20, id="its-own-limit"),
        pytest.param(1 << 40, (1 << 30, 1 << 30), 2 << 30, id="the-containers-limits"),
        pytest.param(None, (1 << 30, None), 8 << 30, id="what-the-node-has"),
        pytest.param(None, (), 8 << 30, id="no-limits"),
    ],
)
def test_memory_volumes_are_as_large_as_the_smallest_limit(
    limit: int | None, memory: tuple[int | None, ...], expected: int
) -> None:
    """Limits of containers count when each has one."""
    containers = [a_container(resources=Resources(None, None, None, value)) for value in memory]
    pod = a_pod(*containers)

    assert volumes.memory_size_bytes(pod, EmptyDir(memory=True, size_limit_bytes=limit), 8 << 30) == expected


def _token(**claims: Any) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{body}.sig"


@pytest.mark.parametrize(
    ("seconds", "jitter", "expected"),
    [
        pytest.param(3600, 0.0, 2880.0, id="at-80-percent"),
        pytest.param(3600, 1.0, 2870.0, id="spread-over-ten-seconds"),
        pytest.param(40 * 86400, 0.0, 86400.0, id="after-a-day"),
    ],
)
def test_a_token_is_renewed_before_it_ends(seconds: int, jitter: float, expected: float) -> None:
    """At 80 % of its life, or after 24 hours."""
    life = token.read_life(_token(iat=0, exp=seconds, aud="me"))

    assert life is not None
    assert token.renew_at(life, jitter) == expected
    assert token.is_for(life, "me")
    assert token.is_for(life, "")
    assert not token.is_for(life, "you")


def test_a_token_that_is_good_for_a_year_is_renewed_as_what_it_was_asked_for() -> None:
    """An API server draws such tokens out for clients that never read them again, and counts those."""
    year = 365 * 86400
    text = _token(iat=1000, exp=1000 + year, aud="me", **{"kubernetes.io": {"warnafter": 1000 + 3607}})
    life = token.read_life(text)

    assert life is not None
    assert life.expires == 1000 + year
    assert token.renew_at(life, 0.0) == pytest.approx(1000 + 0.8 * 3607)


@pytest.mark.parametrize(
    "text", ["", "a", "a.b.c", "a.!.c", _token(exp=1), _token(iat="x", exp=1), "e30.W10.c"]
)
def test_what_is_no_token_has_no_life(text: str) -> None:
    """A file of that name may hold anything."""
    assert token.read_life(text) is None


def _registry(auths: dict[str, Any], kind: str = "dockerconfigjson") -> Secret:
    body: dict[str, Any] = {"auths": auths} if kind == "dockerconfigjson" else auths
    return Secret("u", "default", "r", {f".{kind}": json.dumps(body).encode()}, f"kubernetes.io/{kind}")


def _login(name: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{name}:pass:word".encode()).decode()}


@pytest.mark.parametrize(
    ("image", "names"),
    [
        pytest.param("registry.test/team/app:1", ["team", "host", "glob"], id="the-most-specific-first"),
        pytest.param("registry.test/other@sha256:abc", ["host", "glob"], id="by-host"),
        pytest.param("registry.test:5000/app", ["port"], id="a-port-is-part-of-the-name"),
        pytest.param("a.b.test/app", [], id="a-star-is-one-part"),
        pytest.param("nginx", ["hub"], id="the-default-registry"),
        pytest.param("docker.io/library/nginx:1", ["hub"], id="the-default-registry-by-name"),
        pytest.param("elsewhere.example/app", [], id="nobody"),
    ],
)
def test_credentials_are_chosen_by_registry_and_path(image: str, names: list[str]) -> None:
    """As the kubelet's keyring does."""
    secret = _registry(
        {
            "https://registry.test/v1/": _login("host"),
            "registry.test/team": _login("team"),
            "*.test": _login("glob"),
            "registry.test:5000": {"username": "port", "password": "pass:word"},
            "https://index.docker.io/v1/": _login("hub"),
            "broken.test": {"auth": "!"},
        }
    )

    found = credentials_for(image, [secret])

    assert [credential.username for credential in found] == names
    assert all(credential.password == "pass:word" for credential in found)


def test_the_old_form_of_a_pull_secret_is_read_and_no_other_is() -> None:
    """What cannot be read is left out; a name and a password are not printed."""
    old = _registry({"registry.test": _login("old")}, "dockercfg")
    plain = Secret("u", "default", "p", {"password": b"x"})
    broken = Secret("u", "default", "b", {".dockerconfigjson": b"["}, "kubernetes.io/dockerconfigjson")

    assert credentials_for("registry.test/app", [plain, broken, old]) == [Credential("old", "pass:word")]
    assert "pass:word" not in repr(Credential("old", "pass:word"))


def test_a_volume_that_is_made_for_pods_is_known_by_its_place() -> None:
    """Only such mounts are ever taken away."""
    state, uid = Path("/state"), a_pod().uid
    ours = [
        volumes.root_of(state, uid, Volume("a", Projected("secret", ()))),
        volumes.empty_dir(state, uid, "a"),
        volumes.sub_path_place(state, uid, ("a", "app", 0)),
    ]

    assert all(volumes.is_ours(state, str(path)) for path in ours)
    assert not volumes.is_ours(state, str(ours[0] / "below"))
    assert not volumes.is_ours(state, "/elsewhere/pods/u/volumes/kubernetes.io~secret/a")
