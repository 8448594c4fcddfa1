"""The pods that nobody touches: looked at all the time, at the engine and at the kubelet."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from services.common.errors import RemoteError
from tests.matrix.process import Failure
from tests.soak.node import NODE_NAME, Node
from tests.soak.pods import bystanders
from tests.soak.state import Tally

POD_LABEL = "io.kubernetes.pod.name"
NAMES = tuple(item["metadata"]["name"] for item in bystanders() if item["kind"] == "Pod")
_LOOK_SECONDS = 1.0
Seen = dict[str, tuple[str, str, int]]


async def containers(made: Node) -> dict[str, Any] | None:
    """Inspect every container of the node by name, sandboxes included; None when the engine does not tell."""
    code, text = await made.ask_engine(
        "ps", "-aq", "--no-trunc", "--filter", f"label=io.tripod.node={NODE_NAME}"
    )
    if code != 0:
        return None
    ids = text.split()
    if not ids:
        return {}
    code, text = await made.ask_engine("inspect", *ids)
    return {item["Name"]: item for item in json.loads(text)} if code == 0 else None


def of_bystanders(found: dict[str, Any]) -> Seen:
    """Return what must not change: the id, the start and the process of each container of the bystanders."""
    return {
        name: (item["Id"][:12], item["State"]["StartedAt"], item["State"]["Pid"])
        for name, item in found.items()
        if item["Config"]["Labels"].get(POD_LABEL) in NAMES
    }


@dataclass
class Watcher:
    """Knows how they were first; tells each change once."""

    made: Node
    tally: Tally
    first: Seen

    @classmethod
    async def begin(cls, made: Node, tally: Tally) -> Watcher:
        """Apply the bystanders and wait until each is ready. Raises `Failure`."""
        await made.apply(*bystanders())
        for name in NAMES:
            await made.ready(name)
        found = await containers(made)
        if not found:
            raise Failure("the engine does not tell the bystanders' containers")
        return cls(made, tally, of_bystanders(found))

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_SECONDS)

    async def look(self) -> None:
        """Compare once; an engine that does not answer tells nothing."""
        found = await containers(self.made)
        if found is not None:
            self._compare(of_bystanders(found))
        try:
            pods = await self.made.pods()
        except (Failure, RemoteError) as error:
            self.tally.violated(str(error))
            return
        for name in NAMES:
            counts = [c.restart_count for c in pods[name].containers] if name in pods else None
            if counts is None:
                self.tally.violated(f"I5 no loss: the kubelet does not tell the bystander {name}")
            elif any(counts):
                self.tally.violated(f"I1 continuity: {name} was restarted: {counts}")

    def _compare(self, now: Seen) -> None:
        for name in sorted(set(now) | set(self.first)):
            if now.get(name) != self.first.get(name):
                self.tally.violated(f"I1 continuity: {name} was {self.first.get(name)}, is {now.get(name)}")
        self.first = now
