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
from urllib.parse import urlsplit

from services.common.spdy.errors import PeerGoneError
from services.common.spdy.multiplex import Multiplexer, SpdyStream, StreamResetError
from services.common.spdy.wire import SocketWire
from services.kubelet.adapters.exec_stream import (
    CONNECT_SECONDS,
    ExecChannel,
    broken,
    parse_status,
    refused,
)

PROTOCOL: Final = "v4.channel.k8s.io"
# More than any header of an answer needs.
_HEAD_BYTES: Final = 16 * 1024
_OUTPUTS: Final = {"stdout": ExecChannel.STDOUT, "stderr": ExecChannel.STDERR}


class SpdyExec:
    """A command's streams. Implements `ExecClient`."""

    def __init__(self, wire: SocketWire, link: Multiplexer, *, tty: bool, stdin: bool) -> None:
        self._wire = wire
        self._closing = asyncio.Event()
        # Two outputs at most wait here, so output that is not iterated stops the command.
        self._output: asyncio.Queue[tuple[ExecChannel, bytes]] = asyncio.Queue(1)
        kinds = ["error", *(["stdin"] if stdin else []), "stdout", *(["resize"] if tty else ["stderr"])]
        self._streams = {kind: link.open({"streamtype": kind}) for kind in kinds}
        self._tasks: list[asyncio.Future[object]] = [asyncio.ensure_future(link.serve(self._closing.wait()))]  # noqa: TID251  # ended in `close`
        self._exit_code: int | None = None

    @property
    def exit_code(self) -> int:
        """The command's exit code. Raises `ExecStreamError` EXEC_STREAM_BROKEN while it is not known."""
        if self._exit_code is None:
            raise broken("the command has not ended")
        return self._exit_code

    async def __aiter__(self) -> AsyncIterator[tuple[ExecChannel, bytes]]:
        """Yield (STDOUT or STDERR, bytes) until the command has ended; then `exit_code` is known."""
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
        self._exit_code = parse_status(await self._status())

    async def _pump(self, channel: ExecChannel, stream: SpdyStream) -> None:
        """Hand one output on; b"" tells its end, which a broken connection is, too: the status decides."""
        with contextlib.suppress(StreamResetError):
            while data := await stream.read():
                await self._output.put((channel, data))
        await self._output.put((channel, b""))

    async def _status(self) -> bytes:
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
        with contextlib.suppress(PeerGoneError, asyncio.CancelledError):
            await self._tasks[0]
        self._wire.abort()

    async def __aenter__(self) -> SpdyExec:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def open_exec_spdy(url: str, *, tty: bool, stdin: bool) -> SpdyExec:
    """Connect to an `http` URL of a CRI server. The caller closes the client.

    Raises `ExecStreamError` EXEC_STREAM_REFUSED when the server does not answer in 10 s or refuses.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise refused(f"SPDY over {parts.scheme or 'no scheme'} is not spoken here")
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(
                parts.hostname, parts.port or 80, limit=_HEAD_BYTES
            )
            target = parts.path + (f"?{parts.query}" if parts.query else "")
            lines = [f"POST {target} HTTP/1.1", f"Host: {parts.netloc}", "Connection: Upgrade"]
            lines += ["Upgrade: SPDY/3.1", f"X-Stream-Protocol-Version: {PROTOCOL}", "Content-Length: 0"]
            writer.write("\r\n".join([*lines, "", ""]).encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        _check(head)
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        if writer is not None:
            writer.transport.abort()
        raise refused(error) from error
    except BaseException:
        if writer is not None:
            writer.transport.abort()
        raise
    wire = SocketWire(reader, writer)
    return SpdyExec(wire, Multiplexer(wire, client=True), tty=tty, stdin=stdin)


def _check(head: str) -> None:
    """Check an answer's head. Raises `ExecStreamError` EXEC_STREAM_REFUSED."""
    first, *lines = head.split("\r\n")
    status = first.split(" ")[1:2]
    if status != ["101"]:
        raise refused(f"HTTP {''.join(status)[:3]}")
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    if headers.get("x-stream-protocol-version") != PROTOCOL:
        raise refused("it chose another protocol")
