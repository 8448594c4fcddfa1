"""Decide a probe's verdict from its outcomes. Pure.

Source: Kubernetes "Configure Liveness, Readiness and Startup Probes": readiness
begins with failure, liveness with success; a verdict moves only after the
threshold's number of equal outcomes in a row. A startup probe begins with failure;
until it has succeeded the others do not run, and its failures in a row end the container.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from services.kubelet.core.model import ContainerId, Probe


class ProbeKind(Enum):
    """What a probe is for."""

    LIVENESS = "Liveness"
    READINESS = "Readiness"
    STARTUP = "Startup"


@dataclass(frozen=True, slots=True)
class ProbeState:
    """The verdict, the latest outcome and how often it came in a row."""

    verdict: bool
    last_outcome: bool | None = None
    run_count: int = 0


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """How one probe of a container stands.

    `message` is the latest outcome's, `since` when outcomes like it began, `due` when it
    runs next (monotonic seconds): None while it runs, or when it is held.
    """

    container_id: ContainerId
    container: str
    kind: ProbeKind
    probe: Probe
    state: ProbeState
    message: str = ""
    since: datetime | None = None
    due: float | None = None


def initial(kind: ProbeKind) -> ProbeState:
    """Return the state before any outcome."""
    return ProbeState(verdict=kind is ProbeKind.LIVENESS)


def fatal(kind: ProbeKind, state: ProbeState, probe: Probe) -> bool:
    """Tell whether a container is stopped for how this probe stands."""
    failed = state.last_outcome is False and state.run_count >= probe.failure_threshold
    return kind is not ProbeKind.READINESS and failed


def step(state: ProbeState, outcome: bool, probe: Probe) -> ProbeState:
    """Fold one outcome into the state; a different one begins the count anew."""
    run_count = state.run_count + 1 if outcome is state.last_outcome else 1
    needed = probe.success_threshold if outcome else probe.failure_threshold
    verdict = outcome if run_count >= needed else state.verdict
    return ProbeState(verdict, outcome, run_count)
