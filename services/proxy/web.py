"""The proxy's HTTP endpoints: `/healthz` and `/metrics`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from services.common import process
from services.common.httpserver import new_application

GAUGES = {
    "kubeproxy_services": "Services that are known.",
    "kubeproxy_endpoints": "Endpoints that get traffic.",
    "kubeproxy_sync_commits_total": "Transactions that the kernel took since the start.",
    **process.HELP,
}


REPAIRS = "kubeproxy_rule_repairs_total"
KINDS = ("table", "chains", "elements")


def application(
    healthy: Callable[[], str | None],
    gauges: Callable[[], Mapping[str, float]],
    repairs: Callable[[], Mapping[str, int]],
) -> web.Application:
    """Make the application."""
    app = new_application(healthy=healthy)
    registry = CollectorRegistry()
    made = {name: Gauge(name, text, registry=registry) for name, text in GAUGES.items()}
    by_kind = Gauge(
        REPAIRS, "Times that rules others had changed were put back.", ["kind"], registry=registry
    )

    async def metrics(_: web.Request) -> web.Response:
        for name, value in gauges().items():
            made[name].set(value)
        counts = repairs()
        for kind in KINDS:
            by_kind.labels(kind).set(counts.get(kind, 0))
        return web.Response(body=generate_latest(registry), content_type="text/plain", charset="utf-8")

    app.router.add_get("/metrics", metrics)
    return app
