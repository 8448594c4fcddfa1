"""Init containers, sidecars, hooks, deadlines, ephemeral and changed containers: what is decided."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kubelet.core import deadline, plan
from services.kubelet.core.begin import awaited, is_plain_init, started
from services.kubelet.core.memory import Ailment, HookState, Memory, Over
from services.kubelet.core.model import (
    Container,
    ContainerId,
    ExecAction,
    Lifecycle,
    Pod,
    PodUid,
    Probe,
    RestartPolicy,
    RestartRule,
    SandboxId,
)
from services.kubelet.core.observed import ObservedContainer, ObservedPod, ObservedSandbox, RuntimeState
from services.kubelet.core.plan import Action, plan_pod
from services.kubelet.core.restarts import comes_back
from services.kubelet.core.spec_hash import spec_hash
from tests.builders import a_container, a_pod, a_sandbox, an_instance, observed

NOW = 1000.0
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
RUNNING, EXITED, CREATED = RuntimeState.RUNNING, RuntimeState.EXITED, RuntimeState.CREATED
HOOKED = Lifecycle(post_start=ExecAction(("true",)))
FIRST, SECOND = a_container(name="first"), a_container(name="second")
SIDE = a_container(name="side", restart_policy=RestartPolicy.ALWAYS)
PROBED_SIDE = replace(SIDE, startup_probe=Probe(ExecAction(("true",))))
NEVER, ON_FAILURE = RestartPolicy.NEVER, RestartPolicy.ON_FAILURE


def one(name: str, state: RuntimeState, attempt: int = 0, code: int = 0, box: int = 0) -> ObservedContainer:
    """Make an instance."""
    made = an_instance(state, attempt, name=name, exit_code=code)
    return replace(made, id=ContainerId(f"{name}-{attempt}"), sandbox_id=a_sandbox(box).id)


def words(actions: tuple[Action, ...]) -> list[str]:
    """Name actions with what they are done to; a pull is left out."""
    named = [(type(a).__name__, getattr(a, "container", "")) for a in actions]
    return [f"{kind} {name}".rstrip() for kind, name in named if kind != "PullImage"]


def init_pod(*containers: Container, **values: Any) -> Pod:
    """Make a pod of these init containers and a main one."""
    return a_pod(init_containers=containers, **values)


@pytest.mark.parametrize(
    ("pod", "seen", "expected"),
    [
        pytest.param(
            init_pod(FIRST, SECOND),
            observed(sandboxes=()),
            ["CreateSandbox", "StartContainer first"],
            id="the-first-comes-first",
        ),
        pytest.param(init_pod(FIRST, SECOND), observed(one("first", RUNNING)), [], id="it-is-waited-for"),
        pytest.param(
            init_pod(FIRST, SECOND),
            observed(one("first", EXITED)),
            ["StartContainer second"],
            id="the-second-follows",
        ),
        pytest.param(
            init_pod(FIRST),
            observed(one("first", EXITED)),
            ["StartContainer app"],
            id="the-main-container-comes-last",
        ),
        pytest.param(
            init_pod(FIRST),
            observed(one("first", EXITED, code=1)),
            ["StartContainer first"],
            id="a-failed-one-is-tried-again",
        ),
        pytest.param(
            init_pod(FIRST, restart_policy=NEVER),
            observed(one("first", EXITED, code=1)),
            ["StopSandbox"],
            id="never-means-that-the-pod-failed",
        ),
        pytest.param(
            init_pod(SIDE, FIRST, restart_policy=NEVER),
            observed(one("side", RUNNING), one("first", EXITED, code=1)),
            ["StopContainer side", "StopSandbox"],
            id="a-failed-pod-stops-its-sidecars",
        ),
        pytest.param(
            init_pod(FIRST),
            observed(one("first", CREATED)),
            ["RemoveContainer", "StartContainer first"],
            id="one-created-and-not-started-is-made-anew",
        ),
        pytest.param(
            init_pod(FIRST, SECOND),
            observed(one("second", RUNNING)),
            [],
            id="one-that-was-removed-counts-as-done-when-a-later-one-is-there",
        ),
        pytest.param(
            init_pod(FIRST, SECOND),
            observed(one("app", RUNNING)),
            [],
            id="all-count-as-done-when-a-main-one-is-there",
        ),
        pytest.param(
            init_pod(FIRST, SECOND),
            observed(one("first", EXITED), one("second", EXITED), one("app", EXITED), sandboxes=()),
            ["CreateSandbox", "StartContainer first"],
            id="all-run-again-in-a-new-sandbox",
        ),
        pytest.param(
            init_pod(FIRST),
            observed(one("first", EXITED), one("app", EXITED), sandboxes=(a_sandbox(1), a_sandbox())),
            ["StartContainer first"],
            id="what-ran-in-the-sandbox-before-does-not-count",
        ),
        pytest.param(
            init_pod(FIRST, restart_policy=ON_FAILURE),
            observed(one("first", EXITED), one("app", EXITED), sandboxes=(a_sandbox(ready=False),)),
            [],
            id="a-finished-pod-does-not-begin-again",
        ),
        pytest.param(
            init_pod(SIDE, FIRST),
            observed(one("side", RUNNING)),
            ["StartContainer first"],
            id="what-follows-a-running-sidecar-starts",
        ),
        pytest.param(
            init_pod(PROBED_SIDE, FIRST),
            observed(one("side", RUNNING)),
            [],
            id="a-sidecar-with-a-startup-probe-is-waited-for",
        ),
        pytest.param(
            init_pod(replace(SIDE, lifecycle=HOOKED), FIRST),
            observed(one("side", RUNNING)),
            ["RunPostStart side"],
            id="a-sidecar-with-a-hook-is-waited-for",
        ),
        pytest.param(
            init_pod(SIDE, FIRST),
            observed(one("side", EXITED, code=1), one("first", RUNNING)),
            ["StartContainer side"],
            id="a-sidecar-that-ended-starts-again-and-holds-nobody-up",
        ),
        pytest.param(
            init_pod(SIDE, restart_policy=NEVER),
            observed(one("side", EXITED), one("app", RUNNING)),
            ["StartContainer side"],
            id="a-sidecar-starts-again-whatever-the-policy",
        ),
        pytest.param(
            init_pod(SIDE),
            observed(one("app", RUNNING)),
            ["StartContainer side"],
            id="a-sidecar-that-is-missing-starts-beside-the-main-one",
        ),
        pytest.param(
            init_pod(SIDE, replace(SIDE, name="other"), restart_policy=NEVER),
            observed(one("side", RUNNING), one("other", RUNNING), one("app", EXITED)),
            ["StopContainer side", "StopContainer other", "StopSandbox"],
            id="sidecars-end-with-the-main-containers",
        ),
        pytest.param(
            a_pod(a_container(lifecycle=HOOKED), a_container(name="b")),
            observed(sandboxes=()),
            ["CreateSandbox", "StartContainer app"],
            id="no-other-starts-before-a-hook",
        ),
        pytest.param(
            a_pod(a_container(lifecycle=HOOKED), a_container(name="b")),
            observed(one("app", RUNNING)),
            ["RunPostStart app"],
            id="a-hook-of-which-nobody-knows-runs-again",
        ),
        pytest.param(
            a_pod(a_container(restart_policy=NEVER), a_container(name="b")),
            observed(one("app", EXITED), one("b", EXITED)),
            ["StartContainer b"],
            id="a-containers-own-policy-comes-first",
        ),
        pytest.param(
            a_pod(ephemeral_containers=(a_container(name="debug"),)),
            observed(one("app", RUNNING)),
            ["StartContainer debug"],
            id="an-ephemeral-container-starts",
        ),
        pytest.param(
            a_pod(ephemeral_containers=(a_container(name="debug"),)),
            observed(one("app", RUNNING), one("debug", EXITED, code=1)),
            [],
            id="an-ephemeral-container-starts-once",
        ),
        pytest.param(
            a_pod(ephemeral_containers=(a_container(name="debug"),), restart_policy=NEVER),
            observed(one("app", EXITED), one("debug", RUNNING)),
            ["StopContainer debug", "StopSandbox"],
            id="an-ephemeral-container-keeps-no-pod-up",
        ),
        pytest.param(
            init_pod(FIRST, ephemeral_containers=(a_container(name="debug"),)),
            observed(one("first", RUNNING)),
            ["StartContainer debug"],
            id="an-ephemeral-container-starts-while-the-pod-initializes",
        ),
    ],
)
def test_each_situation_has_its_plan(pod: Pod, seen: ObservedPod, expected: list[str]) -> None:
    """The rules of the module, one row for each."""
    assert words(plan_pod(pod, seen, Memory(), NOW)) == expected


def test_a_sidecar_is_stopped_after_those_that_need_it() -> None:
    """The main ones first, then the last sidecar, then the first."""
    pod = init_pod(SIDE, replace(SIDE, name="other"), deletion_time=MOMENT)
    seen = observed(one("side", RUNNING), one("other", RUNNING), one("app", RUNNING))

    stops = [a for a in plan_pod(pod, seen, Memory(), NOW) if isinstance(a, plan.StopContainer)]

    assert {stop.container: stop.rank for stop in stops} == {"app": 0, "other": 1, "side": 2}


def test_an_init_container_that_fails_waits_longer_each_time() -> None:
    """As any other container."""
    pod, seen = init_pod(FIRST), observed(one("first", EXITED, 1, code=1))
    memory = plan.remember(Memory(), seen, NOW)

    (waiting,) = plan_pod(pod, seen, memory, NOW + 9)

    assert isinstance(waiting, plan.WaitUntil)
    assert (waiting.container, waiting.reason) == ("first", "CrashLoopBackOff")
    assert words(plan_pod(pod, seen, memory, NOW + 11)) == ["StartContainer first"]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        pytest.param(HookState.RUNNING, [], id="the-next-waits-while-it-runs"),
        pytest.param(HookState.DONE, ["StartContainer b"], id="the-next-starts-when-it-is-done"),
        pytest.param(
            HookState.FAILED,
            ["StopContainer app", "StartContainer b"],
            id="a-failure-ends-its-container-and-holds-nobody-up",
        ),
    ],
)
def test_main_containers_wait_for_the_hook_before_them(state: HookState, expected: list[str]) -> None:
    """As the original, which starts one after the other."""
    pod = a_pod(a_container(lifecycle=HOOKED), a_container(name="b"))
    memory = Memory(hooks={ContainerId("app-0"): state})

    assert words(plan_pod(pod, observed(one("app", RUNNING)), memory, NOW)) == expected


def test_a_probe_may_say_how_long_its_container_gets_to_end() -> None:
    """None is the pod's grace."""
    graces = []
    for seconds in (None, 1, 7):
        memory = Memory(unhealthy={ContainerId("app-0"): Ailment("its liveness probe failed", seconds)})
        (stop,) = plan_pod(a_pod(), observed(one("app", RUNNING)), memory, NOW)
        assert isinstance(stop, plan.StopContainer)
        graces.append(stop.grace_seconds)

    assert graces == [30, 1, 7]


