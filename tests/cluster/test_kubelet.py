"""A kubelet process in a cluster: registration, pods, faults of the API, kills in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tripod.kubelet.v1 import object_service_pb2 as object_pb
from tripod.kubelet.v1 import object_service_pb2_grpc as object_grpc
from tripod.trace.v1 import trace_service_pb2 as trace_pb
from tripod.trace.v1 import trace_service_pb2_grpc as trace_grpc

from services.common import telemetry_names
from services.common.errors import RemoteError
from services.common.grpcclient import call
from services.common.telemetry import episode_trace_id
from services.kubelet.core.kube_resources import CONFIG_MAPS, EVENTS, LEASES, NODES, PODS
from tests.lab.cluster_node import NODE, ClusterNode, a_pod, fake_cluster, real_cluster
from tests.lab.kubernetes import ControlPlane, control_plane, needs_kubernetes
from tools.cluster.component import PEERS

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.process, pytest.mark.timeout(240)]
STATIC = """
apiVersion: v1
kind: Pod
metadata: {name: fixed}
spec:
  containers: [{name: app, image: "app:1"}]
"""
OWN = """
apiVersion: v1
kind: ConfigMap
metadata: {name: own}
data: {COLOUR: green}
---
apiVersion: v1
kind: Pod
metadata: {name: own}
spec:
  containers: [{name: app, image: "app:1", envFrom: [{configMapRef: {name: own}}]}]
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane() -> AsyncIterator[ControlPlane | None]:
    """Run an API server, where one is built."""
    if not (PEERS / "kube-apiserver").exists():
        yield None
        return
    async with control_plane() as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def fake_node(short_path: Path) -> AsyncIterator[ClusterNode]:
    """Run a kubelet that has joined the fake API server."""
    async with fake_cluster(short_path) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module", params=["fake", pytest.param("real", marks=needs_kubernetes)])
async def node(
    request: pytest.FixtureRequest, short_path: Path, plane: ControlPlane | None
) -> AsyncIterator[ClusterNode]:
    """Run a kubelet that has joined the fake API server, or a real one."""
    if request.param == "fake":
        async with fake_cluster(short_path) as made:
            yield made
    else:
        assert plane is not None, "else it is skipped"
        async with real_cluster(short_path, plane) as made:
            yield made


async def test_a_node_joins_with_a_lease_a_status_and_events(node: ClusterNode) -> None:
    """kubectl shows it as any other."""
    found = await node.until(lambda: ready_node(node), "the node is ready")
    leases = await node.until(lambda: node.all(LEASES), "there is a lease")
    events = await node.until(lambda: told_ready(node), "the node's events are there")

    assert found["metadata"]["labels"]["kubernetes.io/hostname"] == NODE
    assert found["status"]["addresses"] == [
        {"type": "InternalIP", "address": "192.0.2.7"},
        {"type": "Hostname", "address": NODE},
    ]
    info = dict(found["status"]["nodeInfo"])
    assert not info.pop("kubeProxyVersion")
    assert all(info.values())
    able = {"recursiveReadOnlyMounts": True, "userNamespaces": False}
    assert found["status"]["features"] == {"supplementalGroupsPolicy": True}
    assert found["status"]["runtimeHandlers"] == [{"name": n, "features": able} for n in ("", "runc")]
    assert found["status"]["nodeInfo"]["kubeletVersion"].startswith("v1.37.")
    assert found["status"]["nodeInfo"]["containerRuntimeVersion"] == "fake://1"
    assert leases[0]["metadata"]["name"] == NODE
    assert list(events)[-1] == "NodeReady"
    assert {"Starting", "NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID"} <= set(
        events
    )
    assert {event["type"] for event in events.values()} == {"Normal"}
    assert events["NodeReady"]["message"] == f"Node {NODE} status is now: NodeReady"


