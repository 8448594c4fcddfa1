"""Kill the kubelet with its CRI server and pod network at every instant, on a real engine.

One bystander runs through all the kills. The story: a pod of two containers is applied,
becomes ready, one container crashes, and the pod is deleted.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.dockerd import PrivateEngine, private_engine
from tests.lab.node import Node, Seen, kubelet_on
from tests.lab.node import pod as lab_pod
from tests.matrix.process import Failure, Service, until
from tests.matrix.staged import StagedMatrix
from tests.matrix.world import CANARY, judge_bounds, judge_folders, judge_order, judge_silence

STEPS = ("cri.", "network.", "pod.", "store.")
# Two connections for each container's log, one for each thread that asks the engine.
CAPS = {"open files": 160, "threads": 60, "tasks": 160}
CRASH_CODE = 3
NODE_LABEL, KIND_LABEL, UID_LABEL = "io.tripod.node", "io.tripod.kind", "io.kubernetes.pod.uid"
CGROUPS = Path("/sys/fs/cgroup")
_PROGRAM = f"echo first; trap 'exit {CRASH_CODE}' USR1; trap 'exit 0' TERM; sleep 1000000 & wait"


def pod(name: str) -> dict[str, Any]:
    """Write a pod of two containers with a volume and a value that must never be told."""
    more = {
        "env": [{"name": "TOKEN", "value": CANARY}],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    made = lab_pod(name, "sh", "-c", _PROGRAM, container=more, volumes=[{"name": "data", "emptyDir": {}}])
    app = made["spec"]["containers"][0]
    made["spec"]["containers"].append({**app, "name": "side"})
    return made


@dataclass(frozen=True, slots=True)
class Happened:
    """One entry of the engine's event log."""

    action: str
    id: str
    name: str
    kind: str
    uid: str
    container: str


@dataclass
class Stage:
    """A node with its bystander, for one instant after another."""

    made: Node
    name: str
    bystander: dict[str, Seen]

    async def history(self, since: float) -> list[Happened]:
        """Read what the engine did with this node's containers, the oldest first."""
        words = ["--since", f"{since:.9f}", "--until", f"{time.time():.9f}", "--format", "{{json .}}"]
        text = await self.made.docker("events", *words, "--filter", f"label={NODE_LABEL}={self.name}")
        return [_happened(json.loads(line)) for line in text.splitlines()]

    async def held(self) -> set[str]:
        """List the engine's containers of this node by the pod's name."""
        form = '{{.Label "io.kubernetes.pod.name"}}'
        words = ("ps", "-a", "--filter", f"label={NODE_LABEL}={self.name}", "--format", form)
        return set((await self.made.docker(*words)).split())


def _happened(event: dict[str, Any]) -> Happened:
    about = event["Actor"]["Attributes"]
    container = about.get("io.kubernetes.container.name", "")
    return Happened(
        event["Action"], event["id"], about["name"], about.get(KIND_LABEL, ""), about[UID_LABEL], container
    )


@asynccontextmanager
async def stage(engine: PrivateEngine, name: str) -> AsyncIterator[Stage]:
    """Run a bystander on a node of its own for a block; its kubelet does not run."""
    async with kubelet_on(engine, settings={"TRIPOD_NODE_NAME": name}) as made:
        try:
            await made.start()
            await made.apply(pod("bystander"))
            await made.ready("bystander")
            seen = await made.snapshot()
            await made.service.terminate()
            yield Stage(made, name, seen)
        finally:
            await made.service.kill()
            left = await made.docker("ps", "-aq", "--filter", f"label={NODE_LABEL}={name}")
            if left:
                await made.docker("rm", "-fv", *left.split())


async def tell(played: Stage) -> None:
    """Go through the story."""
    made = played.made
    await made.apply(pod("victim"))
    found = await made.ready("victim")
    first = found.containers[0].container_id
    await made.docker("kill", "--signal", "USR1", first)
    found = await made.ready("victim", restarts=1)
    last = found.containers[0].last_termination_state.exit_code
    if last != CRASH_CODE:
        raise Failure(f"I5 no loss: the exit code of the crash is told as {last}")
    for previous in (True, False):
        await _logged(made, previous=previous)
    await made.delete("victim")
    await made.gone("victim")