def test_a_container_whose_image_changed_is_stopped_and_starts_again() -> None:
    """Whatever its restart policy says, and at once; one of which the hash is unknown is left alone."""
    pod = a_pod(a_container(image="app:2"), restart_policy=NEVER)
    running = replace(one("app", RUNNING), spec_hash=spec_hash(a_container(image="app:1")))
    seen = observed(running)
    memory = plan.intend(pod, seen, Memory())

    (stop,) = plan_pod(pod, seen, memory, NOW)
    ended = observed(replace(running, state=EXITED, exit_code=137))
    memory = plan.remember(memory, ended, NOW)

    assert isinstance(stop, plan.StopContainer)
    assert stop.event == "Container app definition changed, will be restarted"
    assert words(plan_pod(pod, ended, memory, NOW)) == ["StartContainer app"]
    assert words(plan_pod(pod, ended, Memory(), NOW)) == ["StopSandbox"]
    assert plan_pod(pod, observed(one("app", RUNNING)), Memory(), NOW) == ()


def test_a_pod_whose_time_is_up_stops_everything() -> None:
    """And starts nothing again."""
    memory = Memory(over=Over("DeadlineExceeded", "too long"))
    running = plan_pod(init_pod(SIDE), observed(one("side", RUNNING), one("app", RUNNING)), memory, NOW)
    ended = observed(one("side", EXITED), one("app", EXITED), sandboxes=(a_sandbox(ready=False),))

    assert words(running) == ["StopContainer side", "StopContainer app", "StopSandbox"]
    assert plan_pod(init_pod(SIDE), ended, memory, NOW) == ()