async def test_a_cordon_and_a_reboot_are_events(node: ClusterNode) -> None:
    """As kubectl describe shows them."""
    await node.until(lambda: told_ready(node), "the node's events are there")
    await node.api.patch(NODES, "", NODE, {"spec": {"unschedulable": True}})
    await node.until(lambda: told(node, "NodeNotSchedulable"), "the cordon is told")
    await node.service.kill()
    before = {"status": {"nodeInfo": {"bootID": "another"}}}
    await node.api.patch(NODES, "", NODE, before, subresource="status")
    await node.service.start()

    found = await node.until(lambda: told(node, "Rebooted"), "the reboot is told")
    assert found["type"] == "Warning"
    assert found["message"].startswith(f"Node {NODE} has been rebooted, boot id: ")


async def node_events(node: ClusterNode) -> dict[str, Any]:
    """Return the node's own events by their reasons, the oldest first."""
    found = [e for e in await node.all(EVENTS) if e["involvedObject"].get("uid") == NODE]
    # Their names end with the time, in hexadecimal.
    return {e["reason"]: e for e in sorted(found, key=lambda e: str(e["metadata"]["name"]))}


async def told(node: ClusterNode, reason: str) -> Any:
    """Return the node's event of a reason; None when there is none."""
    return (await node_events(node)).get(reason)


async def told_ready(node: ClusterNode) -> Any:
    """Return the node's events when it has told that it is ready."""
    found = await node_events(node)
    return found if "NodeReady" in found else None


async def test_a_node_tells_its_images_once(node: ClusterNode) -> None:
    """Those with a name; the runtime has one without, too. They are not told again while they stay."""

    async def with_images() -> Any:
        found = await node.get(NODES, NODE, "")
        return found if found and found.get("status", {}).get("images") else None

    found = await node.until(with_images, "the images are told")
    assert found["status"]["images"] == [{"names": ["app:1"], "sizeBytes": 1000}]
    ready = await node.until(lambda: ready_node(node), "the node is ready")
    # The status is compared as often as the lease is renewed.
    await renewed(node)
    await renewed(node)
    assert heartbeat(await node.get(NODES, NODE, "")) == heartbeat(ready)


async def renewed(node: ClusterNode) -> None:
    """Wait until the lease is renewed."""

    async def time() -> str:
        leases = await node.all(LEASES)
        return str(leases[0]["spec"]["renewTime"]) if leases else ""

    async def moved() -> bool:
        return await time() != before

    before = await time()
    await node.until(moved, "the lease is renewed")


def heartbeat(node: Any) -> str:
    """Return when the status was told last."""
    return next(str(c["lastHeartbeatTime"]) for c in node["status"]["conditions"] if c["type"] == "Ready")


async def ready_node(node: ClusterNode) -> Any:
    """Return the Node when it is ready."""
    found = await node.get(NODES, NODE, "")
    conditions = (found or {}).get("status", {}).get("conditions", ())
    return found if any(c["type"] == "Ready" and c["status"] == "True" for c in conditions) else None


async def test_a_pod_runs_and_goes(node: ClusterNode) -> None:
    """Its status is told, also the last one before the API forgets it."""
    made = await node.create(a_pod("web"))
    uid = made["metadata"]["uid"]
    running = await node.condition("web", "Ready")

    assert running["status"]["phase"] == "Running"
    assert running["status"]["containerStatuses"][0]["ready"] is True
    assert running["status"]["observedGeneration"] == 1
    await node.api.delete(PODS, "default", "web")
    await node.gone("web")
    assert not node.fake.running(uid)
    if node.server is not None:
        told = [s.body["status"] for s in node.server.seen if s.resource == "pods/status"]
        assert told[-1]["containerStatuses"][0]["state"].keys() == {"terminated"}


async def test_static_pods_have_mirrors(node: ClusterNode) -> None:
    """They run from the file; a mirror that is deleted comes again and disturbs nothing."""
    (node.manifests / "fixed.yaml").write_text(STATIC)
    first = await node.condition(f"fixed-{NODE}", "Ready")
    static_uid = first["metadata"]["annotations"]["kubernetes.io/config.mirror"]

    await node.api.delete(PODS, "default", f"fixed-{NODE}", grace_seconds=0)

    async def again() -> bool:
        pod = await node.pod(f"fixed-{NODE}")
        return pod is not None and pod["metadata"]["uid"] != first["metadata"]["uid"]

    await node.until(again, "the mirror is there again")
    await node.condition(f"fixed-{NODE}", "Ready")
    assert [kind for kind, _, _ in node.history(static_uid)].count("sandbox") == 1
    (node.manifests / "fixed.yaml").unlink()
    await node.gone(f"fixed-{NODE}")
    await node.until(lambda: not node.fake.running(static_uid), "the static pod has ended")


