"""A gRPC proxy that does harm: between any client and any server of ours, over a real socket.

It carries bytes, so it works for every contract and every kind of call; metadata,
deadline, status and trailers pass through. `inject` makes the next calls of a method
go wrong, while it runs. Source: the CRI proxy of the kubelet's end-to-end tests.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from services.common import rpcstatus
from services.common.errors import Code, TripodError
from services.common.grpcclient import open_channel

EVER = 1 << 62
ANY = "*"
M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Error:
    """Answer with an error; the target is not called."""

    code: Code = Code.UNAVAILABLE
    reason: str = "FAULT_INJECTED"


@dataclass(frozen=True, slots=True)
class Delay:
    """Call the target only after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Hang:
    """Never call, never answer."""


@dataclass(frozen=True, slots=True)
class DropReply:
    """Let the target do the work to its end, and answer with an error all the same."""

    code: Code = Code.UNAVAILABLE


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Send the same request twice, one after the other; the second answer counts."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Break the stream once so many messages were passed on."""

    after: int


@dataclass(frozen=True, slots=True)
class Edit:
    """Pass each message of the answer through a function of bytes: see `edit`."""

    change: Callable[[bytes], bytes]


Fault = Error | Delay | Hang | DropReply | Duplicate | Cut | Edit


def edit(kind: type[M], change: Callable[[M], None]) -> Edit:
    """Change each decoded message of the answer in place."""

    def apply(data: bytes) -> bytes:
        message = kind.FromString(data)
        change(message)
        return message.SerializeToString()

    return Edit(apply)


@dataclass(slots=True)
class _Rule:
    """One fault, for the next `left` calls whose first request `when` accepts."""

    method: str
    fault: Fault
    left: int
    when: Callable[[bytes], bool]


class FaultProxy:
    """Listens on `socket`, calls `target`. Methods are named as on the wire, without the first slash."""

    def __init__(self, target: str, socket: Path) -> None:
        self.address = f"unix://{socket}"
        self.calls: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()
        self._rules: list[_Rule] = []
        self._channel = open_channel(target)
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((_Everything(self._serve),))
        self._server.add_insecure_port(self.address)

    async def start(self) -> None:
        """Serve."""
        await self._server.start()

    async def stop(self) -> None:
        """End at once, and every call with it."""
        await self._server.stop(0)
        await self._channel.close(None)

    def inject(
        self,
        method: str,
        fault: Fault,
        *,
        times: int = EVER,
        when: Callable[[bytes], bool] = lambda request: True,
    ) -> None:
        """Make the next `times` calls of a method, or of all (`*`), go wrong; `when` looks at the request."""
        self._rules.append(_Rule(method, fault, times, when))

    def clear(self) -> None:
        """Forget all faults; those that take effect now go on."""
        self._rules.clear()

    def _next(self, method: str, request: bytes) -> Fault | None:
        for rule in self._rules:
            if rule.left > 0 and rule.method in (method, ANY) and rule.when(request):
                rule.left -= 1
                self.injected[method] += 1
                return rule.fault
        return None

    async def _serve(self, method: str, requests: AsyncIterator[bytes], context: Any) -> None:
        self.calls[method] += 1
        first = await anext(requests, None)
        fault = self._next(method, first or b"")
        call = _Call(self._channel, method, context, first, requests)
        try:
            await call.run(fault)
        except grpc.aio.AioRpcError as error:
            trailing = tuple(error.trailing_metadata() or ())
            await context.abort(error.code(), error.details() or "", trailing)
        except TripodError as error:
            details = ((rpcstatus.DETAILS_KEY, rpcstatus.encode(error, "tripod.test")),)
            await context.abort(rpcstatus.grpc_code(error.code), error.message, details)


class _Everything(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
    """Takes every method as a stream of bytes both ways: on the wire a single message is one of those."""

    def __init__(self, serve: Callable[[str, AsyncIterator[bytes], Any], Any]) -> None:
        self._serve = serve

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a method."""
        method = str(handler_call_details.method).lstrip("/")

        async def handle(requests: AsyncIterator[bytes], context: Any) -> None:
            await self._serve(method, requests, context)

        return grpc.stream_stream_rpc_method_handler(handle)


class _Call:
    """One call on its way."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        method: str,
        context: Any,
        first: bytes | None,
        rest: AsyncIterator[bytes],
    ) -> None:
        self._method: Any = channel.stream_stream(f"/{method}", None, None)
        self._context = context
        self._first = first
        self._rest = rest
        self._passed = 0

    async def run(self, fault: Fault | None) -> None:
        """Carry it through, or do it harm."""
        match fault:
            case Error():
                raise _injected(fault.code, fault.reason)
            case Hang():
                await asyncio.Event().wait()
            case Delay():
                await asyncio.sleep(fault.seconds)
                await self._pass(fault)
            case DropReply():
                await self._drain(self._requests())
                raise _injected(fault.code, "REPLY_DROPPED")
            case Duplicate():
                kept = [request async for request in self._requests()]
                await self._drain(_replay(kept))
                self._first, self._rest = None, _replay(kept)
                await self._pass(fault)
            case _:
                await self._pass(fault)

    async def _requests(self) -> AsyncIterator[bytes]:
        if self._first is not None:
            yield self._first
        async for request in self._rest:
            yield request

    def _open(self, requests: AsyncIterator[bytes], *, timeout: float | None) -> Any:
        passed = [
            (key, value) for key, value in self._context.invocation_metadata() or () if key != "user-agent"
        ]
        return self._method(requests, metadata=tuple(passed), timeout=timeout)

    async def _drain(self, requests: AsyncIterator[bytes]) -> None:
        """Have the work done although nobody waits for it."""
        call = self._open(requests, timeout=None)
        try:
            async for _ in call:
                pass
        finally:
            call.cancel()

    async def _pass(self, fault: Fault | None) -> None:
        call = self._open(self._requests(), timeout=self._context.time_remaining())
        try:
            await self._context.send_initial_metadata(tuple(await call.initial_metadata()))
            if isinstance(fault, Cut) and fault.after == 0:
                raise _injected(Code.UNAVAILABLE, "STREAM_CUT")
            async for message in call:
                await self._context.write(fault.change(message) if isinstance(fault, Edit) else message)
                self._passed += 1
                if isinstance(fault, Cut) and self._passed >= fault.after:
                    raise _injected(Code.UNAVAILABLE, "STREAM_CUT")
            self._context.set_trailing_metadata(tuple(await call.trailing_metadata()))
        finally:
            call.cancel()


def _injected(code: Code, reason: str) -> TripodError:
    return TripodError("Injected by the fault proxy", code=code, reason=reason)


async def _replay(kept: Sequence[bytes]) -> AsyncIterator[bytes]:
    for request in kept:
        yield request


@asynccontextmanager
async def fault_proxy(target: str, socket: Path) -> AsyncIterator[FaultProxy]:
    """Run a proxy for a block."""
    proxy = FaultProxy(target, socket)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
