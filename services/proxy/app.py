"""Composition root of the proxy: the only place that knows its concrete classes."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web
from tripod.proxy.v1 import proxy_service_pb2_grpc as pb_grpc

from services.common import process, traceserver
from services.common.clock import Clock, SystemClock
from services.common.grpcclient import open_channel
from services.common.grpcserver import GrpcServer, Listener, Servicer, build_server
from services.common.httpserver import HttpServer
from services.common.lifecycle import supervise, until
from services.common.localports import LocalForwarder
from services.common.logs import get_logger
from services.common.security import socket_group
from services.common.telemetry import Telemetry
from services.common.watch import WatchHub
from services.proxy.adapters.addresses import node_addresses
from services.proxy.adapters.conntrack import ConntrackFlows
from services.proxy.adapters.health_ports import HttpHealthPorts
from services.proxy.adapters.kubelet_client import KubeletClient
from services.proxy.adapters.nfmonitor import NftablesMonitor
from services.proxy.adapters.nftables import NftablesKernel
from services.proxy.adapters.routes import KernelRoutes
from services.proxy.config import ProxyConfig
from services.proxy.core.audit import Audited
from services.proxy.core.cluster import ClusterPlan
from services.proxy.core.latency import Histogram
from services.proxy.core.model import Decision
from services.proxy.core.planner import Planner
from services.proxy.loops import cluster_feed, kubelet_feed, routes
from services.proxy.loops.kubelet_feed import KubeletFeed
from services.proxy.loops.sync import ServiceSync
from services.proxy.server import ProxyServicer
from services.proxy.web import LATENCY, SYNC_DURATION, application, health_application

if TYPE_CHECKING:
    from services.proxy.member import Member

log = get_logger(__name__)
# The original's bounds of network_programming_duration_seconds.
_LATENCY_SECONDS = (
    0.25,
    0.5,
    *map(float, range(1, 60)),
    *map(float, range(60, 120, 5)),
    120,
    150,
    180,
    210,
    240,
    270,
    300,
)


class Proxy:
    """All parts, joined. `run` starts them and ends them; the rules stay.

    Raises `KubeconfigError` for a cluster that cannot be joined.
    """

    def __init__(self, config: ProxyConfig, traces: Telemetry, clock: Clock | None = None) -> None:
        if config.node_routes not in ("auto", "on", "off"):
            raise ValueError(f"node_routes: {config.node_routes!r} is none of auto, on, off")
        self._config = config
        self._traces = traces
        self._clock = clock or SystemClock()
        self._local = LocalForwarder()
        self._hub: WatchHub[Decision] = WatchHub(secrets.token_hex(8))
        writer = f"tripod-{secrets.token_hex(4)}"
        self._monitor = NftablesMonitor(config.table, writer)
        self._alone = Planner()
        self._joined = ClusterPlan(node_name(config), config.cluster_cidr) if config.kubeconfig else None
        self._latency = Histogram(_LATENCY_SECONDS)
        self._sync = ServiceSync(
            kernel=NftablesKernel(config.table, thread_name=writer),
            flows=ConntrackFlows(),
            local=self._local if config.localhost_ports else None,
            addresses=node_addresses,
            clock=self._clock,
            hub=self._hub,
            plan=self._joined or self._alone,
            sources=cluster_feed.SOURCES if self._joined else kubelet_feed.SOURCES,
        )
        self._health_ports = HttpHealthPorts(lambda: self._sync.pace().keeps_up)
        self._member = self._make_member() if self._joined else None

    def _make_member(self) -> Member:
        # It speaks TLS, which a node that is alone does without.
        from services.proxy.member import Member

        assert self._joined is not None
        return Member(
            self._config,
            node_name(self._config),
            self._joined,
            self._sync,
            self._clock,
            self._latency.observe,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set."""
        async with AsyncExitStack() as stack:
            address = self._config.kubelet_address or f"unix://{self._config.run_directory}/kubelet.sock"
            channel = open_channel(address)
            stack.push_async_callback(channel.close, None)
            stack.push_async_callback(self._local.close)
            stack.push_async_callback(self._health_ports.close)
            server = self._server()
            await server.start()
            stack.push_async_callback(partial(server.stop, 3.0))
            page = application(self._fault, self._gauges, lambda: self._sync.repairs, self._histograms)
            await self._serve(stack, page, self._config.http_listen)
            if self._member is not None:
                stack.push_async_callback(self._member.close)
                if self._config.healthz_listen:
                    await self._serve(stack, self._health_page(), self._config.healthz_listen)
            await until(stop, self._work(KubeletClient(channel, self._clock), server))

    async def _serve(self, stack: AsyncExitStack, page: web.Application, address: str) -> None:
        host, _, port = address.rpartition(":")
        server = HttpServer(page, host, int(port))
        await server.start()
        stack.push_async_callback(server.stop)

    def _health_page(self) -> web.Application:
        member = self._member
        return health_application(self._sync.pace, lambda: member is None or member.eligible, self._clock.now)

    async def _work(self, client: KubeletClient, server: GrpcServer) -> None:
        loops = {
            "sync": self._sync.run,
            **self._source(client),
            "monitor": lambda: self._sync.follow_changes(self._monitor),
            "drift": lambda: self._sync.watch_drift(self._config.drift_seconds),
            "health-ports": lambda: self._sync.serve_health(self._health_ports),
        }
        async with asyncio.TaskGroup() as group:
            for name, loop in loops.items():
                group.create_task(supervise(name, loop, clock=self._clock))
            if self._member is not None:
                await self._member.tell_when_known()
            await self._sync.synced.wait()
            await server.set_serving(True)
            log.info("Started the proxy", services=len(self._sync.plan.decisions))

    def _source(self, client: KubeletClient) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """Return the loops that follow what there is: at the API server, or at the kubelet."""
        if self._member is not None:
            return self._member.loops(client)
        feed = KubeletFeed(self._alone, self._sync, self._clock)
        return {
            "services": lambda: feed.follow_services(client.services()),
            "pods": lambda: feed.follow_pods(client.pods()),
        }

    def _server(self) -> GrpcServer:
        servicer = ProxyServicer(
            self._hub,
            noted=self._sync.programmed.get,
            local_fault=self._local.fault,
            auditors=[self._sync.audit, self._audit_routes],
            repair_count=self._sync.repairs.total,
            clock=self._clock,
        )
        group = socket_group(Path(self._config.docker_host.removeprefix("unix://")))
        listeners = [Listener(f"unix://{self._config.run_directory}/proxy.sock", group)]
        if self._config.listen:
            listeners.append(Listener(self._config.listen))
        name = "tripod.proxy.v1.ProxyService"
        return build_server(
            [
                Servicer(name, partial(pb_grpc.add_ProxyServiceServicer_to_server, servicer)),
                traceserver.servicer(self._traces.ring),
            ],
            listeners=listeners,
        )

    async def _audit_routes(self) -> Audited:
        if self._member is not None:
            return await self._member.routes.audit()
        # Routes that are there are left from a cluster that the node has left.
        return await routes.audit(KernelRoutes(), (), node_name(self._config))

    def _fault(self) -> str | None:
        if not self._sync.synced.is_set():
            who = "The API server" if self._member else "The kubelet"
            waits = " and ".join(self._sync.waits_for())
            return f"{who} has not told all {waits} yet" if waits else "The kernel has no rules yet"
        return self._sync.fault or None

    def _gauges(self) -> dict[str, float]:
        decisions = self._sync.plan.decisions.values()
        return {
            "kubeproxy_services": len(decisions),
            "kubeproxy_endpoints": sum(len(port.used()) for d in decisions for port in d.ports),
            "kubeproxy_sync_commits_total": self._sync.commit_count,
            **self._sync.gauges(),
            **(self._member.routes.gauges() if self._member else {}),
            **process.gauges(),
        }

    def _histograms(self) -> str:
        return "".join(
            [
                *self._sync.durations.lines(SYNC_DURATION, "Time that a change of rules took."),
                *self._latency.lines(LATENCY, "Time from an endpoint's change to the kernel's."),
            ]
        )


def node_name(config: ProxyConfig) -> str:
    """Return the node's name: the setting, else the host's name."""
    return config.node_name or socket.gethostname().lower()


async def cleanup(config: ProxyConfig) -> None:
    """Remove all our rules and routes."""
    await NftablesKernel(config.table).remove()
    await routes.remove_all(KernelRoutes())
