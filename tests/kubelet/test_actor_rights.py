"""What the kubelet asks of the runtime for a container's rights, names and resolver."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from services.common.errors import TripodError
from services.kubelet.core import plan
from services.kubelet.core.dns import DnsPolicy, DnsWish, NodeDns
from services.kubelet.core.hostname import HostAlias, Naming
from services.kubelet.core.model import Pod
from services.kubelet.core.observed import ObservedPod
from services.kubelet.core.security import (
    ContainerSecurity,
    HostNamespaces,
    PodSecurity,
    Profile,
    ProfileType,
)
from services.kubelet.loops.actions import NodeFacts, Outcome
from services.kubelet.ports import ContainerConfig, SandboxConfig
from tests.builders import a_container, a_pod
from tests.fakes.actor import an_actor
from tests.fakes.files import FakeFiles
from tests.fakes.runtime import FakeRuntime

pytestmark = pytest.mark.asyncio
FACTS = NodeFacts(
    Path("/state"),
    1 << 30,
    "192.0.2.1",
    NodeDns(servers=("9.9.9.9",), own_servers=("127.0.0.1",), cluster_servers=("10.0.0.10",)),
)


class _Runtime(FakeRuntime):
    """Keeps what it was asked for."""

    def __init__(self) -> None:
        super().__init__(present=["app:1"])
        self.sandboxes: list[SandboxConfig] = []
        self.made: list[ContainerConfig] = []

    async def create_sandbox(self, config: SandboxConfig) -> Any:
        self.sandboxes.append(config)
        return await super().create_sandbox(config)

    async def create_container(self, sandbox: Any, config: ContainerConfig) -> Any:
        self.made.append(config)
        return await super().create_container(sandbox, config)


class _Events:
    """Keeps events."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def emit(
        self, pod: Pod, reason: str, message: str, *, container: str = "", warning: bool = False
    ) -> None:
        self.told.append((reason, message))


async def started(pod: Pod, *, user: str = "", restriction: str = "") -> tuple[_Runtime, _Events, Outcome]:
    """Start a pod's one container on a fresh node."""
    runtime, events = _Runtime(), _Events()
    runtime.users["app:1"] = user
    actor = an_actor(
        runtime,
        None,  # type: ignore[arg-type]  # nothing is finalized
        FakeFiles(),
        events,
        FACTS,
        lambda: restriction,
    )
    actions: Sequence[plan.Action] = (
        plan.CreateSandbox(0, "new"),
        plan.StartContainer("app", 0, "new"),
    )
    outcome = await actor.apply(pod, ObservedPod(pod.uid), actions, lambda action: None)
    return runtime, events, outcome


NO_ROOT = PodSecurity(run_as_non_root=True)


async def test_a_container_that_would_be_root_is_not_made() -> None:
    """Its reason is that of the original, and an event says why."""
    runtime, events, outcome = await started(a_pod(security=NO_ROOT), user="0")

    assert runtime.made == []
    assert outcome.failures["app"].reason == "CreateContainerConfigError"
    assert "container has runAsNonRoot and image will run as root" in outcome.failures["app"].message
    assert ("Failed", f"Error: {outcome.failures['app'].message}") in events.told


async def test_a_number_that_was_checked_is_the_one_that_runs() -> None:
    """Another image may have the name by then."""
    runtime, _, _ = await started(a_pod(security=NO_ROOT), user="1000")

    assert runtime.made[0].rights.user == "1000"


@pytest.mark.parametrize(("user", "expected"), [("", "0"), ("7", "7"), ("web", "web")])
async def test_a_group_has_a_user(user: str, expected: str) -> None:
    """A runtime refuses one without the other."""
    runtime, _, _ = await started(a_pod(security=PodSecurity(run_as_group=5)), user=user)

    assert (runtime.made[0].rights.user, runtime.made[0].rights.group) == (expected, 5)


async def test_an_image_is_not_asked_for_a_user_that_does_not_count() -> None:
    """It is a call for each start."""
    runtime, _, _ = await started(a_pod(), user="7")

    assert "image_user" not in runtime.calls
    assert runtime.made[0].rights.user == ""


async def test_a_profile_of_the_node_lies_in_its_folder() -> None:
    """The runtime is given the file's path."""
    profile = Profile(ProfileType.LOCALHOST, "team/a.json")
    runtime, _, _ = await started(a_pod(a_container(security=ContainerSecurity(seccomp=profile))))

    assert runtime.made[0].rights.seccomp.localhost == "/state/seccomp/team/a.json"


async def test_what_a_privileged_container_lacks_is_told() -> None:
    """Once for each start, where the host cannot give all."""
    privileged = a_pod(a_container(security=ContainerSecurity(privileged=True)))
    _, events, _ = await started(privileged, restriction="the host lacks it")
    _, others, _ = await started(a_pod(), restriction="the host lacks it")

    assert ("PrivilegesRestricted", "the host lacks it") in events.told
    assert others.told[-1][0] == "Started"
    assert "PrivilegesRestricted" not in [reason for reason, _ in others.told]


async def test_a_pod_on_the_hosts_network_has_the_hosts_names() -> None:
    """Its name, its hosts file and its resolver are the node's."""
    naming = Naming(host_aliases=(HostAlias("10.0.0.9", ("db",)),))
    pod = a_pod(namespaces=HostNamespaces(network=True), naming=naming)
    runtime, files = _Runtime(), FakeFiles()
    actor = an_actor(runtime, None, files, _Events(), FACTS)  # type: ignore[arg-type]  # as above
    steps = (plan.CreateSandbox(0, "new"), plan.StartContainer("app", 0, "new"))
    await actor.apply(pod, ObservedPod(pod.uid), steps, lambda action: None)

    assert runtime.sandboxes[0].hostname == ""
    assert runtime.sandboxes[0].dns.servers == ("127.0.0.1",)
    assert files.hosts[pod.uid].startswith("# Kubernetes-managed hosts file (host network).\n127.0.0.1")
    assert files.hosts[pod.uid].endswith("10.0.0.9\tdb\n")


async def test_a_resolver_that_was_cut_is_told() -> None:
    """As an event of the pod, once for each sandbox."""
    wish = DnsWish(DnsPolicy.NONE, ("1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"))
    runtime, events, _ = await started(a_pod(dns=wish))

    assert runtime.sandboxes[0].dns.servers == ("1.1.1.1", "2.2.2.2", "3.3.3.3")
    assert [reason for reason, _ in events.told].count("DNSConfigForming") == 1


async def test_a_name_that_is_too_long_makes_no_sandbox() -> None:
    """An event says so."""
    pod = a_pod(name="a" * 60, naming=Naming("sub", hostname_as_fqdn=True))
    with pytest.raises(TripodError, match="is too long"):
        await started(pod)


async def test_a_runtime_class_names_a_handler() -> None:
    """Standalone the one of its own name; none is the runtime's default."""
    runtime, _, _ = await started(a_pod(runtime_class_name="gvisor"))
    others, _, _ = await started(a_pod())

    assert (runtime.sandboxes[0].runtime_handler, others.sandboxes[0].runtime_handler) == ("gvisor", "")
