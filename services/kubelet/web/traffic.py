"""How many requests came, run, and how long they took, as the original counts them."""

from __future__ import annotations

from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from services.common.clock import Clock
from services.kubelet.core.measures import Counter, Gauge, Histogram, Measure

_LABELS: Final = ("long_running", "method", "path", "server_type")
_METHODS: Final = frozenset({"OPTIONS", "GET", "HEAD", "POST", "PUT", "DELETE", "TRACE", "CONNECT"})
_PATHS: Final = frozenset(
    (
        *("attach", "checkpoint", "configz", "containerLogs", "debug", "exec", "healthz", "logs", "metrics"),
        *("metrics/cadvisor", "metrics/probes", "metrics/resource"),
        *("pods", "portForward", "run", "runningpods", "stats"),
    )
)
_STREAMS: Final = frozenset({"exec", "attach", "portForward"})
_LONG: Final = frozenset({"exec", "attach", "portForward", "debug"})


class Traffic:
    """Counts the requests of one server."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._requests = Counter("kubelet_http_requests_total", "Requests since the start.", _LABELS)
        self._running = Gauge("kubelet_http_inflight_requests", "Requests that run.", _LABELS)
        self._seconds = Histogram(
            "kubelet_http_requests_duration_seconds", "How long requests took.", _LABELS
        )
        self._websockets = Counter(
            "kubelet_websocket_streaming_requests_total",
            "Requests for streams that came as WebSockets.",
            ("subresource",),
        )
        self.count = self._middleware()

    def measures(self) -> tuple[Measure, ...]:
        """Return what was counted."""
        return self._requests, self._running, self._seconds, self._websockets

    def _middleware(self) -> Middleware:
        @web.middleware
        async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
            labels = bucket(request.method, request.path)
            begin = self._clock.monotonic()
            self._requests.add(*labels)
            self._running.add(*labels)
            if labels[2] in _STREAMS and request.headers.get("Upgrade", "").lower() == "websocket":
                self._websockets.add(labels[2].lower())
            try:
                return await handler(request)
            finally:
                self._running.add(*labels, by=-1)
                self._seconds.observe(self._clock.monotonic() - begin, *labels)

        return count


def bucket(method: str, path: str) -> tuple[str, str, str, str]:
    """Return the labels of a request, of which there are few."""
    first, _, rest = path.removeprefix("/").partition("/")
    root = f"{first}/{rest.partition('/')[0]}" if first == "metrics" and rest else first
    known = root if root in _PATHS else "other"
    return str(known in _LONG).lower(), method if method in _METHODS else "other", known, "readwrite"
