"""The store: all or nothing, idempotent, and the same after every restart."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from services.common.clock import SystemClock
from services.common.watch import Upserted
from services.kubelet.core.admission import Refusal
from services.kubelet.core.allocate import Ranges
from services.kubelet.core.model import ObjectKey, Pod, Service
from services.kubelet.errors import ManifestError, ObjectTerminatingError
from services.kubelet.objects.store import ObjectStore, Result

pytestmark = pytest.mark.asyncio
POD_KEY = ObjectKey("Pod", "default", "web")


def pod(name: str = "web", image: str = "app:1", **labels: str) -> dict[str, object]:
    """Write a pod."""
    spec = {"containers": [{"name": "app", "image": image}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}


def spec_of(
    ephemeral: Sequence[object] = (), deadline: int | None = None, **container: object
) -> dict[str, object]:
    """Write the pod with more in its container and its spec."""
    containers = [{"name": "app", "image": "app:1", **container}]
    more = {"ephemeralContainers": list(ephemeral)} if ephemeral else {}
    spec = {"containers": containers, "activeDeadlineSeconds": deadline, **more}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": spec}


def service(name: str = "web", **port: object) -> dict[str, object]:
    """Write a NodePort service."""
    spec = {"type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 80, **port}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def manifest(*objects: dict[str, object]) -> bytes:
    """Join objects into a manifest."""
    return "\n---\n".join(json.dumps(value) for value in objects).encode()


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[ObjectStore]:
    """Open a store for a block."""
    store = ObjectStore(path, Ranges(IPv4Network("10.0.0.0/24")), SystemClock(), run_id="run")
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def test_applying_twice_changes_nothing(tmp_path: Path) -> None:
    """The revision moves only when something does."""
    async with opened(tmp_path / "db") as store:
        first = await store.apply(manifest(pod(), service()))
        revision = store.revision
        second = await store.apply(manifest(pod(), service()))

        assert [item.result for item in first] == [Result.CREATED] * 2
        assert [item.result for item in second] == [Result.UNCHANGED] * 2
        assert store.revision == revision
        assert [item.value for item in first] == [item.value for item in second]


async def test_one_fault_refuses_the_whole_manifest(tmp_path: Path) -> None:
    """A half-applied manifest is worse than none."""
    async with opened(tmp_path / "db") as store:
        with pytest.raises(ManifestError):
            await store.apply(manifest(pod(), service(nodePort=1)))

        assert (store.pods(), store.services(), store.revision) == ([], [], 0)


async def test_a_pod_that_the_node_does_not_take_is_not_stored(tmp_path: Path) -> None:
    """The second of two that want the same is named by its field, and none of both is stored."""

    def admit(new: Pod, others: Sequence[Pod]) -> Refusal | None:
        return Refusal("NodePorts", "taken", "spec.x", (others[0].name,)) if others else None

    path = tmp_path / "db"
    store = ObjectStore(path, Ranges(IPv4Network("10.0.0.0/24")), SystemClock(), run_id="run", admit=admit)
    await store.open()
    with pytest.raises(ManifestError) as refused:
        await store.apply(manifest(pod("a"), pod("b")))
    await store.apply(manifest(pod("a")))
    again = await store.apply(manifest(pod("a")))
    await store.close()

    assert [(v.field, v.description) for v in refused.value.violations] == [
        ("Pod b: spec.x", "NodePorts: taken; a")
    ]
    assert [item.result for item in again] == [Result.UNCHANGED]


async def test_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    """It says what would be."""
    async with opened(tmp_path / "db") as store:
        applied = await store.apply(manifest(pod()), dry_run=True)

        assert [item.result for item in applied] == [Result.CREATED]
        assert store.pods() == []


async def test_everything_is_the_same_after_a_restart(tmp_path: Path) -> None:
    """UIDs, addresses, times, deletions and revisions survive."""
    async with opened(tmp_path / "db") as store:
        await store.apply(manifest(pod(app="web"), service(), pod("other")))
        await store.delete([ObjectKey("Pod", "default", "other")], grace_seconds=7)
        before = (store.revision, store.pods(), store.services())

    async with opened(tmp_path / "db") as store:
        after = (store.revision, sorted(store.pods(), key=lambda p: p.name), store.services())

    assert after == (before[0], sorted(before[1], key=lambda p: p.name), before[2])


async def test_a_changed_spec_is_refused_with_its_path(tmp_path: Path) -> None:
    """A running pod is not changed under its user's hands; labels and images may be."""
    async with opened(tmp_path / "db") as store:
        (first,) = await store.apply(manifest(pod()))
        await store.apply(manifest(pod(app="new")))
        (second,) = await store.apply(manifest(pod(image="app:2", app="new")))
        with pytest.raises(ManifestError) as caught:
            await store.apply(manifest(spec_of(image="app:2", tty=True)))

        found = store.get(POD_KEY)
        assert found is not None
        assert dict(found.value.labels) == {"app": "new"}
        assert isinstance(found.value, Pod)
        assert found.value.spec.containers[0].image == "app:2"
        assert (second.result, second.value.uid) == (Result.CONFIGURED, first.value.uid)
        assert [v.field for v in caught.value.violations] == ["Pod web: spec.containers[0].tty"]


