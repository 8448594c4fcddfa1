"""The engine's long streams, on asyncio: logs, events, and the raw sockets of exec and attach.

docker-py would hold a thread for each. Deadlines cover the opening; a stream then
lives as long as its reader.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from services.kubelet.cri.errors import EngineRefusedError, EngineUnreachableError

_OPEN_SECONDS = 15.0
_HEAD_BYTES = 65_536
# A stream that brings so much at a time has no rest.
_FULL_BYTES = 32_768


class EngineStreams:
    """Opens streams of one engine. `close` ends all."""

    def __init__(self, host: str, api_version: str) -> None:
        self._host = host
        self._version = api_version
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """End every stream."""
        if self._session is not None:
            await self._session.close()

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            path = _unix_path(self._host)
            connector = aiohttp.UnixConnector(path, limit=0) if path else aiohttp.TCPConnector(limit=0)
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=_OPEN_SECONDS)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self._session

    @asynccontextmanager
    async def _open(
        self,
        path: str,
        params: Mapping[str, str],
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        base = "http://docker" if _unix_path(self._host) else f"http://{urlsplit(self._host).netloc}"
        try:
            async with self._open_session().request(
                method, f"{base}/v{self._version}{path}", params=params, headers=headers
            ) as answer:
                if answer.status != 200:
                    raise EngineRefusedError(path, answer.status, _message(await answer.read()))
                yield answer
        except (aiohttp.ClientError, OSError) as error:
            raise EngineUnreachableError(self._host, str(error)) from error

    async def logs(
        self,
        container_id: str,
        stream: str,
        *,
        since: str,
        follow: bool,
        rest: Callable[[], Awaitable[None]] | None = None,
    ) -> AsyncIterator[bytes]:
        """Yield raw bytes of one stream's log, each entry with its timestamp.

        `stream` is stdout or stderr; `since` is `SECONDS.NANOSECONDS`. After each piece nothing is read
        until `rest` returns: what comes meanwhile waits in the kernel, and comes as one piece.
        """
        params = {stream: "1", "timestamps": "1", "since": since, "follow": "1" if follow else "0"}
        async with self._open(f"/containers/{container_id}/logs", params) as answer:
            async for chunk in answer.content.iter_any():
                yield chunk
                if rest is not None and len(chunk) < _FULL_BYTES:
                    await _pause(answer, rest)

    async def events(
        self, filters: Mapping[str, list[str]], since: str = ""
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the engine's events that match, from `since` or now on."""
        params = {"filters": json.dumps(filters)}
        if since:
            params["since"] = since
        async with self._open("/events", params) as answer:
            async for event in _json_lines(answer):
                yield event

    async def pull(
        self, repository: str, tag: str, registry_auth: str
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Pull an image and yield what the engine tells of it; closing this ends the pull.

        `tag` may be a digest; `registry_auth` is the engine's header, or empty.
        Raises `EngineRefusedError`, `EngineUnreachableError`; a line with `error` is the end, too.
        """
        headers = {"X-Registry-Auth": registry_auth} if registry_auth else None
        params = {"fromImage": repository, "tag": tag}
        async with self._open("/images/create", params, method="POST", headers=headers) as answer:
            async for line in _json_lines(answer):
                yield line

    async def hijack(
        self, path: str, body: Mapping[str, Any] | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Post and take the raw connection over. Raises `EngineRefusedError`, `EngineUnreachableError`."""
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                reader, writer = await self._connect()
                try:
                    writer.write(self._upgrade_request(path, body))
                    await self._read_head(reader, path)
                except BaseException:
                    writer.close()
                    raise
                return reader, writer
        except (OSError, EOFError, TimeoutError) as error:
            raise EngineUnreachableError(self._host, str(error) or "the connection ended") from error

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        path = _unix_path(self._host)
        if path:
            return await asyncio.open_unix_connection(path, limit=_HEAD_BYTES)
        place = urlsplit(self._host)
        return await asyncio.open_connection(place.hostname, place.port, limit=_HEAD_BYTES)

    def _upgrade_request(self, path: str, body: Mapping[str, Any] | None) -> bytes:
        data = json.dumps(body or {}).encode()
        head = (
            f"POST /v{self._version}{path} HTTP/1.1\r\nHost: docker\r\n"
            "Connection: Upgrade\r\nUpgrade: tcp\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        return head.encode() + data

    async def _read_head(self, reader: asyncio.StreamReader, path: str) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if status not in (101, 200):
            raise EngineRefusedError(path, status, _message(await reader.read(_HEAD_BYTES)))


async def _json_lines(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    buffer = b""
    async for chunk in answer.content.iter_any():
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield json.loads(line)


async def _pause(answer: aiohttp.ClientResponse, rest: Callable[[], Awaitable[None]]) -> None:
    """Leave what comes in the kernel for a while: reading each line as it comes would cost a wakeup each."""
    connection = answer.connection
    transport = connection.transport if connection is not None else None
    if transport is None or not transport.is_reading():  # It has ended, or is held up already.
        return
    # The transport alone: aiohttp's own pause holds its parser too, which then gives a piece for each line.
    transport.pause_reading()
    try:
        await rest()
    finally:
        transport.resume_reading()


def _unix_path(host: str) -> str:
    return host.removeprefix("unix://") if host.startswith("unix://") else ""


def _message(body: bytes) -> str:
    text = body.decode(errors="replace").strip()
    start = text.find("{")
    try:
        return str(json.loads(text[start : text.rindex("}") + 1])["message"])
    except (ValueError, KeyError):
        return text[:500] or "no reason given"
