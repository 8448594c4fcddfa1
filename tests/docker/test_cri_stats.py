"""Statistics, metrics, streams and events of the CRI server on a real engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from tripod.cri.v1 import api_pb2 as pb

from services.common.errors import RemoteError
from services.common.grpcclient import stream
from services.kubelet.cri import metrics
from services.kubelet.cri.checkpoint_service import UNSUPPORTED
from tests.docker.test_cri_server import FOREVER, LIMIT_SECONDS, Server

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]
# Holds memory that is its own, writes into its layer, says so, and burns a core for ever.
BUSY = """
held = b"x" * (24 << 20)
open("/written", "wb").write(b"y" * (3 << 20))
print("ready", flush=True)
while True: pass
"""
CREATED, STARTED, STOPPED, DELETED = (
    pb.CONTAINER_CREATED_EVENT,
    pb.CONTAINER_STARTED_EVENT,
    pb.CONTAINER_STOPPED_EVENT,
    pb.CONTAINER_DELETED_EVENT,
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """Run one server for all."""
    made = Server(tmp_path_factory.mktemp("cri"))
    await made.start()
    try:
        yield made
    finally:
        await made.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def busy(server: Server, image: str) -> tuple[str, str]:
    """Run a pod that uses something; returns its sandbox and container."""
    box = await server.sandbox("busy")
    config = pb.LinuxContainerConfig()
    config.resources.memory_limit_in_bytes = 128 << 20
    config.resources.cpu_period = 100_000
    config.resources.cpu_quota = 30_000
    app = await server.container(box, image, BUSY, linux=config, labels={"tier": "front"})

    async def ready() -> bool:
        return ("stdout", "ready") in server.log("busy")

    await server.until(ready)
    return box, app


async def listed(server: Server, **wanted: Any) -> list[pb.ContainerStats]:
    """List statistics."""
    request = pb.ListContainerStatsRequest(filter=pb.ContainerStatsFilter(**wanted))
    return list((await server.ask(server.runtime.ListContainerStats, request)).stats)


async def streamed(method: Any, request: Any, field: str) -> list[Any]:
    """Read a stream to its end."""
    async with stream(method, request, deadline_seconds=LIMIT_SECONDS) as answers:
        return [item async for answer in answers for item in getattr(answer, field)]


async def test_a_container_uses_what_it_uses(server: Server, busy: tuple[str, str]) -> None:
    """Memory that it holds, CPU that it burns within its quota, and a file that it wrote."""
    _, app = busy
    request = pb.ContainerStatsRequest(container_id=app)
    found: list[pb.ContainerStats] = []

    async def has_a_rate() -> bool:
        found.append((await server.ask(server.runtime.ContainerStats, request)).stats)
        return found[-1].cpu.HasField("usage_nano_cores")

    await server.until(has_a_rate)
    first, last = found[0], found[-1]

    assert last.attributes.id == app
    assert dict(last.attributes.labels) == {"tier": "front"}
    assert last.cpu.usage_core_nano_seconds.value > first.cpu.usage_core_nano_seconds.value > 0
    assert 0 < last.cpu.usage_nano_cores.value < 600_000_000
    assert 24 << 20 < last.memory.working_set_bytes.value <= last.memory.usage_bytes.value < 128 << 20
    assert last.memory.available_bytes.value == (128 << 20) - last.memory.working_set_bytes.value
    assert last.memory.rss_bytes.value > 24 << 20
    assert last.writable_layer.used_bytes.value >= 3 << 20
    assert last.writable_layer.fs_id.mountpoint


async def test_a_pod_is_its_parts_and_its_network(server: Server, busy: tuple[str, str]) -> None:
    """The sandbox itself counts; bytes over the pod's interface are counted by the kernel."""
    box, app = busy
    request = pb.PodSandboxStatsRequest(pod_sandbox_id=box)
    before = (await server.ask(server.runtime.PodSandboxStats, request)).stats
    ask = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
        "[s.sendto(b'z' * 1000, ('10.255.255.254', 9)) for _ in range(50)]"
    )
    command = pb.ExecSyncRequest(container_id=app, cmd=["python3", "-c", ask], timeout=20)
    await server.ask(server.runtime.ExecSync, command)
    after = (await server.ask(server.runtime.PodSandboxStats, request)).stats

    [inside] = after.linux.containers
    assert inside.attributes.id == app
    assert after.attributes.metadata.name == "busy"
    assert after.linux.memory.working_set_bytes.value > inside.memory.working_set_bytes.value
    assert after.linux.process.process_count.value == 2
    assert after.linux.network.default_interface.name == "eth0"
    grown = (
        after.linux.network.default_interface.tx_bytes.value
        - before.linux.network.default_interface.tx_bytes.value
    )
    assert grown >= 50_000


