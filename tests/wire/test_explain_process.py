"""Explanations by a kubelet of its own process, whose runtime comes late."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tripod.kubelet.v1 import node_service_pb2 as node_pb
from tripod.kubelet.v1 import node_service_pb2_grpc as node_grpc
from tripod.kubelet.v1 import pod_service_pb2 as pb
from tripod.kubelet.v1 import pod_service_pb2_grpc as pb_grpc

from services.common.errors import Code, RemoteError
from services.common.grpcclient import call, open_channel
from tests.fakes.cri_server import FakeCri, cri_server
from tests.matrix.kubelet import IMAGE, World, pod
from tests.matrix.process import Service, until

pytestmark = [pytest.mark.process, pytest.mark.asyncio]
LIMIT_SECONDS = 60.0


async def ask(world: World, name: str = "a") -> pb.ExplainResponse:
    """Explain a pod."""
    stub = pb_grpc.PodServiceStub(world.channel)
    answer: pb.ExplainResponse = await call(
        stub.Explain, pb.ExplainRequest(pod_name=name), deadline_seconds=5
    )
    return answer


async def until_told(world: World, holds: Callable[[pb.ExplainResponse], bool], what: str) -> None:
    """Wait until an explanation is so."""

    async def told() -> bool:
        return holds(await ask(world))

    await until(told, what, LIMIT_SECONDS)


async def refused(world: World) -> dict[str, str]:
    """Wait until the node tells of a refused manifest."""
    found: dict[str, str] = {}
    stub = node_grpc.NodeServiceStub(world.channel)

    async def told() -> bool:
        answer = await call(stub.GetNode, node_pb.GetNodeRequest(), deadline_seconds=5)
        found.update(answer.refused_manifests)
        return bool(found)

    await until(told, "a manifest is refused", LIMIT_SECONDS)
    return found


async def test_a_kubelet_that_starts_without_its_runtime_explains_what_it_waits_for(tmp_path: Path) -> None:
    """The pod is stored, and the cause is the node's until the runtime comes; a refused manifest is named."""
    environment = {
        "TRIPOD_NODE_NAME": "explained",
        "TRIPOD_STATE_DIRECTORY": str(tmp_path / "state"),
        "TRIPOD_RUN_DIRECTORY": str(tmp_path / "run"),
        "TRIPOD_CRI_ENDPOINT": f"unix://{tmp_path}/fake.sock",
    }
    ghost = tmp_path / "state/manifests/ghost.yaml"
    ghost.parent.mkdir(parents=True)
    ghost.write_text("kind: Pod\n")
    fake = FakeCri(IMAGE)  # type: ignore[abstract]  # the rest answers UNIMPLEMENTED
    service = Service("kubelet", tmp_path, environment)
    channel = open_channel(f"unix://{tmp_path}/run/kubelet.sock")
    world, server = (
        World(folder=tmp_path, fake=fake, service=service, channel=channel),
        cri_server(fake, tmp_path / "fake.sock"),
    )
    try:
        await service.start()
        await world.apply(pod("a"))
        await until_told(
            world, lambda told: [c.reason for c in told.causes][:1] == ["RuntimeNotAnswering"], "it waits"
        )
        await server.start()
        await until_told(world, lambda told: told.verdict == pb.POD_VERDICT_READY, "it is Ready")
        causes = [(c.container, c.reason) for c in (await ask(world)).causes]
        files = await refused(world)
        with pytest.raises(RemoteError) as unknown:
            await ask(world, "ghost")
        await service.terminate()
    finally:
        await service.kill()
        await channel.close(None)
        await server.stop(0.1)

    assert causes == [("app", "Running"), ("side", "Running")]
    assert list(files) == [str(ghost)]
    assert unknown.value.code is Code.NOT_FOUND
    assert f"the manifest {ghost} is refused: " in unknown.value.message
