"""What is done to the node: load, and faults to everything but the bystanders."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from services.common.errors import RemoteError
from services.kubelet.cri.network.naming import veth_name
from tests.matrix.process import Failure
from tests.soak.bystanders import NAMES, POD_LABEL
from tests.soak.node import NODE_NAME, Node
from tests.soak.pods import KINDS, victim
from tests.soak.state import Tally

TABLE = "tripod-proxy"
VICTIMS_LIMIT = 8
# While the kubelet is killed every few seconds; how soon it is once that ends, `settle` says.
GONE_SECONDS = 600.0
_FREEZE_SECONDS = (1.0, 6.0)


# How often all services are killed at once.
ALL_AT_ONCE = 0.1


@dataclass
class Actor:
    """Acts at random, from the tally's seed."""

    made: Node
    tally: Tally
    victims: dict[str, str] = field(default_factory=dict)
    leaving: dict[str, float] = field(default_factory=dict)
    number: int = 0

    def __post_init__(self) -> None:
        self._load: list[tuple[int, Callable[[], Awaitable[None]]]] = [(10, self.create), (9, self.delete)]
        self._faults: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (2, self.terminate_service),
            (2, self.delete_table),
            (2, self.flush_table),
            (2, self.delete_link),
            (2, self.remove_container),
            (2, self.remove_sandbox),
            (1, self.restart_engine),
            (1, self.kill_engine),
            (1, self.freeze_engine),
        ]

    async def act(self, *, faults: bool) -> None:
        """Do one thing."""
        choices = self._load + (self._faults if faults else [])
        [chosen] = self.tally.random.choices([act for _, act in choices], [weight for weight, _ in choices])
        name = getattr(chosen, "__name__", "?").replace("_", " ")
        self.tally.actions[name] += 1
        try:
            await chosen()
        except (Failure, RemoteError, AssertionError) as error:
            self.tally.violated(f"{name}: {error}")
        await self.overdue()

    async def kill_service(self) -> None:
        """SIGKILL one of the three, now and then all at once; they are started again at once."""
        every = sorted(self.made.services)
        names = every if self.tally.random.random() < ALL_AT_ONCE else [self.tally.random.choice(every)]
        self.tally.note(f"kill {' '.join(names)}")
        await asyncio.gather(*(self.made.services[name].cycle() for name in names))
        self.tally.kills.update(names)
        if len(names) > 1:
            self.tally.actions["kill all at once"] += 1

    async def create(self) -> None:
        """Apply a victim, unless there are enough."""
        if len(self.victims) >= VICTIMS_LIMIT:
            await self.delete()
            return
        kind = self.tally.random.choice(KINDS)
        self.number += 1
        name = f"{kind}-{self.number}"
        self.tally.note(f"create {name}")
        await self.made.apply(*victim(kind, name))
        self.victims[name] = kind

    async def delete(self) -> None:
        """Delete a victim with its service."""
        if not self.victims:
            return
        name = self.tally.random.choice(sorted(self.victims))
        await self.remove(name)

    async def remove(self, name: str) -> None:
        """Delete a certain victim."""
        self.tally.note(f"delete {name}")
        await self.made.delete(name)
        if self.victims.pop(name) == "served":
            await self.made.delete_service(name)
        self.leaving[name] = time.monotonic()

    async def overdue(self) -> None:
        """See which of the deleted are gone; one that stays is a violation."""
        there = await self.made.pods()
        for name, since in list(self.leaving.items()):
            took = time.monotonic() - since
            if name not in there:
                self.tally.most("longest delete (s)", took)
                del self.leaving[name]
            elif took > GONE_SECONDS:
                self.tally.violated(f"I2 convergence: {name} was deleted {took:.0f} s ago and is there")
                del self.leaving[name]

    async def terminate_service(self) -> None:
        """SIGTERM one of the three, and start it again."""
        name = self.tally.random.choice(sorted(self.made.services))
        self.tally.note(f"terminate {name}")
        self.tally.most("longest SIGTERM (s)", await self.made.services[name].cycle(gently=True))

    async def delete_table(self) -> None:
        """Delete the proxy's table."""
        self.tally.note("delete the table")
        await self.made.run("nft", "delete", "table", "ip", TABLE)

    async def flush_table(self) -> None:
        """Flush the proxy's table."""
        self.tally.note("flush the table")
        await self.made.run("nft", "flush", "table", "ip", TABLE)

    async def delete_link(self) -> None:
        """Delete the link of a victim's sandbox."""
        box = await self._choose("podsandbox")
        if box:
            self.tally.note(f"delete the link of {box[1]}")
            await self.made.run("ip", "link", "del", veth_name("tp", box[0]))

    async def remove_container(self) -> None:
        """Remove a victim's container behind our back."""
        await self._remove("container")

    async def remove_sandbox(self) -> None:
        """Remove a victim's sandbox behind our back."""
        await self._remove("podsandbox")

    async def _remove(self, kind: str) -> None:
        found = await self._choose(kind)
        if found:
            self.tally.note(f"docker rm -f {kind} of {found[1]} {found[0][:12]}")
            await self.made.ask_engine("rm", "-f", found[0])

    async def _choose(self, kind: str) -> tuple[str, str] | None:
        """Choose a victim's container of a kind: its id and its pod."""
        words = ["--filter", f"label=io.tripod.node={NODE_NAME}", "--filter", f"label=io.tripod.kind={kind}"]
        form = f'{{"id": "{{{{.ID}}}}", "pod": "{{{{.Label "{POD_LABEL}"}}}}"}}'
        code, text = await self.made.ask_engine(
            "ps", "-a", "--no-trunc", *words, "--format", form, seconds=10
        )
        found: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()] if code == 0 else []
        choices = sorted((item["id"], item["pod"]) for item in found if item["pod"] not in NAMES)
        return self.tally.random.choice(choices) if choices else None

    async def restart_engine(self) -> None:
        """SIGTERM the engine and start it again; containers live on."""
        self.tally.note("restart the engine")
        await self.made.restart_engine(gently=True)

    async def kill_engine(self) -> None:
        """SIGKILL the engine and start it again."""
        self.tally.note("kill the engine")
        await self.made.restart_engine(gently=False)

    async def freeze_engine(self) -> None:
        """Stop the engine in its tracks for some seconds."""
        seconds = self.tally.random.uniform(*_FREEZE_SECONDS)
        self.tally.note(f"freeze the engine for {seconds:.1f} s")
        async with self.made.engine_turn:
            self.made.engine.freeze()
            try:
                await asyncio.sleep(seconds)
            finally:
                self.made.engine.thaw()
