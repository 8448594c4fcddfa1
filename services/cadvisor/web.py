"""cAdvisor's HTTP endpoints: `/metrics`, `/healthz`, the live page and its data."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from services.cadvisor.core import exposition
from services.cadvisor.core.model import Snapshot, Stats
from services.common import gauges, process
from services.common.httpserver import new_application

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_PIECE_BYTES = 65_536
_SEND_SECONDS = 20.0
UI = Path(__file__).parent / "ui"
_PAGES = {
    "/": ("index.html", "text/html"),
    "/ui.css": ("ui.css", "text/css"),
    "/ui.js": ("ui.js", "text/javascript"),
}
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'"
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class MetricsPage:
    """One rendering of a snapshot, plain and compressed, for every scraper. Belongs to one event loop."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._of: Snapshot | None = None
        self._plain = self._packed = b""

    async def page(self, snapshot: Snapshot, *, packed: bool) -> bytes:
        """Return the page; all who ask for one snapshot get the same object."""
        async with self._lock:
            if self._of is not snapshot:
                own = gauges.page(process.HELP, process.gauges())
                self._plain, self._packed = exposition.render(snapshot).encode() + own, b""
                self._of = snapshot
            if packed and not self._packed:
                self._packed = await asyncio.to_thread(gzip.compress, self._plain, 1)
            return self._packed if packed else self._plain


async def send(request: web.Request, body: bytes, headers: Mapping[str, str]) -> web.StreamResponse:
    """Send piece by piece: one who reads slowly holds a piece in memory, not the page, and not for ever."""
    answer = web.StreamResponse(headers={**headers, "Content-Length": str(len(body))})
    await answer.prepare(request)
    pieces = memoryview(body)
    try:
        async with asyncio.timeout(_SEND_SECONDS):
            for start in range(0, len(body), _PIECE_BYTES):
                await answer.write(pieces[start : start + _PIECE_BYTES])
            await answer.write_eof()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
    return answer


def application(
    healthy: Callable[[], str | None],
    latest: Callable[[], Snapshot | None],
    history: Callable[[], Sequence[Snapshot]],
) -> web.Application:
    """Make the application."""
    app = new_application(healthy=healthy)
    metrics_page = MetricsPage()

    async def metrics(request: web.Request) -> web.StreamResponse:
        snapshot = latest()
        if snapshot is None:
            return web.Response(text="Nothing has been sampled yet\n", status=503)
        packed = "gzip" in request.headers.get("Accept-Encoding", "")
        body = await metrics_page.page(snapshot, packed=packed)
        encoding = {"Content-Encoding": "gzip"} if packed else {}
        return await send(request, body, {"Content-Type": _TEXT, "Vary": "Accept-Encoding", **encoding})

    async def data(request: web.Request) -> web.Response:
        found = list(history()) if request.query.get("history") else list(history())[-1:]
        return web.json_response([snapshot_json(snapshot) for snapshot in found], headers=_HEADERS)

    app.router.add_get("/metrics", metrics)
    app.router.add_get("/api/snapshots", data)
    for path, (name, kind) in _PAGES.items():
        app.router.add_get(path, _static(UI / name, kind))
    return app


def _static(file: Path, kind: str) -> Callable[[web.Request], Any]:
    content = file.read_bytes()

    async def page(_: web.Request) -> web.Response:
        return web.Response(body=content, content_type=kind, charset="utf-8", headers=_HEADERS)

    return page


def snapshot_json(snapshot: Snapshot) -> dict[str, Any]:
    """Write what the live page shows."""
    return {
        "time": snapshot.time.timestamp(),
        "error": snapshot.metadata_error,
        "cost": snapshot.duration_ns / 1e6,
        "machine": _stats_json(snapshot.machine),
        "containers": [_stats_json(stats) for stats in snapshot.containers],
    }


def _stats_json(stats: Stats) -> dict[str, Any]:
    who = stats.identity
    return {
        "id": who.id,
        "name": who.container,
        "pod": who.pod,
        "namespace": who.namespace,
        "path": who.path,
        "cpu": stats.cpu.nanocores,
        "throttled": stats.cpu.throttled_periods,
        "memory": stats.memory.working_set,
        "limit": stats.memory.limit,
        "received": sum(i.received_bytes for i in stats.interfaces) if stats.interfaces else None,
        "sent": sum(i.sent_bytes for i in stats.interfaces) if stats.interfaces else None,
        "read": sum(d.read_bytes for d in stats.disks),
        "written": sum(d.write_bytes for d in stats.disks),
        "processes": stats.processes.processes,
    }
