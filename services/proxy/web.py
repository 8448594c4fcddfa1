"""The proxy's HTTP endpoints: `/healthz` and `/metrics`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime

from aiohttp import web

from services.common import gauges as gauge_text
from services.common import process
from services.common.httpserver import new_application
from services.proxy.core.health import Pace, proxy_answer

REPAIRS = "kubeproxy_rule_repairs_total"
SYNC_DURATION = "kubeproxy_sync_proxy_rules_duration_seconds"
LATENCY = "kubeproxy_network_programming_duration_seconds"
KINDS = ("table", "chains", "elements")
GAUGES = {
    REPAIRS: "Times that rules others had changed were put back.",
    "kubeproxy_services": "Services that are known.",
    "kubeproxy_endpoints": "Endpoints that get traffic.",
    "kubeproxy_sync_commits_total": "Transactions that the kernel took since the start.",
    "kubeproxy_sync_proxy_rules_last_timestamp_seconds": "When rules were last as they should be.",
    "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds": "When a change was last told.",
    "kubeproxy_sync_proxy_rules_nftables_sync_failures_total": "Changes that the kernel refused.",
    "kubeproxy_sync_proxy_rules_no_local_endpoints_total": (
        "Ports whose policy is Local, with endpoints but none on this node."
    ),
    "kubeproxy_node_routes": "Routes to other nodes' pods.",
    "kubeproxy_node_unrouted": "Nodes to whose pods no route is kept, and why.",
    **process.HELP,
}


def application(
    healthy: Callable[[], str | None],
    gauges: Callable[[], Mapping[str, float]],
    repairs: Callable[[], Mapping[str, int]],
    histograms: Callable[[], str],
) -> web.Application:
    """Make the application."""
    app = new_application(healthy=healthy)

    async def metrics(_: web.Request) -> web.Response:
        counts = repairs()
        by_kind = {f'{REPAIRS}{{kind="{kind}"}}': float(counts.get(kind, 0)) for kind in KINDS}
        body = gauge_text.page(GAUGES, {**gauges(), **by_kind}) + histograms().encode()
        return web.Response(body=body, content_type="text/plain", charset="utf-8")

    app.router.add_get("/metrics", metrics)
    return app


def health_application(
    pace: Callable[[], Pace], eligible: Callable[[], bool], now: Callable[[], datetime]
) -> web.Application:
    """Make the application that load balancers ask: `/healthz`, and `/livez` for who restarts us."""
    app = web.Application(client_max_size=1 << 10)

    def answering(*, stays_matters: bool) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(_: web.Request) -> web.Response:
            status, body = proxy_answer(pace(), now(), eligible=eligible(), stays_matters=stays_matters)
            return web.json_response(body, status=status, headers={"X-Content-Type-Options": "nosniff"})

        return answer

    app.router.add_get("/healthz", answering(stays_matters=True))
    app.router.add_get("/livez", answering(stays_matters=False))
    return app
