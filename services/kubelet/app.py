"""Composition root of the kubelet: the only place that knows its concrete classes."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path

from tripod.kubelet.v1 import node_service_pb2_grpc as node_grpc
from tripod.kubelet.v1 import object_service_pb2_grpc as object_grpc
from tripod.kubelet.v1 import pod_service_pb2_grpc as pod_grpc

from services.common import gauges, process, telemetry, traceserver
from services.common.clock import Clock, SystemClock
from services.common.errors import FieldViolation, TripodError
from services.common.grpcclient import open_channel
from services.common.grpcserver import GrpcServer, Listener, Servicer, build_server
from services.common.httpserver import HttpServer
from services.common.lifecycle import supervise, until
from services.common.logs import get_logger
from services.common.security import load_or_create_token, socket_group
from services.common.settings import SettingsError
from services.common.telemetry import Telemetry
from services.common.watch import WatchHub
from services.kubelet.adapters import machine
from services.kubelet.adapters.cadvisor_client import CadvisorClient
from services.kubelet.adapters.cri_client import CriRuntime
from services.kubelet.adapters.engine_space import EngineSpace
from services.kubelet.adapters.files import DiskFiles, resolver
from services.kubelet.adapters.hook_runner import NetworkHookRunner
from services.kubelet.adapters.kube_reviews import KubeReviewer
from services.kubelet.adapters.last_words import DiskLastWords
from services.kubelet.adapters.log_files import DiskLogFiles
from services.kubelet.adapters.probe_measures import MeasuredProbeRunner
from services.kubelet.adapters.probe_runner import NetworkProbeRunner
from services.kubelet.adapters.volume_disk import VolumeDisk
from services.kubelet.cluster import Cluster
from services.kubelet.config import AUTO, POD_CIDR, KubeletConfig
from services.kubelet.core import admission, listening, render, resource_metrics, sysctls, volumes
from services.kubelet.core.admission import Refusal
from services.kubelet.core.allocate import Ranges
from services.kubelet.core.audit import Audit, Holdings, audit
from services.kubelet.core.fields import DNS_SUBDOMAIN
from services.kubelet.core.log_files import LogLimits
from services.kubelet.core.manifest_network import is_address
from services.kubelet.core.measures import page as measures_page
from services.kubelet.core.model import Pod
from services.kubelet.core.node import Disk, NodeStatus, capacity, countable, standard_labels
from services.kubelet.core.resolve import Surroundings
from services.kubelet.core.status import PodStatus, StatePhase, to_kubernetes
from services.kubelet.core.summary import Summary, summarize, to_json
from services.kubelet.cri.app import CriServer
from services.kubelet.cri.app import cleanup as cri_cleanup
from services.kubelet.cri.config import CriConfig
from services.kubelet.errors import AppliedPodsError
from services.kubelet.loops.actions import Actor, NodeFacts
from services.kubelet.loops.eventlog import EventLog
from services.kubelet.loops.explainer import Explainer, Faults
from services.kubelet.loops.hooks import Hooks
from services.kubelet.loops.housekeeping import Housekeeper
from services.kubelet.loops.local_storage import LocalStorage
from services.kubelet.loops.log_rotation import LogRotator
from services.kubelet.loops.manifests import ManifestDirectory
from services.kubelet.loops.node_status import NodeWatcher
from services.kubelet.loops.pleg import RuntimeWatcher
from services.kubelet.loops.pod_starts import PodStarts
from services.kubelet.loops.podvolumes import PodVolumes
from services.kubelet.loops.prober import Prober
from services.kubelet.loops.pulling import Puller
from services.kubelet.loops.stopping import Stopper
from services.kubelet.loops.sync import PodWorkers
from services.kubelet.objects.brought import LocalObjects
from services.kubelet.objects.claim import StateClaim
from services.kubelet.objects.cluster_view import ClusterView
from services.kubelet.objects.store import ObjectStore
from services.kubelet.objects.tokens import TokenIssuer
from services.kubelet.ports import PodObjects, PodSource
from services.kubelet.server import objects, pods
from services.kubelet.server.nodes import NodeServicer
from services.kubelet.server.objects import ObjectServicer
from services.kubelet.server.pods import PodServicer
from services.kubelet.web import Views, application
from services.kubelet.web.configz import configz
from services.kubelet.web.pages import Pages
from services.kubelet.web.readonly import GAUGES
from services.kubelet.web.traffic import Traffic

log = get_logger(__name__)


def cri_config(config: KubeletConfig) -> CriConfig:
    """Take the settings of the CRI server in our process."""
    return CriConfig(
        socket=config.run_directory / "cri.sock",
        state_directory=config.state_directory / "cri",
        docker_host=config.docker_host,
        node_name=node_name(config),
        pause_image=config.pause_image,
        bridge=config.bridge,
        pod_cidr=POD_CIDR if config.pod_cidr == AUTO else config.pod_cidr,
        cluster_cidr=config.cluster_cidr,
        chain_prefix=config.chain_prefix,
        veth_prefix=config.veth_prefix,
        proc_sys=config.proc_sys,
        pod_network=config.pod_network,
        cni_conf_dir=config.cni_conf_dir,
        cni_bin_dirs=config.cni_bin_dirs,
        cni_netns_dir=config.cni_netns_dir,
        pull_progress_deadline_seconds=config.pull_progress_deadline_seconds,
        log_level=config.log_level,
    )


def check(config: KubeletConfig) -> None:
    """See that what pods are promised by the settings can be kept. Raises `SettingsError`."""
    faults = [
        FieldViolation("allowed_unsafe_sysctls", wrong)
        for pattern in config.allowed_unsafe_sysctls
        if (wrong := sysctls.pattern_fault(pattern))
    ]
    faults += [
        FieldViolation("cluster_dns", f"{server!r} is no IP address")
        for server in config.cluster_dns
        if not is_address(server)
    ]
    if not DNS_SUBDOMAIN.fullmatch(config.cluster_domain):
        faults.append(FieldViolation("cluster_domain", f"{config.cluster_domain!r} is not a DNS domain"))
    if faults:
        raise SettingsError(faults)


def node_name(config: KubeletConfig) -> str:
    """Return the node's name."""
    return config.node_name or socket.gethostname().lower()


