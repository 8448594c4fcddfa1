"""The part of a kubelet that the proxy watches, from memory, over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

from tripod.kubelet.v1 import object_service_pb2 as object_pb
from tripod.kubelet.v1 import object_service_pb2_grpc as object_grpc
from tripod.kubelet.v1 import pod_service_pb2 as pod_pb
from tripod.kubelet.v1 import pod_service_pb2_grpc as pod_grpc

from services.common.clock import SystemClock
from services.common.grpcserver import GrpcServer, Listener, Servicer, build_server
from services.common.watch import Bookmark, Deleted, WatchHub

clock = SystemClock()


class FakeKubelet(object_grpc.ObjectServiceServicer, pod_grpc.PodServiceServicer):
    """Serves what a test put into `services` and `pods`, by UID."""

    def __init__(self) -> None:
        self.services: WatchHub[object_pb.Service] = WatchHub("fake")
        self.pods: WatchHub[pod_pb.Pod] = WatchHub("fake")

    def put_service(self, name: str, address: str, *ports: object_pb.ServicePort) -> None:
        """Set a service that selects `app=NAME`."""
        made = object_pb.Service(
            uid=f"service-{name}",
            namespace="default",
            name=name,
            cluster_ip=address,
            selector={"app": name},
            ports=ports,
            revision=self.services.revision + 1,
        )
        self.services.upsert(made.uid, made)

    def put_pod(self, name: str, app: str, address: str, *, ready: bool = True) -> None:
        """Set a pod of `app=APP`."""
        made = pod_pb.Pod(
            uid=f"pod-{name}",
            namespace="default",
            name=name,
            labels={"app": app},
            phase=pod_pb.POD_PHASE_RUNNING,
            ready=ready,
            serving=ready,
            pod_ips=[address],
        )
        self.pods.upsert(made.uid, made)

    async def WatchServices(
        self, request: object_pb.WatchServicesRequest, context: Any
    ) -> AsyncIterator[object_pb.WatchServicesResponse]:
        """Stream services."""
        hub = self.services
        async for change in hub.watch(request.after_revision, request.server_run_id):
            answer = object_pb.WatchServicesResponse(revision=change.revision, server_run_id=hub.run_id)
            if isinstance(change, Bookmark):
                answer.bookmark.time.FromDatetime(clock.now())
            elif isinstance(change, Deleted):
                answer.service_deleted_uid = change.key
            else:
                answer.service_upserted.CopyFrom(change.value)
            yield answer

    async def WatchPods(
        self, request: pod_pb.WatchPodsRequest, context: Any
    ) -> AsyncIterator[pod_pb.WatchPodsResponse]:
        """Stream pods."""
        hub = self.pods
        async for change in hub.watch(request.after_revision, request.server_run_id):
            answer = pod_pb.WatchPodsResponse(revision=change.revision, server_run_id=hub.run_id)
            if isinstance(change, Bookmark):
                answer.bookmark.time.FromDatetime(clock.now())
            elif isinstance(change, Deleted):
                answer.pod_deleted_uid = change.key
            else:
                answer.pod_upserted.CopyFrom(change.value)
            yield answer


def kubelet_server(fake: FakeKubelet, socket: Path) -> GrpcServer:
    """Make a server of the fake on a socket."""
    package = "tripod.kubelet.v1"
    return build_server(
        [
            Servicer(
                f"{package}.ObjectService",
                partial(object_grpc.add_ObjectServiceServicer_to_server, fake),
            ),
            Servicer(f"{package}.PodService", partial(pod_grpc.add_PodServiceServicer_to_server, fake)),
        ],
        listeners=[Listener(f"unix://{socket}")],
    )
