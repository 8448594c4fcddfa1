"""Stop containers in their order: hooks first, sidecars last, all within their grace.

Source: the kubelet's `killContainer` and `terminationOrdering`: the preStop hooks of all
run at once; a sidecar then waits for its turn; each container gets what is left of the
grace, 2 s at least. A grace of 0 runs no hook and waits for nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from services.common import failpoints, telemetry, telemetry_names
from services.common.clock import Clock
from services.kubelet.core import plan
from services.kubelet.core.model import HookAction, Pod
from services.kubelet.core.observed import ObservedPod
from services.kubelet.ports import EventSink, HookRunner, ProbeTarget, Runtime

_STOP = failpoints.step("pod.container.stop")
_PRE_STOP = failpoints.step("pod.hook.prestop")


class _Turns:
    """Who of several that are stopped has ended."""

    def __init__(self, stops: Sequence[plan.StopContainer]) -> None:
        self._open = [action.rank for action in stops]
        self._moved = asyncio.Condition()

    async def wait(self, rank: int, seconds: float) -> None:
        """Wait until all of lower ranks have ended, for so long at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._moved:
                await self._moved.wait_for(lambda: all(other >= rank for other in self._open))

    async def end(self, rank: int) -> None:
        """Note that one has ended."""
        async with self._moved:
            self._open.remove(rank)
            self._moved.notify_all()


class Stopper:
    """Stops containers of all pods; keeps nothing between plans."""

    def __init__(self, runtime: Runtime, runner: HookRunner, events: EventSink, clock: Clock) -> None:
        self._runtime = runtime
        self._runner = runner
        self._events = events
        self._clock = clock

    async def stop(self, pod: Pod, observed: ObservedPod, stops: Sequence[plan.StopContainer]) -> None:
        """Stop containers, so that their graces overlap. Raises `TripodError`."""
        turns = _Turns(stops)
        async with asyncio.TaskGroup() as group:
            for action in stops:
                group.create_task(self._stop(pod, observed, action, turns))

    async def _stop(self, pod: Pod, observed: ObservedPod, action: plan.StopContainer, turns: _Turns) -> None:
        what = action.event or f"Stopping container {action.container}: {action.reason}"
        self._events.emit(pod, "Killing", what, container=action.container)
        end = self._clock.monotonic() + action.grace_seconds
        attributes = {"k8s.container.name": action.container, "reason": action.reason}
        with telemetry.span(telemetry_names.CONTAINER_STOP, attributes=attributes):
            if action.grace_seconds:
                await self._pre_stop(pod, observed, action)
                await turns.wait(action.rank, max(0.0, end - self._clock.monotonic()))
            async with _STOP:
                await self._runtime.stop_container(action.id, self._left(action, end))
        await turns.end(action.rank)
        await _STOP.recorded()

    def _left(self, action: plan.StopContainer, end: float) -> int:
        """Return what is left of a grace in whole seconds; a signal needs time to arrive."""
        if not action.grace_seconds:
            return 0
        spent = action.grace_seconds - (end - self._clock.monotonic())
        return max(plan.MIN_GRACE_SECONDS, action.grace_seconds - int(spent))

    async def _pre_stop(self, pod: Pod, observed: ObservedPod, action: plan.StopContainer) -> None:
        """Run a container's preStop hook, within the grace. Its fault keeps nothing from being stopped."""
        spec = next((c for c in pod.spec.every if c.name == action.container), None)
        if spec is None or spec.lifecycle.pre_stop is None:
            return
        box = observed.sandbox()
        address = box.addresses[0] if box is not None and box.addresses else "127.0.0.1"
        target = ProbeTarget(pod, spec, action.id, address)
        attributes = {"k8s.container.name": spec.name, "hook": "preStop"}
        with telemetry.span(telemetry_names.CONTAINER_HOOK, attributes=attributes):
            async with _PRE_STOP:
                fault = await self._run(spec.lifecycle.pre_stop, target, action.grace_seconds)
            await _PRE_STOP.recorded()
        if fault:
            what = f"preStop hook failed: {fault}"
            self._events.emit(pod, "FailedPreStopHook", what, container=spec.name, warning=True)

    async def _run(self, hook: HookAction, target: ProbeTarget, seconds: int) -> str:
        fault = await self._runner.run(hook, target, seconds)
        return "the runtime could not run it" if fault is None else fault
