"""Composition root of the CRI server: the only place that knows its concrete classes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from opentelemetry import trace
from tripod.cri.v1 import api_pb2 as pb
from tripod.cri.v1 import api_pb2_grpc as pb_grpc

from services.common.clock import Clock, SystemClock
from services.common.errors import TripodError
from services.common.grpcserver import GrpcServer, Limits, Listener, Servicer, build_server
from services.common.logs import get_logger
from services.common.security import socket_group
from services.kubelet.cri import naming
from services.kubelet.cri.config import CriConfig
from services.kubelet.cri.convert import Host
from services.kubelet.cri.docker_client import DockerClient
from services.kubelet.cri.enginestream import EngineStreams
from services.kubelet.cri.errors import CriError
from services.kubelet.cri.execution import DockerExec
from services.kubelet.cri.image_service import ImageService
from services.kubelet.cri.inflight import InFlight
from services.kubelet.cri.ledger import LedgerTaker
from services.kubelet.cri.logs import LogKeeper
from services.kubelet.cri.naming import Record
from services.kubelet.cri.network.bridge import BridgeNetwork
from services.kubelet.cri.network.chosen import ChosenNetwork, choice
from services.kubelet.cri.network.cni.cni import CniNetwork
from services.kubelet.cri.network.cni.config import CniConfig
from services.kubelet.cri.network.config import BridgeConfig
from services.kubelet.cri.portforward import SandboxPorts
from services.kubelet.cri.register import Register
from services.kubelet.cri.runtime_service import RuntimeService
from services.kubelet.cri.sandboxes import Holdings, Sandboxes
from services.kubelet.cri.streaming.server import HttpStreamingServer

log = get_logger(__name__)
_UPKEEP_SECONDS = 10.0
_ENGINE_RETRY_SECONDS = 1.0
_CAP_SYS_RESOURCE = 24
_API_VERSION = "1.41"


def network_config(config: CriConfig) -> BridgeConfig:
    """Take the built-in pod network's settings."""
    return BridgeConfig(
        state_directory=config.state_directory,
        bridge=config.bridge,
        pod_cidr=config.pod_cidr,
        chain_prefix=config.chain_prefix,
        veth_prefix=config.veth_prefix,
        proc_sys=config.proc_sys,
    )


def pod_network(config: CriConfig) -> ChosenNetwork:
    """Make the pod network. Raises `ValueError` for a setting that cannot be used."""
    cni = CniConfig(
        state_directory=config.state_directory,
        conf_folder=config.cni_conf_dir,
        bin_folders=tuple(map(Path, config.cni_bin_dirs)),
        netns_folder=config.cni_netns_dir,
        operation_timeout_seconds=config.cni_deadline_seconds,
    )
    return ChosenNetwork(BridgeNetwork(network_config(config)), CniNetwork(cni), choice(config.pod_network))


