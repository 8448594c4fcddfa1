"""What happens around every gRPC call that we serve.

One interceptor checks the token, opens the SERVER span, sets a deadline where the
caller gave none, maps `TripodError` to `google.rpc.Status` and writes the one
canonical log line. Handlers raise; they never touch the context's status.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from services.common import rpcstatus, telemetry
from services.common.errors import Code, TripodError
from services.common.logs import get_logger
from services.common.security import token_matches

log = get_logger(__name__)
QUIET_SERVICES = ("grpc.health.v1.", "grpc.reflection.", "tripod.trace.v1.")
# Codes that mean a fault of the server, as the semantic conventions for RPC say.
_SERVER_FAULTS = {
    Code.UNKNOWN,
    Code.DEADLINE_EXCEEDED,
    Code.UNIMPLEMENTED,
    Code.INTERNAL,
    Code.UNAVAILABLE,
    Code.DATA_LOSS,
}
STALLED = "STREAM_STALLED"
# A status that waits behind what a stalled reader has not read is not waited for.
_ABORT_SECONDS = 1.0
Handler = Any


@dataclass(frozen=True, slots=True)
class CallRules:
    """What the server demands of a call."""

    changing_methods: frozenset[str]
    token: Callable[[], str] | None
    default_deadline_seconds: float
    stalled_watch_seconds: float
    stalled_stream_seconds: float
    tracer: trace.Tracer | None = None

    def stall_seconds(self, method: str) -> float:
        """Return how long one message of a stream may wait for its reader.

        A watch can be taken up again where it was; what a command writes is held back for long instead.
        """
        watches = method.rsplit("/", 1)[-1].startswith("Watch")
        return self.stalled_watch_seconds if watches else self.stalled_stream_seconds


class Calls:
    """The calls that run now; a server waits for them before it exits."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    @contextmanager
    def running(self) -> Any:
        """Count the current task for the length of a block."""
        task = asyncio.current_task()
        assert task is not None, "a handler runs in a task"
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)

    async def wait(self, timeout_seconds: float) -> bool:
        """Wait until none runs; False when some still do after `timeout_seconds`."""
        if not self._tasks:
            return True
        _, pending = await asyncio.wait(set(self._tasks), timeout=timeout_seconds)
        return not pending


class ServerInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Wraps every handler of a server."""

    def __init__(self, rules: CallRules, calls: Calls) -> None:
        self._rules = rules
        self._calls = calls

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Return the method's handler, wrapped; None passes on (UNIMPLEMENTED)."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        metadata = dict(handler_call_details.invocation_metadata)
        return _rewrap(handler, _Call(method, metadata, self._rules, self._calls))


def _rewrap(handler: Handler, call: _Call) -> Handler:
    factory, behaviour = _kind(handler)
    wrapped = call.stream(behaviour) if handler.response_streaming else call.unary(behaviour)
    made: Handler = factory(
        wrapped,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return made


def _kind(handler: Handler) -> tuple[Any, Any]:
    if handler.request_streaming and handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler, handler.stream_stream
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler, handler.stream_unary
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler, handler.unary_stream
    return grpc.unary_unary_rpc_method_handler, handler.unary_unary


class _Call:
    """One call: its rules and its story."""

    def __init__(self, method: str, metadata: dict[str, Any], rules: CallRules, calls: Calls) -> None:
        self._method = method
        self._metadata = metadata
        self._rules = rules
        self._calls = calls
        self._domain = method.rsplit("/", 1)[0].lstrip("/").rsplit(".", 1)[0]
        self._quiet = method.lstrip("/").startswith(QUIET_SERVICES)

    def unary(self, behaviour: Any) -> Any:
        async def handle(request: Any, context: Any) -> Any:
            with self._calls.running(), telemetry.served_by(self._rules.tracer), self._span() as span:
                story = _Story(self._method, context, span, quiet=self._quiet)
                try:
                    self._check_token(context)
                    async with asyncio.timeout(self._deadline(context)):
                        answer = await behaviour(request, context)
                except BaseException as error:
                    await self._fail(error, context, story)
                    raise
                story.end(Code.OK)
                return answer

        return handle

    def stream(self, behaviour: Any) -> Any:
        async def handle(request: Any, context: Any) -> None:
            with self._calls.running(), telemetry.served_by(self._rules.tracer), self._span() as span:
                story = _Story(self._method, context, span, quiet=self._quiet)
                answers = behaviour(request, context)
                if not inspect.isasyncgen(answers):
                    raise TypeError(f"{self._method}: a streaming handler must be an async generator")
                try:
                    self._check_token(context)
                    async for answer in answers:
                        story.message_count += 1
                        await self._write(answer, context)
                except BaseException as error:
                    await answers.aclose()
                    await self._fail(error, context, story)
                    raise
                story.end(Code.OK)

        return handle

    async def _write(self, answer: Any, context: Any) -> None:
        """Hand a message to the transport. Raises `STREAM_STALLED` when its reader takes nothing for long."""
        limit = self._rules.stall_seconds(self._method)
        try:
            async with asyncio.timeout(limit):
                await context.write(answer)
        except TimeoutError as error:
            raise TripodError(
                f"The reader took nothing for {limit:g} s",
                code=Code.ABORTED,
                reason=STALLED,
                metadata={"limit_seconds": f"{limit:g}"},
            ) from error

    def _deadline(self, context: Any) -> float | None:
        return None if context.time_remaining() is not None else self._rules.default_deadline_seconds

    def _check_token(self, context: Any) -> None:
        if self._method not in self._rules.changing_methods or context.peer().startswith("unix:"):
            return
        presented = str(self._metadata.get("authorization", "")).removeprefix("Bearer ")
        expected = self._rules.token() if self._rules.token else ""
        if not expected or not token_matches(presented, expected):
            raise TripodError(
                "This call changes the node and needs its token: send metadata "
                "`authorization: Bearer <token>` (the file node-token in the state directory)",
                code=Code.UNAUTHENTICATED,
                reason="TOKEN_REQUIRED",
                metadata={"method": self._method},
            )

    @contextmanager
    def _span(self) -> Any:
        if self._quiet:
            yield trace.INVALID_SPAN
            return
        parent = str(self._metadata.get("traceparent", ""))
        name = self._method.lstrip("/")
        attributes = {"rpc.system.name": "grpc", "rpc.method": name}
        span = telemetry.start_span(name, parent=parent, kind=SpanKind.SERVER, attributes=attributes)
        # The story sets the status: not every error that a caller gets is a fault of the server.
        with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            yield span

    async def _fail(self, error: BaseException, context: Any, story: _Story) -> None:
        """End the call with the right status; re-raising cancels is the caller's part."""
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            story.end(Code.CANCELLED)
            return
        known = self._known(error, story)
        story.end(known.code, known)
        status = rpcstatus.encode(known, self._domain)
        details = ((rpcstatus.DETAILS_KEY, status),)
        try:
            async with asyncio.timeout(_ABORT_SECONDS if known.reason == STALLED else None):
                await context.abort(rpcstatus.grpc_code(known.code), known.message, details)
        except TimeoutError:
            raise asyncio.CancelledError from error

    def _known(self, error: BaseException, story: _Story) -> TripodError:
        if isinstance(error, TripodError):
            return error
        if isinstance(error, TimeoutError):
            return TripodError(
                f"The call took longer than {self._rules.default_deadline_seconds:g} s",
                code=Code.DEADLINE_EXCEEDED,
                reason="DEFAULT_DEADLINE_EXCEEDED",
            )
        story.fault = error
        return TripodError(
            f"Internal error: {type(error).__name__}", code=Code.INTERNAL, reason="INTERNAL_ERROR"
        )


class _Story:
    """The canonical line of one call, and the same on its span."""

    def __init__(self, method: str, context: Any, span: trace.Span, *, quiet: bool) -> None:
        self._method = method
        self._peer = context.peer()
        self._span = span
        self._quiet = quiet
        self._begin = time.monotonic()
        self._ended = False
        self.message_count = 0
        self.fault: BaseException | None = None

    def end(self, code: Code, error: TripodError | None = None) -> None:
        """Write the line once."""
        if self._ended:
            return
        self._ended = True
        self._span.set_attribute("rpc.response.status_code", code.name)
        if error is not None:
            self._span.set_attribute("error.type", error.reason)
        if code in _SERVER_FAULTS:
            self._span.set_status(Status(StatusCode.ERROR, error.message if error else code.name))
        if not self._quiet or self.fault is not None:
            self._log(code, error)

    def _log(self, code: Code, error: TripodError | None) -> None:
        fields: dict[str, Any] = {
            "method": self._method.lstrip("/"),
            "code": code.name,
            "duration_seconds": round(time.monotonic() - self._begin, 6),
            "peer": self._peer,
        }
        if self.message_count:
            fields["message_count"] = self.message_count
        if error is not None:
            fields |= {"reason": error.reason, "error": error.message}
        if self.fault is not None:
            log.error("Served a call with a bug", exc_info=self.fault, **fields)
        elif code in _SERVER_FAULTS or (error is not None and error.reason == STALLED):
            log.warning("Served a call", **fields)
        else:
            log.debug("Served a call", **fields)
