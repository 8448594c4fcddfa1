"""What a watcher may rely on."""

from __future__ import annotations

import pytest

from services.common.errors import Code, TripodError
from services.common.watch import Bookmark, Deleted, Upserted, WatchHub

pytestmark = pytest.mark.asyncio


async def take(hub: WatchHub[str], count: int, after: int = 0, run_id: str = "") -> list[object]:
    """Return the first `count` events of a watch."""
    stream = hub.watch(after, run_id, heartbeat_seconds=0.01)
    try:
        return [await anext(stream) for _ in range(count)]
    finally:
        await stream.aclose()


async def test_a_watch_begins_with_the_snapshot_and_a_bookmark() -> None:
    """A reader knows from the bookmark that it has seen everything."""
    hub: WatchHub[str] = WatchHub("run")
    hub.upsert("a", "1")
    hub.upsert("b", "2", "00-parent")

    assert await take(hub, 3) == [Upserted(1, "a", "1"), Upserted(2, "b", "2", "00-parent"), Bookmark(2)]


async def test_changes_follow_in_order_after_the_bookmark() -> None:
    """Nothing is lost between the snapshot and the first change."""
    hub: WatchHub[str] = WatchHub("run")
    stream = hub.watch()
    assert await anext(stream) == Bookmark(0)

    hub.upsert("a", "1")
    hub.delete("a")

    assert [await anext(stream), await anext(stream)] == [Upserted(1, "a", "1"), Deleted(2, "a")]
    await stream.aclose()


async def test_quiet_times_bring_bookmarks() -> None:
    """A reader can tell a quiet server from a dead one."""
    hub: WatchHub[str] = WatchHub("run")

    assert await take(hub, 3) == [Bookmark(0)] * 3


async def test_a_resumed_watch_sends_only_what_was_missed() -> None:
    """A reader that reconnects gets no snapshot."""
    hub: WatchHub[str] = WatchHub("run")
    for value in "123":
        hub.upsert("a", value)

    assert await take(hub, 2, after=2, run_id="run") == [Upserted(3, "a", "3"), Bookmark(3)]


@pytest.mark.parametrize(
    ("after", "run_id"),
    [
        pytest.param(2, "another", id="of-another-run"),
        pytest.param(99, "run", id="of-the-future"),
        pytest.param(1, "run", id="forgotten"),
    ],
)
async def test_a_revision_that_cannot_be_resumed_is_refused(after: int, run_id: str) -> None:
    """The reader is told to start over, never left with a hole."""
    hub: WatchHub[str] = WatchHub("run", history=2)
    for value in "12345":
        hub.upsert("a", value)

    with pytest.raises(TripodError) as caught:
        await take(hub, 1, after, run_id)

    assert (caught.value.code, caught.value.reason) == (Code.OUT_OF_RANGE, "REVISION_COMPACTED")


async def test_a_slow_reader_is_cut_off() -> None:
    """A reader that does not read costs the server a bounded queue."""
    hub: WatchHub[str] = WatchHub("run", queue=3)
    stream = hub.watch()
    await anext(stream)

    for value in "12345":
        hub.upsert("a", value)

    with pytest.raises(TripodError) as caught:
        await anext(stream)
    assert (caught.value.code, caught.value.reason) == (Code.ABORTED, "WATCH_TOO_SLOW")


async def test_deleting_what_is_absent_changes_nothing() -> None:
    """A repeated delete succeeds and tells nobody."""
    hub: WatchHub[str] = WatchHub("run")

    assert hub.delete("a") == 0
