"""What this server holds on the host, listed for an audit: nothing is changed.

It travels as JSON in `StatusResponse.info`, where the CRI has room for what only
one runtime knows.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Protocol

from services.kubelet.cri import naming
from services.kubelet.cri.imagevolumes import ImageVolumes
from services.kubelet.cri.register import Register
from services.kubelet.cri.sandboxes import Holdings, Owned, Sandboxes

LEDGER_INFO = "tripod.io/ledger"


class NetworkLedger(Protocol):
    """Tells what the pod network holds."""

    async def ledger(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the leases (sandbox id to address) and our links (name to sandbox id)."""
        ...


class LedgerTaker:
    """Lists containers, leases, links and files."""

    def __init__(
        self,
        holdings: Holdings,
        register: Register,
        sandboxes: Sandboxes,
        network: NetworkLedger,
        state_directory: Path,
        image_volumes: ImageVolumes,
    ) -> None:
        self._holdings = holdings
        self._register = register
        self._sandboxes = sandboxes
        self._network = network
        self._state = state_directory
        self._image_volumes = image_volumes

    async def take(self) -> dict[str, Any]:
        """List everything. Raises `CriError` when the engine does not answer: half a list is none."""
        ours, others = await self._holdings.claimants()
        leftovers = [f"image-volumes/{name}" for name in await self._image_volumes.leftovers()]
        leases, links = await self._network.ledger()
        return {
            "containers": [_container(owned) for owned in ours if owned[1].kind == naming.CONTAINER],
            "sandboxes": [self._sandbox(owned) for owned in ours if owned[1].kind == naming.SANDBOX],
            "leases": leases,
            "links": links,
            "files": await asyncio.to_thread(self._files) + leftovers,
            "foreign": sorted(name for item in others for name in item["Names"][:1]),
        }

    def _sandbox(self, owned: Owned) -> dict[str, str]:
        item, record = owned
        return {
            "id": item["Id"],
            "uid": record.uid,
            "pod": f"{record.namespace}/{record.name}",
            "attempt": str(record.attempt),
            "state": item["State"],
            "network": "host" if record.host_network else "pod",
        }

    def _files(self) -> list[str]:
        """Return `KIND/ID` of each file that belongs to one sandbox or container."""
        found = [f"register/{name}" for name in self._register.ids()]
        for kind in ("sandboxes", "log-cursors"):
            directory = self._state / kind
            if directory.is_dir():
                found += [f"{kind}/{path.name.removesuffix('.json')}" for path in directory.iterdir()]
        return sorted(found)


def _container(owned: Owned) -> dict[str, str]:
    item, record = owned
    return {
        "id": item["Id"],
        "uid": str(item["Labels"].get("io.kubernetes.pod.uid", "")),
        "name": record.name,
        "attempt": str(record.attempt),
        "state": item["State"],
        "sandbox_id": record.sandbox_id,
    }
