"""What a pod may do is what its manifest says, as the kernel has it: the same on every runtime."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tripod.kubelet.v1 import object_service_pb2 as object_pb
from tripod.kubelet.v1 import object_service_pb2_grpc as object_grpc
from tripod.kubelet.v1 import pod_service_pb2 as pod_pb

from services.common.errors import RemoteError
from services.common.grpcclient import call
from tests.lab.node import BareNode, Node, pod
from tests.runtimes.inside import process, said

pytestmark = [
    pytest.mark.docker,
    pytest.mark.netns,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(180),
]
NET_BIND_SERVICE = 1 << 10
# The capabilities that every engine knows.
OLD = (1 << 38) - 1


def of_host(path: str) -> str:
    """Read a file of the host."""
    return Path(path).read_text().strip()


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def _empty(made: BareNode) -> AsyncIterator[None]:
    yield
    await made.delete_all()


def ours(request: pytest.FixtureRequest) -> bool:
    """Tell whether the runtime is our own CRI server."""
    return request.node.callspec.params["made"] == "our-cri-server"  # type: ignore[no-any-return]  # of pytest


async def started(made: BareNode, name: str, *command: str, **spec: Any) -> None:
    """Apply a pod and wait until it is ready."""
    await made.apply(pod(name, *command, **spec))
    await made.ready(name)


async def test_a_container_is_who_it_should_be(made: BareNode) -> None:
    """User, group, more groups; a volume is its group's, and so is what it writes there."""
    await started(
        made,
        "who",
        securityContext={
            **{"runAsUser": 1234, "runAsGroup": 2345, "runAsNonRoot": True},
            **{"supplementalGroups": [3456], "fsGroup": 4567},
        },
        container={"volumeMounts": [{"name": "data", "mountPath": "/data"}]},
        volumes=[{"name": "data", "emptyDir": {}}],
    )
    seen = await process(made, "who")
    files = await said(
        made,
        "who",
        "sh",
        "-c",
        "echo > /data/x; busybox stat -c '%u %g %a' /data; busybox stat -c %g /data/x",
    )

    assert seen["Uid"] == "1234 1234 1234 1234"
    assert seen["Gid"] == "2345 2345 2345 2345"
    assert {"3456", "4567"} <= set(seen["Groups"].split())
    assert files.split() == ["0", "4567", "2777", "4567"]


async def test_files_that_are_brought_in_are_the_groups_too(made: BareNode) -> None:
    """Those of a secret can be read by the group and nobody else; a volume in memory is the group's."""
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "for-a-group"},
        "stringData": {"word": "sesame"},
    }
    wanted = pod(
        "reads",
        securityContext={"runAsUser": 1234, "fsGroup": 4567},
        container={
            "volumeMounts": [{"name": "words", "mountPath": "/words"}, {"name": "fast", "mountPath": "/fast"}]
        },
        volumes=[
            {"name": "words", "secret": {"secretName": "for-a-group", "defaultMode": 0o400}},
            {"name": "fast", "emptyDir": {"medium": "Memory"}},
        ],
    )
    await made.apply(secret, wanted)
    await made.ready("reads")
    look = (
        "cat /words/word; echo; busybox stat -Lc '%u %g %a' /words/word; "
        "echo > /fast/x; busybox stat -c %g /fast/x"
    )

    assert (await said(made, "reads", "sh", "-c", look)).split() == ["sesame", "0", "4567", "440", "4567"]


async def test_a_container_goes_before_its_pod(made: BareNode) -> None:
    """For what it says, and no further."""
    context = {"runAsUser": 5, "runAsNonRoot": False}
    pods = {"runAsUser": 1234, "runAsGroup": 2345, "runAsNonRoot": True}
    await started(made, "first", securityContext=pods, container={"securityContext": context})
    seen = await process(made, "first")

    assert (seen["Uid"].split()[0], seen["Gid"].split()[0]) == ("5", "2345")


async def test_a_container_without_a_word_is_confined(made: BareNode) -> None:
    """The default profile of seccomp, hidden and read-only paths; root may still gain what it lost."""
    await started(made, "plain")
    seen = await process(made, "plain")
    kept = await said(made, "plain", "sh", "-c", "ls -A /sys/firmware; echo 1 > /proc/sys/kernel/pid_max")

    assert (seen["Seccomp"], seen["NoNewPrivs"]) == ("2", "0")
    assert kept == "sh: can't create /proc/sys/kernel/pid_max: Read-only file system"


