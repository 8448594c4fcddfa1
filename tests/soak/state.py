"""What a soak counts and finds."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VIOLATIONS_LIMIT = 50


@dataclass(kw_only=True)
class Tally:
    """Counts, figures and violations of one run; `journal` is the list of all that was done."""

    seed: int
    journal: Path
    kills: Counter[str] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    begin: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    @property
    def kill_count(self) -> int:
        """How often a service was killed."""
        return self.kills.total()

    def note(self, what: str) -> None:
        """Write a line with the time into the journal."""
        with self.journal.open("a") as file:
            file.write(f"{time.monotonic() - self.begin:8.1f} {what}\n")

    def violated(self, what: str) -> None:
        """Keep a violation."""
        self.note(f"VIOLATION {what}")
        if len(self.violations) < VIOLATIONS_LIMIT:
            self.violations.append(f"at {time.monotonic() - self.begin:.0f} s: {what}")

    def most(self, name: str, value: float) -> None:
        """Keep a figure's greatest value."""
        self.figures[name] = round(max(value, self.figures.get(name, 0.0)), 1)

    def report(self) -> dict[str, Any]:
        """Return everything as JSON has it."""
        return {
            "seed": self.seed,
            "seconds": round(time.monotonic() - self.begin),
            "kills": dict(self.kills),
            "kill_count": self.kill_count,
            "actions": dict(self.actions),
            "figures": self.figures,
            "violations": self.violations,
        }

    def write(self, path: str) -> None:
        """Write the report to a file."""
        Path(path).write_text(json.dumps(self.report(), indent=2) + "\n")
