"""Run lifecycle hooks: commands through the runtime, HTTP GET from the node to the pod's address.

Source: the kubelet's `lifecycle/handlers.go`: any answer to an HTTP hook is a success,
10 KiB of it are read, certificates are not checked, and an HTTPS hook that is answered
in HTTP is asked again in HTTP without its credentials, with an event. What a command
writes is told to nobody.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import replace
from typing import assert_never

import aiohttp

from services.common.clock import Clock
from services.common.errors import Code, TripodError
from services.kubelet.adapters.probe_runner import port_number
from services.kubelet.core.model import ExecAction, HookAction, HttpGet, SleepAction
from services.kubelet.ports import EventSink, ProbeTarget, Runtime

_BODY_BYTES = 10 << 10
_SILENT = (Code.UNAVAILABLE, Code.CANCELLED)


class NetworkHookRunner:
    """Implements `HookRunner`."""

    def __init__(self, runtime: Runtime, events: EventSink, clock: Clock) -> None:
        self._runtime = runtime
        self._events = events
        self._clock = clock

    async def run(self, action: HookAction, target: ProbeTarget, seconds: int) -> str | None:
        """Run a hook within `seconds`; None when the runtime could not run it."""
        try:
            async with asyncio.timeout(seconds):
                return await self._act(action, target, seconds)
        except TimeoutError:
            return f"it did not end within {seconds} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return str(error) or type(error).__name__

    async def _act(self, action: HookAction, target: ProbeTarget, seconds: int) -> str | None:
        match action:
            case SleepAction():
                await self._clock.sleep(action.seconds)
                return ""
            case ExecAction():
                return await self._command(action, target, seconds)
            case HttpGet():
                return await self._request(action, target)
            case _:
                assert_never(action)

    async def _command(self, action: ExecAction, target: ProbeTarget, seconds: int) -> str | None:
        try:
            code, _ = await self._runtime.exec_sync(target.container_id, action.command, seconds)
        except TripodError as error:
            return None if error.code in _SILENT else error.message
        return f"its command ended with exit code {code}" if code else ""

    async def _request(self, action: HttpGet, target: ProbeTarget) -> str:
        connector = aiohttp.TCPConnector(force_close=True, ssl=False)
        # The hook's own limit is that of its caller.
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(
            connector=connector, auto_decompress=False, timeout=timeout
        ) as session:
            try:
                await _get(session, action, target)
            except (aiohttp.ClientConnectorSSLError, ssl.SSLError):
                if action.scheme != "HTTPS":
                    raise
                headers = tuple(h for h in action.headers if h[0].lower() != "authorization")
                await _get(session, replace(action, scheme="HTTP", headers=headers), target)
                place = f"{action.host or target.address}:{port_number(action.port, target.container)}"
                what = f"request to HTTPS lifecycle hook {place} got HTTP response, retry with HTTP succeeded"
                name = target.container.name
                self._events.emit(target.pod, "LifecycleHTTPFallback", what, container=name, warning=True)
        return ""


async def _get(session: aiohttp.ClientSession, action: HttpGet, target: ProbeTarget) -> None:
    host, path = action.host or target.address, action.path
    path = path if path.startswith("/") else f"/{path}"
    url = f"{action.scheme.lower()}://{host}:{port_number(action.port, target.container)}{path}"
    headers = {"User-Agent": "kube-lifecycle/1.36", "Accept": "*/*", **dict(action.headers)}
    async with session.get(url, headers=headers, allow_redirects=False) as answer:
        await answer.content.read(_BODY_BYTES)
