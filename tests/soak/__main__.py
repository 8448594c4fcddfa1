"""Run the soak: `python -m tests.soak [--minutes 60] [--seed N] [--json FILE]`.

For 85 % of the time services are killed every few seconds, while pods come and go and
faults of all kinds happen; six bystanders must not notice. Then the killing stops, and
what each process holds is compared before and after a phase of load. Exits 1 on any
violation, and names the folder with the logs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from services.common import logs
from tests.lab.dockerd import EngineUnavailable
from tests.matrix.process import Failure
from tests.soak.bystanders import Watcher
from tests.soak.faults import Actor
from tests.soak.judge import compare, judge, measure, settle
from tests.soak.node import Node, end, node
from tests.soak.state import Tally

CALM_SHARE = 0.15
CALM_LEAST_SECONDS = 60.0
# cAdvisor keeps two minutes of samples: before that it grows.
WARM_SECONDS = 150.0
ACT_SECONDS = 2.0


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long, all in all")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="of what is done when")
    parser.add_argument("--kill-seconds", type=float, default=2.7, help="mean time between kills of services")
    parser.add_argument("--json", default="", help="write the result to a file")
    options = parser.parse_args()
    logs.configure("soak", level="error")
    print(f"seed {options.seed}", flush=True)
    try:
        return asyncio.run(_guarded(options))
    except EngineUnavailable as error:
        print(f"✗ {error}")
    except asyncio.CancelledError:
        print("Ended by a signal")
    return 1


async def _guarded(options: argparse.Namespace) -> int:
    task = asyncio.current_task()
    assert task is not None, "asyncio.run makes one"
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    tally: Tally | None = None
    folder = Path()
    try:
        async with node() as made:
            folder = made.kept
            tally = Tally(seed=options.seed, journal=folder / "journal.txt")
            try:
                await _soak(made, tally, options.minutes * 60, options.kill_seconds)
            except Failure as failure:
                tally.violated(str(failure))
    finally:
        if tally is not None:
            _report(tally, folder, options.json)
    return int(bool(tally.violations))


async def _soak(made: Node, tally: Tally, seconds: float, kill_seconds: float) -> None:
    calm = max(CALM_LEAST_SECONDS, seconds * CALM_SHARE)
    watcher = await Watcher.begin(made, tally)
    actor = Actor(made, tally)
    async with asyncio.TaskGroup() as group:
        watching = [
            group.create_task(watcher.run()),
            group.create_task(_print(tally, actor)),
            group.create_task(_revive(made, tally)),
        ]
        try:
            await _violent(actor, seconds - calm, kill_seconds)
            await settle(actor)
            await _calm(actor, calm)
            await judge(made, tally)
            await watcher.look()
            tally.figures["SIGTERM at the end (s)"] = round(max((await _end(made, watching)).values()), 1)
        finally:
            for task in watching:
                task.cancel()


async def _end(made: Node, watching: list[asyncio.Task[None]]) -> dict[str, float]:
    for task in watching:
        task.cancel()
    await asyncio.wait(watching)
    return await end(made)


async def _violent(actor: Actor, seconds: float, kill_seconds: float) -> None:
    """Kill and act, each in its own time."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_repeat(actor.kill_service, seconds, kill_seconds, actor.tally))
        group.create_task(_repeat(lambda: actor.act(faults=True), seconds, ACT_SECONDS, actor.tally))


async def _calm(actor: Actor, seconds: float) -> None:
    """Begin anew with fresh processes, and put load on them alone."""
    made, tally = actor.made, actor.tally
    tally.note("calm")
    for name in made.services:
        tally.most("longest SIGTERM (s)", await made.services[name].cycle(gently=True))
    warm = seconds * 0.45

    async def load() -> None:
        await actor.act(faults=False)

    await _repeat(load, warm, ACT_SECONDS, tally)
    await settle(actor)
    before = await measure(made)
    await _repeat(load, seconds - warm, ACT_SECONDS, tally)
    await settle(actor)
    compare(before, await measure(made), tally, memory=warm >= WARM_SECONDS)


async def _repeat(act: Callable[[], Awaitable[None]], seconds: float, mean: float, tally: Tally) -> None:
    """Act again and again, at random distances around `mean`."""
    loop = asyncio.get_running_loop()
    deadline, due = loop.time() + seconds, loop.time()
    while loop.time() < deadline:
        due = max(due + tally.random.uniform(0.2, 1.8) * mean, loop.time() - 10 * mean)
        await asyncio.sleep(max(0.0, min(due, deadline) - loop.time()))
        try:
            await act()
        except Failure as failure:
            tally.violated(str(failure))


async def _revive(made: Node, tally: Tally) -> None:
    """Start a service again that ended on its own, which none should."""
    while True:
        for service in made.services.values():
            try:
                if await service.revive():
                    tally.violated(f"the {service.name} was killed by somebody else")
            except Failure as failure:
                tally.violated(str(failure))
                await service.start()
        await asyncio.sleep(0.5)


async def _print(tally: Tally, actor: Actor) -> None:
    """Print a line a minute."""
    minutes = 0
    while True:
        await asyncio.sleep(60)
        minutes += 1
        with contextlib.suppress(OSError):
            sizes = [f"{name} {(await _size(actor.made, name)):.0f}" for name in actor.made.services]
            print(
                f"{minutes:3} min  {tally.kill_count:5} kills  {tally.actions.total():5} actions  "
                f"{len(actor.victims)} victims  {', '.join(sizes)} MiB  {len(tally.violations)} violations",
                flush=True,
            )


async def _size(made: Node, name: str) -> float:
    text = await asyncio.to_thread(Path(f"/proc/{made.services[name].pid}/statm").read_text)
    return int(text.split()[1]) * 4096 / 2**20


def _report(tally: Tally, folder: Path, path: str) -> None:
    report = tally.report()
    print(f"\n{tally.kill_count} kills of services {dict(sorted(tally.kills.items()))}, seed {tally.seed}")
    for name, count in sorted(tally.actions.items()):
        print(f"  {name:<24} {count:6}")
    for name, value in tally.figures.items():
        print(f"  {name:<24} {value!s:>16}")
    print(f"{len(tally.violations)} violations in {report['seconds']} s")
    for violation in tally.violations:
        print(f"✗ {violation}")
    if path:
        tally.write(path)
    if tally.violations:
        print(f"The logs are in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