async def test_a_hardened_container_can_do_little(made: BareNode) -> None:
    """One capability, no new privileges, a root that cannot be written."""
    context = {
        "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
    }
    await started(made, "hard", container={"securityContext": context})
    seen = await process(made, "hard")

    assert int(seen["CapEff"], 16) == int(seen["CapBnd"], 16) == NET_BIND_SERVICE
    assert (seen["NoNewPrivs"], seen["Seccomp"]) == ("1", "2")
    assert "Read-only file system" in await said(made, "hard", "mkdir", "/new")


@pytest.mark.parametrize(
    ("profile", "mode", "refused"), [("Unconfined", "0", False), ("Localhost", "2", True)]
)
async def test_a_profile_is_the_one_that_is_named(
    made: BareNode, profile: str, mode: str, refused: bool
) -> None:
    """One of the node forbids a system call."""
    rules = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}
    folder = made.state / "seccomp" / "team"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "no-folders.json").write_text(
        json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rules]})
    )
    named = {"type": profile, **({"localhostProfile": "team/no-folders.json"} if refused else {})}
    await started(made, "profiled", securityContext={"seccompProfile": named})

    assert (await process(made, "profiled"))["Seccomp"] == mode
    assert ("not permitted" in await said(made, "profiled", "mkdir", "/new")) is refused


async def test_a_privileged_container_may_what_the_host_can_give(
    made: BareNode, request: pytest.FixtureRequest
) -> None:
    """All capabilities, devices and no profile; on ours what lacks is told."""
    await started(made, "mighty", container={"securityContext": {"privileged": True}})
    seen = await process(made, "mighty")
    bounding = int(of_host("/proc/1/status").partition("CapBnd:")[2].split()[0], 16)
    effective = int(seen["CapEff"], 16)
    events = {event.reason for event in await made.events("mighty")}

    assert seen["Seccomp"] == "0"
    assert effective & OLD == bounding & OLD
    assert effective & ~bounding == 0
    if ours(request):
        assert ("PrivilegesRestricted" in events) is not bool(bounding >> 24 & 1)


async def test_a_pod_that_takes_more_of_the_disk_than_it_may_is_ended(made: BareNode) -> None:
    """What it writes beside its volumes counts, where the runtime tells; so do its logs and volumes."""
    limits = {"resources": {"limits": {"ephemeral-storage": "1Mi"}}}
    fill = "dd if=/dev/zero of=/data/x bs=1M count=3; sleep 100000"
    mounts = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    volumes = [{"name": "data", "emptyDir": {}}]
    await made.apply(pod("fills", "sh", "-c", fill, container={**limits, **mounts}, volumes=volumes))
    found = await made.phase("fills", pod_pb.POD_PHASE_FAILED)

    assert found.reason == "Evicted"
    assert "exceeds the total limit of containers 1Mi" in found.message


async def test_kernel_settings_are_the_pods(made: BareNode) -> None:
    """A safe one, in its own network."""
    setting = {"name": "net.ipv4.ip_unprivileged_port_start", "value": "80"}
    await started(made, "tuned", securityContext={"sysctls": [setting]})
    path = "/proc/sys/net/ipv4/ip_unprivileged_port_start"

    assert await said(made, "tuned", "cat", path) == "80"
    assert of_host(path) != "80"


async def test_containers_share_their_processes_when_they_are_to(made: BareNode) -> None:
    """The first process is the sandbox's, and each sees the other's."""
    wanted = pod("shares", shareProcessNamespace=True)
    other = {**wanted["spec"]["containers"][0], "name": "other", "command": ["sleep", "4242"]}
    wanted["spec"]["containers"].append(other)
    alone = pod("alone")
    await made.apply(wanted, alone)
    await made.ready("shares")
    await made.ready("alone")
    seen = await said(made, "shares", "busybox", "ps", "-o", "args")

    assert "sleep 4242" in seen
    assert "catatonit" in await said(made, "shares", "cat", "/proc/1/comm")
    assert "sleep" in await said(made, "alone", "cat", "/proc/1/comm")


async def test_namespaces_of_the_host_are_the_hosts(made: BareNode) -> None:
    """Processes and IPC; another pod has its own."""
    await made.apply(pod("host", hostPID=True, hostIPC=True), pod("own"))
    await made.ready("host")
    await made.ready("own")
    ipc = str(await asyncio.to_thread(Path("/proc/self/ns/ipc").readlink))

    assert of_host("/proc/1/comm") == await said(made, "host", "cat", "/proc/1/comm")
    assert await said(made, "host", "busybox", "readlink", "/proc/self/ns/ipc") == ipc
    assert await said(made, "own", "busybox", "readlink", "/proc/self/ns/ipc") != ipc


