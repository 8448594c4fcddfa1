"""PodService: statuses, events, logs and commands."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from tripod.kubelet.v1 import pod_service_pb2 as pb
from tripod.kubelet.v1 import pod_service_pb2_grpc as pb_grpc

from services.common import telemetry
from services.common.clock import Clock
from services.common.watch import Bookmark, Deleted, WatchHub
from services.kubelet.adapters import log_reader
from services.kubelet.adapters.exec_spdy import open_exec_spdy
from services.kubelet.adapters.exec_stream import ExecChannel, ExecClient, NoHalfCloseError, open_exec_stream
from services.kubelet.adapters.port_forward import ForwardedPort, open_port
from services.kubelet.core.events import Event
from services.kubelet.core.explain import Explanation
from services.kubelet.core.model import ContainerId, Pod, PodUid
from services.kubelet.core.observed import ObservedContainer, RuntimeState
from services.kubelet.core.status import PodStatus
from services.kubelet.core.stream_options import Streams
from services.kubelet.errors import (
    ContainerNotStartedError,
    ContainerUnknownError,
    LogUnreadableError,
    PodNotFoundError,
    request_invalid,
)
from services.kubelet.ports import PodSource, Runtime
from services.kubelet.server.convert import event_message, explanation_message, log_message, pod_message

CHANGING_METHODS = frozenset(
    f"/tripod.kubelet.v1.PodService/{method}" for method in ("Exec", "Attach", "PortForward")
)
_PORT_LIMIT = 65535
_TAIL_LIMIT = 1_000_000


class Explainer(Protocol):
    """Says why pods fare as they do."""

    def explain(self, pod: Pod) -> Explanation:
        """Explain a pod of the source."""
        ...

    def refused(self) -> Mapping[str, str]:
        """Return the manifests that are refused, each with its fault."""
        ...


class PodServicer(pb_grpc.PodServiceServicer):
    """Serves the pods of this node."""

    def __init__(
        self,
        *,
        source: PodSource,
        runtime: Runtime,
        statuses: WatchHub[PodStatus],
        events: WatchHub[Event],
        remembered: Callable[[], list[Event]],
        settled: asyncio.Event,
        explainer: Explainer,
        clock: Clock,
        log_root: Path,
    ) -> None:
        self._source = source
        self._runtime = runtime
        self._statuses = statuses
        self._events = events
        self._remembered = remembered
        self._settled = settled
        self._explainer = explainer
        self._clock = clock
        self._log_root = log_root
        # Whether the runtime's WebSockets have been found unable to end an input.
        self._spdy = False

    async def ListPods(self, request: pb.ListPodsRequest, context: Any) -> pb.ListPodsResponse:
        """List statuses, once a restart has found all pods again."""
        await self._settled.wait()
        found = [s for s in self._statuses.snapshot().values() if request.namespace in ("", s.namespace)]
        found.sort(key=lambda status: (status.namespace, status.name))
        return pb.ListPodsResponse(
            pods=[pod_message(status, self._source.pod(status.uid)) for status in found],
            revision=self._statuses.revision,
            server_run_id=self._statuses.run_id,
        )

    async def WatchPods(
        self, request: pb.WatchPodsRequest, context: Any
    ) -> AsyncIterator[pb.WatchPodsResponse]:
        """Stream statuses, once a restart has found all pods again."""
        await self._settled.wait()
        hub = self._statuses
        async for change in hub.watch(request.after_revision, request.server_run_id):
            answer = pb.WatchPodsResponse(revision=change.revision, server_run_id=hub.run_id)
            if isinstance(change, Bookmark):
                answer.bookmark.time.FromDatetime(self._clock.now())
            elif isinstance(change, Deleted):
                answer.traceparent, answer.pod_deleted_uid = change.traceparent, change.key
            else:
                answer.traceparent = change.traceparent
                answer.pod_upserted.CopyFrom(pod_message(change.value, self._source.pod(PodUid(change.key))))
            yield answer

    async def WatchEvents(
        self, request: pb.WatchEventsRequest, context: Any
    ) -> AsyncIterator[pb.WatchEventsResponse]:
        """Stream the remembered events, a bookmark, then new ones."""

        def wanted(event: Event) -> bool:
            return request.namespace in ("", event.namespace) and request.pod_name in ("", event.pod_name)

        remembered = self._remembered()
        after = self._events.revision
        for event in remembered:
            if wanted(event):
                yield pb.WatchEventsResponse(event=event_message(event))
        end = pb.WatchEventsResponse()
        end.bookmark.time.FromDatetime(self._clock.now())
        yield end
        if request.only_remembered:
            return
        async for change in self._events.watch(after, self._events.run_id):
            if (
                not isinstance(change, Bookmark | Deleted)
                and change.revision > after
                and wanted(change.value)
            ):
                yield pb.WatchEventsResponse(event=event_message(change.value))

    async def Explain(self, request: pb.ExplainRequest, context: Any) -> pb.ExplainResponse:
        """Say why a pod fares as it does."""
        try:
            pod = self._pod(request.namespace, request.pod_name)
        except PodNotFoundError as error:
            refused = self._explainer.refused()
            if refused:
                raise PodNotFoundError(request.namespace or "default", request.pod_name, refused) from error
            raise
        return explanation_message(pod, self._explainer.explain(pod), self._clock.now())

    def _pod(self, namespace: str, name: str) -> Pod:
        namespace = namespace or "default"
        found = [p for p in self._source.pods() if (p.namespace, p.name) == (namespace, name)]
        if not found:
            raise PodNotFoundError(namespace, name)
        return found[0]

    async def _instances(self, pod: Pod, container: str) -> tuple[str, list[ObservedContainer]]:
        """Return a container's name and its instances, the newest first."""
        names, mains = [c.name for c in pod.spec.every], [c.name for c in pod.spec.containers]
        if container not in names and not (container == "" and len(mains) == 1):
            raise ContainerUnknownError(pod.name, container, names)
        name = container or mains[0]
        with telemetry.unrecorded():
            observed = await self._runtime.observe(pod.uid)
        return name, [c for c in observed.containers if c.name == name]

    async def Logs(self, request: pb.LogsRequest, context: Any) -> AsyncIterator[pb.LogsResponse]:
        """Stream a container's log."""
        if request.HasField("tail_lines") and not 0 <= request.tail_lines <= _TAIL_LIMIT:
            raise request_invalid("tail_lines", f"must be 0 to {_TAIL_LIMIT}")
        pod = self._pod(request.namespace, request.pod_name)
        name, instances = await self._instances(pod, request.container)
        started = [c for c in instances if c.state is not RuntimeState.CREATED]
        if len(started) <= int(request.previous):
            what = "has no earlier instance" if request.previous else "has not started yet"
            raise ContainerNotStartedError(pod.name, name, what)
        chosen = started[int(request.previous)]
        since = request.since_time.ToJsonString() if request.HasField("since_time") else ""

        async def may_grow() -> bool:
            with telemetry.unrecorded():
                observed = await self._runtime.observe(pod.uid)
            return any(c.id == chosen.id and c.state is RuntimeState.RUNNING for c in observed.containers)

        try:
            async for entry in log_reader.read(
                self._log_root,
                Path(chosen.log_path),
                tail_lines=request.tail_lines if request.HasField("tail_lines") else None,
                since=since,
                follow=may_grow if request.follow else None,
            ):
                yield log_message(entry)
        except FileNotFoundError as error:
            raise ContainerNotStartedError(pod.name, name, "has written nothing yet") from error
        except OSError as error:
            raise LogUnreadableError(pod.name, name, error.strerror or str(error)) from error

    async def Exec(
        self, requests: AsyncIterator[pb.ExecRequest], context: Any
    ) -> AsyncIterator[pb.ExecResponse]:
        """Run a command with streams."""
        first = await anext(requests, None)
        if first is None or first.WhichOneof("input") != "start":
            raise request_invalid("start", "must be the first message")
        start = first.start
        if not start.command:
            raise request_invalid("start.command", "must not be empty")
        instance = await self._running(start.namespace, start.pod_name, start.container)
        client = await self._command(instance.id, start)
        async with _fed(requests, client):
            async for channel, data in client:
                yield _output(channel, data)
            yield pb.ExecResponse(exit_code=client.exit_code)

    async def Attach(
        self, requests: AsyncIterator[pb.AttachRequest], context: Any
    ) -> AsyncIterator[pb.AttachResponse]:
        """Join a container's streams."""
        first = await anext(requests, None)
        if first is None or first.WhichOneof("input") != "start":
            raise request_invalid("start", "must be the first message")
        start = first.start
        pod = self._pod(start.namespace, start.pod_name)
        instance = await self._running(start.namespace, start.pod_name, start.container)
        spec = next(container for container in pod.spec.every if container.name == instance.name)
        if start.stdin and not spec.stdin:
            raise request_invalid("start.stdin", f"container {spec.name} has no standard input")
        streams = Streams(tty=spec.tty, stdin=start.stdin, stderr=not spec.tty)
        client = await open_exec_spdy(await self._runtime.attach_url(instance.id, streams), streams)
        async with _fed(requests, client):
            async for channel, data in client.outputs():
                stderr = channel is ExecChannel.STDERR
                yield pb.AttachResponse(stderr=data) if stderr else pb.AttachResponse(stdout=data)

    async def PortForward(
        self, requests: AsyncIterator[pb.PortForwardRequest], context: Any
    ) -> AsyncIterator[pb.PortForwardResponse]:
        """Carry one connection."""
        first = await anext(requests, None)
        if first is None or first.WhichOneof("input") != "start":
            raise request_invalid("start", "must be the first message")
        start = first.start
        if not 1 <= start.port <= _PORT_LIMIT:
            raise request_invalid("start.port", f"must be 1 to {_PORT_LIMIT}")
        pod = self._pod(start.namespace, start.pod_name)
        with telemetry.unrecorded():
            sandbox = (await self._runtime.observe(pod.uid)).sandbox()
        if sandbox is None or not sandbox.ready:
            raise ContainerNotStartedError(pod.name, "POD", "is not up")
        port = await open_port(await self._runtime.port_forward_url(sandbox.id, (start.port,)), start.port)
        feeder = asyncio.ensure_future(_send(requests, port))  # noqa: TID251  # ended in `finally`
        try:
            while data := await port.read():
                yield pb.PortForwardResponse(data=data)
        finally:
            feeder.cancel()
            await asyncio.wait({feeder})
            await port.close()

    async def _running(self, namespace: str, pod_name: str, container: str) -> ObservedContainer:
        """Find a running container. Raises `KubeletError`."""
        pod = self._pod(namespace, pod_name)
        name, instances = await self._instances(pod, container)
        if not instances or instances[0].state is not RuntimeState.RUNNING:
            raise ContainerNotStartedError(pod.name, name, "does not run")
        return instances[0]

    async def _command(self, container: ContainerId, start: pb.ExecStart) -> ExecClient:
        """Connect to a command: by WebSocket, or by SPDY where the runtime's WebSockets end no input."""

        streams = Streams(tty=start.tty, stdin=start.stdin, stderr=not start.tty)

        async def url() -> str:
            return await self._runtime.exec_url(container, list(start.command), streams)

        if not (start.stdin and self._spdy):
            try:
                return await open_exec_stream(await url(), half_close=start.stdin)
            except NoHalfCloseError:
                self._spdy = True
        return await open_exec_spdy(await url(), streams)


