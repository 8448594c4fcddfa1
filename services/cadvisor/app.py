"""Composition root of cAdvisor: the only place that knows its concrete classes."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from tripod.cadvisor.v1 import stats_service_pb2_grpc as pb_grpc

from services.cadvisor.adapters import machine
from services.cadvisor.adapters.cgroupfs import CgroupReader
from services.cadvisor.adapters.cri_metadata import CriMetadata
from services.cadvisor.config import CadvisorConfig
from services.cadvisor.loops.names import Names
from services.cadvisor.loops.sampling import Sampler
from services.cadvisor.server import StatsServicer
from services.cadvisor.web import application
from services.common import traceserver
from services.common.clock import Clock, SystemClock
from services.common.grpcclient import open_channel
from services.common.grpcserver import GrpcServer, Listener, Servicer, build_server
from services.common.httpserver import HttpServer
from services.common.lifecycle import supervise, until
from services.common.logs import get_logger
from services.common.security import socket_group
from services.common.telemetry import Telemetry

log = get_logger(__name__)
_STALE_SECONDS = 10.0


def cgroup_root(config: CadvisorConfig) -> Path:
    """Return where the host's cgroup tree is."""
    if config.cgroup_root != Path():
        return config.cgroup_root
    mounted = Path("/host/cgroup")
    return mounted if mounted.is_dir() else Path("/sys/fs/cgroup")


class Cadvisor:
    """All parts, joined. `run` starts them and ends them."""

    def __init__(self, config: CadvisorConfig, traces: Telemetry, clock: Clock | None = None) -> None:
        self._config = config
        self._traces = traces
        self._clock = clock or SystemClock()
        self._reader = CgroupReader(cgroup_root(config), config.proc_root)
        self._channel = open_channel(config.cri_address or f"unix://{config.run_directory}/cri.sock")
        self._names = Names(CriMetadata(self._channel), self._clock)
        self._sampler = Sampler(self._reader, self._names, self._clock, history=config.history_seconds)

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set."""
        async with AsyncExitStack() as stack:
            stack.callback(self._reader.close)
            stack.push_async_callback(self._channel.close, None)
            server = self._server()
            await server.start()
            stack.push_async_callback(partial(server.stop, 3.0))
            host, _, port = self._config.http_listen.rpartition(":")
            pages = application(self._fault, self._sampler.latest, lambda: self._sampler.history)
            web = HttpServer(pages, host, int(port))
            await web.start()
            stack.push_async_callback(web.stop)
            await until(stop, self._work(server))

    async def _work(self, server: GrpcServer) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(supervise("names", self._names.run, clock=self._clock))
            await self._sampler.sample()
            await server.set_serving(True)
            log.info("Started cAdvisor", layout=self._reader.layout.value)
            await supervise("sampling", self._sampler.run, clock=self._clock)

    def _server(self) -> GrpcServer:
        facts = machine.read(self._config.proc_root, self._reader.layout)
        servicer = StatsServicer(self._sampler.latest, self._sampler.watch, facts)
        group = socket_group(Path(self._config.docker_host.removeprefix("unix://")))
        listeners = [Listener(f"unix://{self._config.run_directory}/cadvisor.sock", group)]
        if self._config.listen:
            listeners.append(Listener(self._config.listen))
        name = "tripod.cadvisor.v1.StatsService"
        return build_server(
            [
                Servicer(name, partial(pb_grpc.add_StatsServiceServicer_to_server, servicer)),
                traceserver.servicer(self._traces.ring),
            ],
            listeners=listeners,
        )

    def _fault(self) -> str | None:
        latest = self._sampler.latest()
        if latest is None:
            return "Nothing has been sampled yet"
        age = (self._clock.now() - latest.time).total_seconds()
        return f"The latest sample is {age:.0f} s old" if age > _STALE_SECONDS else None
