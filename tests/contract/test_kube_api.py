"""What our client, our reflector and the kubelet rely on of an API server: the fake's and a real one's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import pytest
import pytest_asyncio

from services.common import kubeconfig
from services.common.clock import SystemClock
from services.common.kubeapi import KubeApi
from services.common.kubeerror import KubeApiError
from services.common.kuberequest import Json, PatchType, Selection, WatchEvent
from services.common.reflector import Reflector
from services.common.replica import Change
from services.kubelet.core import kube_node
from services.kubelet.core.kube_resources import CONFIG_MAPS, LEASES, NODES, PODS
from tests.fakes.kube_server import KubeServer
from tests.lab.kubernetes import control_plane, needs_kubernetes
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")
_REAL = [needs_kubernetes, pytest.mark.process]


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=["fake", pytest.param("real", marks=_REAL)],
)
async def api(request: pytest.FixtureRequest) -> AsyncIterator[KubeApi]:
    """Give a client of a server, as its administrator."""
    if request.param == "fake":
        server = KubeServer()
        await server.start()
        made = KubeApi(server.access(), SystemClock(), agent="contract/1")
        yield made
        await made.close()
        await server.stop()
    else:
        async with control_plane() as plane:
            made = KubeApi(kubeconfig.load(str(plane.admin)), SystemClock(), agent="contract/1")
            yield made
            await made.close()


def a_map(name: str, value: str = "1", **labels: str) -> Json:
    """Write a ConfigMap."""
    meta = {"name": name, "namespace": "default", "labels": labels}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"v": value}}


def a_pod(name: str) -> Json:
    """Write a pod that is bound to a node that does not exist."""
    spec = {
        "nodeName": "nowhere",
        "terminationGracePeriodSeconds": 7,
        "automountServiceAccountToken": False,
        "containers": [{"name": "app", "image": "app:1"}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    }


async def refused(work: object) -> KubeApiError:
    """Return the error that a call raises."""
    with pytest.raises(KubeApiError) as caught:
        await work  # type: ignore[misc]  # a coroutine
    return caught.value


async def test_errors_have_the_servers_reason(api: KubeApi) -> None:
    """404, 409 for a name that is taken, 409 for a UID that differs."""
    absent = await refused(api.get(CONFIG_MAPS, "default", "absent"))
    await api.create(CONFIG_MAPS, "default", a_map("taken"))
    taken = await refused(api.create(CONFIG_MAPS, "default", a_map("taken")))
    other = await refused(api.delete(CONFIG_MAPS, "default", "taken", uid="another"))

    assert (absent.status, absent.reason, absent.absent) == (404, "NOT_FOUND", True)
    assert (taken.status, taken.reason) == (409, "ALREADY_EXISTS")
    assert (other.status, other.reason, other.replaced) == (409, "CONFLICT", True)


async def test_lists_come_in_parts_of_one_revision(api: KubeApi) -> None:
    """What is made meanwhile is in none of them."""
    for number in range(5):
        await api.create(CONFIG_MAPS, "default", a_map(f"part-{number}", test="parts"))
    chosen = Selection(CONFIG_MAPS, "default", label_selector="test=parts")

    first = await api.list(chosen, chunk=3)
    await api.create(CONFIG_MAPS, "default", a_map("part-9", test="parts"))
    second = await api.list(chosen, token=first.next_token, chunk=3)

    names = [item["metadata"]["name"] for item in (*first.items, *second.items)]
    assert names == [f"part-{number}" for number in range(5)]
    assert first.revision == second.revision


async def test_a_watch_goes_on_from_a_list(api: KubeApi) -> None:
    """In order, with the revision of each change, also that of a deletion."""
    chosen = Selection(CONFIG_MAPS, "default", field_selector="metadata.name=watched")
    revision = (await api.list(chosen)).revision
    await api.create(CONFIG_MAPS, "default", a_map("watched"))
    await api.create(CONFIG_MAPS, "default", a_map("unwatched"))
    await api.patch(CONFIG_MAPS, "default", "watched", {"data": {"v": "2"}}, kind=PatchType.MERGE)
    await api.delete(CONFIG_MAPS, "default", "watched")

    found: list[WatchEvent] = []
    async with aclosing(api.watch(chosen, revision=revision, seconds=60)) as events, asyncio.timeout(20):
        async for event in events:
            found += [event] if event.type not in ("OPENED", "BOOKMARK") else []
            if len(found) == 3:
                break

    assert [event.type for event in found] == ["ADDED", "MODIFIED", "DELETED"]
    revisions = [int(event.object["metadata"]["resourceVersion"]) for event in found]
    assert revisions == sorted(set(revisions))


async def test_a_watch_ends_in_order_when_its_time_is_up(api: KubeApi) -> None:
    """Nothing raises, so nothing before its end is doubted."""
    chosen = Selection(CONFIG_MAPS, "default")
    revision = (await api.list(chosen)).revision

    async with aclosing(api.watch(chosen, revision=revision, seconds=1)) as events, asyncio.timeout(20):
        kinds = [event.type async for event in events]

    assert kinds[0] == "OPENED"


async def test_a_status_is_a_part_of_its_own(api: KubeApi) -> None:
    """Conditions merge by their type; addresses can be replaced; the generation stays."""
    made = await api.create(PODS, "default", a_pod("parts"))
    uid = made["metadata"]["uid"]

    async def patch(status: Json) -> Json:
        body = {"metadata": {"uid": uid}, "status": status}
        return await api.patch(PODS, "default", "parts", body, subresource="status")

    await patch({"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "podIP": "10.0.0.1"})
    await patch({"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "True"}]})
    addresses = [{"$patch": "replace"}, {"ip": "10.0.0.2"}]
    after = await patch(
        {"podIPs": addresses, "podIP": "10.0.0.2", "conditions": [{"type": "Ready", "status": "False"}]}
    )

    status = after["status"]
    assert {c["type"]: c["status"] for c in status["conditions"]} == {"Ready": "False", "Other": "True"}
    assert [item["ip"] for item in status["podIPs"]] == ["10.0.0.2"]
    assert after["metadata"]["generation"] == made["metadata"]["generation"]
    wrong = {"metadata": {"uid": "another"}, "status": {"phase": "Failed"}}
    error = await refused(api.patch(PODS, "default", "parts", wrong, subresource="status"))
    assert (error.status, error.replaced) == (422, True)


async def test_a_pod_of_a_node_is_deleted_in_two_steps(api: KubeApi) -> None:
    """First it is asked to stop; who runs it deletes it then, with a grace of zero and its UID."""
    made = await api.create(PODS, "default", a_pod("leaving"))
    uid = made["metadata"]["uid"]

    await api.delete(PODS, "default", "leaving")
    asked = await api.get(PODS, "default", "leaving")
    assert asked["metadata"]["deletionGracePeriodSeconds"] == 7
    assert asked["metadata"]["deletionTimestamp"]

    await api.delete(PODS, "default", "leaving", grace_seconds=0, uid=uid)
    assert (await refused(api.get(PODS, "default", "leaving"))).absent


async def test_a_node_and_its_lease_can_be_kept(api: KubeApi) -> None:
    """A status without a change makes no revision; a lease is renewed by a merge patch."""
    name = "contract"
    wanted = kube_node.Registration(name, {"kubernetes.io/hostname": name})
    made = await api.create(NODES, "", kube_node.node(wanted))
    uid = made["metadata"]["uid"]
    status = {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}], "capacity": {"cpu": "2"}}
    body = kube_node.status_patch(uid, status)

    first = await api.patch(NODES, "", name, body, subresource="status")
    second = await api.patch(NODES, "", name, body, subresource="status")
    assert first["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]

    now = SystemClock().now()
    await api.create(LEASES, "kube-node-lease", kube_node.lease(name, uid, now))
    renewal = kube_node.renewal(name, SystemClock().now())
    renewed = await api.patch(LEASES, "kube-node-lease", name, renewal, kind=PatchType.MERGE)
    assert renewed["spec"]["renewTime"] == renewal["spec"]["renewTime"]


async def test_a_reflector_follows(api: KubeApi) -> None:
    """What is there, what comes, what changes, what goes."""
    told: list[tuple[str, str | None]] = []

    def tell(changes: Sequence[Change[str]]) -> None:
        told.extend((change.key, change.after) for change in changes)

    await api.create(CONFIG_MAPS, "default", a_map("there", test="reflected"))
    reflector: Reflector[str] = Reflector(
        api,
        Selection(CONFIG_MAPS, "default", label_selector="test=reflected"),
        read=lambda item: str(item["data"]["v"]),
        tell=tell,
        clock=SystemClock(),
    )
    async with asyncio.TaskGroup() as group:
        task = group.create_task(reflector.run())
        await until(reflector.synced.is_set)
        await api.create(CONFIG_MAPS, "default", a_map("comes", test="reflected"))
        await api.patch(CONFIG_MAPS, "default", "there", {"data": {"v": "2"}}, kind=PatchType.MERGE)
        await api.delete(CONFIG_MAPS, "default", "comes")
        await until(lambda: len(told) == 4)
        task.cancel()

    assert told == [
        ("default/there", "1"),
        ("default/comes", "1"),
        ("default/there", "2"),
        ("default/comes", None),
    ]
