"""Two ends of a watch that say how they learn of a dead path: `python -m tests.lab.halfopen PORT`.

Run in a network namespace, whose loopback is cut once it said `ready`. Prints
`client` and `server`, each with its error, when that end has learned of it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

from tripod.kubelet.v1 import pod_service_pb2 as pb
from tripod.kubelet.v1 import pod_service_pb2_grpc as pb_grpc

from services.common import logs
from services.common.errors import TripodError
from services.common.grpcclient import open_channel, stream
from services.common.grpcserver import Listener, Servicer, build_server


def say(*words: object) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{' '.join(map(str, words))}\n")
    sys.stdout.flush()


class Quiet(pb_grpc.PodServiceServicer):
    """A watch that says one thing, and then nothing."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def WatchPods(
        self, request: pb.WatchPodsRequest, context: Any
    ) -> AsyncIterator[pb.WatchPodsResponse]:
        """Say that it began."""
        try:
            yield pb.WatchPodsResponse(revision=1)
            await asyncio.Event().wait()
        finally:
            say("server", "cancelled")
            self.ended.set()


async def main(port: str) -> None:
    """Serve, watch, and wait until both ends have noticed."""
    quiet, name = Quiet(), "tripod.kubelet.v1.PodService"  # type: ignore[abstract]  # the rest: UNIMPLEMENTED
    server = build_server(
        [Servicer(name, lambda s: pb_grpc.add_PodServiceServicer_to_server(quiet, s))],
        listeners=[Listener(f"127.0.0.1:{port}")],
    )
    await server.start()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        stub = pb_grpc.PodServiceStub(channel)
        try:
            async with stream(stub.WatchPods, pb.WatchPodsRequest()) as answers:
                await anext(answers)
                say("ready")
                await anext(answers)
        except TripodError as error:
            say("client", error.code.name)
        await quiet.ended.wait()


if __name__ == "__main__":
    logs.configure("halfopen", level="error")
    asyncio.run(main(sys.argv[1]))
