"""Open an object store, rebuild what is lost, settle: `python -m tests.lab.rebuild_driver FILE`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from services.kubelet.objects.store import ObjectStore
from tests.fakes.clock import FakeClock
from tests.lab.store_fixtures import RANGES


async def _rebuild(path: Path) -> None:
    store = ObjectStore(path, RANGES, FakeClock(), run_id="rebuild")
    await store.open()
    await store.restore({})
    await store.settle()
    await store.close()


if __name__ == "__main__":
    asyncio.run(_rebuild(Path(sys.argv[1])))
