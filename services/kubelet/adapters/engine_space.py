"""A thread that lives where the engine does: in its mount namespace, and sees its files.

What the kubelet mounts for a pod, the engine must see. In a container of its own the
kubelet has other mounts than the engine; so one thread moves into the namespace of the
process that serves the engine's socket (the peer of a connection tells which), and does
all that touches volumes: tmpfs, sub paths, and looks at the host's files.

Where that is not allowed (CAP_SYS_ADMIN, CAP_SYS_CHROOT and, for a process that may more
than we, CAP_SYS_PTRACE; and its pid must be ours to see), nothing is mounted: secrets lie
on the disk, and what needs a mount is refused with `why_not`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from services.common.errors import Code
from services.common.logs import get_logger
from services.kubelet.adapters import mounting
from services.kubelet.errors import KubeletError

log = get_logger(__name__)
T = TypeVar("T")
_CONNECT_SECONDS = 2.0
_PEER = struct.Struct("3i")


class EngineSpace:
    """Runs functions one after the other. `close` when done."""

    def __init__(self, endpoint: str) -> None:
        self._socket = endpoint.removeprefix("unix://") if endpoint.startswith("unix://") else ""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="volumes")
        self._namespace: tuple[int, int] | None = None
        self.why_not = "nobody has looked yet"
        # Whether the thread sees the files that the engine sees.
        self.sees = False

    async def run(self, act: Callable[[], T]) -> T:
        """Run a function where `settle` found the engine. It imports nothing: the files are the engine's."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, act)

    async def settle(self) -> bool:
        """Be where the engine is now, and tell whether we may mount there.

        An engine that was restarted may be elsewhere. Raises `KubeletError` while it does not answer.
        """
        try:
            found = await asyncio.to_thread(self._look)
        except OSError as error:
            raise KubeletError(
                f"The engine's mounts cannot be seen while it does not answer: {error.strerror or error}",
                code=Code.UNAVAILABLE,
                reason="ENGINE_UNAVAILABLE",
                metadata={"socket": self._socket},
            ) from error
        if isinstance(found, str):
            self.sees = False
            self._note(found)
            return False
        number, identity = found
        try:
            if identity != self._namespace:
                await self._move(number, identity)
        finally:
            os.close(number)
        return not self.why_not

    def _look(self) -> tuple[int, tuple[int, int]] | str:
        """Open the engine's namespace; the reason where that cannot be done. Raises `OSError`."""
        if not self._socket:
            return "the engine is not on this host"
        pid = process_at(self._socket)
        if pid <= 0:
            return "the engine's process cannot be seen from here"
        try:
            number = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            return f"the engine's mounts cannot be seen from here: {error.strerror or error}"
        found = os.fstat(number)
        return number, (found.st_dev, found.st_ino)

    async def _move(self, number: int, identity: tuple[int, int]) -> None:
        fresh = ThreadPoolExecutor(max_workers=1, thread_name_prefix="volumes")
        old, self._thread = self._thread, fresh
        old.shutdown(wait=False)
        self.sees, why_not = await self.run(lambda: _settled(number))
        self._note(why_not)
        self._namespace = identity

    def _note(self, why_not: str) -> None:
        if why_not != self.why_not:
            if why_not:
                log.warning("Could not mount for pods", reason=why_not)
            self.why_not = why_not

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False)


def process_at(path: str) -> int:
    """Return the process that serves a unix socket; 0 when it cannot be seen from here. Raises `OSError`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_CONNECT_SECONDS)
        connection.connect(path)
        told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    return int(_PEER.unpack(told)[0])


def _settled(namespace: int) -> tuple[bool, str]:
    """Move this thread; tells whether it is there, and why it cannot mount there, or "" when it can."""
    try:
        if not os.path.samestat(os.fstat(namespace), Path("/proc/thread-self/ns/mnt").stat()):
            mounting.enter(namespace)
    except OSError as error:
        return False, f"the engine's mounts cannot be entered: {error.strerror or error}"
    return True, "" if mounting.may_mount() else "the kubelet lacks CAP_SYS_ADMIN"
