"""What an explanation is made from, and what it is. Values only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from services.kubelet.core.events import Event
from services.kubelet.core.explain.cause import Cause, Doing
from services.kubelet.core.model import Pod
from services.kubelet.core.observed import ObservedPod
from services.kubelet.core.plan import Action, Memory
from services.kubelet.core.probes import ProbeReport
from services.kubelet.core.status import PodStatus


class Verdict(Enum):
    """How a pod fares."""

    READY = "Ready"
    NOT_READY = "NotReady"
    FINISHED = "Finished"
    DELETING = "Deleting"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the latest passes over a pod failed: at which step (None: at the look), since when, how often."""

    message: str
    action: Action | None
    since: datetime
    count: int = 1


@dataclass(frozen=True, slots=True)
class Work:
    """What a pod's worker knows and does; `next_seconds` is when it looks again."""

    memory: Memory = field(default_factory=Memory)
    status: PodStatus | None = None
    observed: ObservedPod | None = None
    doing: Doing | None = None
    failure: Failure | None = None
    next_seconds: float | None = None
    trace_id: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that an explanation is made from. Faults are empty where there is none."""

    pod: Pod
    now: datetime
    monotonic: float
    work: Work | None = None
    probes: Sequence[ProbeReport] = ()
    events: Sequence[Event] = ()
    runtime_fault: str = ""
    store_fault: str = ""
    cluster_fault: str = ""
    disk_fault: str = ""
    manifest_fault: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a pod fares since when, in one sentence, and the causes, the first to mend first."""

    verdict: Verdict
    message: str
    since: datetime | None
    causes: tuple[Cause, ...]
    trace_id: str = ""
