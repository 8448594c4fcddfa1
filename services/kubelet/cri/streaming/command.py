"""A command between its client and its session: bytes both ways until either side ends.

Nothing is buffered beyond one message per direction: a client that does not read stops the command's output,
a command that does not read stops the client's input. An attached container is not to be stopped by whoever
watches it: there a client that reads nothing for `STALL_SECONDS` is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, Protocol

from services.common.clock import Clock
from services.common.errors import TripodError
from services.common.spdy.errors import PeerGoneError
from services.common.spdy.groups import first_of
from services.kubelet.cri.streaming.session import (
    ExecBackend,
    ExecSession,
    ExecStream,
    StreamRequest,
)
from services.kubelet.cri.streaming.status import Outcome

PING_SECONDS: Final = 5.0
IDLE_SECONDS: Final = 4 * 3600.0
STALL_SECONDS: Final = 10.0


class Activity(Protocol):
    """A client that can be pinged. `activity_count` grows with whatever comes or goes, pings excepted."""

    @property
    def activity_count(self) -> int:
        """How much has happened."""
        ...

    async def ping(self) -> None:
        """Write something, so that a lost connection shows. Raises `PeerGoneError`."""
        ...


class CommandPeer(Activity, Protocol):
    """The client's side of a command."""

    async def ready(self) -> None:
        """Tell the client that its streams are up."""
        ...

    async def feed(self, session: ExecSession, *, wanted: bool) -> None:
        """Pass input and sizes on until the client has no more; drop input that is not wanted.

        Raises `PeerGoneError`.
        """
        ...

    async def send(self, stream: ExecStream, data: bytes) -> None:
        """Send output; waits while the client does not read. Raises `PeerGoneError`."""
        ...

    async def finish(self, outcome: Outcome) -> None:
        """Tell how the command ended. Raises `PeerGoneError`."""
        ...


async def run_command(peer: CommandPeer, backend: ExecBackend, request: StreamRequest, clock: Clock) -> None:
    """Run the command between its streams and tell how it ended. Raises `PeerGoneError`."""
    await peer.finish(await _outcome(peer, backend, request, clock))


async def _outcome(peer: CommandPeer, backend: ExecBackend, request: StreamRequest, clock: Clock) -> Outcome:
    try:
        session = await backend.open(request)
    except TripodError as err:
        return Outcome(failure=err.message)
    try:
        await peer.ready()
        return Outcome(await _join(peer, session, request, clock))
    except TripodError as err:
        return Outcome(failure=err.message)
    finally:
        await session.close()


async def _join(peer: CommandPeer, session: ExecSession, request: StreamRequest, clock: Clock) -> int:
    """Move bytes both ways until the command ends; return its exit code."""
    stall_seconds = None if request.command else STALL_SECONDS
    try:
        async with asyncio.TaskGroup() as group:
            helpers = (
                group.create_task(peer.feed(session, wanted=request.stdin)),
                group.create_task(watch(peer, clock)),
            )
            async for stream, data in session.output():
                await _send(peer, stream, data, stall_seconds)
            exit_code = await session.exit_code()
            for helper in helpers:
                helper.cancel()
    except BaseExceptionGroup as group_error:
        # One failure ends the group; what follows from it is of no interest.
        raise first_of(group_error) from group_error
    return exit_code


async def _send(peer: CommandPeer, stream: ExecStream, data: bytes, stall_seconds: float | None) -> None:
    try:
        async with asyncio.timeout(stall_seconds):
            await peer.send(stream, data)
    except TimeoutError as err:
        raise PeerGoneError("it read nothing for too long") from err


async def pass_stdin(session: ExecSession, data: bytes) -> bool:
    """Write to the command, or end its input with b""; returns False once it reads no more."""
    try:
        if data:
            await session.write_stdin(data)
        else:
            await session.close_stdin()
    except ConnectionError:
        # As `yes | head -1`: the command reads no more, but what it wrote must still reach the client.
        return False
    return True


async def pass_size(session: ExecSession, width: int, height: int) -> None:
    """Set the terminal's size; a command that has just ended has none."""
    with contextlib.suppress(TripodError):
        await session.resize(width, height)


async def watch(peer: Activity, clock: Clock) -> None:
    """Write now and then, so that a lost connection shows; give up on one that is idle for hours."""
    seen, quiet_since = peer.activity_count, clock.monotonic()
    while True:
        await clock.sleep(PING_SECONDS)
        await peer.ping()
        if peer.activity_count != seen:
            seen, quiet_since = peer.activity_count, clock.monotonic()
        if clock.monotonic() - quiet_since >= IDLE_SECONDS:
            raise PeerGoneError("idle for too long")
