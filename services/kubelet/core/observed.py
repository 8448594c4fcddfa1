"""What was seen of a pod at the runtime. Values only.

An observation is complete or it is not made: an error never looks like an empty pod.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum

from services.kubelet.core.model import ContainerId, PodUid, SandboxId

# Why a container's state is unknown to the CRI: it has no state for what was paused.
PAUSED = "Paused"


class RuntimeState(Enum):
    """State of a container at the runtime."""

    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ObservedContainer:
    """One instance of a container. `attempt` counts its restarts from 0.

    One that is `removed` is known from an earlier look alone.
    """

    id: ContainerId
    name: str
    attempt: int
    state: RuntimeState
    sandbox_id: SandboxId
    image: str = ""
    image_id: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    log_path: str = ""
    removed: bool = False
    # Of the spec that it was made from; empty where that is not known.
    spec_hash: str = ""


@dataclass(frozen=True, slots=True)
class ObservedSandbox:
    """One sandbox of a pod. `attempt` counts from 0."""

    id: SandboxId
    attempt: int
    ready: bool
    addresses: tuple[str, ...] = ()

    def on_host(self, address: str) -> ObservedSandbox:
        """Return a sandbox on the host's network with the node's address."""
        return replace(self, addresses=(address,) if self.ready else ())


@dataclass(frozen=True, slots=True)
class ObservedPod:
    """A pod at the runtime: sandboxes and containers, the newest first."""

    uid: PodUid
    namespace: str = ""
    name: str = ""
    sandboxes: tuple[ObservedSandbox, ...] = ()
    containers: tuple[ObservedContainer, ...] = ()

    def present(self) -> ObservedPod:
        """Return the pod without what is known from an earlier look alone."""
        return replace(self, containers=tuple(c for c in self.containers if not c.removed))

    def on_host(self, address: str) -> ObservedPod:
        """Return a pod on the host's network with the node's address, which no runtime tells."""
        return replace(self, sandboxes=tuple(box.on_host(address) for box in self.sandboxes))

    def with_sandbox(self, made: ObservedSandbox) -> ObservedPod:
        """Return the pod with a new sandbox, which is the newest."""
        return replace(self, sandboxes=(made, *self.sandboxes))

    def with_container(self, made: ObservedContainer) -> ObservedPod:
        """Return the pod with a new container, which is the newest of its name."""
        return replace(self, containers=(made, *self.containers))

    def sandbox(self) -> ObservedSandbox | None:
        """Return the newest sandbox."""
        return self.sandboxes[0] if self.sandboxes else None

    def homeless(self) -> tuple[ObservedContainer, ...]:
        """Return the containers that are there while their sandbox is not."""
        boxes = {sandbox.id for sandbox in self.sandboxes}
        return tuple(c for c in self.containers if c.sandbox_id not in boxes and not c.removed)

    def latest(self, name: str) -> ObservedContainer | None:
        """Return the newest instance of a container."""
        return next((c for c in self.containers if c.name == name), None)

    def earlier(self, name: str) -> tuple[ObservedContainer, ...]:
        """Return all instances of a container but the newest, the newest of them first."""
        return tuple(c for c in self.containers if c.name == name)[1:]
