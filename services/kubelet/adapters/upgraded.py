"""Connections to a CRI server's streaming URLs, upgraded from HTTP and then bytes both ways.

A URL has a token: it is in no error. What the client sent is not passed on but for what the upgrade needs.

Source: kubernetes apimachinery pkg/util/proxy/upgradeaware.go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlsplit

from services.common.errors import Code
from services.common.spdy.wire import DialedWire
from services.kubelet.errors import KubeletError

CONNECT_SECONDS: Final = 10.0
_HEAD_BYTES: Final = 16 * 1024
_BODY_BYTES: Final = 4 * 1024
_BODY_SECONDS: Final = 2.0
SWITCHING: Final = 101
# How servers refuse an upgrade that they do not speak; whatever else they say, they would say again.
NOT_SPOKEN: Final = frozenset({400, 403, 405, 426, 501})

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer. `wire` is there with status 101, and is the taker's to abort."""

    status: int
    headers: Mapping[str, str]
    text: str = ""
    wire: DialedWire | None = None


async def upgrade(url: str, method: str, headers: Headers) -> Answer:
    """Ask for an upgrade. `headers` are what it needs; a name may come twice.

    Raises `KubeletError` RUNTIME_STREAMING_UNREACHABLE when there is no answer in 10 s.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise unreachable(f"{parts.scheme or 'no scheme'} is not spoken to the runtime")
    wire: DialedWire | None = None
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            wire = await DialedWire.dial(parts.hostname, parts.port or 80)
            target = parts.path + (f"?{parts.query}" if parts.query else "")
            lines = [f"{method} {target} HTTP/1.1", f"Host: {parts.netloc}"]
            lines += [f"{name}: {value}" for name, value in headers]
            lines += ["Content-Length: 0"] if method == "POST" else []
            # As aiohttp decodes them.
            await wire.send("\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape"))
            answer = _parse(await _head(wire))
        if answer.status == SWITCHING:
            return replace(answer, wire=wire)
        text = await _body(wire, answer.headers)
    except (OSError, TimeoutError) as error:
        _abort(wire)
        raise unreachable(type(error).__name__) from error
    except BaseException:
        _abort(wire)
        raise
    _abort(wire)
    return replace(answer, text=text)


def _abort(wire: DialedWire | None) -> None:
    if wire is not None:
        wire.abort()


async def _head(wire: DialedWire) -> str:
    """Read an answer's head, and no more."""
    told = b""
    while b"\r\n\r\n" not in told:
        if len(told) > _HEAD_BYTES:
            raise unreachable("its answer is too long")
        data = await wire.receive()
        if not data:
            raise unreachable("it went before it answered")
        told += data
    head, _, rest = told.partition(b"\r\n\r\n")
    wire.put_back(rest)
    return head.decode("latin-1")


def _parse(head: str) -> Answer:
    first, *lines = head.split("\r\n")
    words = first.split(" ", 2)
    if len(words) < 2 or not (words[1].isascii() and words[1].isdigit() and len(words[1]) == 3):
        raise unreachable("its answer is no HTTP")
    headers: dict[str, str] = {}
    for line in filter(None, lines):
        name, _, value = line.partition(":")
        key = name.strip().lower()
        headers[key] = ", ".join(filter(None, (headers.get(key), value.strip())))
    return Answer(int(words[1]), headers)


async def _body(wire: DialedWire, headers: Mapping[str, str]) -> str:
    """Read what a refusal says, as far as it says how much that is."""
    length = headers.get("content-length", "0")
    count = min(int(length) if length.isascii() and length.isdigit() else 0, _BODY_BYTES)
    told = b""
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            while len(told) < count and (data := await wire.receive()):
                told += data
    except TimeoutError:
        return ""
    return told[:count].decode(errors="replace") if len(told) >= count else ""


def unreachable(cause: str) -> KubeletError:
    """Say that the runtime's streaming server does not answer as it should."""
    return KubeletError(
        f"The runtime's streaming server cannot be used: {cause}",
        code=Code.UNAVAILABLE,
        reason="RUNTIME_STREAMING_UNREACHABLE",
        metadata={"cause": cause},
    )
