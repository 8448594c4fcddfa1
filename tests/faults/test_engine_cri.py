"""The CRI server alone, on an engine that is killed: events and the logs of many containers stay whole."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from tripod.cri.v1 import api_pb2 as pb

from services.common.grpcclient import stream
from tests.docker.test_cri_server import Server
from tests.lab.dockerd import TEST_IMAGE, EngineUnavailable, PrivateEngine, private_engine

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]
COUNT = 16
LINES = 400
# A number on each stream, and no process for a pause; one container in four writes its lines in two pieces.
PAUSE = "read -t 0.02 x <&3"
COUNTER = (
    "/bin/busybox mkfifo /tmp/f; exec 3<>/tmp/f; i=0; "
    f"while [ $i -lt {LINES} ]; do {{say}}; echo $i >&2; i=$((i+1)); {PAUSE}; done; "
    # An engine loses what lies in the pipes of a container that ends while it is away.
    "read x <&3"
)
WHOLE, PIECES = "echo $i", f"printf $i; {PAUSE}; printf '\\n'"
# What the engine had read and not written when it was killed is lost with it: one line of each stream.
LOST_LINES = 1


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lasting(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[PrivateEngine, Server]]:
    """Run an engine with live-restore and a server on it."""
    try:
        with private_engine() as engine:
            server = Server(tmp_path_factory.mktemp("cri"), engine.host)
            await server.start()
            try:
                yield engine, server
            finally:
                if not engine.pid:
                    await asyncio.to_thread(engine.start)
                await server.close()
    except EngineUnavailable as why:
        pytest.skip(str(why))


async def _start(server: Server, box: str, name: str, *command: str) -> str:
    config = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=name),
        image=pb.ImageSpec(image=TEST_IMAGE),
        command=command,
        log_path=f"{name}/0.log",
    )
    request = pb.CreateContainerRequest(pod_sandbox_id=box, config=config)
    made = str((await server.ask(server.runtime.CreateContainer, request)).container_id)
    await server.ask(server.runtime.StartContainer, pb.StartContainerRequest(container_id=made))
    return made


@asynccontextmanager
async def _heard(server: Server) -> AsyncIterator[list[pb.ContainerEventResponse]]:
    """Collect events for a block."""
    found: list[pb.ContainerEventResponse] = []

    async def read() -> None:
        async with stream(server.runtime.GetContainerEvents, pb.GetEventsRequest()) as answers:
            async for answer in answers:
                found.append(answer)

    async with asyncio.TaskGroup() as group:
        reader = group.create_task(read())
        yield found
        reader.cancel()


@pytest.mark.fault("F6")
async def test_no_event_is_lost_while_the_engine_is_away(lasting: tuple[PrivateEngine, Server]) -> None:
    """A container ends while nobody looks; one stream tells of it once, and goes on."""
    engine, server = lasting
    box = await server.sandbox("events")
    async with _heard(server) as found:

        def told(container_id: str) -> list[int]:
            return [e.container_event_type for e in found if e.container_id == container_id]

        async def hears() -> bool:
            return bool(told(await _start(server, box, f"probe{len(found)}{os.urandom(3).hex()}", "true")))

        await server.until(hears)
        app = await _start(server, box, "app", "sleep", "1000000")
        status = await server.ask(
            server.runtime.ContainerStatus, pb.ContainerStatusRequest(container_id=app, verbose=True)
        )
        await asyncio.to_thread(engine.kill)
        os.kill(int(status.info["pid"]), signal.SIGKILL)
        await asyncio.to_thread(engine.start)

        async def has_stopped() -> bool:
            return pb.CONTAINER_STOPPED_EVENT in told(app)

        await server.until(has_stopped)
        after = await _start(server, box, "after", "true")

        async def goes_on() -> bool:
            return len(told(after)) == 3

        await server.until(goes_on)
        await server.ask(server.runtime.RemovePodSandbox, pb.RemovePodSandboxRequest(pod_sandbox_id=box))

        async def all_gone() -> bool:
            return told(box)[-1:] == [pb.CONTAINER_DELETED_EVENT]

        await server.until(all_gone)

    life = [
        pb.CONTAINER_CREATED_EVENT,
        pb.CONTAINER_STARTED_EVENT,
        pb.CONTAINER_STOPPED_EVENT,
        pb.CONTAINER_DELETED_EVENT,
    ]
    assert told(app) == life
    assert told(after) == life
    assert told(box) == life[2:]
    stopped = next(e for e in found if e.container_id == app and e.container_event_type == life[2])
    assert stopped.pod_sandbox_status.metadata.uid == "uid-events"
    assert {s.id: s.state for s in stopped.containers_statuses}[app] == pb.CONTAINER_EXITED


def _numbers(folder: Path, name: str, kind: str) -> list[int]:
    """Read one stream of a log, parts put together; a line is empty when the engine lost its piece."""
    text = ""
    path = folder / "logs/many" / name / "0.log"
    for line in path.read_text().splitlines() if path.exists() else []:
        _, stream_name, tag, content = line.split(" ", 3)
        if stream_name == kind:
            text += content + ("\n" if tag == "F" else "")
    return [int(line) for line in text.splitlines() if line]


@pytest.mark.fault("F6")
@pytest.mark.fault("F37")
async def test_many_logs_stay_whole_through_kills_of_the_server_and_of_the_engine(
    lasting: tuple[PrivateEngine, Server],
) -> None:
    """Each stream of each container has every line once, in order, but for what the engine itself lost."""
    engine, server = lasting
    box = await server.sandbox("many")
    names = [f"c{number}" for number in range(COUNT)]
    programs = [COUNTER.replace("{say}", PIECES if number % 4 == 0 else WHOLE) for number in range(COUNT)]
    await asyncio.gather(
        *(_start(server, box, n, "sh", "-c", p) for n, p in zip(names, programs, strict=True))
    )

    def all_have(count: int) -> bool:
        return all(
            len(_numbers(server.folder, name, kind)) >= count
            for name in names
            for kind in ("stdout", "stderr")
        )

    async def begun() -> bool:
        return await asyncio.to_thread(all_have, 20)

    await server.until(begun)
    await server.kill()
    await server.start()
    await asyncio.to_thread(engine.kill)
    await asyncio.to_thread(engine.start)
    await server.kill()
    await server.start()

    async def complete() -> bool:
        return await asyncio.to_thread(all_have, LINES - LOST_LINES)

    await server.until(complete)
    await server.ask(server.runtime.RemovePodSandbox, pb.RemovePodSandboxRequest(pod_sandbox_id=box))
    for name in names:
        for kind in ("stdout", "stderr"):
            numbers = _numbers(server.folder, name, kind)
            assert numbers == sorted(set(numbers)), (name, kind)
            assert LINES - len(numbers) <= LOST_LINES, (name, kind)
