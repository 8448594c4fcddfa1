"""Send requests to a Kubernetes API server, each in its turn and again where that may help.

50 requests a second, 100 at once; Retry-After is honoured; a request that the server may have
heard is not sent twice where that would do something twice. Bodies are neither logged nor told.
Source: client-go `rest.Request` and `rest.Config`.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from random import random
from typing import Any

import aiohttp
from opentelemetry.trace import SpanKind

from services.common import kubeerror, telemetry
from services.common.clock import Clock
from services.common.kubeaccess import Access
from services.common.kubecredentials import Credentials
from services.common.kubeerror import KubeApiError
from services.common.kuberequest import Json
from services.common.tokenbucket import TokenBucket

_QUERIES_PER_SECOND = 50.0
_BURST = 100
_CONNECT_SECONDS = 10.0
TRIES = 5
_FIRST_RETRY_SECONDS = 0.1
_LAST_RETRY_SECONDS = 5.0
_ANSWER_LIMIT_BYTES = 256 << 20
# Larger ones are decoded in a thread, so that nothing else waits for it.
_INLINE_BYTES = 256 << 10
# A peer that is gone is noticed after 45 s, as by the original's HTTP/2 pings.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
_USER_TIMEOUT_MILLISECONDS = 30_000
CALL_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Call:
    """One request, as it is sent and sent again."""

    method: str
    verb: str
    path: str
    what: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = field(default=None, repr=False)
    content_type: str = "application/json"
    seconds: float = CALL_SECONDS
    tries: int = TRIES


class Transport:
    """Sends to one server, and remembers since when it is silent. `agent` names us."""

    def __init__(
        self, access: Access, clock: Clock, *, agent: str, jitter: Callable[[], float] = random
    ) -> None:
        self.server = access.server
        # How many requests were sent, by verb, resource and status; 0 is no answer.
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self._access = access
        self._clock = clock
        self._agent = agent
        self._jitter = jitter
        self._credentials = Credentials(access, clock)
        self._turns = TokenBucket(clock, per_second=_QUERIES_PER_SECOND, burst=_BURST)
        self._session: aiohttp.ClientSession | None = None
        self._silent_since: datetime | None = None
        self._back = asyncio.Event()
        self._why_silent = ""

    async def close(self) -> None:
        """End all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def fault(self) -> str | None:
        """Say why and since when the server cannot be used; None when its last answer was one."""
        if self._silent_since is None:
            return None
        since = self._silent_since.strftime("%Y-%m-%dT%H:%M:%SZ")
        return f"The API server {self.server} does not answer since {since}: {self._why_silent}"

    async def send(self, call: Call) -> Json:
        """Send a request, again where that may help and its time allows."""
        end = self._clock.monotonic() + call.seconds
        attempt = 0
        with telemetry.span(f"kube {call.verb} {call.what}", kind=SpanKind.CLIENT) as span:
            while True:
                attempt += 1
                try:
                    async with self.answer(call) as response:
                        span.set_attribute("http.response.status_code", response.status)
                        return await _decoded(await _body(response, call), call)
                except KubeApiError as error:
                    delay = self._delay(call, error, attempt)
                    if delay is None or self._clock.monotonic() + delay >= end:
                        raise
                await self._clock.sleep(delay)

    def _delay(self, call: Call, error: KubeApiError, attempt: int) -> float | None:
        """Say how long to wait before the next try; None for never."""
        if error.status == 401 and attempt == 1 and self._credentials.refused():
            return 0.0
        # A request that was heard may have made the object: only the caller can tell.
        unclear = call.method == "POST" and error.status in (0, 504) and error.sent
        if not error.passing or unclear or attempt >= call.tries:
            return None
        if error.retry_after_seconds is not None:
            return error.retry_after_seconds * (1 + 0.1 * self._jitter())
        step = min(_LAST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2.0 ** (attempt - 1))
        return float(step * (0.5 + self._jitter()))

    @asynccontextmanager
    async def answer(self, call: Call, *, stream: bool = False) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send once, when it is our turn. What is no success raises."""
        await self._turns.take()
        sent = False
        status = 0
        try:
            async with self._connected().request(
                call.method,
                self.server + call.path,
                params=call.parameters,
                data=call.body,
                headers=await self._headers(call),
                ssl=self._credentials.tls() if self.server.startswith("https") else True,
                server_hostname=self._access.server_name or None,
                proxy=self._access.proxy or None,
                allow_redirects=False,
                timeout=_timeout(call, stream=stream),
            ) as response:
                sent, status = True, response.status
                self.requests[call.verb, call.what, status] += 1
                if not 200 <= status < 300:
                    raise await _refusal(response, call)
                self._heard()
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = kubeerror.STREAM_CUT if stream and status else kubeerror.UNREACHABLE
            sent = sent or not isinstance(error, aiohttp.ClientConnectorError)
            if not status:
                self.requests[call.verb, call.what, 0] += 1
            failed = kubeerror.unreachable(f"{call.verb} {call.what}", _why(error), sent=sent, reason=reason)
            if not (stream and status):
                self._missed(failed)
            raise failed from error
        except KubeApiError as error:
            self._missed(error) if error.status >= 500 else self._heard()
            raise

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            # Each watch holds a connection of its own.
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60.0, socket_factory=_socket)
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        return self._session

    async def _headers(self, call: Call) -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": self._agent}
        if call.body is not None:
            headers["Content-Type"] = call.content_type
        if not self._access.compress:
            headers["Accept-Encoding"] = "identity"
        if token := await self._credentials.token():
            headers["Authorization"] = f"Bearer {token}"
        if parent := telemetry.traceparent():
            headers["traceparent"] = parent
        return headers

    async def recovery(self) -> None:
        """Wait until the server answers after it was silent."""
        await self._back.wait()

    def _heard(self) -> None:
        if self._silent_since is not None:
            self._silent_since = None
            self._back.set()
            self._back = asyncio.Event()

    def _missed(self, error: KubeApiError) -> None:
        self._silent_since = self._silent_since or self._clock.now()
        self._why_silent = error.message


def _socket(address: Any) -> socket.socket:
    """Make a socket that notices a peer which is gone."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    if family in (socket.AF_INET, socket.AF_INET6):
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            made.setsockopt(socket.IPPROTO_TCP, option, value)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MILLISECONDS)
    return made