async def test_names_and_resolver_are_the_pods(made: BareNode) -> None:
    """The whole name where it is asked for, aliases, and a resolver of its own."""
    await started(
        made,
        "named",
        subdomain="sub",
        setHostnameAsFQDN=True,
        hostAliases=[{"ip": "192.0.2.7", "hostnames": ["db", "db.shop"]}],
        dnsPolicy="None",
        dnsConfig={
            "nameservers": ["192.0.2.53"],
            "searches": ["shop.example"],
            "options": [{"name": "ndots", "value": "3"}],
        },
    )
    address = (await made.pods())["named"].pod_ips[0]
    hosts = (await said(made, "named", "cat", "/etc/hosts")).splitlines()
    full = "named.sub.default.svc.cluster.local"

    assert await said(made, "named", "busybox", "hostname") == full
    assert await said(made, "named", "busybox", "hostname", "-f") == full
    assert f"{address}\t{full}\tnamed" in hosts
    assert hosts[-1] == "192.0.2.7\tdb\tdb.shop"
    assert sorted((await said(made, "named", "cat", "/etc/resolv.conf")).splitlines()) == [
        *("nameserver 192.0.2.53", "options ndots:3", "search shop.example"),
    ]


async def test_a_container_that_would_be_root_does_not_start(made: BareNode) -> None:
    """The image says nothing of a user, so it runs as root."""
    await made.apply(pod("rootless", container={"securityContext": {"runAsNonRoot": True}}))
    found = await made.waits("rootless", "CreateContainerConfigError")
    failed = [event.message for event in await made.events("rootless") if event.reason == "Failed"]

    assert "container has runAsNonRoot and image will run as root" in found.containers[0].state.message
    assert failed[0].startswith("Error: container has runAsNonRoot")
    assert not found.containers[0].container_id


async def test_an_image_s_own_user_is_looked_at(made: BareNode) -> None:
    """A number that is not root runs; a name may lead to root, so it does not."""
    if not isinstance(made, Node):
        pytest.skip("images with users are made by the engine")
    await asyncio.to_thread(made.engine.add_image, "tripod-number:1", "USER 1000:0")
    await asyncio.to_thread(made.engine.add_image, "tripod-name:1", "USER nobody")
    context = {"securityContext": {"runAsNonRoot": True}}
    await made.apply(pod("number", image="tripod-number:1", container=context))
    await made.apply(pod("name", image="tripod-name:1", container=context))
    await made.ready("number")
    found = await made.waits("name", "CreateContainerConfigError")

    assert (await process(made, "number"))["Uid"].split()[0] == "1000"
    assert "image has non-numeric user (nobody), cannot verify" in found.containers[0].state.message


async def test_a_runtime_that_is_not_there_is_told(made: BareNode) -> None:
    """The pod waits, and its events say for what."""
    await made.apply(pod("elsewhere", runtimeClassName="no-such-handler"))
    said_: list[str] = []

    async def told() -> bool:
        events = await made.events("elsewhere")
        said_[:] = [event.message for event in events if event.reason == "FailedCreatePodSandBox"]
        return bool(said_)

    await made.until(told, "the missing runtime is told")
    assert "no-such-handler" in said_[0]


@pytest.mark.parametrize(
    ("spec", "reason", "path"),
    [
        pytest.param(
            {"container": {"resources": {"requests": {"cpu": "1000"}}}},
            "OutOfcpu",
            "spec.containers[0].resources.requests.cpu",
            id="more-than-there-is",
        ),
        pytest.param({"nodeName": "elsewhere"}, "NodeName", "spec.nodeName", id="another-node"),
        pytest.param(
            {"nodeSelector": {"disk": "ssd"}}, "NodeAffinity", "spec.nodeSelector", id="another-kind-of-node"
        ),
        pytest.param(
            {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}},
            "SysctlForbidden",
            "spec.securityContext.sysctls",
            id="an-unsafe-sysctl",
        ),
    ],
)
async def test_what_this_node_cannot_take_is_refused(
    made: BareNode, spec: dict[str, Any], reason: str, path: str
) -> None:
    """When it is applied, with the field and the reason; nothing is stored."""
    stub = object_grpc.ObjectServiceStub(made.channel)
    request = object_pb.ApplyObjectsRequest(manifest=json.dumps(pod("never", **spec)).encode())
    with pytest.raises(RemoteError) as refused:
        await call(stub.ApplyObjects, request, deadline_seconds=5)

    assert [v.field for v in refused.value.violations] == [f"Pod never: {path}"]
    assert refused.value.violations[0].description.startswith(f"{reason}: ")
    assert "never" not in await made.pods()
