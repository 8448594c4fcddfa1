"""`/containerLogs`: a container's log as text, with the errors of the original.

Beyond the original, what was rotated away is part of the log.

Source: kubernetes pkg/kubelet/server/server.go `getContainerLogs`, pkg/kubelet/kubelet.go
`validateContainerLogStatus`, cri-client pkg/logs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from aiohttp import web

from services.common import telemetry
from services.common.clock import Clock
from services.common.errors import TripodError
from services.common.watch import WatchHub
from services.kubelet.adapters import log_reader
from services.kubelet.core import log_options
from services.kubelet.core.log_choice import LogChoiceError, chosen
from services.kubelet.core.log_options import LogOptions, LogStream, OptionsError, QueryError, stamp, time_ns
from services.kubelet.core.logs import LogEntry
from services.kubelet.core.model import Pod
from services.kubelet.core.observed import ObservedContainer, RuntimeState
from services.kubelet.core.status import PodStatus, StatePhase
from services.kubelet.ports import PodSource, Runtime
from services.kubelet.web.streams import query_of


class LogRoutes:
    """Serves the route. `root` is the folder of all logs."""

    def __init__(
        self,
        source: PodSource,
        runtime: Runtime,
        statuses: WatchHub[PodStatus],
        clock: Clock,
        root: Path,
    ) -> None:
        self._source = source
        self._runtime = runtime
        self._statuses = statuses
        self._clock = clock
        self._root = root

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the route."""
        router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._serve, allow_head=False)

    async def _serve(self, http: web.Request) -> web.StreamResponse:
        try:
            options = log_options.parse(query_of(http), self._clock.now())
        except QueryError:
            return web.Response(status=400, text='{"message": "Unable to decode query."}')
        except OptionsError:
            return web.Response(status=422, text='{"message": "Invalid request."}')
        namespace, name, container = (http.match_info[key] for key in ("namespace", "pod", "container"))
        pod = next((p for p in self._source.pods() if (p.namespace, p.name) == (namespace, name)), None)
        if pod is None:
            return web.Response(status=404, text=f'pod "{name}" does not exist')
        if container not in [c.name for c in pod.spec.every]:
            return web.Response(status=404, text=f'container "{container}" not found in pod "{name}"')
        try:
            instance = await self._choose(pod, container, options)
        except LogChoiceError as error:
            return web.Response(status=400, text=str(error))
        except TripodError as error:
            return web.Response(status=500, text=error.message)
        return await self._send(http, pod, instance, options)

    async def _choose(self, pod: Pod, container: str, options: LogOptions) -> ObservedContainer:
        with telemetry.unrecorded():
            observed = await self._runtime.observe(pod.uid)
        return chosen(pod, container, observed, self._statuses.get(pod.uid), previous=options.previous)

    async def _send(
        self, http: web.Request, pod: Pod, instance: ObservedContainer, options: LogOptions
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        response.enable_chunked_encoding()
        text = LogText(options)
        follow = self._may_grow(pod, instance) if options.follow else None
        entries = log_reader.batches(
            self._root, Path(instance.log_path), tail_lines=options.tail_lines, follow=follow
        )
        try:
            async for batch in entries:
                if not response.prepared:
                    await response.prepare(http)
                if block := text.of(batch):
                    await response.write(block)
                if text.full:
                    break
        except FileNotFoundError:
            # It has written nothing yet, or what it wrote was removed.
            pass
        except OSError as error:
            if response.prepared:
                raise
            why = error.strerror or type(error).__name__
            return web.Response(status=400, text=f"unable to retrieve container logs: the file {why}")
        finally:
            await entries.aclose()  # type: ignore[attr-defined]  # an async generator
        if not response.prepared:
            await response.prepare(http)
        await response.write_eof()
        return response

    def _may_grow(self, pod: Pod, instance: ObservedContainer) -> Callable[[], Awaitable[bool]]:
        """Return what tells whether an instance may still write.

        Its pod's status does, at no cost; the runtime is asked where that says no, or nothing.
        """

        async def grows() -> bool:
            status = self._statuses.get(pod.uid)
            seen = status.every if status else ()
            if any(c.container_id == instance.id and c.state.phase is StatePhase.RUNNING for c in seen):
                return True
            try:
                with telemetry.unrecorded():
                    found = await self._runtime.container(instance.id)
            except TripodError:
                return False
            return found.state is RuntimeState.RUNNING

        return grows


class LogText:
    """Writes entries as text until `limit_bytes` of them are written; `full` then."""

    def __init__(self, options: LogOptions) -> None:
        self._options = options
        self._left = options.limit_bytes
        self._fresh = True

    @property
    def full(self) -> bool:
        """Whether all that may be written has been."""
        return self._left is not None and self._left <= 0

    def of(self, entries: Sequence[LogEntry]) -> bytes:
        """Return the text of entries."""
        text = b"".join(self._one(entry) for entry in entries)
        if self._left is None:
            return text
        text = text[: self._left]
        self._left -= len(text)
        return text

    def _one(self, entry: LogEntry) -> bytes:
        options = self._options
        if options.stream is not LogStream.ALL and entry.stderr is not (options.stream is LogStream.STDERR):
            return b""
        if options.since_ns is not None and (time_ns(entry.time) or 0) < options.since_ns:
            return b""
        prefix = f"{stamp(entry.time)} ".encode() if options.timestamps and self._fresh else b""
        self._fresh = not entry.partial
        return prefix + entry.line + (b"" if entry.partial else b"\n")
