"""Services and pods from the kubelet's watches.

A stream that breaks is opened again where it was, or from a snapshot. While the
kubelet is away nothing is told, so the rules stay as they are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager
from ipaddress import AddressValueError, IPv4Address
from typing import Any

import grpc
from tripod.kubelet.v1 import object_service_pb2 as object_pb
from tripod.kubelet.v1 import object_service_pb2_grpc as object_grpc
from tripod.kubelet.v1 import pod_service_pb2 as pod_pb
from tripod.kubelet.v1 import pod_service_pb2_grpc as pod_grpc

from services.common.clock import Clock
from services.common.errors import Code, TripodError
from services.common.grpcclient import stream
from services.common.logs import get_logger
from services.proxy.core.model import ContainerPort, Pod, Protocol, Service, ServicePort
from services.proxy.ports import CaughtUp, PodChanged, ServiceChanged, StartedOver

log = get_logger(__name__)
PROTOCOLS = {
    object_pb.PROTOCOL_TCP: Protocol.TCP,
    object_pb.PROTOCOL_UDP: Protocol.UDP,
    object_pb.PROTOCOL_SCTP: Protocol.SCTP,
}
_ENDED = (pod_pb.POD_PHASE_SUCCEEDED, pod_pb.POD_PHASE_FAILED)
_FIRST_RETRY_SECONDS = 0.1
_LAST_RETRY_SECONDS = 2.0
ServiceEvent = ServiceChanged | StartedOver | CaughtUp
PodEvent = PodChanged | StartedOver | CaughtUp


class _Position:
    """How far a stream was read."""

    def __init__(self) -> None:
        self.revision = 0
        self.run_id = ""
        self.retry_seconds = _FIRST_RETRY_SECONDS


class KubeletClient:
    """Watches one kubelet over one channel, which its opener closes."""

    def __init__(self, channel: grpc.aio.Channel, clock: Clock) -> None:
        self._objects = object_grpc.ObjectServiceStub(channel)
        self._pods = pod_grpc.PodServiceStub(channel)
        self._clock = clock

    async def services(self) -> AsyncIterator[ServiceEvent]:
        """Yield services, for ever."""
        position = _Position()
        while True:
            request = object_pb.WatchServicesRequest(
                after_revision=position.revision, server_run_id=position.run_id
            )
            async for event in self._watch(stream(self._objects.WatchServices, request), position):
                if isinstance(event, StartedOver):
                    yield event
                    continue
                kind = event.WhichOneof("event")
                if kind == "bookmark":
                    yield CaughtUp()
                elif kind == "service_deleted_uid":
                    yield ServiceChanged(event.service_deleted_uid, None)
                elif kind == "service_upserted":
                    yield ServiceChanged(event.service_upserted.uid, service_value(event.service_upserted))

    async def pods(self) -> AsyncIterator[PodEvent]:
        """Yield pods, for ever."""
        position = _Position()
        while True:
            request = pod_pb.WatchPodsRequest(after_revision=position.revision, server_run_id=position.run_id)
            async for event in self._watch(stream(self._pods.WatchPods, request), position):
                if isinstance(event, StartedOver):
                    yield event
                    continue
                kind = event.WhichOneof("event")
                if kind == "bookmark":
                    yield CaughtUp()
                elif kind == "pod_deleted_uid":
                    yield PodChanged(event.pod_deleted_uid, None, event.traceparent)
                elif kind == "pod_upserted":
                    pod = pod_value(event.pod_upserted)
                    yield PodChanged(pod.uid, pod, event.traceparent)

    async def _watch(
        self, opened: AbstractAsyncContextManager[AsyncIterator[Any]], position: _Position
    ) -> AsyncIterator[Any]:
        """Yield the events of one stream until it breaks; then wait a moment."""
        fresh = position.revision == 0
        try:
            async with opened as events:
                async for event in events:
                    if fresh:
                        fresh = False
                        yield StartedOver()
                    yield event
                    position.revision, position.run_id = event.revision, event.server_run_id
                    position.retry_seconds = _FIRST_RETRY_SECONDS
        except TripodError as error:
            if error.code in (Code.OUT_OF_RANGE, Code.ABORTED):
                position.revision = 0
            log.info("Lost a watch of the kubelet", reason=error.reason, error=error.message)
        await self._clock.sleep(position.retry_seconds)
        position.retry_seconds = min(_LAST_RETRY_SECONDS, position.retry_seconds * 2)


def _ipv4(addresses: Iterable[str]) -> str:
    """Return the first IPv4 address; empty without one.

    Any other would make the kernel refuse the transaction, and with it everybody's rules.
    """
    for address in addresses:
        try:
            return str(IPv4Address(address))
        except AddressValueError:
            continue
    return ""


def service_value(message: object_pb.Service) -> Service:
    """Convert a service; ports of protocols that we do not know are left out."""
    return Service(
        uid=message.uid,
        namespace=message.namespace,
        name=message.name,
        cluster_ip=_ipv4([message.cluster_ip]),
        ports=tuple(_port(port) for port in message.ports if port.protocol in PROTOCOLS),
        selector=dict(message.selector),
        publish_not_ready=message.publish_not_ready_addresses,
        revision=message.revision,
        affinity_seconds=message.affinity_timeout_seconds,
        external_local=message.external_traffic_local,
        internal_local=message.internal_traffic_local,
    )


def _port(message: object_pb.ServicePort) -> ServicePort:
    named = message.WhichOneof("target") == "target_port_name"
    return ServicePort(
        port=message.port,
        target=message.target_port_name if named else message.target_port,
        protocol=PROTOCOLS[message.protocol],
        name=message.name,
        node_port=message.node_port,
    )


def pod_value(message: pod_pb.Pod) -> Pod:
    """Convert a pod."""
    ports = [port for container in message.containers for port in container.ports]
    return Pod(
        uid=message.uid,
        namespace=message.namespace,
        name=message.name,
        labels=dict(message.labels),
        address=_ipv4(message.pod_ips),
        ready=message.ready,
        serving=message.serving,
        terminating=message.terminating,
        ended=message.phase in _ENDED,
        ports=tuple(
            ContainerPort(port.container_port, port.name, PROTOCOLS.get(port.protocol, Protocol.TCP))
            for port in ports
        ),
    )
