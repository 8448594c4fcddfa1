"""What a pod may do reaches the runtime as the CRI has it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tripod.cri.v1 import api_pb2 as pb

from services.kubelet.adapters import cri_security
from services.kubelet.adapters.cri_client import container_config
from services.kubelet.core.manifest_lifecycle import SIGNALS
from services.kubelet.core.model import ContainerId, ContainerPort, Lifecycle, Protocol
from services.kubelet.core.resources import KernelResources
from services.kubelet.core.security import (
    MASKED_PATHS,
    READONLY_PATHS,
    ContainerSecurity,
    HostNamespaces,
    PodSecurity,
    Profile,
    ProfileType,
    Rights,
    SeLinuxOptions,
)
from services.kubelet.core.spec_hash import spec_hash
from services.kubelet.ports import ContainerConfig, SandboxConfig
from tests.builders import a_container, a_pod

PROFILE = pb.SecurityProfile


@pytest.mark.parametrize(
    ("asked", "network", "ipc", "pid"),
    [
        (HostNamespaces(), pb.POD, pb.POD, pb.CONTAINER),
        (HostNamespaces(network=True), pb.NODE, pb.POD, pb.CONTAINER),
        (HostNamespaces(ipc=True), pb.POD, pb.NODE, pb.CONTAINER),
        (HostNamespaces(pid=True), pb.POD, pb.POD, pb.NODE),
        (HostNamespaces(share_processes=True), pb.POD, pb.POD, pb.POD),
    ],
)
def test_namespaces_are_the_pods_the_containers_or_the_hosts(
    asked: HostNamespaces, network: Any, ipc: Any, pid: Any
) -> None:
    """The same for the sandbox and each container."""
    pod = a_pod(namespaces=asked)
    expected = pb.NamespaceOption(network=network, ipc=ipc, pid=pid)

    assert cri_security.sandbox_linux(pod).security_context.namespace_options == expected
    assert cri_security.container_context(pod, Rights()).namespace_options == expected


def test_a_container_without_a_word_has_the_default_profile_and_hidden_paths() -> None:
    """Some runtimes hide nothing unasked (S28, S32)."""
    made = cri_security.container_context(a_pod(), Rights())

    assert made.HasField("seccomp")
    assert made.seccomp.profile_type == PROFILE.RuntimeDefault
    assert tuple(made.masked_paths) == MASKED_PATHS
    assert tuple(made.readonly_paths) == READONLY_PATHS
    assert not made.HasField("run_as_user")
    assert not made.HasField("apparmor")
    assert not made.HasField("selinux_options")


def test_all_that_a_container_may_do_is_said() -> None:
    """Field by field."""
    given = Rights(
        user="1000",
        group=0,
        groups=(5, 6),
        strict_groups=True,
        capabilities_added=("NET_ADMIN",),
        capabilities_dropped=("ALL",),
        no_new_privileges=True,
        read_only_root=True,
        seccomp=Profile(ProfileType.LOCALHOST, "/profiles/a.json"),
        apparmor=Profile(ProfileType.LOCALHOST, "mine"),
        selinux=SeLinuxOptions(level="s0:c1", type="t"),
    )
    made = cri_security.container_context(a_pod(), given)

    assert made == pb.LinuxContainerSecurityContext(
        namespace_options=pb.NamespaceOption(pid=pb.CONTAINER),
        run_as_user=pb.Int64Value(value=1000),
        run_as_group=pb.Int64Value(value=0),
        supplemental_groups=[5, 6],
        supplemental_groups_policy=pb.Strict,
        capabilities=pb.Capability(add_capabilities=["NET_ADMIN"], drop_capabilities=["ALL"]),
        no_new_privs=True,
        readonly_rootfs=True,
        seccomp=PROFILE(profile_type=PROFILE.Localhost, localhost_ref="/profiles/a.json"),
        apparmor=PROFILE(profile_type=PROFILE.Localhost, localhost_ref="mine"),
        selinux_options=pb.SELinuxOption(level="s0:c1", type="t"),
        masked_paths=MASKED_PATHS,
        readonly_paths=READONLY_PATHS,
    )


def test_an_image_s_user_by_name_is_said_by_name() -> None:
    """It is known for a group alone: whoever must not be root has a number."""
    made = cri_security.container_context(a_pod(), Rights(user="web", group=5))

    assert (made.run_as_username, made.HasField("run_as_user")) == ("web", False)


def test_a_privileged_container_hides_nothing_and_its_sandbox_says_so() -> None:
    """A runtime refuses it in a sandbox that is not."""
    pod = a_pod(a_container(), a_container(name="b", security=ContainerSecurity(privileged=True)))
    made = cri_security.container_context(pod, Rights(privileged=True))

    assert made.privileged
    assert not made.HasField("seccomp")
    assert list(made.masked_paths) == []
    assert cri_security.sandbox_linux(pod).security_context.privileged
    assert not cri_security.sandbox_linux(a_pod()).security_context.privileged


def test_sysctls_are_the_sandboxs() -> None:
    """With the default profile of seccomp, whatever the containers have."""
    pod = a_pod(security=PodSecurity(sysctls=(("net.core.somaxconn", "9"),)))
    made = cri_security.sandbox_linux(pod)

    assert dict(made.sysctls) == {"net.core.somaxconn": "9"}
    assert made.security_context.seccomp.profile_type == PROFILE.RuntimeDefault


def test_ports_of_the_host_are_those_that_are_asked_for() -> None:
    """A pod on the host's network has them without being led there."""
    ports = (
        ContainerPort(80),
        ContainerPort(81, host_port=8081),
        ContainerPort(82, "", Protocol.SCTP, 8082, "10.0.0.1"),
    )
    pod = a_pod(a_container(ports=ports))
    on_host = a_pod(a_container(ports=ports), namespaces=HostNamespaces(network=True))

    assert cri_security.port_mappings(pod) == [
        pb.PortMapping(protocol=pb.TCP, container_port=81, host_port=8081),
        pb.PortMapping(protocol=pb.SCTP, container_port=82, host_port=8082, host_ip="10.0.0.1"),
    ]
    assert cri_security.port_mappings(on_host) == []