def _output(channel: ExecChannel, data: bytes) -> pb.ExecResponse:
    if channel is ExecChannel.STDERR:
        return pb.ExecResponse(stderr=data)
    return pb.ExecResponse(stdout=data)


@asynccontextmanager
async def _fed(requests: AsyncIterator[Any], client: ExecClient) -> AsyncIterator[None]:
    """Pass input on for a block, at whose end the client is closed."""
    feeder = asyncio.ensure_future(_feed(requests, client))  # noqa: TID251  # ended in `finally`
    try:
        yield
    finally:
        feeder.cancel()
        await asyncio.wait({feeder})
        await client.close()


async def _send(requests: AsyncIterator[pb.PortForwardRequest], port: ForwardedPort) -> None:
    """Pass what the caller sends on until it ends its half."""
    async for request in requests:
        if request.WhichOneof("input") == "data":
            await port.write(request.data)
    port.end()


async def _feed(requests: AsyncIterator[Any], client: ExecClient) -> None:
    """Pass input on until the caller or the command ends it."""
    try:
        async for request in requests:
            kind = request.WhichOneof("input")
            if kind == "stdin":
                await client.write_stdin(request.stdin)
            elif kind == "stdin_end":
                await client.close_stdin()
            elif kind == "resize":
                await client.resize(request.resize.width, request.resize.height)
    except Exception:  # The reader of the output tells how the command ended.
        return
