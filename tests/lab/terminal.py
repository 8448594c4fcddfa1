"""A program on a terminal, as a person has it: types, reads what appears."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import termios
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path


class Terminal:
    """A running program; `seen` is all that it wrote."""

    def __init__(self, master: int, process: asyncio.subprocess.Process) -> None:
        self.seen = ""
        self._master = master
        self._process = process
        self._more = asyncio.Event()
        asyncio.get_running_loop().add_reader(master, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._master, 65536)
        except OSError:  # The other end is closed: on Linux that is EIO.
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._master)
        self.seen += data.decode(errors="replace")
        self._more.set()

    def type(self, text: str) -> None:
        """Type."""
        os.write(self._master, text.encode())

    async def reads(self, text: str, seconds: float = 30) -> None:
        """Wait until it wrote something. Raises `AssertionError`."""
        try:
            async with asyncio.timeout(seconds):
                while text not in self.seen:
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            raise AssertionError(f"not within {seconds:g} s: {text!r}, but {self.seen!r}") from None

    async def ended(self, seconds: float = 30) -> int:
        """Wait for its end; return its exit code."""
        async with asyncio.timeout(seconds):
            return await self._process.wait()

    def close(self) -> None:
        """Stop reading."""
        asyncio.get_running_loop().remove_reader(self._master)
        os.close(self._master)


@asynccontextmanager
async def terminal(
    program: Path, *words: str, environment: Mapping[str, str], size: Sequence[int] = (24, 80)
) -> AsyncIterator[Terminal]:
    """Run a program on a terminal of so many rows and columns for a block; it ends with the block."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    process = await asyncio.create_subprocess_exec(
        program,
        *words,
        env=dict(environment),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    made = Terminal(master, process)
    try:
        yield made
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        made.close()
