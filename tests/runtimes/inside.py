"""What the tests of pods look at inside of containers."""

from __future__ import annotations

from collections.abc import AsyncIterator

from tripod.kubelet.v1 import pod_service_pb2 as pb
from tripod.kubelet.v1 import pod_service_pb2_grpc as pb_grpc

from services.common.grpcclient import stream
from tests.lab.node import BareNode


async def said(made: BareNode, name: str, *command: str, container: str = "app") -> str:
    """Run a command in a pod's container; return both outputs, whatever its code."""

    async def requests() -> AsyncIterator[pb.ExecRequest]:
        start = pb.ExecStart(namespace="default", pod_name=name, container=container, command=command)
        yield pb.ExecRequest(start=start)

    output = b""
    async with stream(pb_grpc.PodServiceStub(made.channel).Exec, requests(), deadline_seconds=30) as answers:
        async for answer in answers:
            kind = answer.WhichOneof("output")
            if kind is not None and kind != "exit_code":
                output += getattr(answer, kind)
    return output.decode().strip()


async def process(made: BareNode, name: str) -> dict[str, str]:
    """Return the status of a pod's first process, as the kernel has it."""
    text = await said(made, name, "cat", "/proc/1/status")
    parts = (line.partition(":") for line in text.splitlines())
    return {field: " ".join(value.split()) for field, _, value in parts}
