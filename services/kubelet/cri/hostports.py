"""Keeps the ports of the host that lead to sandboxes: firewall rules, and listeners on 127.0.0.1.

What should be there stands in the records of running sandboxes, at the engine; so nothing is written down
here, and `restore` makes the host right after a kill at any point.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from services.common import failpoints
from services.common.errors import Code
from services.common.localports import LocalForwarder
from services.common.logs import get_logger
from services.kubelet.cri import portmap
from services.kubelet.cri.errors import CriError
from services.kubelet.cri.network import iptables, rules
from services.kubelet.cri.network.config import BridgeConfig
from services.kubelet.cri.portmap import PublishedPort

log = get_logger(__name__)
_PORTS = failpoints.step("network.ports")


class HostPorts:
    """Publishes ports of sandboxes. Every call may be repeated.

    `addresses` tells those of a sandbox on our bridge; one on another network has none there, and its ports
    are that network's business.
    """

    def __init__(
        self, config: BridgeConfig, addresses: Callable[[str], Sequence[str]] = lambda _: ()
    ) -> None:
        self._config = config
        self._addresses = addresses
        self._forwarder = LocalForwarder()
        self._published: dict[str, tuple[str, tuple[PublishedPort, ...]]] = {}
        self._lock = asyncio.Lock()
        self._iptables: iptables.Iptables | None = None
        self._clean = False
        self._restored = False
        # Sandboxes that are being stopped: a list may tell that they run for a while yet.
        self._withdrawn: set[str] = set()
        self.publish_count = 0

    @property
    def restored(self) -> bool:
        """Whether it knows what was published before it began; until then `publish` would take that away."""
        return self._restored

    async def publish(self, sandbox_id: str, ports: Sequence[PublishedPort]) -> None:
        """Lead ports of the host to a sandbox. Raises HOST_PORT_TAKEN, `NetworkError`."""
        addresses = self._addresses(sandbox_id)
        if not ports or not addresses:
            return
        self.publish_count += 1
        self._withdrawn.discard(sandbox_id)
        async with self._lock:
            taken = portmap.conflict(self._published, sandbox_id, ports)
            if taken is not None:
                raise _taken(taken, "another pod has it")
            self._published[sandbox_id] = (addresses[0], tuple(ports))
            await self._forwarder.serve(portmap.local(self._published))
            for port in ports:
                fault = port.is_local and self._forwarder.fault(port.protocol, port.host_port)
                if fault:
                    del self._published[sandbox_id]
                    await self._forwarder.serve(portmap.local(self._published))
                    raise _taken(port, fault)
            async with _PORTS:
                await self._write()
            await _PORTS.recorded()

    async def withdraw(self, sandbox_id: str) -> None:
        """Give a sandbox's ports back, for good: it is being stopped."""
        self._withdrawn.add(sandbox_id)
        async with self._lock:
            if self._published.pop(sandbox_id, None) is None:
                return
            await self._forwarder.serve(portmap.local(self._published))
            async with _PORTS:
                await self._write()
            await _PORTS.recorded()

    async def restore(self, wanted: Mapping[str, tuple[PublishedPort, ...]], *, published: int) -> bool:
        """Have exactly these ports published; rules that others removed come back.

        `published` is the `publish_count` from before it was asked which sandboxes run. Tells whether it is
        still that; else nothing was done, as a sandbox may be missing in the answer.
        """
        async with self._lock:
            if self.publish_count != published:
                return False
            placed = {
                sandbox_id: (addresses[0], ports)
                for sandbox_id, ports in wanted.items()
                if sandbox_id not in self._withdrawn and (addresses := self._addresses(sandbox_id))
            }
            self._withdrawn.intersection_update(wanted)
            if placed or self._published or not self._clean:
                self._published = placed
                await self._forwarder.serve(portmap.local(self._published))
                await self._write()
            self._restored = True
            return True

    async def stop(self) -> None:
        """End the listeners; the rules stay, as the pods do."""
        await self._forwarder.close()

    async def cleanup(self) -> None:
        """Remove every rule."""
        limit = self._config.operation_timeout_seconds
        chains = portmap.chains(self._config.chain_prefix, {})
        for backend in iptables.present(timeout_seconds=limit):
            await backend.apply(rules.removal(chains, await backend.load()))

    async def _write(self) -> None:
        limit = self._config.operation_timeout_seconds
        if self._iptables is None:
            self._iptables = await iptables.choose(self._config.iptables_backend, timeout_seconds=limit)
        chains = portmap.chains(self._config.chain_prefix, self._published)
        found = await self._iptables.load()
        change = rules.repair(chains, found) if self._published else rules.removal(chains, found)
        if change:
            await self._iptables.apply(change)
            log.info("Wrote host ports", sandbox_count=len(self._published))
        self._clean = not self._published


def _taken(port: PublishedPort, why: str) -> CriError:
    return CriError(
        f"Host port {port.host_port}/{port.protocol} cannot be had: {why}",
        code=Code.FAILED_PRECONDITION,
        reason="HOST_PORT_TAKEN",
        metadata={"host_port": str(port.host_port), "protocol": port.protocol},
    )
