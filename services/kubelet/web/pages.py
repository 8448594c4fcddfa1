"""Pages to read: health, pods, statistics, metrics, the configuration in force.

Source: kubernetes pkg/kubelet/server/server.go; healthz of k8s.io/apiserver.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from services.common.errors import TripodError

Json = Mapping[str, Any]
_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
# What the original can be told not to serve, in its words.
_DISABLED: Final = {
    "/logs": "logs endpoint is disabled.",
    "/debug/pprof": "profiling endpoint is disabled.",
    "/debug/flags/v": "flags endpoint is disabled.",
}


@dataclass(frozen=True, slots=True)
class Pages:
    """What the pages show, each when it is asked for. `checks` say what is wrong; None when nothing is.

    `summary` is told whether CPU and memory are enough.
    """

    checks: Mapping[str, Callable[[], str | None]]
    pods: Callable[[], Sequence[Json]]
    running_pods: Callable[[], Awaitable[Sequence[Json]]]
    summary: Callable[[bool], Awaitable[Json]]
    configuration: Callable[[], Json]
    metrics: Mapping[str, Callable[[], Awaitable[bytes]]]


def add_pages(router: web.UrlDispatcher, pages: Pages) -> None:
    """Add the routes."""

    async def pods(_: web.Request) -> web.Response:
        return web.json_response(pod_list(pages.pods()))

    async def running_pods(_: web.Request) -> web.Response:
        try:
            return web.json_response(pod_list(await pages.running_pods()))
        except TripodError as error:
            return web.Response(status=500, text=error.message)

    async def summary(http: web.Request) -> web.Response:
        only = http.query.get("only_cpu_and_memory", "").lower() in ("true", "1", "t")
        return web.json_response(dict(await pages.summary(only)))

    async def configuration(_: web.Request) -> web.Response:
        return web.json_response(dict(pages.configuration()))

    router.add_get("/pods", pods, allow_head=False)
    for path in ("/runningpods", "/runningpods/"):
        router.add_get(path, running_pods, allow_head=False)
    for path in ("/stats/summary", "/stats/summary/"):
        router.add_get(path, summary, allow_head=False)
        router.add_post(path, summary)
    router.add_get("/configz", configuration, allow_head=False)
    _add_health(router, pages.checks)
    for path, render in pages.metrics.items():
        router.add_get(path, _metrics(render), allow_head=False)
    for path, words in _DISABLED.items():
        router.add_route("*", path, _disabled(words))
        router.add_route("*", f"{path}/{{rest:.*}}", _disabled(words))


def pod_list(pods: Sequence[Json]) -> Json:
    """Write a list of pods."""
    return {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": list(pods)}


def _metrics(render: Callable[[], Awaitable[bytes]]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def page(_: web.Request) -> web.Response:
        try:
            return web.Response(body=await render(), headers={"Content-Type": _TEXT})
        except TripodError as error:
            return web.Response(text=f"{error.message}\n", status=503)

    return page


def _disabled(words: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text=f"{words}\n", status=405)

    return page


def _add_health(router: web.UrlDispatcher, checks: Mapping[str, Callable[[], str | None]]) -> None:
    async def all_checks(http: web.Request) -> web.Response:
        left_out = set(http.query.getall("exclude", []))
        faults = {name: check() for name, check in checks.items() if name not in left_out}
        if all(fault is None for fault in faults.values()) and "verbose" not in http.query:
            return web.Response(text="ok")
        return health(faults)

    def one(name: str) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def page(_: web.Request) -> web.Response:
            fault = checks[name]()
            if fault is None:
                return web.Response(text="ok")
            return web.Response(text=f"internal server error: {fault}\n", status=500)

        return page

    router.add_get("/healthz", all_checks)
    for name in checks:
        router.add_get(f"/healthz/{name}", one(name))


def health(faults: Mapping[str, str | None]) -> web.Response:
    """Tell each check, in the original's words; what is wrong is told by its own page alone."""
    lines = [f"[+]{n} ok" if f is None else f"[-]{n} failed: reason withheld" for n, f in faults.items()]
    failed = any(fault is not None for fault in faults.values())
    lines.append("healthz check failed" if failed else "healthz check passed")
    return web.Response(text="".join(f"{line}\n" for line in lines), status=500 if failed else 200)
