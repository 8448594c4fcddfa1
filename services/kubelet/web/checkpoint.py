"""`/checkpoint`: a container's state in a file on the node, by the runtime.

Source: kubernetes pkg/kubelet/server/server.go `checkpoint`, KEP-2008.
"""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from services.common import telemetry
from services.common.clock import Clock
from services.common.errors import TripodError
from services.kubelet.core.model import Pod
from services.kubelet.errors import ContainerNotStartedError
from services.kubelet.ports import PodSource, Runtime


class CheckpointRoute:
    """Serves the route. `folder` takes the files."""

    def __init__(self, source: PodSource, runtime: Runtime, clock: Clock, folder: Path) -> None:
        self._source = source
        self._runtime = runtime
        self._clock = clock
        self._folder = folder

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add the route."""
        router.add_post("/checkpoint/{namespace}/{pod}/{container}", self._serve)

    async def _serve(self, http: web.Request) -> web.Response:
        namespace, name, container = (http.match_info[key] for key in ("namespace", "pod", "container"))
        pod = next((p for p in self._source.pods() if (p.namespace, p.name) == (namespace, name)), None)
        if pod is None:
            return web.Response(status=404, text="pod does not exist")
        if container not in [c.name for c in pod.spec.every]:
            return web.Response(status=404, text=f"container {container} does not exist")
        wanted = http.query.getall("timeout", ["0"])[-1]
        if not (wanted.isascii() and wanted.isdigit() and len(wanted) < 10):
            return web.Response(status=404, text="cannot parse value of timeout parameter")
        path = self._path(pod, container)
        try:
            await self._write(pod, container, path, int(wanted))
        except TripodError as error:
            why = f"checkpointing of {namespace}/{name}/{container} failed ({error.message})"
            return web.Response(status=500, text=why)
        return web.json_response({"items": [str(path)]})

    async def _write(self, pod: Pod, container: str, path: Path, timeout_seconds: int) -> None:
        with telemetry.unrecorded():
            found = (await self._runtime.observe(pod.uid)).latest(container)
        if found is None:
            raise ContainerNotStartedError(pod.name, container, "has not started yet")
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        await self._runtime.checkpoint(found.id, path, timeout_seconds)

    def _path(self, pod: Pod, container: str) -> Path:
        when = f"{self._clock.now():%Y-%m-%dT%H:%M:%SZ}"
        return self._folder / f"checkpoint-{pod.name}_{pod.namespace}-{container}-{when}.tar"
