"""Run postStart hooks beside the workers, which nobody waits for: a pod whose hook hangs can be deleted.

A container's hook runs once for each run of the kubelet until it has succeeded, and its
success is kept in the pod's record: a kubelet that is killed between the two runs it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Set

from services.common import failpoints, telemetry
from services.common.clock import Clock
from services.common.errors import TripodError
from services.kubelet.core.memory import HookState
from services.kubelet.core.model import ContainerId, HookAction, PodUid
from services.kubelet.ports import EventSink, HookRunner, ProbeTarget

# The original sets no limit.
LIMIT_SECONDS = 86_400
_RETRY_SECONDS = 1.0
_STEP = failpoints.step("pod.hook.poststart")


class Hooks:
    """Keeps the hooks of all pods running. `on_change` is told the pod of a hook that ended."""

    def __init__(
        self, runner: HookRunner, events: EventSink, clock: Clock, on_change: Callable[[PodUid], None]
    ) -> None:
        self._runner = runner
        self._events = events
        self._clock = clock
        self._on_change = on_change
        self._group: asyncio.TaskGroup | None = None
        self._tasks: dict[ContainerId, asyncio.Task[None]] = {}
        self._states: dict[PodUid, dict[ContainerId, HookState]] = {}

    async def run(self) -> None:
        """Hold the hooks' tasks until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            await asyncio.Event().wait()

    def begin(self, action: HookAction, target: ProbeTarget) -> None:
        """Begin the hook of a container that runs, unless it was begun."""
        states = self._states.setdefault(target.pod.uid, {})
        if target.container_id not in states and self._group is not None:
            states[target.container_id] = HookState.RUNNING
            self._tasks[target.container_id] = self._group.create_task(self._run(action, target))

    def states(self, uid: PodUid) -> Mapping[ContainerId, HookState]:
        """Return how the hooks of a pod's containers stand; nothing for those that were not begun."""
        return dict(self._states.get(uid, {}))

    def adopt(self, uid: PodUid, states: Mapping[ContainerId, HookState]) -> None:
        """Take over from a run before which hooks have succeeded."""
        self._states.setdefault(uid, {}).update(states)

    def keep(self, uid: PodUid, running: Set[ContainerId]) -> None:
        """Forget the hooks of a pod's containers that do not run any more, and end them."""
        states = self._states.get(uid, {})
        for key in [key for key in states if key not in running]:
            del states[key]
            if (task := self._tasks.pop(key, None)) is not None:
                task.cancel()

    def forget(self, uid: PodUid) -> None:
        """End all hooks of a pod."""
        self.keep(uid, frozenset())
        self._states.pop(uid, None)

    async def _run(self, action: HookAction, target: ProbeTarget) -> None:
        uid, key = target.pod.uid, target.container_id
        fault = await self._attempt(action, target)
        while fault is None:
            await self._clock.sleep(_RETRY_SECONDS)
            fault = await self._attempt(action, target)
        if fault:
            what = f"postStart hook failed: {fault}"
            name = target.container.name
            self._events.emit(target.pod, "FailedPostStartHook", what, container=name, warning=True)
        self._tasks.pop(key, None)
        self._states.setdefault(uid, {})[key] = HookState.FAILED if fault else HookState.DONE
        self._on_change(uid)

    async def _attempt(self, action: HookAction, target: ProbeTarget) -> str | None:
        """Run a hook once; None when it could not be run and is to be run again."""
        try:
            with telemetry.unrecorded():
                async with _STEP:
                    fault = await self._runner.run(action, target, LIMIT_SECONDS)
                await _STEP.recorded()
        except TripodError:
            return None
        return fault