async def test_ephemeral_containers_are_only_added(tmp_path: Path) -> None:
    """To a pod that is there; a manifest without them leaves them, one that changes them is refused."""
    debug = {"name": "debug", "image": "app:1"}
    async with opened(tmp_path / "db") as store:
        with pytest.raises(ManifestError) as by_new:
            await store.apply(manifest(spec_of(ephemeral=[debug])))
        await store.apply(manifest(pod()))
        await store.apply(manifest(spec_of(ephemeral=[debug])))
        (left,) = await store.apply(manifest(pod()))
        with pytest.raises(ManifestError) as by_change:
            await store.apply(manifest(spec_of(ephemeral=[{**debug, "tty": True}])))

        (kept,) = store.pods()
        assert [v.field for v in by_new.value.violations] == ["Pod web: spec.ephemeralContainers"]
        assert left.result is Result.UNCHANGED
        assert [c.name for c in kept.spec.ephemeral_containers] == ["debug"]
        assert [v.field for v in by_change.value.violations] == ["Pod web: spec.ephemeralContainers[0].tty"]


async def test_a_deadline_may_only_come_nearer(tmp_path: Path) -> None:
    """As the API server has it."""
    async with opened(tmp_path / "db") as store:
        for seconds in (None, 60, 30):
            await store.apply(manifest(spec_of(deadline=seconds)))
        for seconds in (31, None):
            with pytest.raises(ManifestError):
                await store.apply(manifest(spec_of(deadline=seconds)))

        assert store.pods()[0].spec.active_deadline_seconds == 30


async def test_a_deleted_pod_stays_until_it_is_finalized(tmp_path: Path) -> None:
    """Its name is taken until nothing of it is left; deleting twice is no error, and may only shorten."""
    async with opened(tmp_path / "db") as store:
        await store.apply(manifest(pod()))
        assert await store.delete([POD_KEY], grace_seconds=None) == [POD_KEY]
        await store.delete([POD_KEY], grace_seconds=1)
        await store.delete([POD_KEY], grace_seconds=60)
        with pytest.raises(ObjectTerminatingError):
            await store.apply(manifest(pod()))
        (stopping,) = store.pods()
        await store.finalize(stopping.uid)
        await store.finalize(stopping.uid)
        again = await store.apply(manifest(pod()))

        assert stopping.deletion_grace_seconds == 1
        assert again[0].value.uid != stopping.uid
        assert await store.delete([ObjectKey("Pod", "default", "never")], grace_seconds=None) == []