async def test_a_field_that_cannot_be_honoured_fails_the_pod_with_its_path(node: ClusterNode) -> None:
    """It is never run without it, and says so."""
    volume = {"name": "v", "persistentVolumeClaim": {"claimName": "v"}}
    await node.create(a_pod("bad", volumes=[volume]))

    async def failed() -> Any:
        pod = await node.pod("bad")
        return pod if pod and pod["status"]["phase"] == "Failed" else None

    pod = await node.until(failed, "the pod has failed")
    assert pod["status"]["reason"] == "UnsupportedField"
    assert "spec.volumes[0].persistentVolumeClaim" in pod["status"]["message"]


async def test_too_much_is_refused_at_admission(node: ClusterNode) -> None:
    """Also when a scheduler did not ask whether it fits."""
    huge = {"name": "app", "image": "app:1", "resources": {"requests": {"cpu": "1000"}}}
    await node.create(a_pod("huge", containers=[huge]))

    async def failed() -> Any:
        pod = await node.pod("huge")
        return pod if pod and pod["status"]["phase"] == "Failed" else None

    assert (await node.until(failed, "the pod has failed"))["status"]["reason"] == "OutOfcpu"


async def test_objects_are_not_applied_to_a_node_of_a_cluster(node: ClusterNode) -> None:
    """Whoever tries is told who holds them."""
    await node.until(lambda: node.get(NODES, NODE, ""), "the node is there")
    stub = object_grpc.ObjectServiceStub(node.channel)

    request = object_pb.ApplyObjectsRequest(manifest=STATIC.encode())
    with pytest.raises(RemoteError) as caught:
        await call(stub.ApplyObjects, request, deadline_seconds=5.0)

    assert caught.value.reason == "CLUSTER_MODE"
    assert "kubectl apply" in caught.value.message


async def test_a_kill_disturbs_no_pod(node: ClusterNode) -> None:
    """The kubelet finds its pods again, and tells what happened meanwhile."""
    made = await node.create(a_pod("web"))
    uid = made["metadata"]["uid"]
    await node.condition("web", "Ready")
    before = node.history(uid)

    await node.service.kill()
    await node.create(a_pod("late"))
    await node.api.delete(PODS, "default", "web")
    await node.service.start()

    await node.condition("late", "Ready")
    await node.gone("web")
    # It was stopped for its deletion, once, and nothing else was done with it.
    assert node.history(uid) == [*before, ("stop", "app", 0)]
    assert not node.fake.violations


async def test_without_the_api_pods_come_back_and_end_when_it_says_so(fake_node: ClusterNode) -> None:
    """A whole node that starts without its control plane runs what was accepted last."""
    node = fake_node
    assert node.server is not None
    kept = (await node.create(a_pod("kept")))["metadata"]["uid"]
    gone = (await node.create(a_pod("gone")))["metadata"]["uid"]
    await node.condition("kept", "Ready")
    await node.condition("gone", "Ready")
    await node.service.kill()
    await node.server.stop()
    node.fake.reboot()

    await node.service.start()
    await node.until(lambda: node.fake.running(kept) and node.fake.running(gone), "both run again")

    async def told() -> bool:
        try:
            found = (await node.node()).node.conditions
        except RemoteError:
            return False
        return any(c.type == "ApiServerReachable" and "does not answer since" in c.message for c in found)

    await node.until(told, "the node says that the API is away")
    node.server.remove("pods", "default", "gone")
    await node.server.start()
    await node.until(lambda: not node.fake.running(gone), "the deleted pod ended")
    await node.condition("kept", "Ready")
    assert len(node.fake.running(kept)) == 1
    assert not node.fake.violations


