"""What a pod's worker decides, and that it always gets there."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kubelet.core import plan
from services.kubelet.core.backoff import Backoff, after_failure
from services.kubelet.core.model import ContainerId, Pod, PodUid, PullPolicy, RestartPolicy, SandboxId
from services.kubelet.core.observed import ObservedContainer, ObservedPod, ObservedSandbox, RuntimeState
from services.kubelet.core.plan import Action, Ailment, Memory, plan_pod
from tests.builders import a_container, a_pod, a_sandbox, an_instance, observed

NOW = 1000.0
DELETED = datetime(2026, 1, 1, tzinfo=UTC)
RUNNING, EXITED, CREATED = RuntimeState.RUNNING, RuntimeState.EXITED, RuntimeState.CREATED


def kinds(actions: tuple[Action, ...]) -> list[str]:
    """Name the actions."""
    return [type(action).__name__ for action in actions]


@pytest.mark.parametrize(
    ("pod", "seen", "expected"),
    [
        pytest.param(
            a_pod(),
            observed(sandboxes=()),
            ["CreateSandbox", "PullImage", "StartContainer"],
            id="a-new-pod-starts",
        ),
        pytest.param(a_pod(), observed(an_instance(RUNNING)), [], id="a-running-pod-is-left-alone"),
        pytest.param(
            a_pod(),
            observed(an_instance(EXITED)),
            ["PullImage", "StartContainer"],
            id="an-ended-one-starts-again",
        ),
        pytest.param(
            a_pod(restart_policy=RestartPolicy.NEVER),
            observed(an_instance(EXITED, exit_code=1)),
            ["StopSandbox"],
            id="never-means-never",
        ),
        pytest.param(
            a_pod(restart_policy=RestartPolicy.ON_FAILURE),
            observed(an_instance(EXITED)),
            ["StopSandbox"],
            id="on-failure-leaves-a-success",
        ),
        pytest.param(
            a_pod(restart_policy=RestartPolicy.ON_FAILURE),
            observed(an_instance(EXITED, exit_code=1)),
            ["PullImage", "StartContainer"],
            id="on-failure-starts-a-failure-again",
        ),
        pytest.param(
            a_pod(),
            observed(an_instance(CREATED)),
            ["RemoveContainer", "PullImage", "StartContainer"],
            id="one-created-and-not-started-is-made-anew",
        ),
        pytest.param(
            a_pod(),
            observed(an_instance(EXITED), sandboxes=(a_sandbox(ready=False),)),
            ["StopSandbox", "CreateSandbox", "PullImage", "StartContainer"],
            id="a-lost-sandbox-is-replaced",
        ),
        pytest.param(
            a_pod(deletion_time=DELETED),
            observed(an_instance(RUNNING)),
            ["StopContainer", "StopSandbox"],
            id="a-deleted-pod-stops-first-so-that-its-ends-are-told",
        ),
        pytest.param(
            a_pod(deletion_time=DELETED),
            observed(an_instance(EXITED), sandboxes=(a_sandbox(ready=False),)),
            ["RemoveSandbox", "Finalize"],
            id="a-deleted-pod-that-has-stopped-goes",
        ),
        pytest.param(
            a_pod(deletion_time=DELETED),
            observed(an_instance(EXITED), sandboxes=()),
            ["RemoveContainer", "Finalize"],
            id="a-deleted-pod-takes-along-what-lost-its-sandbox",
        ),
        pytest.param(
            a_pod(),
            observed(an_instance(RUNNING), sandboxes=()),
            ["StopContainer", "CreateSandbox", "PullImage", "StartContainer"],
            id="what-lost-its-sandbox-ends-before-it-starts-anew",
        ),
        pytest.param(
            a_pod(deletion_time=DELETED), observed(sandboxes=()), ["Finalize"], id="nothing-left-is-forgotten"
        ),
        pytest.param(
            a_pod(),
            observed(an_instance(RUNNING, 3), an_instance(EXITED, 2), an_instance(EXITED, 1)),
            ["RemoveContainer"],
            id="one-ended-instance-is-kept",
        ),
    ],
)
def test_each_situation_has_its_plan(pod: Pod, seen: ObservedPod, expected: list[str]) -> None:
    """The rules of the module, one row for each."""
    assert kinds(plan_pod(pod, seen, Memory(), NOW)) == expected


def test_a_container_whose_liveness_failed_is_stopped() -> None:
    """It starts again in the next pass, when it has ended."""
    memory = Memory(unhealthy={ContainerId("app-0"): Ailment("its liveness probe failed")})

    assert kinds(plan_pod(a_pod(), observed(an_instance(RUNNING)), memory, NOW)) == ["StopContainer"]


def test_a_crash_waits_and_says_why() -> None:
    """The first restart is at once, the second waits ten seconds."""
    seen = observed(an_instance(EXITED, 1, exit_code=1))
    memory = plan.remember(Memory(), seen, NOW)

    (waiting,) = plan_pod(a_pod(), seen, memory, NOW + 9.9)

    assert isinstance(waiting, plan.WaitUntil)
    assert (waiting.reason, waiting.time) == ("CrashLoopBackOff", NOW + 10)
    assert kinds(plan_pod(a_pod(), seen, memory, NOW + 10.1)) == ["PullImage", "StartContainer"]


def test_the_first_crash_waits_for_nothing() -> None:
    """A single end costs no time."""
    seen = observed(an_instance(EXITED, 0, exit_code=1))

    assert kinds(plan_pod(a_pod(), seen, plan.remember(Memory(), seen, NOW), NOW)) == [
        "PullImage",
        "StartContainer",
    ]


def test_the_wait_doubles_up_to_five_minutes_and_is_forgotten() -> None:
    """10 s, 20 s, ... 300 s; ten good minutes begin anew."""
    waits, backoff = [], None
    for _ in range(7):
        backoff = after_failure(backoff, NOW)
        waits.append(backoff.delay_seconds)

    assert waits == [10, 20, 40, 80, 160, 300, 300]
    assert after_failure(backoff, NOW, good_seconds=600) == Backoff(10.0, NOW)


def test_a_failed_pull_waits_and_keeps_its_reason() -> None:
    """What the registry said is told while the container waits."""
    memory = plan.failed(Memory(), "app", NOW, "ErrImagePull", "no such host")

    (waiting,) = plan_pod(a_pod(), observed(), memory, NOW + 1)

    assert isinstance(waiting, plan.WaitUntil)
    assert (waiting.reason, waiting.message) == ("ErrImagePull", "no such host")


def test_a_grace_of_zero_kills_and_others_give_two_seconds_at_least() -> None:
    """A signal needs time to arrive."""
    graces = []
    for seconds in (0, 1, 30):
        pod = a_pod(deletion_time=DELETED, deletion_grace_seconds=seconds)
        stop = plan_pod(pod, observed(an_instance(RUNNING)), Memory(), NOW)[0]
        assert isinstance(stop, plan.StopContainer)
        graces.append(stop.grace_seconds)

    assert graces == [0, 2, 30]


class World:
    """A runtime of values: does what it is told, refuses what a runtime refuses."""

    def __init__(self) -> None:
        self.pod: ObservedPod = ObservedPod(PodUid("uid-1"))
        self.gone = False
        self._ids = 0

    def do(self, action: Action) -> None:
        """Carry out one action."""
        boxes, containers = list(self.pod.sandboxes), list(self.pod.containers)
        match action:
            case plan.CreateSandbox():
                assert all(not b.ready for b in boxes), "a second ready sandbox"
                assert action.attempt not in {b.attempt for b in boxes}, "a sandbox of that name exists"
                boxes.insert(0, a_sandbox(action.attempt))
            case plan.StartContainer():
                assert boxes, "no sandbox"
                assert boxes[0].ready, "the sandbox is not ready"
                assert not any(c.name == action.container and c.state is RUNNING for c in containers), (
                    "runs twice"
                )
                self._ids += 1
                fresh = ObservedContainer(
                    ContainerId(f"c{self._ids}"), action.container, action.attempt, RUNNING, boxes[0].id
                )
                containers.insert(0, fresh)
            case plan.StopContainer():
                containers = [self._ended(c) if c.id == action.id else c for c in containers]
            case plan.RemoveContainer():
                assert all(c.state is not RUNNING for c in containers if c.id == action.id), (
                    "removes a running one"
                )
                containers = [c for c in containers if c.id != action.id]
            case plan.StopSandbox():
                containers = [self._ended(c) if c.sandbox_id == action.id else c for c in containers]
                boxes = [replace(b, ready=False, addresses=()) if b.id == action.id else b for b in boxes]
            case plan.RemoveSandbox():
                containers = [c for c in containers if c.sandbox_id != action.id]
                boxes = [b for b in boxes if b.id != action.id]
            case plan.Finalize():
                assert not boxes, "forgets a sandbox"
                assert not containers, "forgets a container"
                self.gone = True
            case _:
                pass
        self._keep(boxes, containers)

    def _ended(self, container: ObservedContainer, exit_code: int = 137) -> ObservedContainer:
        return (
            replace(container, state=EXITED, exit_code=exit_code) if container.state is RUNNING else container
        )

    def _keep(self, boxes: list[ObservedSandbox], containers: list[ObservedContainer]) -> None:
        ordered = sorted(containers, key=lambda c: c.attempt, reverse=True)
        self.pod = replace(self.pod, sandboxes=tuple(boxes), containers=tuple(ordered))

    def crash(self, name: str) -> None:
        """End a running container."""
        ended = [self._ended(c, 1) if c.name == name else c for c in self.pod.containers]
        self._keep(list(self.pod.sandboxes), ended)

    def rob_sandbox(self) -> None:
        """Remove the pause container behind our back: its pod's containers run on."""
        self._keep([], list(self.pod.containers))

    def lose_sandbox(self) -> None:
        """End the pause container, and with it the pod's network."""
        for box in self.pod.sandboxes:
            self.do(plan.StopSandbox(SandboxId(box.id), "lost"))


