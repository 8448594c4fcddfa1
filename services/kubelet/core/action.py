"""What a pod's worker can do, as values: `plan` decides on them, the loops carry them out. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from services.kubelet.core.model import ContainerId, PullPolicy, SandboxId


@dataclass(frozen=True, slots=True)
class CreateSandbox:
    """Make a sandbox."""

    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class PullImage:
    """Make sure that a container's image is there, as its policy says."""

    container: str
    image: str
    policy: PullPolicy
    reason: str


@dataclass(frozen=True, slots=True)
class StartContainer:
    """Create and start a container in the newest sandbox."""

    container: str
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class RunPostStart:
    """Begin a running container's postStart hook; nobody waits for its end."""

    id: ContainerId
    container: str
    reason: str


@dataclass(frozen=True, slots=True)
class StopContainer:
    """Stop a container: its preStop hook and its signal, then KILL after `grace_seconds` in all.

    One of a higher `rank` is signalled when those of lower ones have ended. `event` is
    told in place of the reason.
    """

    id: ContainerId
    container: str
    grace_seconds: int
    reason: str
    rank: int = 0
    event: str = ""


@dataclass(frozen=True, slots=True)
class RemoveContainer:
    """Remove an ended container."""

    id: ContainerId
    reason: str


@dataclass(frozen=True, slots=True)
class StopSandbox:
    """End a sandbox and give its address back."""

    id: SandboxId
    reason: str


@dataclass(frozen=True, slots=True)
class RemoveSandbox:
    """Remove a sandbox with what is left in it."""

    id: SandboxId
    reason: str


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Look again at `time` (monotonic seconds): a container waits for its next try."""

    container: str
    time: float
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Finalize:
    """Forget the pod: nothing of it is left."""

    reason: str


Action = (
    CreateSandbox
    | PullImage
    | StartContainer
    | RunPostStart
    | StopContainer
    | RemoveContainer
    | StopSandbox
    | RemoveSandbox
    | WaitUntil
    | Finalize
)