async def test_cut_streams_compactions_and_refusals_lose_nothing(fake_node: ClusterNode) -> None:
    """What happens meanwhile is told when it is over, and nothing is started twice."""
    node = fake_node
    assert node.server is not None
    uid = (await node.create(a_pod("steady")))["metadata"]["uid"]
    await node.condition("steady", "Ready")
    before = node.history(uid)

    for number in range(8):
        await node.create(a_pod(f"p{number}"))
        match number % 4:
            case 0:
                node.server.cut_streams()
            case 1:
                node.server.refuse(429, times=3, retry_after="1")
            case 2:
                node.server.compact()
                node.server.cut_streams()
            case _:
                node.server.refuse(500, times=3)
        await asyncio.sleep(0.2)

    for number in range(8):
        await node.condition(f"p{number}", "Ready")
    assert node.history(uid) == before
    assert not node.fake.violations


async def test_a_readiness_gate_counts(node: ClusterNode) -> None:
    """A pod is ready when others say so, too; their condition stays."""
    await node.create(a_pod("gated", readinessGates=[{"conditionType": "example.com/in"}]))
    await node.condition("gated", "ContainersReady")
    pod = await node.condition("gated", "Ready", "False")
    assert any(c.get("reason") == "ReadinessGatesNotReady" for c in pod["status"]["conditions"])

    gate = {"type": "example.com/in", "status": "True"}
    await node.api.patch(PODS, "default", "gated", {"status": {"conditions": [gate]}}, subresource="status")

    pod = await node.condition("gated", "Ready")
    assert gate in [{k: c[k] for k in ("type", "status")} for c in pod["status"]["conditions"]]


async def test_a_start_is_one_trace_from_the_event_to_the_told_status(fake_node: ClusterNode) -> None:
    """It begins when the API told of the pod, and ends with the patch that says that it is ready."""
    node = fake_node
    uid = (await node.create(a_pod("traced")))["metadata"]["uid"]
    await node.condition("traced", "Ready")
    trace_id = f"{episode_trace_id(uid, telemetry_names.POD_START, 0):032x}"
    stub = trace_grpc.TraceServiceStub(node.channel)

    async def spans() -> Any:
        answer = await call(stub.GetTrace, trace_pb.GetTraceRequest(trace_id=trace_id), deadline_seconds=5.0)
        names = [span.name for span in answer.spans]
        return answer.spans if "kube patch pods/status" in names and "pod.start" in names else None

    found = await node.until(spans, "the trace is whole")
    names = {span.name for span in found}
    assert {"pod.receive", "worker.queue", "sandbox.create", "container.start", "status.publish"} <= names


async def test_pods_bring_in_objects_of_the_api_and_of_their_directory(node: ClusterNode) -> None:
    """A ConfigMap of the API for a pod of the API, one of the directory for a static pod."""
    meta = {"name": "settings", "namespace": "default"}
    await node.api.create(CONFIG_MAPS, "default", {"metadata": meta, "data": {"COLOUR": "blue"}})
    from_api = {"name": "app", "image": "app:1", "envFrom": [{"configMapRef": {"name": "settings"}}]}
    uid = (await node.create(a_pod("user", containers=[from_api])))["metadata"]["uid"]
    await node.condition("user", "Ready")
    assert environment(node, uid)["COLOUR"] == "blue"

    (node.manifests / "own.yaml").write_text(OWN)

    def static() -> list[str]:
        return [b.metadata.uid for b in node.fake.sandboxes.values() if b.metadata.name == f"own-{NODE}"]

    found = await node.until(lambda: static() and node.fake.running(static()[0]), "the static pod runs")
    assert found
    assert environment(node, static()[0])["COLOUR"] == "green"
    await node.api.delete(CONFIG_MAPS, "default", "settings")


def environment(node: ClusterNode, uid: str) -> dict[str, str]:
    """Return the variables that a pod's container was made with."""
    running = node.fake.running(uid)[0]
    return node.fake.environment(running.id)
