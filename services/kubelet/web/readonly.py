"""The kubelet's HTTP endpoints, on loopback, for reading alone.

Source: the kubelet's read-only port: `/healthz`, `/pods`, `/spec`, `/metrics`,
`/metrics/cadvisor`, `/stats/summary`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from services.common import process
from services.common.errors import TripodError
from services.common.httpserver import new_application

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Views:
    """What the pages show, each when it is asked for."""

    healthy: Callable[[], str | None]
    pods: Callable[[], Sequence[Json]]
    spec: Callable[[], Json]
    summary: Callable[[], Awaitable[Json]]
    cadvisor_metrics: Callable[[], Awaitable[bytes]]
    metrics: Callable[[], bytes]


GAUGES = {
    "kubelet_running_pods": "Pods that have a running sandbox.",
    "kubelet_running_containers": "Containers by state.",
    "kubelet_node_name": "The node's name.",
    "kubelet_desired_pods": "Pods that the node should run.",
    "kubelet_sync_passes_total": "Passes of pod workers since the start.",
    "kubelet_node_ready": "Whether the node is ready.",
    "kubelet_refused_manifests": "Files of the manifest directory that are refused now.",
    "kubelet_store_writable": "Whether the object store takes changes.",
    "rest_client_requests_total": "Requests to the API server, by verb, resource and status; 0 is no answer.",
    "kubelet_events_dropped_total": "Events that the API server was not told since they were too many.",
    "tripod_cri_image_pulls_running": "Pulls of images that run.",
    "tripod_cri_image_pulls_total": "Pulls of images that ended, by outcome.",
    "tripod_cri_image_pulled_layers_total": "Layers that were pulled and unpacked.",
    "tripod_cri_image_pulled_bytes_total": "Bytes of layers that were pulled, as the engine tells.",
    **process.HELP,
}


def application(views: Views) -> web.Application:
    """Make the application."""
    app = new_application(healthy=views.healthy)

    async def pods(_: web.Request) -> web.Response:
        return web.json_response({"kind": "PodList", "apiVersion": "v1", "items": list(views.pods())})

    async def spec(_: web.Request) -> web.Response:
        return web.json_response(dict(views.spec()))

    async def summary(_: web.Request) -> web.Response:
        return web.json_response(dict(await views.summary()))

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=views.metrics(), content_type="text/plain", charset="utf-8")

    async def cadvisor(_: web.Request) -> web.Response:
        try:
            return web.Response(
                body=await views.cadvisor_metrics(), content_type="text/plain", charset="utf-8"
            )
        except TripodError as error:
            return web.Response(text=f"{error.message}\n", status=503)

    app.router.add_get("/pods", pods)
    app.router.add_get("/spec", spec)
    app.router.add_get("/spec/", spec)
    app.router.add_get("/stats/summary", summary)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/metrics/cadvisor", cadvisor)
    return app
