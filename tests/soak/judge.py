"""What must hold once nobody acts any more."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from tests.matrix.process import Failure, until
from tests.soak.bystanders import NAMES, POD_LABEL, containers
from tests.soak.faults import Actor
from tests.soak.node import Held, Node
from tests.soak.state import Tally

SETTLE_SECONDS = 300.0
# What a process may hold more after a phase of load than before it.
SLACK = {"open_files": 6, "threads": 4, "tasks": 8}
GROWTH_LIMIT_BYTES = 10 << 20
_SAMPLES = 12
_CGROUPS = Path("/sys/fs/cgroup")


async def settle(actor: Actor) -> None:
    """Delete every victim and wait until nothing is left of any. Raises `Failure`."""
    made = actor.made
    for name in sorted(actor.victims):
        await actor.remove(name)

    async def alone() -> bool:
        await actor.overdue()
        return set(await made.pods()) == set(NAMES)

    await until(alone, "only the bystanders are left", SETTLE_SECONDS)


async def judge(made: Node, tally: Tally) -> None:
    """Look for leaks everywhere; each is a violation."""
    for what in (made.clean, lambda: _proxy_clean(made), lambda: _engine_clean(made)):
        try:
            await what()
        except Failure as failure:
            tally.violated(str(failure))
    live = set((await containers(made) or {}).keys())
    stray = await asyncio.to_thread(_stray_cgroups, made, live)
    if stray:
        tally.violated(f"I4 no leak: cgroups {stray}")
    folders = await asyncio.to_thread(lambda: len(list((made.state / "pods").iterdir())))
    if folders != len(NAMES):
        tally.violated(f"I4 no leak: {folders} pod folders")


async def _proxy_clean(made: Node) -> None:
    findings: list[str] = []

    async def holds() -> bool:
        answer = await made.proxy_audit()
        findings[:] = [f"{f.category} {f.id} {f.message}" for f in answer.findings]
        return not findings

    try:
        await until(holds, "the proxy's audit is empty", 30)
    except Failure as error:
        raise Failure(f"I4 no leak: {findings}") from error


async def _engine_clean(made: Node) -> None:
    found = await containers(made)
    if found is None:
        raise Failure("the engine does not answer")
    foreign = [name for name, item in found.items() if item["Config"]["Labels"].get(POD_LABEL) not in NAMES]
    _, everything = await made.ask_engine("ps", "-aq")
    _, volumes = await made.ask_engine("volume", "ls", "-q")
    if foreign or len(everything.split()) != len(found) or volumes.split():
        raise Failure(f"I4 no leak: the engine holds {foreign}, {everything.split()}, volumes {volumes}")
    links = await made.run("ip", "-br", "link", "show", "type", "veth")
    if len(links.splitlines()) != len(NAMES):
        raise Failure(f"I4 no leak: links {links}")


def _stray_cgroups(made: Node, live: set[str]) -> list[str]:
    """Return containers of our shims' cgroups; a live shim's container is one of ours."""
    ours = {item.name for item in (made.engine.folder / "data/containers").iterdir()}
    shims = {path.name for path in _CGROUPS.glob("*/docker/*") if path.name in ours}
    return sorted(shims) if len(shims) > len(live) else []


async def measure(made: Node) -> dict[str, Held]:
    """Return the least that each process holds in some looks."""
    found: dict[str, Held] = {}
    for name in made.services:
        looks = []
        for _ in range(_SAMPLES):
            looks.append(await made.held(name))
            await asyncio.sleep(0.5)
        found[name] = Held(
            min(held.open_files for held in looks),
            min(held.threads for held in looks),
            min(held.tasks for held in looks),
            min(held.resident_bytes for held in looks),
            min(looks, key=lambda held: held.open_files).kinds,
        )
    return found


def compare(before: Mapping[str, Held], after: Mapping[str, Held], tally: Tally, *, memory: bool) -> None:
    """Compare two quiet moments with load between them; each growth is a violation."""
    for name, first in before.items():
        last = after[name]
        for what, slack in SLACK.items():
            grown = getattr(last, what) - getattr(first, what)
            tally.figures[f"{name} {what}"] = f"{getattr(first, what)} to {getattr(last, what)}"
            if grown > slack:
                more = _more(first, last) if what == "open_files" else ""
                tally.violated(f"I7 bounded: {name} has {grown} more {what} after the load{more}")
        growth = last.resident_bytes - first.resident_bytes
        sizes = f"{first.resident_bytes / 2**20:.1f} to {last.resident_bytes / 2**20:.1f}"
        tally.figures[f"{name} memory (MiB)"] = sizes
        if memory and growth > GROWTH_LIMIT_BYTES:
            tally.violated(f"I7 bounded: {name} grew by {growth / 2**20:.1f} MiB under load")


def _more(first: Held, last: Held) -> str:
    grown = {kind: count - first.kinds.get(kind, 0) for kind, count in last.kinds.items()}
    return f": { ({kind: count for kind, count in grown.items() if count > 0}) }"