@pytest.mark.parametrize(("seconds", "left"), [(9, 1.0), (10, 0.0), (12, -2.0)])
def test_a_deadline_counts_from_the_pods_start(seconds: int, left: float) -> None:
    """And holds once it has passed."""
    pod, now = a_pod(active_deadline_seconds=10), MOMENT + timedelta(seconds=seconds)

    assert deadline.left_seconds(pod, MOMENT, now) == left
    assert (deadline.over(pod, MOMENT, now) is not None) is (left <= 0)


def test_a_pod_without_a_deadline_has_no_end() -> None:
    """Nor one that has not begun, or that is deleted anyway."""
    pod = a_pod(active_deadline_seconds=10)

    assert deadline.left_seconds(a_pod(), MOMENT, MOMENT) is None
    assert deadline.left_seconds(pod, None, MOMENT) is None
    assert deadline.left_seconds(replace(pod, deletion_time=MOMENT), MOMENT, MOMENT) is None


@pytest.mark.parametrize(
    ("rules", "code", "again"),
    [
        pytest.param((RestartRule((42,)),), 42, True, id="in"),
        pytest.param((RestartRule((42,)),), 1, False, id="not-in"),
        pytest.param((RestartRule((42,), others=True),), 1, True, id="any-other"),
        pytest.param((RestartRule((42,), others=True),), 42, False, id="not-any-other"),
        pytest.param((RestartRule((1,)), RestartRule((2,))), 2, True, id="the-second-rule"),
    ],
)
def test_a_rule_by_exit_code_restarts(rules: tuple[RestartRule, ...], code: int, *, again: bool) -> None:
    """Else the container's policy holds."""
    container = a_container(restart_policy=NEVER, restart_rules=rules)

    assert comes_back(a_pod(container), container, code) is again


