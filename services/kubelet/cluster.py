"""The half of the kubelet that has joined a cluster: composed here, used by `app`.

Its API server takes the place of the local store: pods come from there, and statuses, events, the
Node and its lease go there. The manifest directory stays, for static pods.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from services.common import kubeconfig, telemetry
from services.common.clock import Clock
from services.common.errors import Code, TripodError
from services.common.kubeaccess import Access
from services.common.kubeapi import KubeApi
from services.common.kuberequest import Json
from services.common.lifecycle import supervise
from services.common.logs import get_logger
from services.common.watch import WatchHub
from services.kubelet.adapters.cluster_objects import SERVICES_KEPT, ClusterObjects
from services.kubelet.adapters.runtime_classes import RuntimeClasses
from services.kubelet.config import KubeletConfig
from services.kubelet.core import admission, kube_node, listening, node_events
from services.kubelet.core.events import Event
from services.kubelet.core.kube_node import Registration
from services.kubelet.core.model import Pod, PodUid
from services.kubelet.core.node import NodeCondition, NodeStatus
from services.kubelet.core.scheduling import Taint
from services.kubelet.core.status import PodStatus
from services.kubelet.loops.cluster_events import EventReporter
from services.kubelet.loops.cluster_node import NodeRegistrar
from services.kubelet.loops.cluster_pods import ClusterPods, Refused
from services.kubelet.loops.cluster_status import StatusReporter
from services.kubelet.loops.merged_objects import MergedObjects
from services.kubelet.loops.node_images import NodeImages
from services.kubelet.loops.static_pods import MergedPods, Mirrors, StaticPods
from services.kubelet.objects.cluster_cache import ClusterCache
from services.kubelet.ports import EventSink, PodObjects, PodSource, Runtime

log = get_logger(__name__)
# The release whose API we follow; after the plus sign, as builds of others have it, ourselves.
KUBERNETES_VERSION = "1.37.2"
_CIDR = "pod_cidr"
_WAIT_TOLD_SECONDS = 10.0
Admit = Callable[[Pod, Sequence[Pod], admission.Node], admission.Refusal | None]


def version() -> str:
    """Return the version that the cluster is told."""
    return f"v{KUBERNETES_VERSION}+tripod.{telemetry.VERSION}"


class Cluster:
    """All parts that speak with the API server, joined. `open`, then `run`, then `close`.

    `node` is what the node says of itself now; `admission_node` what it is before the cluster's say.
    """

    def __init__(
        self,
        config: KubeletConfig,
        *,
        name: str,
        run_id: str,
        clock: Clock,
        store: PodSource,
        runtime: Runtime,
        statuses: WatchHub[PodStatus],
        events: WatchHub[Event],
        sink: EventSink,
        node: Callable[[], NodeStatus],
        admission_node: Callable[[], admission.Node],
        admit: Admit,
    ) -> None:
        access = kubeconfig.load(config.kubeconfig)
        self.server = access.server
        self._clock = clock
        self._node = node
        self._admission_node = admission_node
        self._admit_with = admit
        self._sink = sink
        self._cidr = asyncio.Event()
        self._cidr_moved = asyncio.Event()
        self.pod_cidr = ""
        self.api = KubeApi(access, clock, agent=f"tripod-kubelet/{telemetry.VERSION}")
        self._cache = ClusterCache(config.state_directory / "cluster.db", access.server)
        self._static = static = StaticPods(store, name)
        self._pods = ClusterPods(self.api, name, self._cache, clock, admit=self._admit, run_id=run_id)
        self.source = MergedPods(static, self._pods)
        self._objects = ClusterObjects(
            self.api, self._cache, clock, bodies=self._pods.bodies, authority=_authority(access)
        )
        self.runtime_classes = RuntimeClasses(self.api, self._cache)
        self._reporter = StatusReporter(self.api, self._pods, statuses, clock)
        self.images = NodeImages(runtime, clock)
        self._registrar = NodeRegistrar(
            self.api,
            self._registration(config, name),
            lambda: replace(node(), images=self.images.images),
            clock,
        )
        self._mirrors = Mirrors(
            self.api, static, self._pods, clock, node=name, node_uid=lambda: self._registrar.uid
        )
        self._events = EventReporter(self.api, events, clock, node=name, pod=self.source.pod)
        self._join()

    def _join(self) -> None:
        self._pods.on_moved = self._moved
        self._pods.on_mirror = self._mirrors.look
        self._pods.on_report = self._reporter.report
        self._pods.on_refused = self._tell_refusal
        self._pods.node_known = self._registrar.registered.wait
        self._registrar.on_node = self._learn_node
        self._registrar.on_event = self._events.tell_node

    def _registration(self, config: KubeletConfig, name: str) -> Registration:
        architecture = self._node().info["architecture"]
        return Registration(
            name=name,
            labels={
                **kube_node.labels(name, architecture),
                **kube_node.read_labels(config.node_labels),
            },
            taints=kube_node.read_taints(config.register_with_taints),
            port=listening.split_address(listening.address(config.kubelet_listen, in_cluster=True))[1],
            features=(listening.WEBSOCKETS,),
            version=version(),
        )

    def objects(self, local: PodObjects) -> PodObjects:
        """Return what pods bring in: from the API, for static pods from `local`."""
        return MergedObjects(self._objects, local, static=self._static, cluster_pods=self._pods)

    async def open(self) -> None:
        """Take up what a run before has kept."""
        kept = await self._cache.open()
        self._pods.remember(kept.pods)
        self._objects.remember(kept.objects, services_kept=SERVICES_KEPT in kept.facts)
        self.runtime_classes.remember(kept.facts)
        self._set_cidr(kept.facts.get(_CIDR, ""))

    async def close(self) -> None:
        """End all connections, and the file."""
        await self.api.close()
        await self._cache.close()

    async def run(self) -> None:
        """Run every loop until cancelled."""
        loops = {
            "cluster-node": self._registrar.run,
            "cluster-node-images": self.images.run,
            "cluster-pods": self._pods.run,
            "cluster-objects": self._objects.run,
            "cluster-status": self._reporter.run,
            "cluster-events": self._events.run,
            "cluster-mirrors": self._mirrors.run,
            "cluster-references": self._follow_source,
            "cluster-facts": self._keep_facts,
        }
        self._events.tell_node(node_events.STARTING)
        async with asyncio.TaskGroup() as group:
            for name, loop in loops.items():
                group.create_task(supervise(name, loop, clock=self._clock))

    async def await_cidr(self) -> str:
        """Return the network of this node's pods, once the cluster has given it one."""
        while True:
            try:
                async with asyncio.timeout(_WAIT_TOLD_SECONDS):
                    await self._cidr.wait()
                return self.pod_cidr
            except TimeoutError:
                log.warning("Waiting for the cluster to give this node a pod CIDR; pod_cidr sets one")

    def pods(self) -> Sequence[Pod]:
        """Return the pods of the API that run here."""
        return self._pods.pods()

    def received_ns(self, uid: PodUid) -> int:
        """Return when the API told of a pod, in nanoseconds; 0 where it did not."""
        return self._pods.received_ns(uid)

    def certain(self) -> bool:
        """Tell whether the API has told this run which pods are wanted here."""
        return self._pods.certain()

    def fault(self) -> str | None:
        """Say why and since when the API server cannot be used; None when it can."""
        return self.api.fault() or self._pods.reflector.fault()

    def condition(self) -> NodeCondition:
        """Return, for people at this node, whether the API server answers. It is not told to the API."""
        fault = self.fault()
        reason = "ApiServerAnswers" if fault is None else "ApiServerAway"
        return NodeCondition("ApiServerReachable", fault is None, reason, fault or f"{self.server} answers")

    def gauges(self) -> dict[str, float]:
        """Return what was asked of the API server, and what was not told."""
        asked = {
            f'rest_client_requests_total{{verb="{verb}",resource="{resource}",code="{code}"}}': float(count)
            for (verb, resource, code), count in sorted(self.api.requests.items())
        }
        return {**asked, "kubelet_events_dropped_total": float(self._events.dropped_count)}

    def _admit(self, pod: Pod, others: Sequence[Pod]) -> Refused | None:
        refusal = self._admit_with(pod, others, self._as_the_cluster_has_it())
        return None if refusal is None else Refused(refusal.reason, refusal.status_message)

    def _as_the_cluster_has_it(self) -> admission.Node:
        """Return the node for admission, with the labels and taints that the API has."""
        own = self._admission_node()
        node = self._registrar.node
        if node is None:
            return replace(own, in_cluster=True)
        taints = node.get("spec", {}).get("taints") or ()
        return replace(
            own,
            in_cluster=True,
            labels={**own.labels, **(node["metadata"].get("labels") or {})},
            taints=tuple(Taint(t["key"], t["effect"], t.get("value", "")) for t in taints),
        )

    def _tell_refusal(self, pod: Pod, why: Refused) -> None:
        self._sink.emit(pod, why.reason, why.message, warning=True)

    def _moved(self, uid: PodUid) -> None:
        self._reporter.look(uid)
        self._objects.look()

    async def _follow_source(self) -> None:
        """Hear of pods that go, whose objects need not be watched any more."""
        async for _ in self._pods.changes():
            self._objects.look()

    async def _keep_facts(self) -> None:
        """Keep the pod CIDR for a start without the API."""
        kept = ""
        while True:
            await self._cidr.wait()
            if self.pod_cidr != kept:
                kept = self.pod_cidr
                await self._cache.keep_fact(_CIDR, kept)
            self._cidr_moved.clear()
            await self._cidr_moved.wait()

    def _learn_node(self, node: Json) -> None:
        self._mirrors.look()
        self._set_cidr(str((node.get("spec") or {}).get("podCIDR") or ""))

    def _set_cidr(self, cidr: str) -> None:
        if cidr and cidr != self.pod_cidr:
            self.pod_cidr = cidr
            self._cidr.set()
            self._cidr_moved.set()


def _authority(access: Access) -> str:
    """Return the PEM text of the authorities that the kubeconfig names; "" where it names none."""
    try:
        pem = access.authority.file.read_bytes() if access.authority.file else access.authority.data
    except OSError as error:
        raise TripodError(
            f"Cannot read {access.authority.file}: {error.strerror}",
            code=Code.FAILED_PRECONDITION,
            reason="KUBECONFIG_INVALID",
        ) from error
    return pem.decode(errors="replace")
