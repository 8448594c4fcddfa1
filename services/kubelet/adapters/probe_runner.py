"""Run probes: HTTP and TCP from the node to the pod's address, commands through the runtime.

Source: the kubelet's probers: any HTTP status from 200 to 399 is success, redirects
to other hosts are not followed, certificates are not checked, 10 KiB are read. gRPC asks
`grpc.health.v1.Health/Check` without TLS; only SERVING is success.
"""

from __future__ import annotations

import asyncio

import aiohttp
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.errors import Code, RemoteError, TripodError
from services.common.grpcclient import call, open_channel
from services.kubelet.core.model import Container, ExecAction, GrpcCheck, HttpGet, Probe, TcpSocket
from services.kubelet.ports import ProbeOutcome, ProbeTarget, Runtime

_BODY_BYTES = 10 << 10
_MESSAGE_CHARACTERS = 200
# How a runtime fails that hangs or is gone: no fault of the container.
_SILENT = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.UNKNOWN)


class NetworkProbeRunner:
    """Implements `ProbeRunner`. `close` ends its connections."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """End connections."""
        if self._session is not None:
            await self._session.close()

    async def run(self, probe: Probe, target: ProbeTarget) -> ProbeOutcome | None:
        """Run one probe within its time-out; None when the runtime could not run it."""
        if isinstance(probe.action, ExecAction):
            return await self._command(probe.action, target, probe.timeout_seconds)
        try:
            async with asyncio.timeout(probe.timeout_seconds):
                return await self._act(probe, target)
        except TimeoutError:
            return ProbeOutcome(False, f"no answer within {probe.timeout_seconds} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return ProbeOutcome(False, str(error) or type(error).__name__)

    async def _act(self, probe: Probe, target: ProbeTarget) -> ProbeOutcome:
        action = probe.action
        if isinstance(action, HttpGet):
            return await self._get(action, target)
        if isinstance(action, GrpcCheck):
            return await _check(action, target, probe.timeout_seconds)
        assert isinstance(action, TcpSocket), "commands go another way"
        return await _connect(action, target)

    async def _get(self, action: HttpGet, target: ProbeTarget) -> ProbeOutcome:
        if self._session is None:
            connector = aiohttp.TCPConnector(force_close=True, ssl=False, limit=0)
            self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        host = action.host or target.address
        url = f"{action.scheme.lower()}://{host}:{port_number(action.port, target.container)}{_path(action)}"
        headers = {"User-Agent": "kube-probe/1.36", "Accept": "*/*", **dict(action.headers)}
        async with self._session.get(url, headers=headers, allow_redirects=False) as answer:
            body = await answer.content.read(_BODY_BYTES)
            if 200 <= answer.status < 400:
                return ProbeOutcome(True)
            text = body.decode(errors="replace").strip()[:_MESSAGE_CHARACTERS]
            return ProbeOutcome(False, f"HTTP status {answer.status}" + (f": {text}" if text else ""))

    async def _command(
        self, action: ExecAction, target: ProbeTarget, timeout_seconds: int
    ) -> ProbeOutcome | None:
        try:
            code, output = await self._runtime.exec_sync(target.container_id, action.command, timeout_seconds)
        except TripodError as error:
            # The runtime's own time-out, not one of a runtime that does not answer.
            if error.code in _SILENT and error.reason != "EXEC_TIMEOUT":
                return None
            return ProbeOutcome(False, error.message)
        text = output.decode(errors="replace").strip()[:_MESSAGE_CHARACTERS]
        return ProbeOutcome(
            code == 0, "" if code == 0 else f"exit code {code}" + (f": {text}" if text else "")
        )


def _path(action: HttpGet) -> str:
    return action.path if action.path.startswith("/") else f"/{action.path}"


def port_number(port: int | str, container: Container) -> int:
    """Resolve a port's name. Raises `ValueError`."""
    if isinstance(port, int):
        return port
    for declared in container.ports:
        if declared.name == port:
            return declared.container_port
    raise ValueError(f"no port is called {port!r}")


async def _connect(action: TcpSocket, target: ProbeTarget) -> ProbeOutcome:
    port = port_number(action.port, target.container)
    _, writer = await asyncio.open_connection(action.host or target.address, port)
    writer.close()
    return ProbeOutcome(True)


async def _check(action: GrpcCheck, target: ProbeTarget, timeout_seconds: float) -> ProbeOutcome:
    place = f"[{target.address}]" if ":" in target.address else target.address
    channel = open_channel(f"{place}:{action.port}", connect_seconds=timeout_seconds)
    request = health_pb2.HealthCheckRequest(service=action.service)
    try:
        check = health_pb2_grpc.HealthStub(channel).Check
        answer = await call(check, request, deadline_seconds=timeout_seconds)
    except RemoteError as error:
        return ProbeOutcome(False, _why(action, error))
    finally:
        await channel.close(None)
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return ProbeOutcome(status == "SERVING", "" if status == "SERVING" else f"the service says {status}")


def _why(action: GrpcCheck, error: RemoteError) -> str:
    match error.code:
        case Code.UNIMPLEMENTED:
            return "the server does not implement grpc.health.v1.Health"
        case Code.NOT_FOUND:
            return f"the server knows no service {action.service!r}"
        case _:
            return f"{error.code.name}: {error.message[:_MESSAGE_CHARACTERS]}"
