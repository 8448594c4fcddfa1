"""A command's client on SPDY: one stream for each of its inputs and outputs.

Source: kubernetes/kubelet pkg/cri/streaming/remotecommand/httpstream.go.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from services.common.remotecommand.terminal import SizeError, SizeReader
from services.common.spdy.errors import PeerGoneError
from services.common.spdy.multiplex import Multiplexer, SpdyStream, StreamResetError
from services.kubelet.cri.streaming.command import pass_size, pass_stdin
from services.kubelet.cri.streaming.session import ExecSession, ExecStream, StreamRequest
from services.kubelet.cri.streaming.status import Outcome, document, text

STREAMS_SECONDS: Final = 30.0
TYPE_HEADER: Final = "streamtype"
_WITH_STATUS: Final = "v4.channel.k8s.io"
_WITH_SIZES: Final = (_WITH_STATUS, "v3.channel.k8s.io")


def expected_streams(request: StreamRequest, protocol: str) -> frozenset[str]:
    """Return the kinds of streams that a client of this protocol opens for a command."""
    wanted = {
        "error": True,
        "stdin": request.stdin,
        "stdout": request.stdout,
        "stderr": request.stderr and not request.tty,
        "resize": request.tty and protocol in _WITH_SIZES,
    }
    return frozenset(kind for kind, needed in wanted.items() if needed)


async def collect(link: Multiplexer, kinds: frozenset[str]) -> dict[str, SpdyStream]:
    """Wait until the client has opened its streams. Raises `PeerGoneError` after 30 s."""
    found: dict[str, SpdyStream] = {}
    try:
        async with asyncio.timeout(STREAMS_SECONDS):
            while kinds - found.keys():
                stream = await link.accept()
                if stream is None:
                    raise PeerGoneError("it opened too few streams")
                kind = stream.headers.get(TYPE_HEADER, "")
                if kind not in kinds or kind in found:
                    raise PeerGoneError(f"it opened a stream of kind {kind[:20]!r}")
                found[kind] = stream
    except TimeoutError as err:
        raise PeerGoneError(f"it did not open its streams in {STREAMS_SECONDS:g} s") from err
    return found


class SpdyCommand:
    """A command's client on SPDY streams. Implements `CommandPeer`."""

    def __init__(self, link: Multiplexer, streams: dict[str, SpdyStream], protocol: str) -> None:
        self._link = link
        self._streams = streams
        self._protocol = protocol

    @property
    def activity_count(self) -> int:
        """How much came and went."""
        return self._link.activity_count

    async def ping(self) -> None:
        """Write a ping."""
        await self._link.ping()

    async def ready(self) -> None:
        """Do nothing: the replies to the streams have told."""

    async def feed(self, session: ExecSession, *, wanted: bool) -> None:
        """Pass input and sizes on, each as it comes, until both have ended."""
        async with asyncio.TaskGroup() as group:
            if stdin := self._streams.get("stdin"):
                group.create_task(_feed_stdin(stdin, session, wanted=wanted))
            if resize := self._streams.get("resize"):
                group.create_task(_feed_sizes(resize, session))

    async def send(self, stream: ExecStream, data: bytes) -> None:
        """Send output; an output that the client did not ask for is dropped. Raises `PeerGoneError`."""
        target = self._streams.get(stream.value)
        if target is None:
            return
        try:
            await target.write(data)
        except StreamResetError as err:
            raise PeerGoneError(str(err)) from err

    async def finish(self, outcome: Outcome) -> None:
        """End the outputs, then tell the status and end everything. Raises `PeerGoneError`."""
        error = self._streams["error"]
        told = document(outcome) if self._protocol == _WITH_STATUS else text(outcome).encode()
        for stream in self._streams.values():
            if stream is not error:
                stream.end()
        try:
            await error.write(told)
        except StreamResetError as err:
            raise PeerGoneError(str(err)) from err
        error.end()


async def _feed_stdin(stream: SpdyStream, session: ExecSession, *, wanted: bool) -> None:
    while True:
        try:
            data = await stream.read()
        except StreamResetError:
            # The client gave its input up; the command learns it as an end.
            data = b""
        if wanted:
            wanted = await pass_stdin(session, data)
        if not data:
            return


async def _feed_sizes(stream: SpdyStream, session: ExecSession) -> None:
    sizes = SizeReader()
    with contextlib.suppress(StreamResetError):
        while data := await stream.read():
            try:
                found = sizes.feed(data)
            except SizeError as err:
                raise PeerGoneError(str(err)) from err
            for size in found:
                await pass_size(session, size.width, size.height)
