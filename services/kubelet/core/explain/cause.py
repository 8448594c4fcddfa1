"""The words of an explanation: causes, and what is known of a container. Pure."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from services.kubelet.core.events import Event
from services.kubelet.core.model import Container as Spec
from services.kubelet.core.model import Pod
from services.kubelet.core.observed import ObservedContainer
from services.kubelet.core.plan import Action, Memory
from services.kubelet.core.probes import ProbeKind, ProbeReport
from services.kubelet.core.status import ContainerStatus

_SIGNAL_BASE = 128


class Scope(Enum):
    """What a cause concerns."""

    NODE = "node"
    POD = "pod"
    CONTAINER = "container"


@dataclass(frozen=True, slots=True)
class Cause:
    """One cause: what is so, since when, and what comes next.

    `next_step` says what is tried, or what would have to happen; `next_seconds` when,
    where the kubelet knows.
    """

    reason: str
    message: str
    next_step: str
    container: str = ""
    scope: Scope = Scope.POD
    since: datetime | None = None
    next_seconds: float | None = None
    evidence: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class Doing:
    """The step that a worker is at."""

    action: Action
    since: datetime


@dataclass(frozen=True, slots=True)
class Container:
    """What is known of one container."""

    spec: Spec
    pod: Pod
    latest: ObservedContainer | None
    status: ContainerStatus | None
    memory: Memory
    probes: Sequence[ProbeReport]
    doing: Doing | None
    next_seconds: float | None
    events: Sequence[Event]
    now: datetime
    monotonic: float

    def report(self, kind: ProbeKind) -> ProbeReport | None:
        """Return how a probe of the newest instance stands."""
        ident = self.latest.id if self.latest else ""
        return next((r for r in self.probes if r.kind is kind and r.container_id == ident), None)

    def seconds_until(self, moment: float | None) -> float | None:
        """Return how far a moment is (monotonic seconds); 0 when it has passed, None for none."""
        return None if moment is None else max(0.0, moment - self.monotonic)

    def latest_event(self, reason: str) -> tuple[Event, ...]:
        """Return the latest event of a kind, or nothing."""
        return tuple(event for event in self.events if event.reason == reason)[-1:]

    def cause(
        self,
        reason: str,
        message: str,
        next_step: str,
        *,
        since: datetime | None = None,
        next_seconds: float | None = None,
        evidence: tuple[Event, ...] = (),
    ) -> Cause:
        """Make a cause of this container."""
        name = self.spec.name
        return Cause(reason, message, next_step, name, Scope.CONTAINER, since, next_seconds, evidence)


def exit_words(code: int, reason: str) -> str:
    """Write an exit code with its signal and what the kernel did: `exit code 137 (SIGKILL), OOMKilled`."""
    words = f"exit code {code}"
    if code > _SIGNAL_BASE:
        try:
            words += f" ({signal.Signals(code - _SIGNAL_BASE).name})"
        except ValueError:
            # Not a signal: a program may choose any code.
            return words
    return words + (", OOMKilled" if reason == "OOMKilled" else "")


def seconds(value: float) -> str:
    """Write a length of time shortly: `0.4 s`, `12 s`, `3 min 5 s`, `2 h`."""
    if value < 1:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    whole = int(value)
    return f"{whole // 60} min {whole % 60} s" if whole < 7200 else f"{whole // 3600} h"