async def test_a_file_owns_its_objects(tmp_path: Path) -> None:
    """A call may not change them; the file may, and what it drops goes."""
    async with opened(tmp_path / "db") as store:
        await store.apply(manifest(pod(), service()), origin="/m/a.yaml")
        with pytest.raises(ManifestError, match="refused") as by_call:
            await store.apply(manifest(service()))
        with pytest.raises(ManifestError):
            await store.delete([POD_KEY], grace_seconds=None)
        await store.apply(manifest(pod(image="app:2")), origin="/m/a.yaml")

        assert "belongs to the manifest /m/a.yaml" in by_call.value.violations[0].description
        assert store.services() == []
        (replaced,) = store.pods()
        assert replaced.deletion_time is not None


async def test_watchers_see_pods_with_their_cause(tmp_path: Path) -> None:
    """The trace of a pod's start links to the call that asked for it."""
    async with opened(tmp_path / "db") as store:
        changes = store.changes()
        await store.apply(manifest(pod()), traceparent="00-cause")
        uid, cause = await anext(changes)

        assert (uid, cause) == (store.pods()[0].uid, "00-cause")


async def test_services_are_watched(tmp_path: Path) -> None:
    """The proxy reads them from the hub."""
    async with opened(tmp_path / "db") as store:
        await store.apply(manifest(service()))
        first = await anext(store.service_hub.watch())

        assert isinstance(first, Upserted)
        assert isinstance(first.value, Service)
        assert first.value.cluster_ip.startswith("10.0.0.")
        assert 30_000 <= first.value.ports[0].node_port <= 32_767


async def test_a_damaged_file_is_set_aside(tmp_path: Path) -> None:
    """Renamed as it is, never overwritten; the store begins anew and says why."""
    path = tmp_path / "db"
    path.write_bytes(b"this is no database, but somebody's data" * 100)
    async with opened(path) as store:
        assert store.lost == "file is not a database"

    (aside,) = await asyncio.to_thread(lambda: list(tmp_path.glob("db.damaged-*")))
    assert aside.read_bytes().startswith(b"this is no database")


