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
from services.kubelet.cri import engineapi, hostlook, naming
from services.kubelet.cri.config import CriConfig
from services.kubelet.cri.convert import Host
from services.kubelet.cri.creation import Creation
from services.kubelet.cri.docker_client import DockerClient
from services.kubelet.cri.enginestream import EngineStreams
from services.kubelet.cri.errors import CriError
from services.kubelet.cri.eventhub import EventHub
from services.kubelet.cri.execution import DockerExec
from services.kubelet.cri.hostports import HostPorts
from services.kubelet.cri.image_service import ImageService
from services.kubelet.cri.imageusage import ImageUsage
from services.kubelet.cri.imagevolumes import ImageVolumes
from services.kubelet.cri.inflight import InFlight
from services.kubelet.cri.layersizes import LayerSizes
from services.kubelet.cri.ledger import LedgerTaker
from services.kubelet.cri.logs import LogKeeper
from services.kubelet.cri.naming import Record
from services.kubelet.cri.network.bridge import BridgeNetwork
from services.kubelet.cri.network.chosen import ChosenNetwork, choice
from services.kubelet.cri.network.cni.cni import CniNetwork
from services.kubelet.cri.network.cni.config import CniConfig
from services.kubelet.cri.network.config import BridgeConfig
from services.kubelet.cri.portforward import SandboxPorts
from services.kubelet.cri.pulls import Puller
from services.kubelet.cri.register import Register
from services.kubelet.cri.runtime_service import RuntimeService
from services.kubelet.cri.runtimestatus import StatusTaker
from services.kubelet.cri.sandboxes import Holdings, Sandboxes
from services.kubelet.cri.snapshots import Snapshots
from services.kubelet.cri.statistics import Statistics
from services.kubelet.cri.streaming.server import HttpStreamingServer

log = get_logger(__name__)
_UPKEEP_SECONDS = 10.0
_ENGINE_RETRY_SECONDS = 1.0


