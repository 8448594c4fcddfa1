"""One worker for each pod: observe, plan, apply, publish; again when anything moved.

Level, not edge: every pass reads the whole pod at the runtime. A restart of the
kubelet finds running pods by their labels and has nothing to do for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from services.common import failpoints, telemetry, telemetry_names
from services.common.clock import Clock, unix_nanoseconds
from services.common.errors import TripodError
from services.common.logs import get_logger
from services.common.watch import WatchHub
from services.common.workqueue import WorkQueue
from services.kubelet.core import begin, deadline, plan
from services.kubelet.core.explain import Doing, Failure, Work
from services.kubelet.core.memory import Over
from services.kubelet.core.model import ContainerId, ObjectKey, Pod, PodUid
from services.kubelet.core.observed import ObservedPod, RuntimeState
from services.kubelet.core.plan import Action, Memory, WaitUntil, plan_pod
from services.kubelet.core.record import decode, encode, record, remembered
from services.kubelet.core.status import (
    Circumstances,
    PodPhase,
    PodStatus,
    StatePhase,
    Waiting,
    compute_status,
)
from services.kubelet.loops.actions import CONFIG_ERROR, Actor, Outcome
from services.kubelet.loops.episode import Episode, recording
from services.kubelet.loops.hearing import Hearing
from services.kubelet.loops.hooks import Hooks
from services.kubelet.loops.podvolumes import PodVolumes
from services.kubelet.loops.prober import Prober
from services.kubelet.ports import EventSink, LastWords, PodFiles, PodSource, Runtime

log = get_logger(__name__)
_PUBLISH = failpoints.step("pod.status.publish")
_RECORD = failpoints.step("pod.record")
# More than a node has pods: a pod that waits, for a pull or its grace, keeps no other from being looked at.
WORKERS = 256
_RELIST_SECONDS = 60.0
# How long an adopted pod is not told of while its first probe is out.
_ADOPT_SECONDS = 8.0
_ADOPT_LOOK_SECONDS = 0.1


@dataclass(slots=True)
class _State:
    """What a worker knows of its pod between passes."""

    memory: Memory
    waiting: dict[str, Waiting]
    status: PodStatus | None = None
    episode: Episode | None = None
    trace_id: str = ""
    cause: str = ""
    seen_ns: int = 0
    received_ns: int = 0
    stop_traced: bool = False
    adopted_at: float | None = None
    observed: ObservedPod | None = None
    doing: Doing | None = None
    failure: Failure | None = None
    recalled: bool = False
    recorded: str = ""
    start_time: datetime | None = None
    intended: tuple[frozenset[ContainerId], plan.Over | None] = (frozenset(), None)
    forgiven: bool = False
    # Of the plan that is carried out now.
    limit: asyncio.Timeout | None = None


class _HastenedError(Exception):
    """The pod was deleted, or is to stop sooner, while a plan was carried out that knows nothing of it."""


class PodWorkers:
    """Works on all pods of the source. `hub` has their statuses."""

    def __init__(
        self,
        *,
        source: PodSource,
        runtime: Runtime,
        actor: Actor,
        files: PodFiles,
        events: EventSink,
        clock: Clock,
        hub: WatchHub[PodStatus],
        host_ip: str,
        received: Callable[[PodUid], int] = lambda uid: 0,
        hooks: Hooks,
        words: LastWords,
        volumes: PodVolumes,
    ) -> None:
        self._source = source
        self._runtime = runtime
        self._actor = actor
        self._files = files
        self._events = events
        self._clock = clock
        self.hub = hub
        self._host_ip = host_ip
        # When the source heard of a pod, in nanoseconds; 0 where that is when it tells.
        self._received = received
        self._hooks = hooks
        self._hearing = Hearing(words, clock)
        self._volumes = volumes
        self._queue = WorkQueue(clock)
        self._states: dict[PodUid, _State] = {}
        self._prober: Prober | None = None
        self._untold: set[PodUid] = set()
        self.settled = asyncio.Event()
        self.sync_count = 0

    def bind(self, prober: Prober) -> None:
        """Say who runs the probes."""
        self._prober = prober

    def expect(self, uids: Iterable[PodUid]) -> None:
        """Say which pods a restart finds; `settled` is set once each was told of.

        Whoever lists or watches waits for that: a pod that is ready, but has not been
        probed yet by this run, must not leave its services for a moment.
        """
        self._untold = set(uids)
        if not self._untold:
            self.settled.set()

    def _told(self, uid: PodUid) -> None:
        self._untold.discard(uid)
        if not self._untold:
            self.settled.set()

    async def run(self) -> None:
        """Work until cancelled."""
        await self._queue.run(self._sync, workers=WORKERS)

    async def follow_source(self) -> None:
        """Wake the worker of each pod that changes at the source."""
        async for uid, cause in self._source.changes():
            state = self._states.setdefault(uid, _State(Memory(), {}))
            if not state.seen_ns:
                state.seen_ns, state.cause = unix_nanoseconds(self._clock.now()), cause
                state.received_ns = self._received(uid) or state.seen_ns
            self._hasten(uid, state)
            self._queue.add(uid)

    def _hasten(self, uid: PodUid, state: _State) -> None:
        """Cut a plan short whose present step a pod's deletion does not wait for."""
        if state.limit is not None and state.doing is not None and self._hastens(uid, state.doing.action):
            state.limit.reschedule(asyncio.get_running_loop().time())

    def _hastens(self, uid: PodUid, action: Action) -> bool:
        pod = self._source.pod(uid)
        return pod is not None and plan.hastens(pod, action)

    def wake(self, uid: PodUid) -> None:
        """Look at a pod soon: something moved at the runtime."""
        if uid in self._states:
            self._queue.add(uid)

    def object_changed(self, key: ObjectKey) -> None:
        """Look at the pods soon that bring in an object which changed."""
        for pod in self._source.pods():
            state = self._states.get(pod.uid)
            if state is not None and self._volumes.uses(pod, key):
                state.forgiven = True
                self._queue.add(pod.uid)

    def probe_moved(self, uid: PodUid) -> None:
        """Look at a pod soon: a probe's verdict moved."""
        state = self._states.get(uid)
        if state is not None:
            if state.episode is not None:
                state.episode.probe_answered()
            self._queue.add(uid)

    def status(self, uid: str) -> PodStatus | None:
        """Return a pod's latest status."""
        return self.hub.get(uid)

    def work(self, uid: PodUid) -> Work | None:
        """Return what a pod's worker knows and does; None before it has seen the pod."""
        state = self._states.get(uid)
        if state is None:
            return None
        return Work(
            memory=state.memory,
            status=state.status,
            observed=state.observed,
            doing=state.doing,
            failure=state.failure,
            next_seconds=self._queue.next_seconds(uid),
            trace_id=state.trace_id,
        )

    async def _sync(self, key: str) -> None:
        uid = PodUid(key)
        state = self._states.get(uid)
        if state is None:
            return
        try:
            await self._pass(uid, state)
            state.failure = None
        except _HastenedError:
            self._queue.add(uid)
        except Exception as error:
            self._note_failure(state, _first(error))
            raise
        finally:
            state.doing = None

    def _note_failure(self, state: _State, error: Exception) -> None:
        action = state.doing.action if state.doing else None
        before = state.failure
        same = before is not None and type(before.action) is type(action)
        since = before.since if before is not None and same else self._clock.now()
        count = before.count + 1 if before is not None and same else 1
        message = error.message if isinstance(error, TripodError) else str(error)
        state.failure = Failure(message, action, since, count)

    async def _pass(self, uid: PodUid, state: _State) -> None:
        pod = self._source.pod(uid)
        if pod is None:
            self._forget(uid, state)
            return
        self.sync_count += 1
        # A run that was killed before it kept anything may have told the API.
        state.start_time = state.start_time or pod.start_time
        self._open_stop(pod, state)
        if state.episode is not None:
            state.episode.look()
            state.episode.queued()
        recorded = None if state.episode is None or state.episode.waiting else state.episode
        with recording(recorded):
            observed = await self._observe(pod, state)
        if recorded is not None:
            recorded.covered()
        if state.status is None:
            self._begin(pod, state, observed)
        actions = self._plan(pod, state, observed)
        await self._intend(pod.uid, state)
        await self._act(pod, state, observed, actions)
        await self._refresh(pod, state)
        await self._record(pod.uid, state)
        self._await_deadline(pod, state)
        self._wait_for_init(state)

    async def _intend(self, uid: PodUid, state: _State) -> None:
        """Keep what a plan that is cut short must not forget, before anything of it is done."""
        intended = (state.memory.changed, state.memory.over)
        if intended != state.intended:
            await self._record(uid, state)
            state.intended = intended

    def _await_deadline(self, pod: Pod, state: _State) -> None:
        """See that a pod is looked at when its time is up."""
        start = state.status.start_time if state.status else None
        left = deadline.left_seconds(pod, start, self._clock.now())
        if left is not None and state.memory.over is None and pod.uid in self._states:
            self._queue.add_after(pod.uid, max(0.0, left) + 0.01)

    async def _refresh(self, pod: Pod, state: _State) -> None:
        """Bring the files up to date that a running pod sees."""
        sandbox = state.observed.sandbox() if state.observed else None
        if pod.uid in self._states and pod.deletion_time is None and sandbox is not None and sandbox.ready:
            due_seconds = await self._volumes.refresh(pod)
            if due_seconds is not None:
                self._queue.add_after(pod.uid, due_seconds)

    async def _recall(self, uid: PodUid, state: _State) -> None:
        """Take up what a run before knew of a pod."""
        state.recalled = True
        state.recorded = await self._files.recall(uid)
        kept = decode(state.recorded)
        if kept is not None:
            state.memory, state.start_time = (
                remembered(state.memory, kept),
                kept.start_time or state.start_time,
            )
            state.intended = (state.memory.changed, state.memory.over)
            self._hooks.adopt(uid, state.memory.hooks)
            if self._prober is not None:
                self._prober.adopt(uid, state.memory.begun)

    async def _record(self, uid: PodUid, state: _State) -> None:
        """Keep what a run after this one must know; a disk that is full costs that alone."""
        start = state.status.start_time if state.status is not None else state.start_time
        if uid not in self._states or start is None:
            return
        text = encode(record(state.memory, start))
        if text == state.recorded:
            return
        try:
            async with _RECORD:
                await self._files.remember(uid, text)
        except OSError as error:
            log.warning("Could not keep a pod's record", pod_uid=uid, error=str(error))
        else:
            state.recorded = text
            await _RECORD.recorded()

    async def _observe(self, pod: Pod, state: _State) -> ObservedPod:
        if state.status is None and self._source.take_new(pod.uid):
            state.recalled, state.observed = True, ObservedPod(pod.uid)
            return state.observed
        if not state.recalled:
            await self._recall(pod.uid, state)
        with telemetry.span(telemetry_names.POD_OBSERVE):
            seen = await self._runtime.observe(pod.uid)
        if pod.spec.namespaces.network:
            seen = seen.on_host(self._host_ip)
        seen = await self._hearing.hear(pod, seen)
        state.memory = plan.look_again(state.memory, seen)
        state.observed = plan.recall(state.memory, seen)
        return state.observed

    def _begin(self, pod: Pod, state: _State, observed: ObservedPod) -> None:
        """Open the trace of a pod's start, unless it runs already: then it is adopted."""
        if observed.sandboxes or pod.deletion_time is not None:
            return
        episode = Episode(
            pod, telemetry_names.POD_START, 0, self._clock, start_ns=state.received_ns, cause=state.cause
        )
        state.episode, state.trace_id = episode, episode.trace_id
        if state.received_ns < state.seen_ns:
            episode.received(state.seen_ns)
        episode.queued()
        episode.covered()

    def _open_stop(self, pod: Pod, state: _State) -> None:
        if pod.deletion_time is None or state.stop_traced:
            return
        state.stop_traced = True
        if state.episode is not None:
            state.episode.end("the pod was deleted")
        now = unix_nanoseconds(self._clock.now())
        state.episode = Episode(pod, telemetry_names.POD_STOP, 0, self._clock, start_ns=now)

    def _open_restart(self, pod: Pod, state: _State, actions: tuple[Action, ...]) -> None:
        again = [a.attempt for a in actions if isinstance(a, plan.StartContainer) and a.attempt > 0]
        if state.episode is None and again:
            now = unix_nanoseconds(self._clock.now())
            name = telemetry_names.POD_RESTART
            state.episode = Episode(pod, name, max(again), self._clock, start_ns=now)

    def _plan(self, pod: Pod, state: _State, observed: ObservedPod) -> tuple[Action, ...]:
        now = self._clock.monotonic()
        state.memory = plan.remember(state.memory, observed, now)
        if state.forgiven:
            state.memory, state.forgiven = plan.forgive(state.memory, CONFIG_ERROR), False
        if self._prober is not None:
            unhealthy, begun = self._prober.unhealthy(observed), self._prober.begun(pod.uid)
            state.memory = replace(state.memory, unhealthy=unhealthy, begun=begun)
        self._remember_hooks(pod, state, observed)
        self._end_in_time(pod, state)
        state.memory = plan.intend(pod, observed, state.memory)
        actions = plan_pod(pod, observed, state.memory, now)
        self._note_waits(pod, state, actions)
        self._open_restart(pod, state, actions)
        return actions

    def _remember_hooks(self, pod: Pod, state: _State, observed: ObservedPod) -> None:
        running = {c.id for c in observed.containers if c.state is RuntimeState.RUNNING}
        self._hooks.keep(pod.uid, running if pod.deletion_time is None else frozenset())
        state.memory = replace(state.memory, hooks=self._hooks.states(pod.uid))
        if self._prober is not None:
            self._prober.hold(pod.uid, begin.hooking(pod, observed, state.memory))

    def _end_in_time(self, pod: Pod, state: _State) -> None:
        """Note that a pod's time is up; one that has ended by itself has ended."""
        status = state.status
        start = status.start_time if status is not None else state.start_time
        over = deadline.over(pod, start, self._clock.now())
        if pod.failure is not None:
            # Somebody else in the cluster has given it up, such as the pod garbage collector.
            over = Over(*pod.failure)
        if over is not None and self._note_over(state, over):
            self._events.emit(pod, over.reason or "Failed", over.message)

    def _note_over(self, state: _State, over: Over) -> bool:
        """Note why a pod has failed; tells whether that is new. One that has ended by itself has ended."""
        if state.memory.over is not None or (state.status is not None and state.status.terminal):
            return False
        state.memory = replace(state.memory, over=over)
        return True

    def end(self, pod: Pod, over: Over) -> None:
        """End a pod for good, for a reason that its containers know nothing of."""
        state = self._states.get(pod.uid)
        if state is not None and self._note_over(state, over):
            self._events.emit(pod, over.reason, over.message, warning=True)
            self._queue.add(pod.uid)

    def _note_waits(self, pod: Pod, state: _State, actions: tuple[Action, ...]) -> None:
        before, state.waiting = state.waiting, {}
        for action in actions:
            if isinstance(action, WaitUntil):
                reason = "ImagePullBackOff" if action.reason == "ErrImagePull" else action.reason
                state.waiting[action.container] = Waiting(reason, action.message)
                self._queue.add_after(pod.uid, action.time - self._clock.monotonic() + 0.01)
                if before.get(action.container) != state.waiting[action.container]:
                    self._events.emit(
                        pod, "BackOff", action.message, container=action.container, warning=True
                    )

    async def _act(self, pod: Pod, state: _State, observed: ObservedPod, actions: tuple[Action, ...]) -> None:
        self._publish(pod, state, observed)
        if not any(not isinstance(action, WaitUntil) for action in actions):
            return
        with recording(state.episode):
            try:
                outcome = await self._carry_out(pod, state, observed, actions)
            finally:
                if state.episode is not None:
                    state.episode.covered()
            if outcome.finalized:
                self._forget(pod.uid, state)
                return
            state.doing = None
            self._note_outcome(state, outcome)
            observed = await self._after(pod, state, outcome)
        self._publish(pod, state, observed)
        self._queue.add_after(pod.uid, 0.01 if self._goes_on(pod, state, outcome) else _RELIST_SECONDS)

    async def _carry_out(
        self, pod: Pod, state: _State, observed: ObservedPod, actions: tuple[Action, ...]
    ) -> Outcome:
        """Carry a plan out. Raises `_HastenedError` when the pod's deletion does not wait for its end."""

        def begun(action: Action) -> None:
            state.doing = Doing(action, self._clock.now())
            if self._hastens(pod.uid, action):
                raise _HastenedError

        try:
            async with asyncio.timeout(None) as state.limit:
                return await self._actor.apply(pod, observed, actions, begun)
        except TimeoutError:
            if state.limit is None or not state.limit.expired():
                raise
            raise _HastenedError from None
        finally:
            state.limit = None

    def _goes_on(self, pod: Pod, state: _State, outcome: Outcome) -> bool:
        """Tell whether a plan that was carried out leads to another at once."""
        unready = state.status is None or not state.status.ready
        begins = bool(outcome.started) and bool(pod.spec.init_containers) and unready
        return bool(outcome.failures) or begins or pod.deletion_time is not None

    async def _after(self, pod: Pod, state: _State, outcome: Outcome) -> ObservedPod:
        """Return the pod as it is after a plan."""
        if outcome.observed is None:
            return await self._observe(pod, state)
        state.observed = outcome.observed
        state.memory = plan.look_again(state.memory, outcome.observed.present())
        return outcome.observed

    def _note_outcome(self, state: _State, outcome: Outcome) -> None:
        now = self._clock.monotonic()
        for name, why in outcome.failures.items():
            state.memory = plan.failed(state.memory, name, now, why.reason, why.message)
            state.waiting[name] = why
        for name in outcome.started:
            state.memory = plan.succeeded(state.memory, name)

    def _publish(self, pod: Pod, state: _State, observed: ObservedPod) -> None:
        """Compute the status; tell it when it changed; end the episode that it ends."""
        if state.status is None and self._held(pod, state, observed):
            self._queue.add_after(pod.uid, _ADOPT_LOOK_SECONDS)
            return
        self._remember_hooks(pod, state, observed)
        readiness = self._prober.readiness(pod, observed) if self._prober else {}
        around = Circumstances(
            readiness=readiness,
            waiting=state.waiting,
            host_ip=self._host_ip,
            now=self._clock.now(),
            trace_id=state.trace_id,
            start_time=state.start_time,
            started=begin.started(pod, observed, state.memory),
            changed=state.memory.changed,
            over=state.memory.over,
            addresses=state.memory.addresses,
        )
        status = compute_status(pod, observed, around, state.status)
        if self._prober is not None:
            self._prober.update(pod, observed)
        if status == state.status:
            return
        became_ready = status.ready and not (state.status and state.status.ready)
        state.status = status
        if became_ready and state.episode is not None:
            state.episode.looked()
        with recording(state.episode), telemetry.span(telemetry_names.STATUS_PUBLISH):
            with _PUBLISH:
                self.hub.upsert(pod.uid, status, telemetry.traceparent())
        _PUBLISH.recorded_in_thread()
        self._told(pod.uid)
        self._turn_episode(pod, state, status, observed, became_ready=became_ready)

    def _held(self, pod: Pod, state: _State, observed: ObservedPod) -> bool:
        """Tell whether an adopted pod waits for its first probe, and see that it is probed."""
        if self._prober is None or state.episode is not None:
            return False
        if state.adopted_at is None:
            state.adopted_at = self._clock.monotonic()
            self._prober.update(pod, observed)
        waited = self._clock.monotonic() - state.adopted_at
        return waited < _ADOPT_SECONDS and not self._prober.judged(pod, observed)

    def _turn_episode(
        self, pod: Pod, state: _State, status: PodStatus, observed: ObservedPod, *, became_ready: bool
    ) -> None:
        episode = state.episode
        if episode is None or episode.name == telemetry_names.POD_STOP:
            return
        if status.ready or status.terminal:
            episode.end("" if status.phase is not PodPhase.FAILED else "the pod failed")
            state.episode = None
            log.info(
                "Ended episode", episode=episode.name, pod=f"{pod.namespace}/{pod.name}", ready=status.ready
            )
        elif _all_run(status, observed):
            episode.wait_for_probe()

    def _wait_for_init(self, state: _State) -> None:
        """Record the time until the next pass as a wait, where an init container runs."""
        status, episode = state.status, state.episode
        if status is None or episode is None or episode.name == telemetry_names.POD_STOP:
            return
        begins = any(c.type == "Initialized" and not c.holds for c in status.conditions)
        if begins and any(c.state.phase is StatePhase.RUNNING for c in status.init_containers):
            episode.wait_for_init()

    def _forget(self, uid: PodUid, state: _State) -> None:
        if state.episode is not None:
            state.episode.end()
        if self._prober is not None:
            self._prober.forget(uid)
        self._hooks.forget(uid)
        self._hearing.forget(uid)
        self._volumes.forget(uid)
        self._states.pop(uid, None)
        self.hub.delete(uid)
        self._told(uid)


def _first(error: Exception) -> Exception:
    """Return what a group of errors, as tasks raise it, began with."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _all_run(status: PodStatus, observed: ObservedPod) -> bool:
    running = {c.name for c in observed.containers if c.state is RuntimeState.RUNNING}
    return all(container.name in running for container in status.containers)