async def _logged(made: Node, *, previous: bool) -> None:
    """Wait until a container's output is there, once."""
    found: list[bytes] = []

    async def holds() -> bool:
        path = next(iter((made.state / "pod-logs").glob(f"*_victim_*/app/{0 if previous else 1}.log")), None)
        found[:] = (await asyncio.to_thread(path.read_bytes)).splitlines() if path is not None else []
        await made.service.revive()
        return bool(found)

    await until(holds, f"the output is in its file, previous {previous}")
    if [line.split(b" ", 3)[3] for line in found] != [b"first"]:
        raise Failure(f"I5 no loss: the log holds {found}")


async def judge(played: Stage, since: float) -> None:
    """Check the invariants after the story. Raises `Failure` with the first that does not hold."""
    made = played.made
    await made.clean()
    judge_history(await played.history(since))
    now = await made.snapshot()
    if now != played.bystander:
        raise Failure(f"I1 continuity: the bystander was {played.bystander}, is {now}")
    held = await played.held()
    if held != {"bystander"}:
        raise Failure(f"I4 no leak: the engine holds {held}")
    judge_folders(made.state, 1)
    await _judge_host(made, await played.history(since))
    await judge_order(made)
    judge_bounds((await made.audit()).process, CAPS)
    judge_silence(made)
    took = await made.service.terminate()
    if took > 8.0:
        raise Failure(f"SIGTERM took {took:.1f} s")


def judge_history(history: Sequence[Happened]) -> None:
    """See that nothing was started twice and nothing lived twice. Raises `Failure`."""
    starts = Counter(h.name for h in history if h.action == "start" and h.kind == "container")
    names = {h.name.split("_")[1] + "_" + h.name.rsplit("_", 1)[1] for h in history if h.kind == "container"}
    if names != {"app_0", "app_1", "side_0"} or set(starts.values()) != {1}:
        raise Failure(f"I3 at most one: started {dict(starts)}, seen {names}")
    live: dict[tuple[str, str], set[str]] = defaultdict(set)
    there: dict[str, str] = {}
    for entry in history:
        if entry.action == "create":
            if entry.name in there:
                raise Failure(f"I3 at most one: {entry.name} was created twice")
            there[entry.name] = entry.id
        elif entry.action == "destroy":
            there.pop(entry.name, None)
        elif entry.action == "start":
            live[entry.uid, entry.container].add(entry.id)
        elif entry.action == "die":
            live[entry.uid, entry.container].discard(entry.id)
        if any(len(ids) > 1 for ids in live.values()):
            raise Failure(f"I3 at most one: two live at once: {entry.name}")
    if there:
        raise Failure(f"I4 no leak: never removed: {sorted(there)}")


async def _judge_host(made: Node, history: Sequence[Happened]) -> None:
    links = await made.ip("-br", "link", "show", "type", "veth")
    if len(links.splitlines()) != 1:
        raise Failure(f"I4 no leak: links {links}")
    volumes = await made.docker("volume", "ls", "-q")
    if volumes:
        raise Failure(f"I4 no leak: volumes {volumes}")
    gone = {entry.id for entry in history if entry.action == "destroy"}
    cgroups = {path.name for path in CGROUPS.glob("*/docker/*")} & gone
    mounts = [
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{made.state}/" in line
    ]
    if cgroups or mounts:
        raise Failure(f"I4 no leak: cgroups {cgroups}, mounts {mounts}")


class EngineMatrix(StagedMatrix[Stage]):
    """The instants of the story on an engine that lives as long as the context."""

    name = "engine"
    steps = STEPS
    _engine: PrivateEngine

    async def __aenter__(self) -> EngineMatrix:
        """Start the engine. Raises `EngineUnavailable`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._engine = await asyncio.to_thread(self._stack.enter_context, private_engine())
        return self

    def _stage(self, name: str) -> AbstractAsyncContextManager[Stage]:
        return stage(self._engine, name)

    def _service(self, stage: Stage) -> Service:
        return stage.made.service

    async def _perform(self, stage: Stage, since: float) -> None:
        await tell(stage)
        await judge(stage, since)
