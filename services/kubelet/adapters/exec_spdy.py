"""A command's streams in SPDY/3.1, for runtimes whose WebSockets cannot tell the end of the input.

Source: k8s.io/client-go tools/remotecommand (v2 to v4): one stream for each input and output, opened by the
client in the order error, stdin, stdout, stderr, resize; the exit code comes as a `metav1.Status` on the
error stream, and an empty one is success.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Final

from services.common.spdy.errors import PeerGoneError
from services.common.spdy.multiplex import Multiplexer, SpdyStream, StreamResetError
from services.common.spdy.wire import DialedWire
from services.kubelet.adapters.exec_stream import (
    ExecChannel,
    broken,
    parse_status,
    refused,
)
from services.kubelet.adapters.upgraded import upgrade
from services.kubelet.core.stream_options import Streams
from services.kubelet.errors import KubeletError

PROTOCOL: Final = "v4.channel.k8s.io"
_OUTPUTS: Final = {"stdout": ExecChannel.STDOUT, "stderr": ExecChannel.STDERR}


def _kinds(streams: Streams) -> list[str]:
    """Return the kinds of streams to open, in the order of Kubernetes' own client."""
    wanted = {
        "error": True,
        "stdin": streams.stdin,
        "stdout": streams.stdout,
        "stderr": streams.stderr and not streams.tty,
        "resize": streams.tty,
    }
    return [kind for kind, needed in wanted.items() if needed]


class SpdyExec:
    """A command's streams. Implements `ExecClient`."""

    def __init__(self, wire: DialedWire, link: Multiplexer, streams: Streams) -> None:
        self._wire = wire
        self._closing = asyncio.Event()
        # Two outputs at most wait here, so output that is not iterated stops the command.
        self._output: asyncio.Queue[tuple[ExecChannel, bytes]] = asyncio.Queue(1)
        self._streams = {kind: link.open({"streamtype": kind}) for kind in _kinds(streams)}
        self._tasks: list[asyncio.Future[object]] = [asyncio.ensure_future(self._serve(link))]  # noqa: TID251  # ended in `close`
        self._exit_code: int | None = None

    @classmethod
    def over(cls, wire: DialedWire, streams: Streams) -> SpdyExec:
        """Speak over a connection that a server has upgraded to version 4; `close` ends it."""
        return cls(wire, Multiplexer(wire, client=True), streams)

    @property
    def exit_code(self) -> int:
        """The command's exit code. Raises `ExecStreamError` EXEC_STREAM_BROKEN while it is not known."""
        if self._exit_code is None:
            raise broken("the command has not ended")
        return self._exit_code

    async def _serve(self, link: Multiplexer) -> None:
        """Run the connection until `close`; that the server went shows in the streams."""
        with contextlib.suppress(PeerGoneError):
            await link.serve(self._closing.wait())

    async def __aiter__(self) -> AsyncIterator[tuple[ExecChannel, bytes]]:
        """Yield (STDOUT or STDERR, bytes) until the command has ended; then `exit_code` is known."""
        async for output in self.outputs():
            yield output
        self._exit_code = parse_status(await self.status())

    async def outputs(self) -> AsyncIterator[tuple[ExecChannel, bytes]]:
        """Yield (STDOUT or STDERR, bytes) until both have ended."""
        outputs = [
            (channel, self._streams[kind]) for kind, channel in _OUTPUTS.items() if kind in self._streams
        ]
        self._tasks += [asyncio.ensure_future(self._pump(*output)) for output in outputs]  # noqa: TID251  # as above
        left = len(outputs)
        while left:
            channel, data = await self._output.get()
            if data:
                yield channel, data
            else:
                left -= 1

    async def _pump(self, channel: ExecChannel, stream: SpdyStream) -> None:
        """Hand one output on; b"" tells its end, which a broken connection is, too: the status decides."""
        with contextlib.suppress(StreamResetError):
            while data := await stream.read():
                await self._output.put((channel, data))
        await self._output.put((channel, b""))

    async def status(self) -> bytes:
        """Wait for the status document. Raises `ExecStreamError` EXEC_STREAM_BROKEN."""
        told = bytearray()
        try:
            while data := await self._streams["error"].read():
                told += data
        except StreamResetError as error:
            # Go's servers reset the stream right after the status.
            if not told:
                raise broken("the connection ended without a status") from error
        return bytes(told) or json.dumps({"status": "Success"}).encode()

    async def write_stdin(self, data: bytes) -> None:
        """Write to the standard input; waits while nobody reads. Raises `ExecStreamError`."""
        await self._write("stdin", data)

    async def close_stdin(self) -> None:
        """End the standard input."""
        if "stdin" in self._streams:
            self._streams["stdin"].end()

    async def resize(self, width: int, height: int) -> None:
        """Tell the terminal's size in columns and rows. Raises `ExecStreamError`."""
        await self._write("resize", json.dumps({"Width": width, "Height": height}).encode())

    async def _write(self, kind: str, data: bytes) -> None:
        if kind in self._streams:
            try:
                await self._streams[kind].write(data)
            except StreamResetError as error:
                raise broken(str(error)) from error

    async def close(self) -> None:
        """End the connection, and with it a command that still runs. May be repeated."""
        self._closing.set()
        for task in self._tasks[1:]:
            task.cancel()
        try:
            await asyncio.wait(self._tasks[:1])
        finally:
            self._wire.abort()

    async def __aenter__(self) -> SpdyExec:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def open_exec_spdy(url: str, streams: Streams) -> SpdyExec:
    """Connect to an `http` URL of a CRI server. The caller closes the client.

    Raises `ExecStreamError` EXEC_STREAM_REFUSED when the server does not answer in 10 s or refuses.
    """
    headers = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("X-Stream-Protocol-Version", PROTOCOL)]
    try:
        answer = await upgrade(url, "POST", headers)
    except KubeletError as error:
        raise refused(error.metadata["cause"]) from error
    if answer.wire is None:
        raise refused(f"HTTP {answer.status}")
    if answer.headers.get("x-stream-protocol-version") != PROTOCOL:
        answer.wire.abort()
        raise refused("it chose another protocol")
    return SpdyExec.over(answer.wire, streams)
