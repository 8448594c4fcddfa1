"""Forget tracked flows with the `conntrack` program. Implements `Flows`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from services.common.logs import get_logger
from services.proxy.core.conntrack import Flow, StaleFlows

log = get_logger(__name__)
_DEADLINE_SECONDS = 5.0


class ConntrackFlows:
    """Runs one program for each kind of flow: changes of UDP endpoints are rare."""

    async def delete(self, flows: Sequence[StaleFlows]) -> None:
        """Forget flows."""
        for flow in flows:
            await self._delete(flow)

    async def udp(self) -> list[Flow]:
        """List the tracked UDP flows; nothing where the program is missing."""
        try:
            process = await asyncio.create_subprocess_exec(
                "conntrack",
                "-L",
                "-p",
                "udp",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError:
            return []
        try:
            async with asyncio.timeout(_DEADLINE_SECONDS):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return [flow for line in output.decode(errors="replace").splitlines() if (flow := parse(line))]

    async def _delete(self, flow: StaleFlows) -> None:
        words = ["-D", "-p", flow.protocol, "--orig-dst", flow.address, "--orig-port-dst", str(flow.port)]
        # Without an endpoint: flows that nobody translated, which answer from the address itself.
        words += ["--reply-src", flow.endpoint or flow.address]
        try:
            process = await asyncio.create_subprocess_exec(
                "conntrack",
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            log.warning("Could not run conntrack", error=str(error))
            return
        try:
            async with asyncio.timeout(_DEADLINE_SECONDS):
                _, output = await process.communicate()
        except TimeoutError:
            log.warning("conntrack took too long", address=flow.address)
            return
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        # It exits with 1 when there was nothing to delete.
        if process.returncode not in (0, 1):
            log.warning("conntrack failed", error=output.decode(errors="replace").strip())


def parse(line: str) -> Flow | None:
    """Read one line of `conntrack -L`: both directions as `src= dst= sport= dport=`, the original first."""
    words = line.split()
    pairs = [word.partition("=") for word in words if "=" in word]
    places = {name: [value for key, _, value in pairs if key == name] for name in ("src", "dst", "dport")}
    if not words or len(places["src"]) < 2 or not places["dst"] or not places["dport"]:
        return None
    return Flow(words[0], places["dst"][0], int(places["dport"][0]), places["src"][1])