def _timeout(call: Call, *, stream: bool) -> aiohttp.ClientTimeout:
    # A stream's own end is the server's; whoever reads it notices its silence.
    if stream:
        return aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS)
    return aiohttp.ClientTimeout(total=call.seconds, sock_connect=min(_CONNECT_SECONDS, call.seconds))


async def _refusal(response: aiohttp.ClientResponse, call: Call) -> KubeApiError:
    try:
        value = json.loads(await _body(response, call))
    except ValueError:
        value = None
    after = response.headers.get("Retry-After", "")
    return kubeerror.of_status(
        value,
        http_status=response.status,
        what=f"{call.verb} {call.what}",
        retry_after_seconds=float(after) if after.isdigit() else None,
    )


async def _body(response: aiohttp.ClientResponse, call: Call) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > _ANSWER_LIMIT_BYTES:
            raise kubeerror.unreachable(
                f"{call.verb} {call.what}", f"the answer has more than {_ANSWER_LIMIT_BYTES} bytes", sent=True
            )
    return b"".join(parts)


async def _decoded(body: bytes, call: Call) -> Json:
    try:
        value = json.loads(body) if len(body) < _INLINE_BYTES else await asyncio.to_thread(json.loads, body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise kubeerror.unreachable(f"{call.verb} {call.what}", "the answer is no JSON object", sent=True)
    return value


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return "it did not answer in time"
    if isinstance(error, aiohttp.ClientResponseError):
        # Its own text has the URL, and a proxy's has a password.
        return f"{error.status} {error.message}"
    return str(error) or type(error).__name__