@pytest.mark.usefixtures("busy")
async def test_filters_choose(server: Server, busy: tuple[str, str]) -> None:
    """By id, sandbox and labels; what matches nothing is an empty list."""
    box, app = busy

    assert [s.attributes.id for s in await listed(server, id=app[:12])] == [app]
    assert [s.attributes.id for s in await listed(server, pod_sandbox_id=box)] == [app]
    assert app in [s.attributes.id for s in await listed(server, label_selector={"tier": "front"})]
    assert await listed(server, label_selector={"tier": "back"}) == []
    assert await listed(server, id="f" * 64) == []


async def test_what_has_ended_uses_nothing(server: Server, image: str) -> None:
    """It is in no list; asked for by id, it has its layer's size alone."""
    app = await server.container(await server.sandbox("ended"), image, "open('/w', 'w').write('z' * 99999)")
    await server.ended(app)

    one = await server.ask(server.runtime.ContainerStats, pb.ContainerStatsRequest(container_id=app))
    assert await listed(server, id=app) == []
    assert not one.stats.HasField("cpu")
    with pytest.raises(RemoteError) as caught:
        await server.ask(server.runtime.ContainerStats, pb.ContainerStatsRequest(container_id="f" * 64))
    assert caught.value.reason == "CONTAINER_NOT_FOUND"


async def test_metrics_are_those_that_are_described(server: Server, busy: tuple[str, str]) -> None:
    """As critest looks: every described metric has a value, and as many labels as keys."""
    box, app = busy
    described = await server.ask(server.runtime.ListMetricDescriptors, pb.ListMetricDescriptorsRequest())
    answer = await server.ask(server.runtime.ListPodSandboxMetrics, pb.ListPodSandboxMetricsRequest())
    [pod] = [pod for pod in answer.pod_metrics if pod.pod_sandbox_id == box]
    [container] = pod.container_metrics
    found = {m.name: m for m in [*pod.metrics, *container.metrics]}
    optional = ("container_pressure_", "container_fs_reads", "container_fs_writes", "container_blkio_")

    absent = {d.name for d in described.descriptors} - set(found)
    assert {name for name in absent if not name.startswith(optional)} == set()
    for described_one in described.descriptors:
        if described_one.name in found:
            assert len(found[described_one.name].label_values) == len(described_one.label_keys)
    labels = dict(zip(metrics.LABELS, found["container_memory_rss"].label_values, strict=True))
    assert (labels["container"], labels["pod"], labels["namespace"]) == ("app", "busy", "default")
    assert found["container_spec_cpu_period"].value.value == 100_000
    assert found["container_spec_memory_limit_bytes"].value.value == 128 << 20
    assert found["container_file_descriptors"].value.value >= 3
    assert container.container_id == app


@pytest.mark.usefixtures("busy")
async def test_streams_give_each_once_what_lists_give(server: Server) -> None:
    """And then end."""
    runtime = server.runtime
    boxes = await streamed(runtime.StreamPodSandboxes, pb.StreamPodSandboxesRequest(), "pod_sandboxes")
    apps = await streamed(runtime.StreamContainers, pb.StreamContainersRequest(), "containers")
    stats = await streamed(runtime.StreamContainerStats, pb.StreamContainerStatsRequest(), "container_stats")
    pods = await streamed(
        runtime.StreamPodSandboxStats, pb.StreamPodSandboxStatsRequest(), "pod_sandbox_stats"
    )
    gauges = await streamed(
        runtime.StreamPodSandboxMetrics, pb.StreamPodSandboxMetricsRequest(), "pod_sandbox_metrics"
    )
    images = await streamed(server.images.StreamImages, pb.StreamImagesRequest(), "images")

    listing = await server.ask(runtime.ListPodSandbox, pb.ListPodSandboxRequest())
    containers = await server.ask(runtime.ListContainers, pb.ListContainersRequest())
    shown = await server.ask(server.images.ListImages, pb.ListImagesRequest())
    assert boxes == list(listing.items)
    assert apps == list(containers.containers)
    assert sorted(image.id for image in images) == sorted(image.id for image in shown.images)
    assert {s.attributes.id for s in stats} <= {c.id for c in apps}
    assert {p.attributes.id for p in pods} == {g.pod_sandbox_id for g in gauges} <= {b.id for b in boxes}
    assert len(stats) > 0


