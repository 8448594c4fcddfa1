"""The built-in pod network as the CRI server sees it: asynchronous, bounded in time, able to mend itself.

Links and leases are changed in one thread of their own, in the order of the calls; so a `detach` that
follows an `attach` that was given up on still comes after it. The event loop never blocks.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from services.common.logs import get_logger
from services.kubelet.cri.network import errors, iptables, rules
from services.kubelet.cri.network.config import BridgeConfig
from services.kubelet.cri.network.details import PodDetails
from services.kubelet.cri.network.errors import NetworkError
from services.kubelet.cri.network.sysctls import Sysctls
from services.kubelet.cri.network.wiring import Wiring

T = TypeVar("T")
_CONFIRM_SECONDS = 5.0

log = get_logger(__name__)


class BridgeNetwork:
    """Joins sandboxes to one bridge. Implements the CRI server's `PodNetwork`.

    `start` before anything else; then `ensure` every few seconds, which repairs what others have removed.
    `stop` leaves everything in place for the next run; `cleanup` removes everything that any run has made.
    """

    def __init__(self, config: BridgeConfig) -> None:
        self._config = config
        self._wiring = Wiring(config)
        self._sysctls = Sysctls(config.proc_sys, config.directory / "sysctls.json")
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pod-network")
        self._iptables: iptables.Iptables | None = None
        self._repairing = asyncio.Lock()
        self._faults: tuple[str, ...] = ("The pod network has not started",)
        self._warnings: tuple[str, ...] = ()

    async def start(self) -> None:
        """Take the state directory, load the leases and make the network whole as far as the host allows.

        What is missing after that is told by `ready`. Raises `NetworkError` NETWORK_STATE_IN_USE when another
        process runs on the directory, and when the state cannot be read.
        """
        await self.open()
        await self.ensure()

    async def open(self) -> None:
        """Take the state directory and load the leases, and change nothing. Raises as `start` does."""
        await self._call("open the state", self._wiring.open)

    async def stop(self) -> None:
        """Give the state directory back and end the thread; pods keep their network."""
        await self._call("close the state", self._wiring.close)
        self._thread.shutdown(wait=False)

    def ready(self) -> str | None:
        """Return None when pods can be wired, else why not, for people. As of the latest `ensure`."""
        return "; ".join(self._faults) or None

    def warnings(self) -> tuple[str, ...]:
        """Return what does not keep pods from running but breaks a part, such as services on one bridge."""
        return self._warnings

    async def attach(
        self,
        sandbox_id: str,
        pid: int,
        *,
        hostname: str,
        confirm: Callable[[], Awaitable[bool]] | None = None,
        pod: PodDetails | None = None,
    ) -> tuple[str, ...]:
        """Wire the network namespace of process `pid` and return its addresses, IPv4.

        `confirm` says, once the namespace is held, whether `pid` is the sandbox's still: the id of a
        process that has ended may mean a foreign one by now. Nothing of `pod` is needed here.

        May be repeated, after a kill at any point as well; the sandbox keeps its address. Raises
        `NetworkError` POD_ADDRESSES_EXHAUSTED, SANDBOX_NETNS_GONE, SANDBOX_NETNS_IS_THE_HOSTS,
        LINK_NAME_TAKEN, NETLINK_REFUSED, NETWORK_TIMEOUT.
        """
        attach = partial(self._wiring.attach, sandbox_id, pid, hostname=hostname)
        if confirm is not None:
            attach = partial(attach, confirm=self._from_thread(confirm))
        return await self._call("attach", attach)

    def _from_thread(self, question: Callable[[], Awaitable[bool]]) -> Callable[[], bool]:
        """Let the thread ask what only the event loop can answer."""
        loop = asyncio.get_running_loop()

        async def answer() -> bool:
            return await question()

        def ask() -> bool:
            try:
                return asyncio.run_coroutine_threadsafe(answer(), loop).result(_CONFIRM_SECONDS)
            except TimeoutError as err:
                raise errors.timed_out("confirm a sandbox", _CONFIRM_SECONDS) from err

        return ask

    async def detach(self, sandbox_id: str) -> None:
        """Remove the link and release the addresses. The namespace may have gone; may be repeated."""
        await self._call("detach", partial(self._wiring.detach, sandbox_id))

    def holds(self, sandbox_id: str) -> bool:
        """Tell whether a sandbox has an address here, half-made ones included."""
        return self._wiring.holds(sandbox_id)

    def addresses(self, sandbox_id: str) -> tuple[str, ...]:
        """Return the addresses of an attached sandbox; () for one that is not, or not wholly."""
        return self._wiring.addresses(sandbox_id)

    async def list_attached(self) -> frozenset[str]:
        """List the ids of all sandboxes that hold a lease or a link, half-made ones included."""
        return await self._call("list the attached", self._wiring.attached)

    async def ledger(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the leases (sandbox id to address) and our links (name to sandbox id)."""
        return await self._call("list the leases", self._wiring.ledger)

    async def severed(self) -> tuple[str, ...]:
        """List attached sandboxes whose link somebody has deleted; `attach` gives it back."""
        return await self._call("list the severed", self._wiring.severed)

    async def collect(
        self, live_sandbox_ids: Collection[str], *, among: Collection[str] | None = None
    ) -> tuple[str, ...]:
        """Remove what belongs to no live sandbox; return the ids (or link names) that were removed.

        The caller's list must be complete: an empty one removes every pod's network. What
        was attached after the list was asked for is safe when `among` says who was before.
        """
        work = partial(self._wiring.collect, frozenset(live_sandbox_ids), among)
        removed = await self._call("collect", work)
        if removed:
            log.info("Removed pod network leftovers", removed=list(removed))
        return removed

    async def ensure(self) -> None:
        """Make the bridge, the kernel's switches and the firewall whole. Raises nothing: see `ready`."""
        async with self._repairing:
            faults = [*await self._ensure_bridge(), *await self._ensure_firewall()]
            off = await self._call("set the switches", self._sysctls.turn_on)
        faults += [f"{switch.key} is not 1: {switch.hint}" for switch in off if switch.vital]
        warnings = tuple(f"{switch.key} is not 1: {switch.hint}" for switch in off if not switch.vital)
        self._report(tuple(faults), warnings)

    async def cleanup(self) -> None:
        """Remove every rule, link and lease and put the switches back: the host is as before the first start.

        May be called instead of `start` in a run of its own, and repeated. Raises `NetworkError`.
        """
        async with self._repairing:
            await self._call("open the state", self._wiring.open)
            await self._remove_firewall()
            await self._call("remove the links", self._wiring.remove_all)
            await self._call("restore the switches", self._sysctls.restore)
            await self._call("close the state", self._wiring.close)
        self._faults, self._warnings = ("The pod network has been removed",), ()

    async def _ensure_bridge(self) -> tuple[str, ...]:
        try:
            return await self._call("make the bridge", self._wiring.ensure_bridge)
        except NetworkError as err:
            return (str(err),)

    async def _ensure_firewall(self) -> tuple[str, ...]:
        wanted = rules.wanted(self._config)
        try:
            tables = await self._load_tables()
            change = rules.repair(wanted, tables)
            if self._iptables is not None and change:
                await self._iptables.apply(change)
                log.info(
                    "Wrote firewall rules",
                    chains=[chain.name for chain in wanted],
                    backend=self._iptables.backend,
                )
        except NetworkError as err:
            return (str(err),)
        obstacles = (rules.obstacle(chain, tables) for chain in wanted)
        return tuple(f"The rule {rule!r} stands before the pod network's" for rule in obstacles if rule)

    async def _load_tables(self) -> rules.Tables:
        limit = self._config.operation_timeout_seconds
        if self._iptables is None:
            self._iptables = await iptables.choose(self._config.iptables_backend, timeout_seconds=limit)
        tables = await self._iptables.load()
        if iptables.has_docker_chains(tables):
            return tables
        # The engine may have started after us, and have chosen the other back end.
        chosen = await iptables.choose(self._config.iptables_backend, timeout_seconds=limit)
        if chosen.backend == self._iptables.backend:
            return tables
        self._iptables = chosen
        return await self._iptables.load()

    async def _remove_firewall(self) -> None:
        limit = self._config.operation_timeout_seconds
        wanted = rules.wanted(self._config)
        for backend in iptables.present(timeout_seconds=limit):
            await backend.apply(rules.removal(wanted, await backend.load()))

    async def _call(self, what: str, body: Callable[[], T]) -> T:
        limit = self._config.operation_timeout_seconds
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(limit):
                return await loop.run_in_executor(self._thread, contextvars.copy_context().run, body)
        except TimeoutError as err:
            raise errors.timed_out(what, limit) from err
        except OSError as err:
            raise errors.kernel_refused(what, str(err)) from err

    def _report(self, faults: tuple[str, ...], warnings: tuple[str, ...]) -> None:
        if (faults, warnings) != (self._faults, self._warnings):
            emit = log.warning if faults or warnings else log.info
            emit("Checked pod network", faults=list(faults), warnings=list(warnings))
        self._faults, self._warnings = faults, warnings