WRITER = """
import asyncio, sys
from ipaddress import IPv4Network
from pathlib import Path
from services.common.clock import SystemClock
from services.kubelet.core.admission import Refusal
from services.kubelet.core.allocate import Ranges
from services.kubelet.objects.store import ObjectStore
from tests.kubelet.objects.test_store import manifest, pod
async def main():
    store = ObjectStore(Path(sys.argv[1]), Ranges(IPv4Network("10.0.0.0/24")), SystemClock(), run_id="run")
    await store.open()
    number = 0
    while True:
        await store.apply(manifest(*(pod(f"p{number}-{i}") for i in range(5))))
        print(number, flush=True)
        number += 1
asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [1, 3, 8])
async def test_a_killed_writer_leaves_whole_manifests(tmp_path: Path, lines: int) -> None:
    """SIGKILL anywhere: what was answered is there, and no manifest is there by half."""
    process = subprocess.Popen(  # noqa: ASYNC220  # it starts at once, and is waited for in a thread
        [sys.executable, "-c", WRITER, str(tmp_path / "db")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    told = [await asyncio.to_thread(process.stdout.readline) for _ in range(lines)]
    process.kill()
    process.communicate()

    async with opened(tmp_path / "db") as store:
        names = {found.name for found in store.pods()}

    batches = {name.split("-")[0] for name in names}
    assert {f"p{line.strip()}" for line in told} <= batches
    assert names == {f"{batch}-{i}" for batch in batches for i in range(5)}


async def test_a_pod_is_a_pod(tmp_path: Path) -> None:
    """Listing gives values of the kind that was asked for, by name."""
    async with opened(tmp_path / "db") as store:
        await store.apply(manifest(pod("b"), pod("a"), service()))

        listed = store.listing("Pod")
        assert [value.name for value in listed] == ["a", "b"]
        assert all(isinstance(value, Pod) for value in listed)


def named(kind: str, name: str, namespace: str = "", **fields: object) -> dict[str, object]:
    """Write an object of any kind."""
    place = {"namespace": namespace} if namespace else {}
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, **place}, **fields}


async def test_config_objects_survive_a_restart_with_their_values(tmp_path: Path) -> None:
    """What pods name is stored as pods are; the files are for us alone."""
    secret = named("Secret", "key", stringData={"password": "hunter2"})
    everything = manifest(
        named("Namespace", "shop"),
        named("ConfigMap", "settings", "shop", data={"a": "1"}, binaryData={"b": "/w=="}),
        named("ServiceAccount", "robot", imagePullSecrets=[{"name": "r"}]),
        secret,
    )
    async with opened(tmp_path / "db") as store:
        await store.apply(everything)
        before = [store.listing(kind) for kind in ("Namespace", "ConfigMap", "ServiceAccount", "Secret")]
        await store.maintain()
    async with opened(tmp_path / "db") as store:
        after = [store.listing(kind) for kind in ("Namespace", "ConfigMap", "ServiceAccount", "Secret")]
        again = await store.apply(everything)

        assert before == after
        assert {item.result for item in again} == {Result.UNCHANGED}
        assert _open_to_others(tmp_path) == []


async def test_a_change_of_a_config_object_is_told(tmp_path: Path) -> None:
    """Whoever watches hears of changes and of the end."""
    key = ObjectKey("ConfigMap", "default", "settings")
    async with opened(tmp_path / "db") as store:
        await store.apply(manifest(named("ConfigMap", "settings", data={"a": "1"})))
        await store.apply(manifest(named("ConfigMap", "settings", data={"a": "2"})))
        seen = await anext(store.config_hub.watch())
        await store.delete([key], grace_seconds=None)

        assert isinstance(seen, Upserted)
        assert seen.key == str(key)
        assert store.find(key) is None
        assert not store.config_hub.snapshot()


async def test_a_namespace_goes_with_everything_in_it(tmp_path: Path) -> None:
    """Its pods stop first, the rest goes at once, other namespaces stay."""
    async with opened(tmp_path / "db") as store:
        inside = pod()
        inside["metadata"] = {"name": "web", "namespace": "shop"}
        await store.apply(
            manifest(
                named("Namespace", "shop"), inside, pod("other"), named("Secret", "key", "shop"), service()
            )
        )
        found = await store.delete([ObjectKey("Namespace", "", "shop")], grace_seconds=None)
        again = await store.delete([ObjectKey("Namespace", "", "never")], grace_seconds=None)
        (left,) = (p for p in store.pods() if p.namespace == "shop")

        assert found == [ObjectKey("Namespace", "", "shop")]
        assert again == []
        assert left.deletion_time is not None
        assert store.listing("Secret") == []
        assert len(store.listing("Service")) == 1
        assert store.namespaces() == ["default", "shop"]
        with pytest.raises(ManifestError):
            await store.delete([ObjectKey("Namespace", "", "default")], grace_seconds=None)


async def test_a_pod_needs_its_service_account(tmp_path: Path) -> None:
    """`default` is always there; another one must be, or come with the pod."""
    wants = pod()
    wants["spec"] = {**wants["spec"], "serviceAccountName": "robot"}  # type: ignore[dict-item]  # a mapping
    async with opened(tmp_path / "db") as store:
        with pytest.raises(ManifestError) as refused:
            await store.apply(manifest(wants))
        await store.apply(manifest(wants, named("ServiceAccount", "robot"), pod("plain")))
        names = [value.name for value in store.listing("ServiceAccount", "default")]

        assert [fault.field for fault in refused.value.violations] == ["Pod web: spec.serviceAccountName"]
        assert names == ["default", "robot"]
        assert store.service_account("elsewhere", "robot") is None
        assert store.service_account("elsewhere", "default") is not None


def _open_to_others(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.stat().st_mode & 0o077]