def request(**values: Any) -> ContainerConfig:
    """Make what a container is made from."""
    pod = a_pod(a_container(**values))
    sandbox = SandboxConfig(pod, 0, hostname="web", log_directory="")
    return ContainerConfig(
        pod=pod,
        sandbox=sandbox,
        container=pod.spec.containers[0],
        attempt=3,
        command=(),
        args=(),
        environment={},
        mounts=(),
        resources=KernelResources(2, 0, 0, 0),
        log_path="",
    )


def test_a_container_carries_what_others_read_of_it() -> None:
    """The annotations of the original kubelet."""
    made = container_config(request(termination_message_path="/x"))

    assert dict(made.annotations) == {
        "io.kubernetes.container.hash": spec_hash(a_container()),
        "io.kubernetes.container.restartCount": "3",
        "io.kubernetes.container.terminationMessagePath": "/x",
        "io.kubernetes.container.terminationMessagePolicy": "File",
    }


def test_a_hash_is_of_name_and_image_alone() -> None:
    """What else a spec says cannot change while its pod lives."""
    assert spec_hash(a_container()) == spec_hash(a_container(tty=True))
    assert len({spec_hash(a_container(**v)) for v in ({}, {"image": "b"}, {"name": "b"})}) == 3


@pytest.mark.parametrize("name", sorted(SIGNALS))
def test_each_signal_of_a_manifest_is_one_of_the_cri(name: str) -> None:
    """By its name."""
    made = container_config(request(lifecycle=Lifecycle(stop_signal=name)))

    assert made.stop_signal != pb.SIGNAL_RUNTIME_DEFAULT


def test_signals_are_called_as_the_cri_calls_them() -> None:
    """None is the image's own."""
    wanted = {"": "RUNTIME_DEFAULT", "SIGUSR1": "SIGUSR1", "SIGRTMIN+1": "SIGRTMINPLUS1"}
    made = {name: container_config(request(lifecycle=Lifecycle(stop_signal=name))) for name in wanted}

    assert {name: pb.Signal.Name(config.stop_signal) for name, config in made.items()} == {
        name: f"SIGNAL_{signal}" for name, signal in wanted.items()
    }


def test_a_container_that_looks_at_another_shares_its_processes() -> None:
    """Others have their own."""
    looker = container_config(replace(request(stdin=True, stdin_once=True), target=ContainerId("c1")))
    other = container_config(request())

    options = looker.linux.security_context.namespace_options
    assert (options.pid, options.target_id) == (pb.TARGET, "c1")
    assert (looker.stdin, looker.stdin_once) == (True, True)
    assert other.linux.security_context.namespace_options.pid == pb.CONTAINER