def network_config(config: CriConfig) -> BridgeConfig:
    """Take the built-in pod network's settings."""
    return BridgeConfig(
        state_directory=config.state_directory,
        bridge=config.bridge,
        pod_cidr=config.pod_cidr,
        cluster_cidrs=config.cluster_cidr,
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
        self._ports = HostPorts(network_config(config), self._network.bridge_addresses)
        # Made in `start`: they depend on what the engine is.
        self._host: Host
        self._sandboxes: Sandboxes
        self._layers = LayerSizes(self._client, config.node_name, self._clock)
        self._statistics = Statistics(self._client, self._holdings, self._layers, self._clock)
        self._image_usage = ImageUsage(self._client, self._clock)
        self._image_volumes = ImageVolumes(self._client, config.node_name, config.state_directory)
        self._puller: Puller | None = None
        self._logs: LogKeeper | None = None
        self._events: EventHub | None = None
        self._server: GrpcServer | None = None

    async def start(self) -> None:
        """Wait for the engine, take the network up, serve. Raises what makes serving impossible."""
        api_version = await self._look_at_engine()
        self._sandboxes = self._made_sandboxes()
        streams = EngineStreams(self._config.docker_host, api_version)
        self._stack.push_async_callback(streams.close)
        await self._network.start()
        self._stack.push_async_callback(self._network.stop)
        self._stack.push_async_callback(self._ports.stop)
        self._register.open()
        self._puller = Puller(
            streams,
            stall_seconds=self._config.pull_progress_deadline_seconds,
            limit_seconds=self._config.pull_deadline_seconds,
        )
        execution = DockerExec(self._client, streams)
        streaming = HttpStreamingServer(execution, SandboxPorts(self._holdings))
        await streaming.start()
        self._stack.push_async_callback(streaming.stop)
        self._events = EventHub(streams, self._holdings, self._register, self._config.node_name, self._clock)
        self._logs = LogKeeper(self._client, streams, self._config.state_directory / "log-cursors")
        if not self._host.negative_oom_scores:
            log.warning("Restricted what containers may have", why="the host lacks CAP_SYS_RESOURCE")
        await self._sandboxes.prepare()
        try:
            await self._sandboxes.restore_ports()
        except TripodError as error:
            # What serves them keeps on in the kernel; upkeep looks again.
            log.warning("Could not restore host ports yet", reason=error.reason, error=error.message)
        self._server = self._build(execution, streaming, self._sandboxes)
        await self._server.start()
        await self._server.set_serving(True)

    def _made_sandboxes(self) -> Sandboxes:
        return Sandboxes(
            self._client,
            self._holdings,
            self._network,
            self._ports,
            self._host,
            pause_binary=self._config.pause_binary,
            state_directory=self._config.state_directory,
        )

    def _build(
        self,
        execution: DockerExec,
        streaming: HttpStreamingServer,
        sandboxes: Sandboxes,
    ) -> GrpcServer:
        assert self._logs is not None, "made right before"
        assert self._events is not None, "made right before"
        assert self._puller is not None, "made right before"
        runtime = RuntimeService(
            client=self._client,
            holdings=self._holdings,
            inflight=self._inflight,
            sandboxes=sandboxes,
            creation=Creation(
                self._client, self._holdings, sandboxes, self._image_volumes, self._inflight, self._host
            ),
            logs=self._logs,
            execution=execution,
            streaming=streaming,
            host=self._host,
            status=StatusTaker(
                self._client,
                self._network,
                LedgerTaker(
                    self._holdings,
                    self._register,
                    sandboxes,
                    self._network,
                    self._config.state_directory,
                    self._image_volumes,
                ),
                self._host,
                settings=_shown(self._config),
            ),
            statistics=self._statistics,
            events=self._events,
            snapshots=Snapshots(self._holdings, sandboxes, self._clock),
        )
        images = ImageService(
            client=self._client,
            holdings=self._holdings,
            puller=self._puller,
            usage=self._image_usage,
            clock=self._clock,
            pause_image=self._config.pause_image,
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

    async def _look_at_engine(self) -> str:
        """Wait for the engine and learn what it allows; returns the API's version for streams."""
        config = self._config
        while True:
            try:
                version = await self._client.version()
                info = await self._client.info()
                break
            except TripodError as error:
                log.warning(
                    "Waiting for the engine", docker_host=self._config.docker_host, error=error.message
                )
                await self._clock.sleep(_ENGINE_RETRY_SECONDS)
        agreed = engineapi.negotiate(str(version.get("MinAPIVersion", "1.12")), str(version["ApiVersion"]))
        self._client.agree(agreed)
        self._host = hostlook.look(config.node_name, config.pause_image, agreed, info)
        log.info("Agreed on the engine's API", api_version=agreed, engine=version.get("Version", ""))
        return agreed

    async def run(self) -> None:
        """Keep logs written and the network whole, until cancelled."""
        assert self._logs is not None, "start comes first"
        assert self._events is not None, "start comes first"
        assert self._puller is not None, "start comes first"
        async with asyncio.TaskGroup() as group:
            self._logs.bind(group)
            self._puller.bind(group)
            self._image_usage.bind(group)
            self._inflight.bind(group)
            self._layers.bind(group)
            group.create_task(self._events.run())
            group.create_task(self._upkeep())

    async def _upkeep(self) -> None:
        while True:
            try:
                await self._resume_logs()
                await self._network.ensure()
                await self._mend_links()
                await self._sandboxes.restore_ports()
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
        self._statistics.keep(known)
        await self._image_volumes.drop_leftovers()

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

    def gauges(self) -> dict[str, float]:
        """Return the figures of the metrics page."""
        return self._puller.counts.gauges() if self._puller is not None else {}

    async def stop(self) -> None:
        """Stop serving. Everything that runs, runs on."""
        if self._server is not None:
            await self._server.stop(2.0)
        await self._stack.aclose()
        self._client.close()


def _shown(config: CriConfig) -> dict[str, str]:
    """Return the settings that a status may show; none of them is a secret."""
    names = ("docker_host", "node_name", "pause_image", "bridge", "pod_cidr", "state_directory")
    return {name: str(getattr(config, name)) for name in names}


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
        await HostPorts(network_config(config)).cleanup()
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
