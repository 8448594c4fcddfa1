"""Call our peers: a deadline on every call, the trace in its metadata, errors as ours.

grpcio does not cancel a call that its caller abandons (1.83 to 1.85), so both ways
of calling cancel in `finally`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
from opentelemetry.trace import SpanKind, Status, StatusCode

from services.common import rpcstatus, telemetry
from services.common.errors import Code, RemoteError
from services.common.telemetry import Attributes

Metadata = Sequence[tuple[str, str]]
MESSAGE_LIMIT_BYTES = 16 << 20
# A peer that vanished without a word is noticed within the sum; grpcio allows no shorter time than 10 s.
KEEPALIVE_SECONDS = 10
KEEPALIVE_TIMEOUT_SECONDS = 5


def open_channel(address: str, *, connect_seconds: float = 0.1) -> grpc.aio.Channel:
    """Open a channel to `unix:///path` or `host:port`. It connects when first used; the caller closes it.

    An attempt to connect, with the peer's first words, takes `connect_seconds` at most.
    """
    options = [
        ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
        ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
        ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # The shortest time that an attempt gets, which is the longest here, too.
        ("grpc.min_reconnect_backoff_ms", round(connect_seconds * 1000)),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # A unix socket has no name worth sending; without this grpcio sends its escaped path.
        ("grpc.default_authority", "localhost"),
        # Our peers are on this machine: never by way of a proxy.
        ("grpc.enable_http_proxy", 0),
    ]
    return grpc.aio.insecure_channel(address, options=options)


def token_metadata(token: str) -> Metadata:
    """Return the metadata that presents the node's token."""
    return (("authorization", f"Bearer {token}"),) if token else ()


async def call(
    method: Any,
    request: Any,
    *,
    deadline_seconds: float,
    metadata: Metadata = (),
    span_attributes: Attributes | None = None,
) -> Any:
    """Call a unary method within a CLIENT span. Raises `RemoteError`."""
    with _client_span(method, span_attributes) as span:
        running = method(request, timeout=deadline_seconds, metadata=_with_trace(metadata))
        try:
            return await running
        except grpc.aio.AioRpcError as error:
            known = rpcstatus.decode(error)
            span.set_attribute("rpc.response.status_code", known.code.name)
            span.set_status(Status(StatusCode.ERROR, f"{known.reason}: {known.message}"))
            raise known from error
        finally:
            running.cancel()


@asynccontextmanager
async def stream(
    method: Any,
    request: Any,
    *,
    deadline_seconds: float | None = None,
    metadata: Metadata = (),
) -> AsyncIterator[AsyncIterator[Any]]:
    """Open a call whose answers stream: `async with stream(...) as answers: async for answer in answers`.

    `request` is a message, or an async iterator of messages for a bidirectional call.
    The call is cancelled when the block ends. Raises `RemoteError` while iterating.
    No span covers it: a stream lives for hours.
    """
    running = method(request, timeout=deadline_seconds, metadata=_with_trace(metadata))
    try:
        yield _answers(running)
    finally:
        running.cancel()


async def _answers(running: Any) -> AsyncIterator[Any]:
    try:
        async for answer in running:
            yield answer
    except grpc.aio.AioRpcError as error:
        raise rpcstatus.decode(error) from error
    except asyncio.CancelledError:
        # grpcio reports a call cancelled by the peer's vanishing like our own cancel.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise RemoteError(
            "The peer cancelled the stream", code=Code.CANCELLED, reason="RPC_CANCELLED"
        ) from None


def _client_span(method: Any, attributes: Attributes | None) -> Any:
    name = _method_name(method)
    base = {"rpc.system.name": "grpc", "rpc.method": name}
    return telemetry.span(name, kind=SpanKind.CLIENT, attributes={**base, **(attributes or {})})


def _method_name(method: Any) -> str:
    raw = getattr(method, "_method", b"")
    return (raw.decode() if isinstance(raw, bytes) else str(raw)).lstrip("/") or "rpc/unknown"


def _with_trace(metadata: Metadata) -> tuple[tuple[str, str], ...]:
    parent = telemetry.traceparent()
    return (*metadata, ("traceparent", parent)) if parent else tuple(metadata)