class World:
    """A runtime of values for pods of every kind of container; refuses what must not happen."""

    def __init__(self, pod: Pod) -> None:
        self.spec = pod.spec
        self.pod: ObservedPod = ObservedPod(PodUid("uid-1"))
        self.memory = Memory()
        self.codes: dict[str, int] = {}
        self.starts: list[str] = []
        self.gone = False
        self._ids = 0

    def do(self, action: Action) -> None:
        """Carry out one action."""
        boxes, containers = list(self.pod.sandboxes), list(self.pod.containers)
        match action:
            case plan.CreateSandbox():
                assert all(not b.ready for b in boxes), "a second ready sandbox"
                self._ids += 1
                boxes.insert(0, replace(a_sandbox(action.attempt), id=SandboxId(f"box-{self._ids}")))
            case plan.StartContainer():
                self._judge_start(action.container)
                self._ids += 1
                self.starts.append(action.container)
                made = one(action.container, RUNNING, action.attempt)
                made = replace(made, id=ContainerId(f"c{self._ids}"), sandbox_id=boxes[0].id)
                containers.insert(0, made)
            case plan.RunPostStart():
                hooks = {**self.memory.hooks, action.id: HookState.RUNNING}
                self.memory = replace(self.memory, hooks=hooks)
            case plan.StopContainer():
                containers = [self._ended(c, 137) if c.id == action.id else c for c in containers]
            case plan.RemoveContainer():
                assert all(c.state is not RUNNING for c in containers if c.id == action.id)
                containers = [c for c in containers if c.id != action.id]
            case plan.StopSandbox():
                containers = [self._ended(c, 137) if c.sandbox_id == action.id else c for c in containers]
                boxes = [replace(b, ready=False, addresses=()) if b.id == action.id else b for b in boxes]
            case plan.RemoveSandbox():
                containers = [c for c in containers if c.sandbox_id != action.id]
                boxes = [b for b in boxes if b.id != action.id]
            case plan.Finalize():
                assert not boxes
                assert not containers
                self.gone = True
            case _:
                pass
        self._keep(boxes, containers)

    def _judge_start(self, name: str) -> None:
        box = self.pod.sandbox()
        assert box is not None
        assert box.ready, "the sandbox is not ready"
        assert not any(c.name == name and c.state is RUNNING for c in self.pod.containers), "runs twice"
        inside = [c for c in self.pod.containers if c.sandbox_id == box.id]
        done = {c.name for c in inside if c.state is EXITED and c.exit_code == 0}
        plain = [c.name for c in self.spec.init_containers if is_plain_init(self.spec, c)]
        if name in plain:
            assert name not in done, "runs again though it has succeeded"
            assert set(plain[: plain.index(name)]) <= done, "before those before it"
        elif any(c.name == name for c in self.spec.containers):
            assert set(plain) <= done, "before the init containers are done"

    def _ended(self, container: ObservedContainer, code: int) -> ObservedContainer:
        return replace(container, state=EXITED, exit_code=code) if container.state is RUNNING else container

    def _keep(self, boxes: list[ObservedSandbox], containers: list[ObservedContainer]) -> None:
        ordered = sorted(containers, key=lambda c: c.attempt, reverse=True)
        self.pod = replace(self.pod, sandboxes=tuple(boxes), containers=tuple(ordered))

    def live(self) -> bool:
        """Let what runs go on: init containers end, hooks end, startup probes succeed. Tell if any did."""
        before = (self.pod, self.memory)
        plain = {c.name for c in self.spec.init_containers if is_plain_init(self.spec, c)}
        running = [c for c in self.pod.containers if c.state is RUNNING]
        moved = [self._ended(c, self.codes.pop(c.name, 0)) if c.name in plain else c for c in running]
        rest = [c for c in self.pod.containers if c.state is not RUNNING]
        self._keep(list(self.pod.sandboxes), [*moved, *rest])
        ended = {
            k: self._hook(k) if state is HookState.RUNNING else state
            for k, state in self.memory.hooks.items()
        }
        begun = self.memory.begun | {c.id for c in running}
        self.memory = replace(self.memory, hooks=ended, begun=begun)
        return before != (self.pod, self.memory)

    def _hook(self, key: ContainerId) -> HookState:
        name = next((c.name for c in self.pod.containers if c.id == key), "")
        return HookState.FAILED if self.codes.pop(f"{name} hook", 0) else HookState.DONE

    def restart(self) -> None:
        """Forget what a new run of the kubelet does not know."""
        done = {key: state for key, state in self.memory.hooks.items() if state is HookState.DONE}
        self.memory = Memory(begun=self.memory.begun, hooks=done)

    def happen(self, event: str) -> None:
        """Let one event happen."""
        what, _, name = event.partition(" ")
        boxes, containers = list(self.pod.sandboxes), list(self.pod.containers)
        match what:
            case "crash":
                self._keep(boxes, [self._ended(c, 1) if c.name == name else c for c in containers])
            case "fail":
                self.codes[name] = 1
            case "rob":
                self._keep([], containers)
            case "lose":
                for box in boxes:
                    self.do(plan.StopSandbox(box.id, "lost"))