def settle(pod: Pod, world: World, cuts: list[int]) -> None:
    """Plan and act until nothing is left to do; the first plans are cut short after `cuts` actions."""
    memory, now = Memory(), NOW
    for _ in range(50):
        memory = plan.remember(memory, world.pod, now)
        actions = plan_pod(pod, world.pod, memory, now)
        todo = [action for action in actions if not isinstance(action, plan.WaitUntil)]
        now = max([now, *(a.time for a in actions if isinstance(a, plan.WaitUntil))])
        if not actions or world.gone:
            return
        for action in todo[: cuts.pop() if cuts else None]:
            world.do(action)
    raise AssertionError("the pod never settles")


def happen(world: World, event: str) -> None:
    """Let one of `EVENTS` happen."""
    what, _, name = event.partition(" ")
    {"crash": lambda: world.crash(name), "lose": world.lose_sandbox, "rob": world.rob_sandbox}[what]()


EVENTS = st.lists(st.sampled_from(["crash a", "crash b", "lose sandbox", "rob sandbox"]), max_size=4)


@given(
    cuts=st.lists(st.integers(0, 5), max_size=8),
    events=EVENTS,
    policy=st.sampled_from(list(RestartPolicy)),
    delete=st.booleans(),
    settled=st.booleans(),
)
def test_a_worker_cut_short_anywhere_gets_there(
    cuts: list[int], events: list[str], policy: RestartPolicy, *, delete: bool, settled: bool
) -> None:
    """Interrupted after any action, crashed, robbed of its sandbox: the pod converges."""
    pod = a_pod(a_container(name="a"), a_container(name="b"), restart_policy=policy)
    world = World()
    settle(pod, world, cuts)
    for event in events:
        happen(world, event)
        if settled:
            settle(pod, world, cuts)
    settle(replace(pod, deletion_time=DELETED) if delete else pod, world, cuts)

    if delete:
        assert world.gone
    elif policy is RestartPolicy.ALWAYS:
        running = {c.name for c in world.pod.containers if c.state is RUNNING}
        assert running == {"a", "b"}
        assert len([b for b in world.pod.sandboxes if b.ready]) == 1


def test_the_pull_policy_is_passed_on() -> None:
    """Whether to pull is decided where the image is looked for."""
    pod = a_pod(a_container(image_pull_policy=PullPolicy.NEVER))

    pull = plan_pod(pod, observed(), Memory(), NOW)[0]

    assert isinstance(pull, plan.PullImage)
    assert pull.policy is PullPolicy.NEVER


def test_a_long_run_forgets_the_crashes_before() -> None:
    """Ten good minutes are no crash loop."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    memory = Memory(crashes={"app": Backoff(160.0, 0.0)})
    seen = observed(an_instance(EXITED, 5, started_at=start, finished_at=start + timedelta(minutes=11)))

    assert plan.remember(memory, seen, NOW).crashes["app"] == Backoff(10.0, NOW)
