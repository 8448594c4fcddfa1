"""What is kept of a cluster on the disk."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from services.kubelet.core.model import ObjectKey, PodUid
from services.kubelet.objects.cluster_cache import ClusterCache, Kept

pytestmark = pytest.mark.asyncio
SERVER = "https://api:6443"
KEY = ObjectKey("Secret", "default", "key")


async def kept(path: Path, server: str = SERVER) -> Kept:
    """Open the file anew."""
    cache = ClusterCache(path, server)
    found = await cache.open()
    await cache.close()
    return found


async def filled(path: Path) -> ClusterCache:
    """Make a file that holds something."""
    cache = ClusterCache(path, SERVER)
    await cache.open()
    await cache.keep_pods({PodUid("u"): {"metadata": {"name": "a"}}, PodUid("v"): {"metadata": {}}})
    await cache.keep_objects({KEY: {"data": {"k": "v"}}})
    await cache.keep_fact("pod_cidr", "10.5.0.0/24")
    return cache


async def test_what_is_kept_is_there_after_a_restart(tmp_path: Path) -> None:
    """Pods, objects and facts; what was forgotten is not."""
    cache = await filled(tmp_path / "cluster.db")
    await cache.keep_pods({}, [PodUid("v")])
    await cache.close()

    found = await kept(tmp_path / "cluster.db")

    assert dict(found.pods) == {"u": {"metadata": {"name": "a"}}}
    assert dict(found.objects) == {KEY: {"data": {"k": "v"}}}
    assert found.facts["pod_cidr"] == "10.5.0.0/24"


async def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    """Secrets are in it."""
    path = tmp_path / "cluster.db"
    await (await filled(path)).close()

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_another_clusters_pods_are_not_run(tmp_path: Path) -> None:
    """A node that moved to another cluster begins with nothing."""
    await (await filled(tmp_path / "cluster.db")).close()

    found = await kept(tmp_path / "cluster.db", "https://other:6443")

    assert (dict(found.pods), dict(found.objects)) == ({}, {})


async def test_a_damaged_file_is_set_aside(tmp_path: Path) -> None:
    """It is a copy: losing it costs starts without the API, and nothing else."""
    path = tmp_path / "cluster.db"
    path.write_bytes(b"no database at all" * 100)

    found = await kept(path)

    assert found == Kept(facts=found.facts)
    assert (tmp_path / "cluster.db.damaged").exists()


async def test_a_disk_that_takes_nothing_ends_nothing(tmp_path: Path) -> None:
    """What cannot be kept is told once."""
    cache = ClusterCache(tmp_path / "file" / "cluster.db", SERVER)
    (tmp_path / "file").write_text("no folder")

    found = await cache.open()
    await cache.keep_pods({PodUid("u"): {}})
    await cache.close()

    assert found == Kept()
