"""Namespaces, mounts, resources, host ports: from the CRI's words to the engine's and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tripod.cri.v1 import api_pb2 as pb

from services.kubelet.cri import mounts, namespaces, naming, portmap, profiles, resources
from services.kubelet.cri.errors import CriError
from services.kubelet.cri.naming import Record
from services.kubelet.cri.portmap import PublishedPort

OPTIONS = pb.NamespaceOption


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (OPTIONS(), ("container:box", "container:box", "container:box")),
        (OPTIONS(pid=pb.CONTAINER), ("container:box", "container:box", "")),
        (OPTIONS(pid=pb.NODE, ipc=pb.NODE), ("container:box", "host", "host")),
        (OPTIONS(pid=pb.TARGET, target_id="abc"), ("container:box", "container:box", "container:abc")),
    ],
)
def test_a_container_has_the_namespaces_it_asks_for(
    options: pb.NamespaceOption, expected: tuple[str, ...]
) -> None:
    """Its network is always its sandbox's."""
    made = namespaces.container(options, "box", host_network=False)

    assert (made["NetworkMode"], made["IpcMode"], made["PidMode"]) == expected
    assert "UTSMode" not in made


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (OPTIONS(), {"NetworkMode": "none", "IpcMode": "shareable", "PidMode": ""}),
        (
            OPTIONS(network=pb.NODE, ipc=pb.NODE, pid=pb.NODE),
            {"NetworkMode": "host", "IpcMode": "host", "PidMode": "host", "UTSMode": "host"},
        ),
    ],
)
def test_a_sandbox_has_the_namespaces_it_asks_for(
    options: pb.NamespaceOption, expected: dict[str, str]
) -> None:
    """And tells them back."""
    made = namespaces.sandbox(options)

    assert made == expected
    told = namespaces.status(made, host_network=options.network == pb.NODE, shared_pid=options.pid == pb.POD)
    assert told == options


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (OPTIONS(network=pb.CONTAINER), "REQUEST_INVALID"),
        (OPTIONS(pid=pb.TARGET), "REQUEST_INVALID"),
        (OPTIONS(userns_options=pb.UserNamespace(mode=pb.POD)), "UNSUPPORTED"),
        (OPTIONS(userns_options=pb.UserNamespace(mode=pb.CONTAINER)), "REQUEST_INVALID"),
    ],
)
def test_namespaces_that_cannot_be_had_are_refused(options: pb.NamespaceOption, reason: str) -> None:
    """The engine has one mapping of users for all."""
    with pytest.raises(CriError) as refused:
        namespaces.check_sandbox(options)

    assert refused.value.reason == reason


def mount(**values: Any) -> pb.Mount:
    """Make a mount."""
    return pb.Mount(**{"container_path": "/c", "host_path": "/h", **values})


@pytest.mark.parametrize(
    ("wanted", "recursive", "expected"),
    [
        (mount(), False, {"Propagation": "rprivate"}),
        (mount(propagation=pb.PROPAGATION_HOST_TO_CONTAINER), False, {"Propagation": "rslave"}),
        (mount(propagation=pb.PROPAGATION_BIDIRECTIONAL), False, {"Propagation": "rshared"}),
        (mount(readonly=True), True, {"Propagation": "rprivate", "ReadOnlyNonRecursive": True}),
        (
            mount(readonly=True, recursive_read_only=True),
            True,
            {"Propagation": "rprivate", "ReadOnlyForceRecursive": True},
        ),
    ],
)
def test_a_mount_is_bound_as_asked_for(
    wanted: pb.Mount, expected: dict[str, Any], *, recursive: bool
) -> None:
    """A newer engine would take read-only for recursive unasked."""
    assert mounts.container([wanted], recursive=recursive)[0]["BindOptions"] == expected


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (mount(host_path=""), "REQUEST_INVALID"),
        (mount(container_path=""), "REQUEST_INVALID"),
        (mount(recursive_read_only=True), "REQUEST_INVALID"),
        (
            mount(readonly=True, recursive_read_only=True, propagation=pb.PROPAGATION_BIDIRECTIONAL),
            "REQUEST_INVALID",
        ),
        (mount(readonly=True, recursive_read_only=True), "RRO_UNSUPPORTED"),
        (mount(uidMappings=[pb.IDMapping(length=1)]), "UNSUPPORTED"),
    ],
)
def test_mounts_that_cannot_be_had_are_refused(wanted: pb.Mount, reason: str) -> None:
    """Never a mount that is less read-only than was asked for."""
    with pytest.raises(CriError) as refused:
        mounts.container([wanted])

    assert refused.value.reason == reason


def test_a_mount_of_ours_is_not_told_back() -> None:
    """The sandbox's resolv.conf is our means; what the caller mounts there is told."""
    assert mounts.container([], resolv_conf="/s/box/resolv.conf")[0]["Target"] == "/etc/resolv.conf"
    assert len(mounts.container([mount(container_path="/etc/resolv.conf")], resolv_conf="/s/box/r")) == 1
    found = {
        "Mounts": [
            {"Destination": "/etc/resolv.conf", "Source": "/s/box/resolv.conf", "RW": True},
            {"Destination": "/c", "Source": "/h", "RW": False, "Propagation": "rslave"},
        ]
    }

    assert mounts.status(found, Record(naming.CONTAINER, "app", sandbox_id="box")) == [
        mount(readonly=True, propagation=pb.PROPAGATION_HOST_TO_CONTAINER)
    ]


