"""Composition root of the proxy: the only place that knows its concrete classes."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

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
from services.proxy.adapters.kubelet_client import KubeletClient
from services.proxy.adapters.nfmonitor import NftablesMonitor
from services.proxy.adapters.nftables import NftablesKernel
from services.proxy.config import ProxyConfig
from services.proxy.core.model import Decision
from services.proxy.core.planner import Planner
from services.proxy.loops import kubelet_feed
from services.proxy.loops.kubelet_feed import KubeletFeed
from services.proxy.loops.sync import ServiceSync
from services.proxy.server import ProxyServicer
from services.proxy.web import application

log = get_logger(__name__)


class Proxy:
    """All parts, joined. `run` starts them and ends them; the rules stay."""

    def __init__(self, config: ProxyConfig, traces: Telemetry, clock: Clock | None = None) -> None:
        self._config = config
        self._traces = traces
        self._clock = clock or SystemClock()
        self._local = LocalForwarder()
        self._hub: WatchHub[Decision] = WatchHub(secrets.token_hex(8))
        writer = f"tripod-{secrets.token_hex(4)}"
        self._monitor = NftablesMonitor(config.table, writer)
        self._plan = Planner()
        self._sync = ServiceSync(
            kernel=NftablesKernel(config.table, thread_name=writer),
            flows=ConntrackFlows(),
            local=self._local if config.localhost_ports else None,
            addresses=node_addresses,
            clock=self._clock,
            hub=self._hub,
            plan=self._plan,
            sources=kubelet_feed.SOURCES,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set."""
        async with AsyncExitStack() as stack:
            address = self._config.kubelet_address or f"unix://{self._config.run_directory}/kubelet.sock"
            channel = open_channel(address)
            stack.push_async_callback(channel.close, None)
            stack.push_async_callback(self._local.close)
            server = self._server()
            await server.start()
            stack.push_async_callback(partial(server.stop, 3.0))
            host, _, port = self._config.http_listen.rpartition(":")
            web = HttpServer(
                application(self._fault, self._gauges, lambda: self._sync.repairs), host, int(port)
            )
            await web.start()
            stack.push_async_callback(web.stop)
            await until(stop, self._work(KubeletClient(channel, self._clock), server))

    async def _work(self, client: KubeletClient, server: GrpcServer) -> None:
        feed = KubeletFeed(self._plan, self._sync, self._clock)
        loops = {
            "sync": self._sync.run,
            "services": lambda: feed.follow_services(client.services()),
            "pods": lambda: feed.follow_pods(client.pods()),
            "monitor": lambda: self._sync.follow_changes(self._monitor),
            "drift": lambda: self._sync.watch_drift(self._config.drift_seconds),
        }
        async with asyncio.TaskGroup() as group:
            for name, loop in loops.items():
                group.create_task(supervise(name, loop, clock=self._clock))
            await self._sync.synced.wait()
            await server.set_serving(True)
            log.info("Started the proxy", services=len(self._plan.services))

    def _server(self) -> GrpcServer:
        servicer = ProxyServicer(
            self._hub,
            noted=self._sync.programmed.get,
            local_fault=self._local.fault,
            auditor=self._sync.audit,
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

    def _fault(self) -> str | None:
        if not self._sync.synced.is_set():
            return "The kubelet has not told all services and pods yet"
        return self._sync.fault or None

    def _gauges(self) -> dict[str, float]:
        decisions = self._sync.plan.decisions.values()
        return {
            "kubeproxy_services": len(decisions),
            "kubeproxy_endpoints": sum(len(port.used()) for d in decisions for port in d.ports),
            "kubeproxy_sync_commits_total": self._sync.commit_count,
            **process.gauges(),
        }


async def cleanup(config: ProxyConfig) -> None:
    """Remove all our rules."""
    await NftablesKernel(config.table).remove()