async def test_a_status_has_its_containers_and_no_secrets(server: Server, busy: tuple[str, str]) -> None:
    """Verbose answers say much, and of the environment its names alone."""
    box, _ = busy
    config = {"envs": [pb.KeyValue(key="PASSWORD", value=b"hunter2")]}
    secret = await server.container(box, "tripod-demo:1", FOREVER, name="secret", **config)
    whole = await server.ask(
        server.runtime.PodSandboxStatus, pb.PodSandboxStatusRequest(pod_sandbox_id=box, verbose=True)
    )
    one = await server.ask(
        server.runtime.ContainerStatus, pb.ContainerStatusRequest(container_id=secret, verbose=True)
    )
    await server.ask(server.runtime.RemoveContainer, pb.RemoveContainerRequest(container_id=secret))

    assert {status.metadata.name for status in whole.containers_statuses} == {"app", "secret"}
    assert whole.timestamp > whole.status.created_at
    assert int(one.info["pid"]) > 0
    assert "PASSWORD" in one.info["info"]
    assert "hunter2" not in str(one) + str(whole)


async def test_the_status_says_what_the_runtime_can(server: Server) -> None:
    """Handlers and features; with `verbose`, the settings and the version that was agreed on."""
    status = await server.ask(server.runtime.Status, pb.StatusRequest(verbose=True))

    handlers = [handler.name for handler in status.runtime_handlers]
    assert handlers[0] == ""
    assert "runc" in handlers
    assert status.HasField("features")
    assert '"api_version": "1.' in status.info["config"]


async def test_a_pod_cidr_is_checked(server: Server) -> None:
    """An upstream kubelet tells it once; nonsense is refused."""

    def told(cidr: str) -> pb.UpdateRuntimeConfigRequest:
        network = pb.NetworkConfig(pod_cidr=cidr)
        return pb.UpdateRuntimeConfigRequest(runtime_config=pb.RuntimeConfig(network_config=network))

    await server.ask(server.runtime.UpdateRuntimeConfig, told("10.0.0.0/24"))
    with pytest.raises(RemoteError) as caught:
        await server.ask(server.runtime.UpdateRuntimeConfig, told("10.0.0.300/24"))

    assert caught.value.reason == "REQUEST_INVALID"


@pytest.mark.parametrize("service", ["RuntimeService", "ImageService"])
async def test_no_call_is_unimplemented_but_those_that_say_so(server: Server, service: str) -> None:
    """Each call of the contract, over the socket, with an empty request."""
    stub = server.runtime if service == "RuntimeService" else server.images
    refused = set()
    for method in pb.DESCRIPTOR.services_by_name[service].methods:
        request = getattr(pb, method.input_type.name)()
        try:
            if method.name == "GetContainerEvents":
                continue  # Its stream has no end.
            if method.server_streaming:
                async with stream(getattr(stub, method.name), request, deadline_seconds=20) as answers:
                    [answer async for answer in answers]
            else:
                await server.ask(getattr(stub, method.name), request)
        except RemoteError as error:
            if error.code.name == "UNIMPLEMENTED":
                refused.add(method.name)

    assert refused == (set(UNSUPPORTED) if service == "RuntimeService" else set())


async def test_events_tell_a_whole_life_with_its_statuses(server: Server, image: str) -> None:
    """Created, started, stopped, deleted, in order, each with its pod as it was then or later."""
    box = await server.sandbox("told")
    found: list[pb.ContainerEventResponse] = []
    async with stream(server.runtime.GetContainerEvents, pb.GetEventsRequest()) as answers:

        async def read() -> None:
            async for answer in answers:
                found.append(answer)

        async with asyncio.TaskGroup() as group:
            reader = group.create_task(read())

            async def hears() -> bool:
                probe = await server.container(box, image, "pass", name="probe")
                await server.ended(probe)
                await server.ask(
                    server.runtime.RemoveContainer, pb.RemoveContainerRequest(container_id=probe)
                )
                return bool(found)

            await server.until(hears)
            app = await server.container(box, image, "pass")
            await server.ended(app)
            await server.ask(server.runtime.RemoveContainer, pb.RemoveContainerRequest(container_id=app))

            async def told() -> bool:
                return any(e.container_id == app and e.container_event_type == DELETED for e in found)

            await server.until(told)
            reader.cancel()

    mine = [event for event in found if event.container_id == app]
    assert [event.container_event_type for event in mine] == [CREATED, STARTED, STOPPED, DELETED]
    assert [event.created_at for event in mine] == sorted(event.created_at for event in mine)
    assert all(event.pod_sandbox_status.metadata.uid == "uid-told" for event in mine)
    assert all(event.pod_sandbox_status.state == pb.SANDBOX_READY for event in mine)
    assert app not in [status.id for status in mine[-1].containers_statuses]
