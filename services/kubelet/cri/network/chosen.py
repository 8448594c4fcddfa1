"""Choose between the built-in pod network and CNI, for each new sandbox; old ones keep what they have.

A configuration in CNI's folder means CNI, be it usable or not: a broken one must not put pods on another
network than the administrator's. Which one a sandbox is on is known by its record or its lease.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Literal, get_args

from services.kubelet.cri.network.bridge import BridgeNetwork
from services.kubelet.cri.network.cni.cni import CniNetwork
from services.kubelet.cri.network.details import PodDetails

Choice = Literal["auto", "cni", "bridge"]


def choice(text: str) -> Choice:
    """Read the setting. Raises `ValueError`."""
    for known in get_args(Choice):
        if text == known:
            return known  # type: ignore[no-any-return]  # `get_args` returns what the type lists
    raise ValueError(f"pod_network: {text!r} is none of {', '.join(get_args(Choice))}")


class ChosenNetwork:
    """Both networks as one. Implements the CRI server's `PodNetwork` and what its upkeep asks for."""

    def __init__(self, bridge: BridgeNetwork, cni: CniNetwork, choice: Choice) -> None:
        self._bridge = bridge
        self._cni = cni
        self._choice: Choice = choice
        self._bridge_made = False

    async def start(self) -> None:
        """Take both states up, and make the network whole that is used. Raises `NetworkError`."""
        await self._bridge.open()
        await self._cni.start()
        await self.ensure()

    async def stop(self) -> None:
        """Give both states back; pods keep their network."""
        await self._cni.stop()
        await self._bridge.stop()

    def ready(self) -> str | None:
        """Return None when a new pod can be wired, else why not, for people."""
        return self._cni.ready() if self._uses_cni() else self._bridge.ready()

    def warnings(self) -> tuple[str, ...]:
        """Return what does not keep pods from running but breaks a part."""
        return (*(() if self._uses_cni() else self._bridge.warnings()), *self._cni.warnings())

    async def attach(
        self,
        sandbox_id: str,
        pid: int,
        *,
        hostname: str,
        confirm: Callable[[], Awaitable[bool]] | None = None,
        pod: PodDetails | None = None,
    ) -> tuple[str, ...]:
        """Wire a sandbox by the network that has it, else by the chosen one. Raises `NetworkError`."""
        if self._cni.holds(sandbox_id) or (not self._bridge.holds(sandbox_id) and self._uses_cni()):
            return await self._cni.attach(sandbox_id, pid, hostname=hostname, confirm=confirm, pod=pod)
        if not self._bridge_made:
            await self._ensure_bridge()
        return await self._bridge.attach(sandbox_id, pid, hostname=hostname, confirm=confirm, pod=pod)

    async def detach(self, sandbox_id: str) -> None:
        """Take the addresses back, from whichever network has given them. May be repeated."""
        if self._cni.holds(sandbox_id):
            await self._cni.detach(sandbox_id)
        await self._bridge.detach(sandbox_id)

    def addresses(self, sandbox_id: str) -> tuple[str, ...]:
        """Return the addresses of an attached sandbox; () for one that is not, or not wholly."""
        return self._cni.addresses(sandbox_id) or self._bridge.addresses(sandbox_id)

    def bridge_addresses(self, sandbox_id: str) -> tuple[str, ...]:
        """Return the addresses of a sandbox on our own bridge; () for any other."""
        return self._bridge.addresses(sandbox_id)

    async def list_attached(self) -> frozenset[str]:
        """List the ids of all sandboxes that either network has, half-made ones included."""
        return await self._bridge.list_attached() | await self._cni.list_attached()

    async def ledger(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return what both networks hold: sandbox ids and addresses, links and kept namespaces."""
        leases, links = await self._bridge.ledger()
        more_leases, more_links = await self._cni.ledger()
        return {**leases, **more_leases}, {**links, **more_links}

    async def severed(self) -> tuple[str, ...]:
        """List attached sandboxes whose link somebody has deleted."""
        return (*await self._bridge.severed(), *await self._cni.severed())

    async def collect(
        self, live_sandbox_ids: Collection[str], *, among: Collection[str] | None = None
    ) -> tuple[str, ...]:
        """Remove what belongs to no live sandbox, from both; the list must be complete."""
        removed = await self._bridge.collect(live_sandbox_ids, among=among)
        return (*removed, *await self._cni.collect(live_sandbox_ids, among=among))

    async def ensure(self) -> None:
        """Make whole what is used. Raises nothing: see `ready`.

        The bridge is not made on a host whose pods are all on CNI; one that has pods is looked after.
        """
        await self._cni.ensure()
        if not self._uses_cni() or self._bridge_made or await self._bridge.list_attached():
            await self._ensure_bridge()

    async def cleanup(self) -> None:
        """Remove all that either network has made. May be called instead of `start`, and repeated."""
        try:
            await self._cni.cleanup()
        finally:
            await self._bridge.cleanup()
        self._bridge_made = False

    async def _ensure_bridge(self) -> None:
        await self._bridge.ensure()
        self._bridge_made = True

    def _uses_cni(self) -> bool:
        return self._choice == "cni" or (self._choice == "auto" and self._cni.configured)
