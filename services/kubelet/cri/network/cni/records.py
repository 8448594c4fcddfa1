"""Keep what was asked of plugins, one file for each sandbox, from before ADD until after DEL.

A record holds all that DEL and CHECK need: the namespace's path, the configuration as it was, the values
given at run time, and the result once there is one. It is synced to the disk: what plugins keep of a sandbox,
such as the addresses of `host-local`, outlives a power cut as well.

Whoever works on a sandbox holds its lock, which the plugins inherit: so a server knows of the plugins that
the one before it has left behind, and ends them before it undoes what they did. Source: flock(2).
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from services.common.logs import get_logger
from services.kubelet.cri.network import netns
from services.kubelet.cri.network.cni import conf, errors
from services.kubelet.cri.network.cni.conf import Network
from services.kubelet.cri.network.leases import replace_file
from services.kubelet.cri.network.netns import Netns

log = get_logger(__name__)
_FORMAT_VERSION: Final = 1
_POLL_SECONDS: Final = 0.02


@dataclass(frozen=True, slots=True)
class Attachment:
    """A sandbox on a CNI network. `result` is None until ADD has ended well."""

    sandbox_id: str
    netns: Netns
    network: Network
    arguments: str
    values: Mapping[str, Any]
    result: Mapping[str, Any] | None = None


class Records:
    """The attachments, in memory and in `directory`. `open` first; belongs to one event loop."""

    def __init__(self, directory: Path) -> None:
        self._attachments = directory / "attachments"
        self._locks = directory / "busy"
        self._by_sandbox: dict[str, Attachment] = {}

    def open(self) -> None:
        """Read all records; a damaged one is set aside. Raises `OSError`.

        For a server alone on the directory: a lock of a sandbox without a record is nobody's, since a plugin
        runs only while there is one.
        """
        for folder in (self._attachments, self._locks):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._by_sandbox = {}
        for path in sorted(self._attachments.glob("*.json")):
            try:
                made = decode(path.read_bytes())
            except ValueError as err:
                log.warning("Set a damaged CNI record aside", file=str(path), error=str(err))
                path.rename(path.with_suffix(".damaged"))
                continue
            self._by_sandbox[made.sandbox_id] = made
        for path in self._locks.iterdir():
            if path.name not in self._by_sandbox:
                path.unlink()

    def find(self, sandbox_id: str) -> Attachment | None:
        """Return the attachment of a sandbox."""
        return self._by_sandbox.get(sandbox_id)

    def all(self) -> tuple[Attachment, ...]:
        """Return all attachments, half-made ones included."""
        return tuple(self._by_sandbox.values())

    async def save(self, attachment: Attachment) -> None:
        """Write an attachment; on return it outlives this process and a power cut. Raises `OSError`.

        Known from the first moment: one that is given up on may reach the disk nevertheless.
        """
        before = self._by_sandbox.get(attachment.sandbox_id)
        self._by_sandbox[attachment.sandbox_id] = attachment
        try:
            await asyncio.to_thread(replace_file, self._path(attachment.sandbox_id), encode(attachment))
        except OSError:
            self._by_sandbox.pop(attachment.sandbox_id)
            if before is not None:
                self._by_sandbox[attachment.sandbox_id] = before
            raise

    def remove(self, sandbox_id: str) -> None:
        """Forget an attachment. May be repeated. Raises `OSError`."""
        self._path(sandbox_id).unlink(missing_ok=True)
        self._by_sandbox.pop(sandbox_id, None)

    @asynccontextmanager
    async def hold(self, sandbox_id: str, *, limit_seconds: float) -> AsyncIterator[Lock]:
        """Work on a sandbox alone. What a server before this one left at work on it is killed.

        Raises `NetworkError` CNI_BUSY, `OSError`.
        """
        path = self._locks / sandbox_id
        try:
            async with asyncio.timeout(limit_seconds):
                lock = await _taken(path)
        except TimeoutError as err:
            raise errors.busy(sandbox_id, limit_seconds) from err
        try:
            yield lock
        finally:
            path.unlink(missing_ok=True)
            os.close(lock.descriptor)

    def _path(self, sandbox_id: str) -> Path:
        return self._attachments / f"{sandbox_id}.json"


@dataclass(frozen=True, slots=True)
class Lock:
    """A locked file that plugins inherit; it says who started them, and which runs."""

    descriptor: int

    def started(self, pid: int) -> None:
        """Note the plugin that runs now."""
        us = os.getpid()
        text = f"{us} {netns.started(us)} {pid} {netns.started(pid)}\n".encode()
        os.pwrite(self.descriptor, text.ljust(80), 0)


async def _taken(path: Path) -> Lock:
    while (lock := _try(path)) is None:  # noqa: ASYNC110  # another process holds it, who tells nobody
        await asyncio.sleep(_POLL_SECONDS)
    return lock


def _try(path: Path) -> Lock | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held it before has removed the file: a lock on that one is none.
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return Lock(descriptor)
    except (BlockingIOError, FileNotFoundError):
        _end_orphan(descriptor)
    os.close(descriptor)
    return None


def _end_orphan(descriptor: int) -> None:
    """Kill the plugin that a lock names, if the server that started it has ended."""
    with suppress(ValueError, ProcessLookupError):
        server, server_start, plugin, plugin_start = map(int, os.pread(descriptor, 80, 0).split())
        if netns.started(server) != server_start and netns.started(plugin) == plugin_start:
            os.killpg(plugin, signal.SIGKILL)


def encode(attachment: Attachment) -> bytes:
    """Render a record as JSON."""
    return json.dumps(
        {
            "version": _FORMAT_VERSION,
            "sandbox_id": attachment.sandbox_id,
            "netns": asdict(attachment.netns),
            "source": attachment.network.source,
            "network": conf.render(attachment.network),
            "arguments": attachment.arguments,
            "values": dict(attachment.values),
            "result": attachment.result,
        }
    ).encode()


def decode(data: bytes) -> Attachment:
    """Read a record back. Raises `ValueError` for anything but a whole, known one."""
    try:
        state = json.loads(data)
        if state["version"] != _FORMAT_VERSION:
            raise ValueError(f"unknown version {state['version']!r}")
        network = conf.parse(str(state["source"]), json.dumps(state["network"]).encode())
        place = Netns(**state["netns"])
        result = state["result"]
        if result is not None:
            result = dict(result)
        return Attachment(
            str(state["sandbox_id"]), place, network, str(state["arguments"]), dict(state["values"]), result
        )
    except (KeyError, TypeError, AttributeError) as err:
        raise ValueError(f"not a record: {err!r}") from err
