"""Run the iptables programs of the back end that Docker uses.

Merely running `iptables-legacy` creates its tables, which then see every packet; so
`/proc/net/ip_tables_names`, which lists the legacy tables that exist, is read first. Programs are run
without a shell, each with a deadline.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Final, Literal

from services.kubelet.cri.network import errors, rules
from services.kubelet.cri.network.config import Backend

_LEGACY_TABLES: Final = Path("/proc/net/ip_tables_names")
_DOCKER_CHAINS: Final = frozenset({"DOCKER", "DOCKER-USER", "DOCKER-FORWARD"})
_LOCK_WAIT_SECONDS: Final = 5


class Iptables:
    """Reads and changes the tables of one back end, "nft" or "legacy"."""

    def __init__(self, backend: Literal["nft", "legacy"], *, timeout_seconds: float) -> None:
        self.backend = backend
        self._timeout_seconds = timeout_seconds

    async def load(self) -> rules.Tables:
        """Read all tables that exist. Raises `NetworkError` IPTABLES_FAILED."""
        return rules.parse(await self._run("save"))

    async def apply(self, change: str) -> None:
        """Feed a change of `rules.repair` or `rules.removal` to the kernel, one step for each table.

        An empty change does nothing. Raises `NetworkError` IPTABLES_FAILED.
        """
        if change:
            await self._run("restore", "--noflush", "-w", str(_LOCK_WAIT_SECONDS), text=change)

    async def _run(self, verb: str, *arguments: str, text: str = "") -> str:
        program = f"iptables-{self.backend}-{verb}"
        path = shutil.which(program)
        if path is None:
            raise errors.iptables_failed(program, "not installed")
        process = await asyncio.create_subprocess_exec(
            path,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(self._timeout_seconds):
                output, complaint = await process.communicate(text.encode())
        except TimeoutError as err:
            raise errors.iptables_failed(program, f"no answer in {self._timeout_seconds:g} s") from err
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise errors.iptables_failed(program, complaint.decode(errors="replace").strip())
        return output.decode()


async def choose(backend: Backend, *, timeout_seconds: float) -> Iptables:
    """Return the back end asked for; for "auto" the one with Docker's chains, nft if there are none."""
    if backend != "auto":
        return Iptables(backend, timeout_seconds=timeout_seconds)
    candidates = present(timeout_seconds=timeout_seconds)
    if len(candidates) > 1:
        for candidate in candidates:
            if has_docker_chains(await candidate.load()):
                return candidate
    return candidates[0]


def present(*, timeout_seconds: float) -> tuple[Iptables, ...]:
    """List the back ends that may hold rules: nft always, legacy only if its tables exist."""
    nft = Iptables("nft", timeout_seconds=timeout_seconds)
    legacy = (Iptables("legacy", timeout_seconds=timeout_seconds),) if legacy_tables_exist() else ()
    return (nft, *legacy)


def legacy_tables_exist() -> bool:
    """Tell whether iptables-legacy is in use, without running it."""
    try:
        return "filter" in _LEGACY_TABLES.read_text().split()
    except OSError:  # The modules of the legacy back end are not loaded, or only root may ask.
        return False


def has_docker_chains(tables: rules.Tables) -> bool:
    """Tell whether Docker keeps its rules in these tables."""
    return not _DOCKER_CHAINS.isdisjoint(tables.get("filter", {}))
