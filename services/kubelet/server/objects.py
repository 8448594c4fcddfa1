"""ObjectService: messages to the store and back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from tripod.kubelet.v1 import object_service_pb2 as pb
from tripod.kubelet.v1 import object_service_pb2_grpc as pb_grpc

from services.common import telemetry, telemetry_names
from services.common.clock import Clock
from services.common.watch import Bookmark, Deleted
from services.kubelet.core import manifest, render
from services.kubelet.core.model import ObjectKey, Pod, Protocol, Service, ServicePort, ServiceType
from services.kubelet.errors import ObjectNotFoundError, request_invalid
from services.kubelet.objects import config
from services.kubelet.objects.cluster_view import ClusterView
from services.kubelet.objects.store import Applied, ObjectStore, Result, StoredObject

StatusOf = Callable[[str], Mapping[str, Any] | None]
_RESULTS = {
    Result.CREATED: pb.APPLY_RESULT_CREATED,
    Result.CONFIGURED: pb.APPLY_RESULT_CONFIGURED,
    Result.UNCHANGED: pb.APPLY_RESULT_UNCHANGED,
}
PROTOCOLS = {
    Protocol.TCP: pb.PROTOCOL_TCP,
    Protocol.UDP: pb.PROTOCOL_UDP,
    Protocol.SCTP: pb.PROTOCOL_SCTP,
}
_TYPES = {
    ServiceType.CLUSTER_IP: pb.SERVICE_TYPE_CLUSTER_IP,
    ServiceType.NODE_PORT: pb.SERVICE_TYPE_NODE_PORT,
}
CHANGING_METHODS = frozenset(
    f"/tripod.kubelet.v1.ObjectService/{name}" for name in ("ApplyObjects", "DeleteObjects")
)


class ObjectServicer(pb_grpc.ObjectServiceServicer):
    """Serves the store. `status_of` gives a pod's status as Kubernetes JSON, by UID."""

    def __init__(self, store: ObjectStore | ClusterView, status_of: StatusOf, clock: Clock) -> None:
        self._store = store
        self._status_of = status_of
        self._clock = clock

    async def ApplyObjects(self, request: pb.ApplyObjectsRequest, context: Any) -> pb.ApplyObjectsResponse:
        """Create or change objects, all or none."""
        with telemetry.span(telemetry_names.OBJECTS_APPLY):
            applied = await self._store.apply(
                request.manifest,
                source=request.source,
                dry_run=request.dry_run,
                traceparent=telemetry.traceparent(),
            )
        return pb.ApplyObjectsResponse(objects=[_applied(item, dry_run=request.dry_run) for item in applied])

    async def DeleteObjects(self, request: pb.DeleteObjectsRequest, context: Any) -> pb.DeleteObjectsResponse:
        """Delete objects; absent ones are no error."""
        keys = [_key(ref, f"refs[{index}]") for index, ref in enumerate(request.refs)]
        grace = request.grace_period_seconds if request.HasField("grace_period_seconds") else None
        if grace is not None and grace < 0:
            raise request_invalid("grace_period_seconds", "must not be negative")
        found = await self._store.delete(keys, grace_seconds=grace, traceparent=telemetry.traceparent())
        return pb.DeleteObjectsResponse(deleted_refs=[_ref(key) for key in found])

    async def GetObject(self, request: pb.GetObjectRequest, context: Any) -> pb.GetObjectResponse:
        """Return one object with its status."""
        key = _key(request.ref, "ref")
        value = self._store.find(key)
        if value is None:
            raise ObjectNotFoundError(key.kind, key.namespace, key.name)
        return pb.GetObjectResponse(object=self._json(value))

    async def ListObjects(self, request: pb.ListObjectsRequest, context: Any) -> pb.ListObjectsResponse:
        """List objects of a kind that carry the labels."""
        found = self._store.listing(_kind(request.kind, "kind"), request.namespace)
        wanted = request.label_selector
        matching = [v for v in found if all(v.labels.get(name) == value for name, value in wanted.items())]
        return pb.ListObjectsResponse(
            objects=[self._json(value) for value in matching], revision=self._store.revision
        )

    def _json(self, value: StoredObject) -> bytes:
        """Write an object for whoever asks: no value of a Secret leaves the kubelet."""
        match value:
            case Service():
                made = render.service(value)
            case Pod():
                made = render.pod(value, self._status_of(value.uid) or {"phase": "Pending"})
            case _:
                made = config.shown(value)
        return json.dumps(made).encode()

    async def WatchServices(
        self, request: pb.WatchServicesRequest, context: Any
    ) -> AsyncIterator[pb.WatchServicesResponse]:
        """Stream services."""
        hub = self._store.service_hub
        async for change in hub.watch(request.after_revision, request.server_run_id):
            answer = pb.WatchServicesResponse(revision=change.revision, server_run_id=hub.run_id)
            if isinstance(change, Bookmark):
                answer.bookmark.time.FromDatetime(self._clock.now())
            else:
                answer.traceparent = change.traceparent
                if isinstance(change, Deleted):
                    answer.service_deleted_uid = change.key
                else:
                    answer.service_upserted.CopyFrom(service_message(change.value))
            yield answer


def _applied(item: Applied, *, dry_run: bool) -> pb.AppliedObject:
    fresh = dry_run and item.result is Result.CREATED
    return pb.AppliedObject(
        ref=_ref(item.value.key),
        uid="" if fresh else item.value.uid,
        revision=0 if dry_run else item.value.revision,
        result=_RESULTS[item.result],
    )


def _kind(kind: str, field: str) -> str:
    if kind not in manifest.KINDS:
        raise request_invalid(field, f"{kind!r} is not known; Tripod has {manifest.kinds_told()}")
    return kind


def _key(ref: pb.ObjectRef, field: str) -> ObjectKey:
    if not ref.name:
        raise request_invalid(f"{field}.name", "must not be empty")
    kind = _kind(ref.kind, f"{field}.kind")
    namespace = (ref.namespace or "default") if kind in manifest.NAMESPACED else ""
    return ObjectKey(kind, namespace, ref.name)


def _ref(key: ObjectKey) -> pb.ObjectRef:
    return pb.ObjectRef(kind=key.kind, namespace=key.namespace, name=key.name)


def service_message(value: Service) -> pb.Service:
    """Convert a service."""
    return pb.Service(
        uid=value.uid,
        namespace=value.namespace,
        name=value.name,
        cluster_ip=value.cluster_ip,
        type=_TYPES[value.type],
        selector=value.selector,
        ports=[_port(port) for port in value.ports],
        affinity_timeout_seconds=value.affinity_timeout_seconds,
        publish_not_ready_addresses=value.publish_not_ready_addresses,
        external_traffic_local=value.external_traffic_local,
        internal_traffic_local=value.internal_traffic_local,
        revision=value.revision,
    )


def _port(value: ServicePort) -> pb.ServicePort:
    made = pb.ServicePort(
        name=value.name, protocol=PROTOCOLS[value.protocol], port=value.port, node_port=value.node_port
    )
    if isinstance(value.target_port, int):
        made.target_port = value.target_port
    else:
        made.target_port_name = value.target_port
    return made