def settle(pod: Pod, world: World, cuts: list[int]) -> None:
    """Plan, act and live until nothing moves; plans are cut short after `cuts` actions, by a new run."""
    now = NOW
    for _ in range(200):
        world.memory = plan.remember(world.memory, world.pod, now)
        actions = plan_pod(pod, world.pod, world.memory, now)
        todo = [action for action in actions if not isinstance(action, plan.WaitUntil)]
        now = max([now, *(a.time for a in actions if isinstance(a, plan.WaitUntil))])
        if world.gone or (not actions and not world.live()):
            return
        cut = cuts.pop() if cuts and todo else None
        for action in todo[:cut]:
            world.do(action)
        if cut is not None:
            world.restart()
    raise AssertionError("the pod never settles")


WHOLE = a_pod(
    a_container(name="a", lifecycle=HOOKED),
    a_container(name="b"),
    init_containers=(
        a_container(name="i1"),
        replace(PROBED_SIDE, lifecycle=HOOKED),
        a_container(name="i2"),
        replace(SIDE, name="other"),
    ),
    ephemeral_containers=(a_container(name="debug"),),
)
EVENTS = ("crash a", "crash b", "crash side", "crash i1", "fail i1", "fail i2", "fail a hook")


@given(
    cuts=st.lists(st.integers(0, 6), max_size=10),
    events=st.lists(st.sampled_from([*EVENTS, "lose sandbox", "rob sandbox"]), max_size=4),
    policy=st.sampled_from(list(RestartPolicy)),
    delete=st.booleans(),
    settled=st.booleans(),
)
def test_a_worker_cut_short_anywhere_gets_there(
    cuts: list[int], events: list[str], policy: RestartPolicy, *, delete: bool, settled: bool
) -> None:
    """Interrupted after any action, crashed, failed, robbed of its sandbox: each pod converges, in order."""
    pod = replace(WHOLE, spec=replace(WHOLE.spec, restart_policy=policy))
    world = World(pod)
    if settled:
        settle(pod, world, cuts)
    for event in events:
        world.happen(event)
        if settled:
            settle(pod, world, cuts)
    settle(replace(pod, deletion_time=MOMENT) if delete else pod, world, cuts)

    live = {c.name for c in world.pod.containers if c.state is RUNNING}
    assert world.starts.count("debug") <= 1
    if delete:
        assert world.gone
    elif plan.finished(pod, world.pod):
        assert policy is not RestartPolicy.ALWAYS
        assert live == set()
        assert not any(box.ready for box in world.pod.sandboxes)
    else:
        assert live - {"debug"} >= {"side", "other"}
        assert awaited(pod.spec, world.pod, started(pod, world.pod, world.memory)) is None
        assert policy is NEVER or live - {"debug"} == {"side", "other", "a", "b"}