class CriServer:
    """The whole CRI server. `start`, then `upkeep` as a task, then `stop`; containers run on."""

    def __init__(
        self, config: CriConfig, clock: Clock | None = None, *, tracer: trace.Tracer | None = None
    ) -> None:
        self._config = config
        self._tracer = tracer
        self._clock = clock or SystemClock()
        self._client = DockerClient(config.docker_host, deadline_seconds=config.engine_deadline_seconds)
        self._network = pod_network(config)
        self._stack = AsyncExitStack()
        self._register = Register(config.state_directory, config.node_name)
        self._holdings = Holdings(self._client, config.node_name, self._register)
        self._inflight: InFlight[str] = InFlight()
        self._host = Host(config.node_name, config.pause_image, negative_oom_scores=_may_raise_resources())
        self._sandboxes = self._made_sandboxes()
        self._logs: LogKeeper | None = None
        self._server: GrpcServer | None = None

    async def start(self) -> None:
        """Wait for the engine, take the network up, serve. Raises what makes serving impossible."""
        api_version = await self._engine_version()
        streams = EngineStreams(self._config.docker_host, api_version)
        self._stack.push_async_callback(streams.close)
        await self._network.start()
        self._stack.push_async_callback(self._network.stop)
        self._register.open()
        execution = DockerExec(self._client, streams)
        streaming = HttpStreamingServer(execution, SandboxPorts(self._holdings))
        await streaming.start()
        self._stack.push_async_callback(streaming.stop)
        self._logs = LogKeeper(self._client, streams, self._config.state_directory / "log-cursors")
        if not self._host.negative_oom_scores:
            log.info("Clamped negative out-of-memory scores to 0", why="the host lacks CAP_SYS_RESOURCE")
        await self._sandboxes.prepare()
        self._server = self._build(streams, execution, streaming, self._sandboxes)
        await self._server.start()
        await self._server.set_serving(True)

    def _made_sandboxes(self) -> Sandboxes:
        return Sandboxes(
            self._client,
            self._holdings,
            self._network,
            self._host,
            pause_binary=self._config.pause_binary,
            state_directory=self._config.state_directory,
        )

    def _build(
        self,
        streams: EngineStreams,
        execution: DockerExec,
        streaming: HttpStreamingServer,
        sandboxes: Sandboxes,
    ) -> GrpcServer:
        assert self._logs is not None, "made right before"
        runtime = RuntimeService(  # type: ignore[abstract]  # the rest answers UNIMPLEMENTED
            client=self._client,
            streams=streams,
            holdings=self._holdings,
            register=self._register,
            inflight=self._inflight,
            sandboxes=sandboxes,
            network=self._network,
            logs=self._logs,
            execution=execution,
            streaming=streaming,
            host=self._host,
            ledger=LedgerTaker(
                self._holdings, self._register, sandboxes, self._network, self._config.state_directory
            ),
            clock=self._clock,
        )
        images = ImageService(  # type: ignore[abstract]  # the rest answers UNIMPLEMENTED
            self._client, self._clock, pull_deadline_seconds=self._config.pull_deadline_seconds
        )
        group = socket_group(Path(self._config.docker_host.removeprefix("unix://")))
        services = pb.DESCRIPTOR.services_by_name
        return build_server(
            [
                Servicer(
                    services["RuntimeService"].full_name,
                    lambda s: pb_grpc.add_RuntimeServiceServicer_to_server(runtime, s),
                ),
                Servicer(
                    services["ImageService"].full_name,
                    lambda s: pb_grpc.add_ImageServiceServicer_to_server(images, s),
                ),
            ],
            listeners=[Listener(f"unix://{self._config.socket}", group)],
            tracer=self._tracer,
            limits=Limits(concurrent_streams=1000, concurrent_rpcs=1000, default_deadline_seconds=1800.0),
        )

    async def _engine_version(self) -> str:
        while True:
            try:
                version = await self._client.version()
                least, most = str(version.get("MinAPIVersion", "1.12")), str(version["ApiVersion"])
                return max((least, min((_API_VERSION, most), key=_order)), key=_order)
            except TripodError as error:
                log.warning(
                    "Waiting for the engine", docker_host=self._config.docker_host, error=error.message
                )
                await self._clock.sleep(_ENGINE_RETRY_SECONDS)

    async def run(self) -> None:
        """Keep logs written and the network whole, until cancelled."""
        assert self._logs is not None, "start comes first"
        async with asyncio.TaskGroup() as group:
            self._logs.bind(group)
            self._inflight.bind(group)
            group.create_task(self._upkeep())

    async def _upkeep(self) -> None:
        while True:
            try:
                await self._resume_logs()
                await self._network.ensure()
                await self._mend_links()
                await self._drop_leftovers()
            except TripodError as error:
                log.warning("Could not look after the pods", reason=error.reason, error=error.message)
            await self._clock.sleep(_UPKEEP_SECONDS)

    async def _resume_logs(self) -> None:
        """Write the output of every container that is known; following twice changes nothing."""
        assert self._logs is not None
        for item, record in await self._holdings.listing(naming.CONTAINER):
            if item["State"] != "created" and not self._logs.follows(item["Id"]):
                inspected = await self._client.inspect(item["Id"])
                tty = bool(inspected and inspected["Config"].get("Tty"))
                self._logs.follow(item["Id"], record.log_path, tty=tty)

    async def _drop_leftovers(self) -> None:
        """Remove the files of what others removed; the list sees that the register has no such ids."""
        assert self._logs is not None, "start comes first"
        await self._holdings.claimants()
        known = self._register.ids()
        self._logs.keep(known)
        self._sandboxes.keep(known)

    async def _mend_links(self) -> None:
        """Remove links of sandboxes that are gone, wire those anew whose link was deleted."""
        # Asked first: a sandbox that is wired while the engine lists is no leftover.
        attached = await self._network.list_attached()
        owned = await self._holdings.listing(naming.SANDBOX)
        await self._network.collect({str(item["Id"]) for item, _ in owned}, among=attached)
        running = {str(item["Id"]) for item, _ in owned if item["State"] == "running"}
        for sandbox_id in set(await self._network.severed()) & running:
            try:
                await self._sandboxes.attach(sandbox_id, "")
            except CriError as error:
                log.warning("Could not wire a sandbox anew", pod_sandbox_id=sandbox_id, error=error.message)

    async def stop(self) -> None:
        """Stop serving. Everything that runs, runs on."""
        if self._server is not None:
            await self._server.stop(2.0)
        await self._stack.aclose()
        self._client.close()


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _may_raise_resources() -> bool:
    """Tell whether the host's first process, so the engine too, may have CAP_SYS_RESOURCE."""
    try:
        text = Path("/proc/1/status").read_text()
    except OSError:
        return False
    bound = next((line.split()[1] for line in text.splitlines() if line.startswith("CapBnd:")), "0")
    return bool(int(bound, 16) >> _CAP_SYS_RESOURCE & 1)


async def cleanup(config: CriConfig) -> int:
    """Remove every sandbox and container of ours, and the pod network. Returns how many were removed.

    Works while nothing serves, and may be repeated.
    """
    client = DockerClient(config.docker_host, deadline_seconds=config.engine_deadline_seconds)
    register = Register(config.state_directory, config.node_name)
    register.open()
    holdings = Holdings(client, config.node_name, register)
    try:
        ours, others = await holdings.claimants()
        # Whoever asks for this means this node's, also where its register was lost.
        claimed = [(item, _named_as_ours(item, config.node_name)) for item in others]
        ours += [(item, record) for item, record in claimed if record is not None]
        containers_first = sorted(ours, key=lambda owned: owned[1].kind == naming.SANDBOX)
        for item, _ in containers_first:
            await holdings.remove(item["Id"])
        await pod_network(config).cleanup()
        return len(ours)
    finally:
        client.close()


def _named_as_ours(item: Mapping[str, Any], owner: str) -> Record | None:
    """Return the record of a container whose name is the one that its record asks for."""
    record = naming.decode(item["Labels"], owner)
    labels = item["Labels"]
    pod = Record(
        kind=naming.SANDBOX,
        name=labels.get("io.kubernetes.pod.name", ""),
        namespace=labels.get("io.kubernetes.pod.namespace", ""),
        uid=labels.get("io.kubernetes.pod.uid", ""),
    )
    named = record is not None and f"/{naming.name(record, pod)}" in item["Names"]
    return record if named else None