def test_resources_are_told_back() -> None:
    """What the engine was given; zero is unset."""
    wanted = pb.LinuxContainerResources(cpu_shares=2, memory_limit_in_bytes=1 << 20, cpuset_cpus="0")
    made = resources.engine(wanted, negative_oom_scores=False)

    assert made == {
        "OomScoreAdj": 0,
        "CpuShares": 2,
        "Memory": 1 << 20,
        "MemorySwap": 1 << 20,
        "CpusetCpus": "0",
    }
    told = resources.status({**made, "CpuPeriod": None}).linux
    assert (told.cpu_shares, told.memory_limit_in_bytes, told.cpuset_cpus) == (2, 1 << 20, "0")


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [("/test.slice", "test.slice"), ("/a.slice/b.slice", "b.slice"), ("/kubepods/pod1", "/kubepods/pod1")],
)
def test_a_slice_is_named_by_its_last_part(wanted: str, expected: str) -> None:
    """As the engine wants it with the systemd driver; a path of cgroups stays one."""
    assert resources.cgroup_parent(wanted) == expected


def test_host_ports_are_written_and_read_back() -> None:
    """A host port of 0 is none."""
    wanted = [
        pb.PortMapping(container_port=80),
        pb.PortMapping(container_port=80, host_port=8080),
        pb.PortMapping(protocol=pb.UDP, container_port=53, host_port=53, host_ip="10.0.0.1"),
    ]

    assert portmap.decode(portmap.encode(wanted)) == (
        PublishedPort("tcp", "", 8080, 80),
        PublishedPort("udp", "10.0.0.1", 53, 53),
    )
    assert portmap.decode("") == ()


@pytest.mark.parametrize(
    "wanted",
    [
        pb.PortMapping(container_port=0, host_port=1),
        pb.PortMapping(container_port=1, host_port=70000),
        pb.PortMapping(container_port=1, host_port=1, host_ip="here"),
        pb.PortMapping(container_port=1, host_port=1, host_ip="::1"),
    ],
)
def test_what_is_no_port_is_refused(wanted: pb.PortMapping) -> None:
    """Before anything is made."""
    with pytest.raises(CriError):
        portmap.encode([wanted])


@pytest.mark.parametrize(
    ("wanted", "clashes"),
    [
        (PublishedPort("tcp", "", 80, 1), True),
        (PublishedPort("tcp", "10.0.0.2", 80, 1), False),
        (PublishedPort("tcp", "10.0.0.1", 80, 1), True),
        (PublishedPort("udp", "", 80, 1), False),
    ],
)
def test_two_sandboxes_cannot_have_one_port(wanted: PublishedPort, *, clashes: bool) -> None:
    """Every address is one with each; the same sandbox may ask again."""
    published = {"a": ("10.9.0.2", (PublishedPort("tcp", "10.0.0.1", 80, 1),))}

    assert (portmap.conflict(published, "b", [wanted]) is not None) is clashes
    assert portmap.conflict(published, "a", [wanted]) is None


def test_rules_lead_to_the_sandbox() -> None:
    """From outside and from the host; loopback is the forwarder's, which the kernel must leave alone."""
    ports = (
        PublishedPort("tcp", "", 8080, 80),
        PublishedPort("tcp", "127.0.0.1", 81, 81),
        PublishedPort("udp", "10.0.0.1", 53, 54),
    )
    published = {"a": ("10.9.0.2", ports)}
    inward, own = portmap.chains("T", published)

    assert inward.rules == (
        "-p tcp -m addrtype --dst-type LOCAL -m tcp --dport 8080 -j DNAT --to-destination 10.9.0.2:80",
        "-d 10.0.0.1/32 -p udp -m udp --dport 53 -j DNAT --to-destination 10.9.0.2:54",
    )
    assert own.rules == (
        "! -d 127.0.0.0/8 -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 8080 "
        "-j DNAT --to-destination 10.9.0.2:80",
        "-d 10.0.0.1/32 -p udp -m udp --dport 53 -j DNAT --to-destination 10.9.0.2:54",
    )
    assert set(portmap.local(published)) == {("tcp", 8080), ("tcp", 81)}


@pytest.mark.parametrize("text", ["", "[]", "no json"])
def test_a_profile_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    """The engine's own words would not name the file."""
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(CriError) as refused:
        profiles.read(path)

    assert str(path) in refused.value.message


def test_a_profile_is_read_whole(tmp_path: Path) -> None:
    """As the engine takes it: in one line. A path from nowhere is refused."""
    path = tmp_path / "p.json"
    path.write_text('{"defaultAction":\n "SCMP_ACT_ALLOW"}')

    assert profiles.read(path) == '{"defaultAction":"SCMP_ACT_ALLOW"}'
    for wrong in (Path("p.json"), tmp_path / "none"):
        with pytest.raises(CriError):
            profiles.read(wrong)
