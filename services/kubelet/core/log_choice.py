"""Which instance of a container a reader of its log means, or why there is none. Pure.

Source: kubernetes pkg/kubelet/kubelet.go `validateContainerLogStatus`, whose words the errors are.
"""

from __future__ import annotations

from services.kubelet.core.model import Pod
from services.kubelet.core.observed import ObservedContainer, ObservedPod, RuntimeState
from services.kubelet.core.status import ContainerStatus, PodStatus, StatePhase

_WAITING = {
    "ErrImagePull": "image can't be pulled",
    "ImagePullBackOff": "trying and failing to pull image",
}


class LogChoiceError(ValueError):
    """There is no such log; the message is for the client."""


def chosen(
    pod: Pod, container: str, observed: ObservedPod, status: PodStatus | None, *, previous: bool
) -> ObservedContainer:
    """Choose the newest instance that has started, or with `previous` the one that ended before.

    An instance that has ended while the next one is waited for counts as both. Raises `LogChoiceError`.
    """
    instances = [c for c in observed.containers if c.name == container and not c.removed]
    started = [c for c in instances if c.state is not RuntimeState.CREATED]
    told = next((c for c in status.every if c.name == container), None) if status else None
    if previous:
        ended = started if _waits(told) else started[1:]
        found = next((c for c in ended if c.state is RuntimeState.EXITED), None)
        if found is None:
            raise LogChoiceError(f'previous terminated container "{container}" in pod "{pod.name}" not found')
        return found
    if started:
        return started[0]
    raise LogChoiceError(f'container "{container}" in pod "{pod.name}" is waiting to start{_why(told)}')


def _waits(status: ContainerStatus | None) -> bool:
    return status is not None and status.state.phase is StatePhase.WAITING


def _why(status: ContainerStatus | None) -> str:
    reason = status.state.reason if status is not None and _waits(status) else ""
    return f": {_WAITING.get(reason, reason)}" if reason else " - no logs yet"