class Kubelet:
    """All parts, joined. `run` starts them and ends them."""

    def __init__(self, config: KubeletConfig, traces: Telemetry, clock: Clock | None = None) -> None:
        self._config = config
        self._traces = traces
        self._clock = clock or SystemClock()
        self._name = node_name(config)
        self._image_directory: Path | None = None
        self._cri: CriServer | None = None
        engine = config.cri_endpoint or config.docker_host
        self._machine = machine.read(config.state_directory, engine.removeprefix("unix://"))
        if config.node_ip:
            self._machine = replace(self._machine, address=config.node_ip)
        run_id = secrets.token_hex(8)
        state = config.state_directory
        ranges = Ranges(IPv4Network(config.service_cidr))
        self._claim = StateClaim(state)
        self._statuses: WatchHub[PodStatus] = WatchHub(run_id)
        self._store = ObjectStore(state / "kubelet.db", ranges, self._clock, run_id=run_id, admit=self._admit)
        self._events = EventLog(self._clock, run_id)
        self._stack = AsyncExitStack()
        channel = open_channel(config.cri_endpoint or f"unix://{config.run_directory}/cri.sock")
        stats_channel = open_channel(
            config.cadvisor_address or f"unix://{config.run_directory}/cadvisor.sock"
        )
        self._stack.push_async_callback(channel.close, None)
        self._stack.push_async_callback(stats_channel.close, None)
        self._runtime = CriRuntime(channel)
        self._cadvisor = CadvisorClient(stats_channel, config.cadvisor_metrics_url)
        self._space = EngineSpace(engine)
        self._stack.callback(self._space.close)
        self._volume_disk = VolumeDisk(state, self._space)
        self._files = DiskFiles(state, self._volume_disk)
        self._awaited = ""
        self._node: NodeWatcher
        self._cluster = self._joined(run_id) if config.kubeconfig else None
        self._source: PodSource = self._cluster.source if self._cluster else self._store
        issuer = config.token_issuer or f"urn:tripod:node:{self._name}"
        self._local_objects = LocalObjects(self._store, TokenIssuer(state, issuer, self._clock))
        self._objects: PodObjects = (
            self._cluster.objects(self._local_objects) if self._cluster else self._local_objects
        )
        self._join()

    def _joined(self, run_id: str) -> Cluster:
        """Make the half that speaks with a cluster's API server."""
        first = self._first_status()
        return Cluster(
            self._config,
            name=self._name,
            run_id=run_id,
            clock=self._clock,
            store=self._store,
            runtime=self._runtime,
            statuses=self._statuses,
            events=self._events.hub,
            sink=self._events,
            node=lambda: self._node.status if hasattr(self, "_node") else first,
            admission_node=self._admission_node,
            admit=self._admit_to,
        )

    def _join(self) -> None:
        config, clock = self._config, self._clock
        dns = replace(
            resolver(),
            cluster_servers=config.cluster_dns,
            cluster_domain=config.cluster_domain,
            in_cluster=self._cluster is not None,
        )
        facts = NodeFacts(config.state_directory, self._machine.memory_bytes, self._machine.address, dns)
        if self._cluster is not None:
            facts = replace(facts, handler_of=self._cluster.runtime_classes.handler)
        words = DiskLastWords(config.state_directory)
        runner = NetworkHookRunner(self._runtime, self._events, clock)
        self._hooks = Hooks(runner, self._events, clock, lambda uid: self._workers.probe_moved(uid))
        volumes_of_pods = PodVolumes(
            self._objects,
            self._volume_disk,
            self._events,
            clock,
            state_directory=config.state_directory,
            around=self._surroundings,
            recursive_read_only=self._runtime.recursive_read_only,
        )
        puller = Puller(self._runtime, self._objects, self._events, self._account_secrets)
        if self._cluster is not None:
            puller.on_pulled = self._cluster.images.look
        actor = Actor(
            self._runtime,
            self._source,
            self._files,
            self._events,
            facts,
            lambda: self._node.restriction(),
            stopper=Stopper(self._runtime, runner, self._events, clock),
            hooks=self._hooks,
            words=words,
            volumes=volumes_of_pods,
            puller=puller,
        )
        self._workers = PodWorkers(
            files=self._files,
            source=self._source,
            runtime=self._runtime,
            actor=actor,
            events=self._events,
            clock=clock,
            hub=self._statuses,
            host_ip=self._machine.address,
            received=lambda uid: self._cluster.received_ns(uid) if self._cluster is not None else 0,
            hooks=self._hooks,
            words=words,
            volumes=volumes_of_pods,
        )
        self._probe_runner = NetworkProbeRunner(self._runtime)
        self._stack.push_async_callback(self._probe_runner.close)
        self._measured_probes = MeasuredProbeRunner(self._probe_runner, clock)
        self._prober = Prober(self._measured_probes, self._events, clock, self._workers.probe_moved)
        self._workers.bind(self._prober)
        self._watcher = RuntimeWatcher(self._runtime, clock, self._workers.wake)
        self._pod_starts = PodStarts(self._statuses, clock)
        self._traffic = Traffic(clock)
        self._local_storage = LocalStorage(
            self._source,
            self._statuses.snapshot,
            self._runtime,
            DiskLogFiles(),
            self._volume_disk,
            clock=clock,
            state_directory=config.state_directory,
            end=self._workers.end,
        )
        self._housekeeper = Housekeeper(
            self._source, self._runtime, self._files, clock, certain=self._certain
        )
        self._rotator = LogRotator(
            self._source,
            self._statuses.snapshot,
            self._runtime,
            DiskLogFiles(),
            clock=clock,
            state_directory=config.state_directory,
            limits=LogLimits(
                file_bytes=max(1, config.container_log_max_mebibytes) << 20,
                file_count=max(2, config.container_log_max_files),
            ),
        )
        directory = config.manifest_directory
        manifests = directory if directory != Path() else config.state_directory / "manifests"
        self._manifests = ManifestDirectory(manifests, self._store, clock, on_fault=self._tell_refusal)
        self._node = NodeWatcher(
            self._first_status(),
            self._runtime,
            clock,
            measure=self._measure,
            faults=self._faults,
        )

    def _surroundings(self, addresses: tuple[str, ...]) -> Surroundings:
        """Say what the node knows of itself and of a pod with these addresses."""
        facts = self._machine
        return Surroundings(
            node_name=self._name,
            host_ips=(facts.address,),
            pod_ips=addresses,
            cpu_millicores=facts.cpu_count * 1000,
            memory_bytes=facts.memory_bytes,
            disk_bytes=facts.disk_bytes,
        )

    def _account_secrets(self, pod: Pod) -> Sequence[str]:
        """Name the pull secrets of a pod's account; in a cluster admission has put them into the pod."""
        return () if self._cluster else self._local_objects.account_secrets(pod)

    async def _follow_objects(self) -> None:
        """Wake the pods that bring in what changes."""
        async for key in self._objects.object_changes():
            self._workers.object_changed(key)

    def _first_status(self) -> NodeStatus:
        facts = self._machine
        amounts = capacity(facts.cpu_count, facts.memory_bytes, facts.disk_bytes)
        return NodeStatus(
            name=self._name,
            capacity=amounts,
            allocatable=amounts,
            # The original's host name is what the node is called, too.
            addresses=(("InternalIP", facts.address), ("Hostname", self._name)),
            info={
                "kubelet_version": telemetry.VERSION,
                "container_runtime_version": "",
                "kernel_version": facts.kernel_version,
                "os_image": facts.os_image,
                "operating_system": "linux",
                "architecture": facts.architecture,
                "machine_id": facts.machine_id,
                "boot_id": facts.boot_id,
            },
            pod_cidr=cri_config(self._config).pod_cidr,
            # A cluster gives service addresses itself, and does not tell its nodes which.
            service_cidr="" if self._config.kubeconfig else self._config.service_cidr,
            system_uuid=facts.system_uuid,
            swap_bytes=facts.swap_bytes,
        )

    def _admission_node(self) -> admission.Node:
        facts = self._machine
        return admission.Node(
            name=self._name,
            labels=standard_labels(self._name, facts.architecture),
            allocatable=countable(facts.cpu_count, facts.memory_bytes, facts.disk_bytes),
            allowed_unsafe_sysctls=self._config.allowed_unsafe_sysctls,
        )

    def _admit(self, pod: Pod, others: Sequence[Pod]) -> Refusal | None:
        """Admit to the local store: beside every pod of the node."""
        return self._admit_to(pod, [*others, *self._cluster_pods()], self._admission_node())

    def _admit_to(self, pod: Pod, others: Sequence[Pod], node: admission.Node) -> Refusal | None:
        statuses = self._statuses.snapshot()
        running = [o for o in others if (status := statuses.get(o.uid)) is None or not status.terminal]
        return admission.check(pod, running, node)

    def _cluster_pods(self) -> Sequence[Pod]:
        return self._cluster.pods() if self._cluster is not None else ()

    def _certain(self) -> bool:
        """Tell whether it is known which pods are wanted here."""
        return self._cluster is None or self._cluster.certain()

    def _measure(self) -> tuple[int, Sequence[Disk], float]:
        state, images = self._config.state_directory, self._image_directory
        disks = [Disk(f"the node's state, {state},", machine.free_disk_share(state))]
        # Not to be seen from here when the kubelet runs in a container without it.
        if images is not None and images.exists():
            disks.append(Disk(f"the engine, {images},", machine.free_disk_share(images)))
        return machine.available_memory_bytes(), disks, machine.process_share()

    def _tell_refusal(self, file: str, fault: str) -> None:
        """Tell the pods of a manifest that what it says now is refused."""
        for pod in self._store.pods_of(file):
            self._events.emit(pod, "ManifestRefused", f"{file}: {fault}", warning=True)

    def _faults(self) -> list[str]:
        awaited = self._awaited if self._cluster is not None else ""
        return [fault for fault in (awaited, self._watcher.fault(), self._store.fault()) if fault]

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set. Pods run on."""
        async with self._stack:
            self._claim.acquire()
            self._stack.callback(self._claim.release)
            await self._store.open()
            self._stack.push_async_callback(self._store.close)
            if self._cluster is not None:
                self._refuse_applied()
                self._stack.push_async_callback(self._cluster.close)
                await self._cluster.open()
            group = socket_group(Path(self._config.docker_host.removeprefix("unix://")))
            token = load_or_create_token(self._config.state_directory / "node-token", group=group)
            server = self._server(group, token)
            await server.start()
            self._stack.push_async_callback(partial(server.stop, 3.0))
            web = self._web()
            await web.start()
            self._stack.push_async_callback(web.stop)
            await self._start_secure(token)
            await until(stop, self._work(server))

    async def _work(self, server: GrpcServer) -> None:
        """Run every loop; our own CRI server first."""
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            if self._cluster is not None:
                await self._node.look()
                group.create_task(supervise("node-status", self._node.run, clock=self._clock))
                group.create_task(self._cluster.run())
            if not self._config.cri_endpoint:
                cri = CriServer(
                    replace(cri_config(self._config), pod_cidr=await self._pod_cidr()),
                    self._clock,
                    tracer=self._traces.part("tripod-cri", node_name=self._name),
                )
                stack.push_async_callback(cri.stop)
                self._cri = cri
                await cri.start()
                group.create_task(cri.run())
            await self._learn_runtime()
            if self._cluster is None:
                await self._restore()
            else:
                self._cluster.images.look()
                await self._settle(group)
            group.create_task(self._prober.run())
            group.create_task(self._hooks.run())
            await asyncio.sleep(0)
            await self._node.look()
            self._workers.expect(pod.uid for pod in self._source.pods())
            loops = {
                "store": self._store.run,
                "workers": self._workers.run,
                "source": self._workers.follow_source,
                "objects": self._follow_objects,
                "local-storage": self._local_storage.run,
                "runtime-events": self._watcher.follow,
                "runtime-relist": self._watcher.relist,
                "log-rotation": self._rotator.run,
                "housekeeping": self._housekeeper.run,
                "manifests": self._manifests.run,
                "pod-starts": self._pod_starts.run,
            }
            if self._cluster is None:
                loops["node-status"] = self._node.run
            for name, loop in loops.items():
                group.create_task(supervise(name, loop, clock=self._clock))
            await server.set_serving(True)
            log.info("Started the kubelet", node=self._name, state=str(self._config.state_directory))

    def _refuse_applied(self) -> None:
        """Refuse to join a cluster with pods that no cluster and no file would know."""
        applied = [str(pod.key) for pod in self._store.pods() if not self._store.origin(pod.key)]
        if applied:
            raise AppliedPodsError(applied)

    async def _pod_cidr(self) -> str:
        """Return the addresses of pods on the built-in network, once they are known."""
        config = self._config
        own = cri_config(config).pod_cidr
        if self._cluster is None or config.pod_cidr != AUTO or self._uses_cni():
            return own
        self._awaited = "the cluster has not given this node a pod CIDR yet; pod_cidr sets one"
        cidr = await self._cluster.await_cidr()
        self._awaited = ""
        return cidr

    def _uses_cni(self) -> bool:
        folder = self._config.cni_conf_dir
        found = any(path.suffix in (".conf", ".conflist", ".json") for path in folder.glob("*"))
        return self._config.pod_network == "cni" or (self._config.pod_network == "auto" and found)

    async def _settle(self, group: asyncio.TaskGroup) -> None:
        """In a cluster: static pods come from their files, and nothing is taken back from the runtime."""
        assert self._cluster is not None, "only called in a cluster"
        if self._store.lost:
            await self._manifests.scan()
            await self._store.settle()
        if self._config.cri_endpoint:
            group.create_task(self._tell_cidr(self._cluster))

    async def _tell_cidr(self, cluster: Cluster) -> None:
        """Tell a runtime that is not ours the addresses of pods."""
        cidr = await cluster.await_cidr() if self._config.pod_cidr == AUTO else self._config.pod_cidr
        while True:
            try:
                await self._runtime.tell_pod_cidr(cidr)
                return
            except TripodError as error:
                log.warning("Could not tell the runtime the pod CIDR", error=error.message)
                await self._clock.sleep(10.0)

    async def _learn_runtime(self) -> None:
        while True:
            try:
                version = await self._runtime.version()
                images = await self._runtime.image_directory()
            except TripodError as error:
                self._awaited = f"The runtime does not answer: {error.message}"
                log.warning("Waiting for the runtime", error=error.message)
                await self._clock.sleep(1.0)
                continue
            self._image_directory = Path(images) if images else None
            info = {**self._node.status.info, "container_runtime_version": version}
            self._node.learn(info)
            self._awaited = ""
            return

    async def _restore(self) -> None:
        """After the store was lost: take running pods back, and touch none that cannot be."""
        while self._store.lost:
            try:
                manifests = await self._runtime.manifests()
                restored = await self._store.restore(manifests)
                known = {pod.uid for pod in self._store.pods()}
                if spared := manifests.keys() - known:
                    self._housekeeper.spare(spared)
                    log.warning("Left pods alone that nobody knows", pod_uids=sorted(spared))
                else:
                    await self._store.settle()
            except TripodError as error:
                log.warning("Waiting to restore the pods", error=error.message)
                await self._clock.sleep(1.0)
                await self._store.maintain()
                continue
            for pod in restored:
                what = f"Taken back from the runtime: the object store was lost ({self._store.lost})"
                self._events.emit(pod, "Restored", what, warning=True)
            return

    async def _audit(self) -> tuple[Audit, Mapping[str, str]]:
        """Compare the host with the store."""
        unavailable: dict[str, str] = {}
        held: Holdings | None = None
        try:
            with telemetry.unrecorded():
                held = await self._runtime.ledger()
        except TripodError as error:
            unavailable["runtime"] = error.message
        if held is None and not unavailable:
            unavailable["runtime"] = "this runtime does not tell what it holds"
        found = audit(self._source.pods(), self._statuses.snapshot(), held, await self._files.disk())
        return found, unavailable

    def _server(self, group: int | None, token: str) -> GrpcServer:
        view: ObjectStore | ClusterView = self._store
        if self._cluster is not None:
            view = ClusterView(self._store, self._source, self._cluster.server)
        object_servicer = ObjectServicer(view, self._status_json, self._clock)
        pod_servicer = PodServicer(
            source=self._source,
            runtime=self._runtime,
            statuses=self._statuses,
            events=self._events.hub,
            remembered=lambda: list(self._events.events()),
            settled=self._workers.settled,
            explainer=self._explainer(),
            clock=self._clock,
            log_root=volumes.log_root(self._config.state_directory),
        )
        node_servicer = NodeServicer(self._node_status, self._summary, self._audit, self._manifests.faults)
        listeners = [Listener(f"unix://{self._config.run_directory}/kubelet.sock", group)]
        if self._config.listen:
            listeners.append(Listener(self._config.listen))
        package = "tripod.kubelet.v1"
        return build_server(
            [
                Servicer(
                    f"{package}.ObjectService",
                    partial(object_grpc.add_ObjectServiceServicer_to_server, object_servicer),
                ),
                Servicer(
                    f"{package}.PodService", partial(pod_grpc.add_PodServiceServicer_to_server, pod_servicer)
                ),
                Servicer(
                    f"{package}.NodeService",
                    partial(node_grpc.add_NodeServiceServicer_to_server, node_servicer),
                ),
                traceserver.servicer(self._traces.ring),
            ],
            listeners=listeners,
            changing_methods=objects.CHANGING_METHODS | pods.CHANGING_METHODS,
            token=lambda: token,
        )

    def _node_status(self) -> NodeStatus:
        """Return the node for people here: with the API server's condition and the cluster's addresses."""
        status, cluster = self._node.status, self._cluster
        if cluster is None:
            return status
        cidr = cluster.pod_cidr if self._config.pod_cidr == AUTO else status.pod_cidr
        return replace(status, pod_cidr=cidr, conditions=(*status.conditions, cluster.condition()))

    def _explainer(self) -> Explainer:
        faults = Faults(
            # Before the first look at the node, its start may wait for the runtime.
            runtime=lambda: self._awaited or self._node.runtime_fault(),
            store=self._store.fault,
            cluster=lambda: self._cluster.fault() if self._cluster is not None else None,
            disk=self._node.pressure,
            manifests=self._manifests.faults,
            origin=self._store.origin,
        )
        return Explainer(
            workers=self._workers,
            prober=self._prober,
            events=self._events.events,
            faults=faults,
            clock=self._clock,
        )

    def _status_json(self, uid: str) -> dict[str, object] | None:
        status = self._statuses.get(uid)
        return to_kubernetes(status) if status else None

    async def _summary(self) -> Summary:
        statuses = list(self._statuses.snapshot().values())
        try:
            with telemetry.unrecorded():
                stats = await self._cadvisor.stats()
        except TripodError as error:
            return summarize(self._name, statuses, None, f"cAdvisor does not answer: {error.message}")
        return summarize(self._name, statuses, stats)

    def _web(self) -> HttpServer:
        views = Views(
            healthy=self._node.fault,
            pods=self._pod_jsons,
            spec=self._spec,
            summary=partial(self._summary_json, False),
            cadvisor_metrics=self._cadvisor.metrics,
            metrics=self._metrics,
        )
        host, _, port = self._config.http_listen.rpartition(":")
        return HttpServer(application(views), host, int(port))

    def _pod_jsons(self) -> list[dict[str, object]]:
        return [render.pod(p, self._status_json(p.uid) or {}) for p in self._source.pods()]

    async def _summary_json(self, only_cpu_and_memory: bool) -> dict[str, object]:
        usage = machine.node_usage(self._config.state_directory, self._image_directory, self._clock.now())
        return to_json(await self._summary(), usage, only_cpu_and_memory=only_cpu_and_memory)

    async def _start_secure(self, token: str) -> None:
        """Open the port with TLS, where it is wanted."""
        listen = listening.address(self._config.kubelet_listen, in_cluster=self._cluster is not None)
        if not listen:
            return
        # Imported here: certificates cost memory that a node without the port need not have.
        from services.kubelet.web import port

        pages = Pages(
            checks={"ping": lambda: None, "log": lambda: None, "syncloop": self._watcher.fault},
            pods=self._pod_jsons,
            running_pods=self._running_pods,
            summary=self._summary_json,
            configuration=lambda: configz(self._config, listen),
            metrics={
                "/metrics": self._metrics_page,
                "/metrics/cadvisor": self._cadvisor.metrics,
                "/metrics/resource": self._resource_metrics,
                "/metrics/probes": self._probe_metrics,
            },
        )
        node = port.Node(
            name=self._name,
            names=lambda: [
                self._name,
                self._machine.hostname,
                *(address for _, address in self._node.status.addresses),
            ],
            source=self._source,
            runtime=self._runtime,
            statuses=self._statuses,
            log_root=volumes.log_root(self._config.state_directory),
            token=token,
            reviewer=KubeReviewer(self._cluster.api, self._clock) if self._cluster is not None else None,
        )
        server = port.secure_port(self._config, node, pages, self._traffic, self._clock, listen=listen)
        await server.start()
        self._stack.push_async_callback(server.stop)

    async def _running_pods(self) -> list[dict[str, object]]:
        with telemetry.unrecorded():
            found = await self._runtime.list_pods()
        return [render.observed(pod) for pod in found.values()]

    def _metrics(self) -> bytes:
        measures = (
            *self._runtime.measures.all(),
            *self._watcher.measures.all(),
            self._pod_starts.measure,
            *self._traffic.measures(),
        )
        return gauges.page(GAUGES, self._gauges()) + measures_page(measures)

    async def _metrics_page(self) -> bytes:
        return self._metrics()

    async def _probe_metrics(self) -> bytes:
        return measures_page(
            self._measured_probes.measures({(p.namespace, p.name) for p in self._source.pods()})
        )

    async def _resource_metrics(self) -> bytes:
        return resource_metrics.page(await self._summary())

    def _spec(self) -> dict[str, object]:
        facts = self._machine
        return {
            "num_cores": facts.cpu_count,
            "memory_capacity": facts.memory_bytes,
            "machine_id": facts.machine_id,
            "system_uuid": facts.system_uuid,
            "boot_id": facts.boot_id,
        }

    def _gauges(self) -> dict[str, float]:
        statuses = self._statuses.snapshot().values()
        running = [c for s in statuses for c in s.every if c.state.phase is StatePhase.RUNNING]
        return {
            "kubelet_running_pods": sum(1 for s in statuses if s.pod_ips and not s.terminal),
            'kubelet_running_containers{container_state="running"}': len(running),
            f'kubelet_node_name{{node="{self._name}"}}': 1,
            "kubelet_desired_pods": len(self._source.pods()),
            "kubelet_sync_passes_total": self._workers.sync_count,
            "kubelet_node_ready": float(self._node.ready()),
            "kubelet_refused_manifests": len(self._manifests.faults()),
            "kubelet_store_writable": float(self._store.fault() is None),
            **(self._cluster.gauges() if self._cluster is not None else {}),
            **(self._cri.gauges() if self._cri is not None else {}),
            **process.gauges(),
        }


async def cleanup(config: KubeletConfig) -> int:
    """Remove every container of ours, the pod network and what was mounted; returns how many.

    Objects stay stored.
    """
    count = await cri_cleanup(cri_config(config))
    space = EngineSpace(config.docker_host)
    disk = VolumeDisk(config.state_directory, space)
    for uid in volumes.pods_of(await disk.mounts(), config.state_directory):
        await disk.release(uid)
    space.close()
    return count
