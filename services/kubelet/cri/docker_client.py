"""The Docker Engine: the one file that imports `docker`.

docker-py is synchronous and its client is not safe to share between threads
(docker-py issues 619 and 3229), so each worker thread has its own. Every call has
a deadline and a CLIENT span; its errors become ours. Looks have a shorter deadline
than changes, and the question whether the engine answers has threads of its own, so
that an engine that hangs is known for one soon.
"""

from __future__ import annotations

import asyncio
import contextvars
import io
import json
import tarfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import docker
import docker.auth
import docker.errors
import requests
import urllib3
from docker.transport import UnixHTTPAdapter
from opentelemetry.trace import SpanKind, Status, StatusCode

from services.common import telemetry
from services.kubelet.cri import engineapi
from services.kubelet.cri.errors import (
    CriError,
    EngineRefusedError,
    EngineTimeoutError,
    EngineUnreachableError,
)

T = TypeVar("T")
Json = dict[str, Any]
_WORKERS = 12
# Stops wait for a grace; they must not keep other calls waiting.
_STOP_WORKERS = 64
_LOOK_SECONDS = 20.0
_FILE_BYTES = 8 << 20
_ALIVE_SECONDS = 10.0


class DockerClient:
    """Calls one engine. `close` ends its threads."""

    def __init__(self, host: str, *, deadline_seconds: int = 60) -> None:
        self.host = host
        # What the server has agreed on with the engine.
        self.api_version = engineapi.written(engineapi.FLOOR)
        self._agreed = False
        self._deadline = float(deadline_seconds)
        self._look = min(_LOOK_SECONDS, self._deadline)
        self._alive = min(_ALIVE_SECONDS, self._deadline)
        self._pool = ThreadPoolExecutor(max_workers=_WORKERS, thread_name_prefix="docker")
        self._stops = ThreadPoolExecutor(max_workers=_STOP_WORKERS, thread_name_prefix="docker-stop")
        self._answers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="docker-alive")
        self._local = threading.local()

    def agree(self, api_version: str) -> None:
        """Speak this version from now on, in every thread that has not spoken yet."""
        self.api_version = api_version
        self._agreed = True

    def close(self) -> None:
        """End the threads; calls that run are given up."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._stops.shutdown(wait=False, cancel_futures=True)
        self._answers.shutdown(wait=False, cancel_futures=True)

    def _client(self, limit: float) -> Any:
        """Return this thread's client; no read of it waits longer than the call's deadline."""
        if not hasattr(self._local, "client"):
            self._local.client = docker.APIClient(
                base_url=self.host, version=self.api_version if self._agreed else "auto", timeout=limit
            )
            _keep_one_connection(self._local.client, self.host, self._deadline)
        self._local.client.timeout = limit
        return self._local.client

    async def _call(
        self, name: str, act: Callable[[Any], T], *, deadline: float | None = None, pool: Any = None
    ) -> T:
        limit = deadline or self._deadline
        with telemetry.span(f"docker {name}", kind=SpanKind.CLIENT) as span:
            try:
                context = contextvars.copy_context()
                loop = asyncio.get_running_loop()
                async with asyncio.timeout(limit):
                    return await loop.run_in_executor(
                        pool or self._pool, context.run, self._act, name, act, limit
                    )
            except TimeoutError as error:
                raise EngineTimeoutError(name, limit) from error
            except CriError as error:
                span.set_status(Status(StatusCode.ERROR, f"{error.reason}: {error.message}"))
                raise

    def _act(self, name: str, act: Callable[[Any], T], limit: float) -> T:
        try:
            return act(self._client(limit))
        except docker.errors.APIError as error:
            why = str(error.explanation or error)
            status = error.status_code or 500
            raise EngineRefusedError(name, status, why) from error
        except (
            docker.errors.DockerException,
            requests.RequestException,
            urllib3.exceptions.HTTPError,
        ) as error:
            if isinstance(error, requests.Timeout):
                raise EngineTimeoutError(name, limit) from error
            raise EngineUnreachableError(self.host, str(error)) from error

    async def version(self) -> Json:
        """Return the engine's versions; whether it answers at all, this tells soonest."""
        return await self._call(
            "version", lambda c: dict(c.version()), deadline=self._alive, pool=self._answers
        )

    async def info(self) -> Json:
        """Return what the engine says of itself."""
        return await self._call("info", lambda c: dict(c.info()), deadline=self._look)

    async def create(self, name: str, config: Mapping[str, Any]) -> str:
        """Create a container; returns its id."""
        made = await self._call("containers.create", lambda c: c.create_container_from_config(config, name))
        return str(made["Id"])

    async def start(self, container_id: str) -> None:
        """Start a container."""
        await self._call("containers.start", lambda c: c.start(container_id))

    async def stop(self, container_id: str, grace_seconds: int) -> None:
        """Stop a container: its stop signal, then KILL. One that does not run is no error."""
        await self._call(
            "containers.stop",
            lambda c: c.stop(container_id, timeout=grace_seconds),
            deadline=grace_seconds + self._deadline,
            pool=self._stops,
        )

    async def kill(self, container_id: str) -> None:
        """Kill a container. One that does not run is no error."""
        try:
            await self._call("containers.kill", lambda c: c.kill(container_id))
        except EngineRefusedError as error:
            if error.status != 409:
                raise

    async def unpause(self, container_id: str) -> None:
        """Let a paused container go on. One that is not paused is no error."""
        try:
            await self._call("containers.unpause", lambda c: c.unpause(container_id))
        except EngineRefusedError as error:
            if error.status not in (409, 500):
                raise

    async def remove(self, container_id: str) -> None:
        """Remove a container with its anonymous volumes, by force. An absent one is no error."""
        try:
            await self._call(
                "containers.remove", lambda c: c.remove_container(container_id, v=True, force=True)
            )
        except EngineRefusedError as error:
            if error.status == 409 and "already in progress" in error.message:
                return
            if error.status != 404:
                raise

    async def inspect(self, container_id: str) -> Json | None:
        """Return all about a container; None when there is none."""
        try:
            return await self._call(
                "containers.inspect", lambda c: dict(c.inspect_container(container_id)), deadline=self._look
            )
        except EngineRefusedError as error:
            if error.status == 404:
                return None
            raise

    async def containers(self, labels: list[str], *, size: bool = False) -> list[Json]:
        """List containers, ended ones too, that carry every label (`name=value`).

        With `size` the engine walks every writable layer.
        """
        return await self._call(
            "containers.list",
            lambda c: list(c.containers(all=True, size=size, filters={"label": labels})),
            deadline=self._look,
        )

    async def read_file(self, container_id: str, path: str) -> str:
        """Return the text of a small file of a container, run or not; "" when there is none."""

        def act(client: Any) -> bytes:
            chunks, _ = client.get_archive(container_id, path)
            data = io.BytesIO()
            for chunk in chunks:
                data.write(chunk)
                if data.tell() > _FILE_BYTES:
                    raise EngineRefusedError(
                        "containers.archive", 400, f"{path} has more than {_FILE_BYTES} bytes"
                    )
            data.seek(0)
            with tarfile.open(fileobj=data) as tar:
                found = next((tar.extractfile(member) for member in tar if member.isfile()), None)
                return found.read() if found is not None else b""

        try:
            return (await self._call("containers.archive", act)).decode(errors="replace")
        except EngineRefusedError as error:
            if error.status == 404:
                return ""
            raise

    async def stats(self, container_id: str) -> Json | None:
        """Return what a container uses now, without the second look that a rate needs; None when absent."""

        def act(client: Any) -> Json:
            url = client._url("/containers/{0}/stats", container_id)
            return dict(client._result(client._get(url, params={"stream": "0", "one-shot": "1"}), True))

        try:
            return await self._call("containers.stats", act, deadline=self._look)
        except EngineRefusedError as error:
            if error.status == 404:
                return None
            raise

    async def update(self, container_id: str, values: Mapping[str, Any]) -> None:
        """Change the resources of a container."""

        def act(client: Any) -> None:
            url = client._url("/containers/{0}/update", container_id)
            client._result(client._post_json(url, data=dict(values)), True)

        await self._call("containers.update", act)

    async def exec_create(self, container_id: str, config: Mapping[str, Any]) -> str:
        """Prepare a command in a container; returns its id."""

        def act(client: Any) -> str:
            url = client._url("/containers/{0}/exec", container_id)
            made = client._result(client._post_json(url, data=dict(config)), True)
            return str(made["Id"])

        return await self._call("exec.create", act)

    async def exec_inspect(self, exec_id: str) -> Json:
        """Return the state of a command: `Running`, `ExitCode`, `Pid`."""
        return await self._call("exec.inspect", lambda c: dict(c.exec_inspect(exec_id)), deadline=self._look)

    async def exec_resize(self, exec_id: str, width: int, height: int) -> None:
        """Set the size of a command's terminal."""
        await self._call("exec.resize", lambda c: c.exec_resize(exec_id, height=height, width=width))

    async def resize(self, container_id: str, width: int, height: int) -> None:
        """Set the size of a container's terminal."""
        await self._call("containers.resize", lambda c: c.resize(container_id, height=height, width=width))

    async def images(self) -> list[Json]:
        """List images, those without a name too."""
        return await self._call("images.list", lambda c: list(c.images()), deadline=self._look)

    async def image_containers(self, image_id: str) -> list[Json]:
        """List the containers, whoever made them, of an image and of what is made from it."""
        return await self._call(
            "containers.list",
            lambda c: list(c.containers(all=True, filters={"ancestor": image_id})),
            deadline=self._look,
        )

    async def disk_usage(self) -> Json:
        """Return what images, containers and volumes take; the engine looks at every file for that."""
        return await self._call("system.df", lambda c: dict(c.df()))

    async def unused_volumes(self, label: str) -> list[str]:
        """Name the volumes with a label that no container has."""

        def act(client: Any) -> list[str]:
            found = client.volumes(filters={"label": [label], "dangling": "true"})
            return [str(volume["Name"]) for volume in found.get("Volumes") or ()]

        return await self._call("volumes.list", act, deadline=self._look)

    async def remove_volume(self, name: str) -> None:
        """Remove a volume. An absent one is no error, nor one that is in use after all."""
        try:
            await self._call("volumes.remove", lambda c: c.remove_volume(name))
        except EngineRefusedError as error:
            if error.status not in (404, 409):
                raise

    async def stored_login(self, host: str) -> Json | None:
        """Return what `docker login` stored for a registry in this user's `config.json`; "" is Docker Hub."""
        return await asyncio.to_thread(_stored_login, host)

    async def image(self, name: str) -> Json | None:
        """Return all about an image; None when there is none."""
        try:
            return await self._call(
                "images.inspect", lambda c: dict(c.inspect_image(name)), deadline=self._look
            )
        except EngineRefusedError as error:
            if error.status in (400, 404):
                return None
            raise

    async def remove_image(self, name: str) -> None:
        """Remove an image with all its tags. An absent one is no error, nor one that another removes."""
        try:
            await self._call("images.remove", lambda c: c.remove_image(name, force=True))
        except EngineRefusedError as error:
            if error.status != 404 and (error.status == 409 or await self.image(name) is not None):
                raise

    async def import_image(self, archive: bytes, name: str, changes: list[str]) -> None:
        """Make an image from a tar archive. Raises `EngineRefusedError`."""

        def act(client: Any) -> None:
            repository, _, tag = name.rpartition(":")
            answer = client.import_image_from_data(archive, repository=repository, tag=tag, changes=changes)
            for line in str(answer).splitlines():
                if "error" in json.loads(line):
                    raise EngineRefusedError("images.import", 500, line)

        await self._call("images.import", act)


def _stored_login(host: str) -> Json | None:
    try:
        found = docker.auth.load_config().resolve_authconfig(host or None)
    except (docker.errors.DockerException, OSError, ValueError):
        return None  # What cannot be read is no login; the registry's answer tells the rest.
    return dict(found) if found else None


class _OneConnection(UnixHTTPAdapter):  # type: ignore[misc]  # docker-py has no types
    """One connection for every URL of a client; docker-py keeps one for each of the latest 25."""

    def get_connection(self, url: str, proxies: Any = None) -> Any:
        """Return the pool that all URLs share."""
        return super().get_connection("http+docker://localhost", proxies)


def _keep_one_connection(client: Any, host: str, timeout: float) -> None:
    """Let a client of a unix socket, which one thread alone uses, keep one connection.

    `num_pools` would say so, but docker-py 7 looks at it for SSH alone.
    """
    if host.startswith("unix://"):
        client.get_adapter(client.base_url).close()
        client.mount("http+docker://", _OneConnection(f"http+{host}", timeout))
