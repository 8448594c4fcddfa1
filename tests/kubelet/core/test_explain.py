"""Why a pod is not Ready, since when, and what is tried next: one row for each cause."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.kubelet.core import plan, probes
from services.kubelet.core.backoff import Backoff
from services.kubelet.core.events import Event
from services.kubelet.core.explain import Doing, Explanation, Facts, Failure, Scope, Verdict, Work, explain
from services.kubelet.core.explain.cause import exit_words, seconds
from services.kubelet.core.model import ContainerId, HttpGet, Pod, Probe, PullPolicy, RestartPolicy, SandboxId
from services.kubelet.core.observed import ObservedPod, RuntimeState
from services.kubelet.core.plan import Memory
from services.kubelet.core.probes import ProbeKind, ProbeReport, ProbeState
from services.kubelet.core.status import Circumstances, PodStatus, Waiting, compute_status
from tests.builders import a_container, a_pod, a_sandbox, an_instance, observed

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
MONOTONIC = 1000.0
READINESS = Probe(HttpGet(80), failure_threshold=3, success_threshold=2)
LIVENESS = Probe(HttpGet(80), failure_threshold=3)
PROBED = a_container(readiness_probe=READINESS)
RUNS = an_instance(RuntimeState.RUNNING, started_at=NOW - timedelta(seconds=60))
CRASHED = an_instance(
    RuntimeState.EXITED,
    3,
    exit_code=137,
    reason="OOMKilled",
    started_at=NOW - timedelta(seconds=15),
    finished_at=NOW - timedelta(seconds=12),
)


def ago(count: float) -> datetime:
    """Return a time before now."""
    return NOW - timedelta(seconds=count)


def status_of(pod: Pod, seen: ObservedPod, **values: Any) -> PodStatus:
    """Compute the status that the kubelet told a minute ago."""
    given: dict[str, Any] = {"readiness": {}, "waiting": {}, "host_ip": "192.0.2.1", "now": ago(60), **values}
    return compute_status(pod, seen, Circumstances(**given), None)


def why(pod: Pod, seen: ObservedPod | None, *, ready: bool = False, **values: Any) -> Explanation:
    """Explain a pod; `values` are fields of `Work` and of `Facts`."""
    of_work = {name: values.pop(name) for name in list(values) if name in Work.__dataclass_fields__}
    if seen is not None and "status" not in of_work:
        of_work["status"] = status_of(pod, seen, readiness={"app-0": ready})
    work = Work(observed=seen, **of_work)
    return explain(Facts(pod, NOW, MONOTONIC, **{"work": work, **values}))


def a_report(kind: ProbeKind, state: ProbeState, **values: Any) -> ProbeReport:
    """Make the report of the newest instance's probe, that runs again in four seconds."""
    probe = READINESS if kind is ProbeKind.READINESS else LIVENESS
    made = ProbeReport(ContainerId("app-0"), "app", kind, probe, state, since=ago(9), due=MONOTONIC + 4)
    return replace(made, **values)


def an_event(reason: str, message: str = "told", **values: Any) -> Event:
    """Make a warning of the container `app`."""
    made = Event("default", "web", "uid-1", reason, message, ago(30), ago(5), "app", True, 4)
    return replace(made, **values)


def pulling(container: str = "app") -> Doing:
    """Say that a worker pulls."""
    return Doing(plan.PullImage(container, "app:1", PullPolicy.ALWAYS, "why"), ago(7))


def failures(reason: str, message: str) -> Memory:
    """Remember a failure of `app` whose wait of 20 s has 8 s left."""
    return Memory(failures={"app": (Backoff(20.0, MONOTONIC - 12), reason, message)})


UNREADY = a_report(ProbeKind.READINESS, ProbeState(False, False, 2), message="connection refused")
CRASHES = Memory(crashes={"app": Backoff(40.0, MONOTONIC - 2)})
CREATE = plan.CreateSandbox(0, "the pod has no sandbox")
BARE = observed(sandboxes=())


@pytest.mark.parametrize(
    ("found", "reason", "words", "next_step", "next_seconds", "since"),
    [
        pytest.param(
            why(a_pod(creation_time=ago(2)), None, work=None),
            "Queued",
            "has not looked at it yet",
            "waits for a worker",
            0.0,
            ago(2),
            id="never-seen",
        ),
        pytest.param(
            why(
                a_pod(), None, failure=Failure("no answer from cri.sock", None, ago(20), 4), next_seconds=3.0
            ),
            "RuntimeNotAnswering",
            "no answer from cri.sock",
            "looks again",
            3.0,
            ago(20),
            id="the-runtime-is-down",
        ),
        pytest.param(
            why(a_pod(), BARE, doing=Doing(CREATE, ago(3))),
            "CreatingSandbox",
            "the pod has no sandbox",
            "then images are pulled",
            None,
            ago(3),
            id="the-sandbox-is-being-made",
        ),
        pytest.param(
            why(a_pod(), BARE, failure=Failure("no free address", CREATE, ago(50), 5), next_seconds=6.0),
            "FailedCreatePodSandBox",
            "failed 5 times: no free address",
            "tried again",
            6.0,
            ago(50),
            id="the-sandbox-cannot-be-made",
        ),
        pytest.param(
            why(a_pod(), observed(sandboxes=(a_sandbox(ready=False),)), next_seconds=0.5),
            "SandboxLost",
            "not ready any more",
            "a new one is made",
            0.5,
            None,
            id="the-sandbox-was-lost",
        ),
        pytest.param(
            why(a_pod(), observed(), failure=Failure("busy", plan.RemoveSandbox(SandboxId("s"), ""), ago(4))),
            "SyncFailing",
            "removing its sandbox failed once: busy",
            "tried again",
            None,
            ago(4),
            id="another-step-fails",
        ),
        pytest.param(
            why(a_pod(), observed(), doing=pulling(), events=[an_event("Pulling")]),
            "Pulling",
            "its image app:1 is being pulled",
            "then it is created",
            None,
            ago(7),
            id="a-pull-is-in-progress",
        ),
        pytest.param(
            why(
                a_pod(),
                observed(),
                memory=failures("ErrImagePull", "no such host"),
                events=[an_event("Failed")],
            ),
            "ImagePullBackOff",
            "pulling its image failed: no such host",
            "this wait is 20 s",
            8.0,
            ago(30),
            id="a-pull-failed-and-waits",
        ),
        pytest.param(
            why(a_pod(), observed(), memory=failures("ErrImageNeverPull", "not there")),
            "ErrImageNeverPull",
            "may not be pulled: not there",
            "change imagePullPolicy",
            8.0,
            None,
            id="an-image-that-may-not-be-pulled",
        ),
        pytest.param(
            why(a_pod(), observed(), memory=failures("RunContainerError", "no such program")),
            "RunContainerError",
            "starting it failed: no such program",
            "it is started again",
            8.0,
            None,
            id="a-start-failed-and-waits",
        ),
        pytest.param(
            why(a_pod(), observed(), next_seconds=0.0),
            "ContainerCreating",
            "not created yet",
            "its image is looked for",
            0.0,
            None,
            id="not-created-yet",
        ),
        pytest.param(
            why(a_pod(), observed(), doing=pulling("sidecar")),
            "ContainerCreating",
            "not created yet",
            "container sidecar comes first",
            None,
            None,
            id="another-container-comes-first",
        ),
        pytest.param(
            why(a_pod(), observed(), doing=Doing(plan.StartContainer("app", 0, "it does not exist"), ago(1))),
            "Starting",
            "being started: it does not exist",
            "then its probes run",
            None,
            ago(1),
            id="being-started",
        ),
        pytest.param(
            why(a_pod(), observed(an_instance(RuntimeState.CREATED)), next_seconds=0.0),
            "CreatedNotStarted",
            "created and not started",
            "created anew",
            0.0,
            None,
            id="created-and-not-started",
        ),
        pytest.param(
            why(a_pod(), observed(an_instance(RuntimeState.UNKNOWN)), next_seconds=9.0),
            "StateUnknown",
            "cannot tell its state",
            "looked at again",
            9.0,
            None,
            id="the-runtime-does-not-know",
        ),
        pytest.param(
            why(a_pod(), observed(CRASHED), memory=CRASHES, events=[an_event("BackOff")]),
            "CrashLoopBackOff",
            "exit code 137 (SIGKILL), OOMKilled after 3 s; it has ended 4 times",
            "this wait is 40 s",
            38.0,
            ago(12),
            id="a-crash-loop",
        ),
        pytest.param(
            why(
                a_pod(),
                observed(CRASHED),
                memory=Memory(crashes={"app": Backoff(0.0, MONOTONIC)}),
                next_seconds=0.0,
            ),
            "Restarting",
            "exit code 137 (SIGKILL)",
            "it is started again",
            0.0,
            ago(12),
            id="a-first-crash-waits-for-nothing",
        ),
        pytest.param(
            why(
                a_pod(a_container(), a_container(name="b"), restart_policy=RestartPolicy.NEVER),
                observed(CRASHED),
            ),
            "OOMKilled",
            "exit code 137",
            "restartPolicy Never does not start it again",
            None,
            ago(12),
            id="ended-while-others-go-on",
        ),
        pytest.param(
            why(a_pod(PROBED), observed(RUNS), probes=[a_report(ProbeKind.READINESS, ProbeState(False))]),
            "NotProbedYet",
            "has not answered yet",
            "the first probe is sent",
            4.0,
            ago(60),
            id="not-probed-yet",
        ),
        pytest.param(
            why(
                a_pod(PROBED),
                observed(RUNS),
                probes=[a_report(ProbeKind.READINESS, ProbeState(False), due=None)],
            ),
            "NotProbedYet",
            "has not answered yet",
            "under way",
            None,
            ago(60),
            id="the-first-probe-is-out",
        ),
        pytest.param(
            why(a_pod(PROBED), observed(RUNS), probes=[UNREADY], events=[an_event("Unhealthy")]),
            "ReadinessFailing",
            "2 of 3 times in a row: connection refused",
            "2 successes in a row make it ready",
            4.0,
            ago(9),
            id="readiness-fails",
        ),
        pytest.param(
            why(a_pod(PROBED), observed(RUNS), probes=[replace(UNREADY, state=ProbeState(False, False, 40))]),
            "ReadinessFailing",
            "40 times in a row",
            "the probe runs again",
            4.0,
            ago(9),
            id="readiness-fails-for-long",
        ),
        pytest.param(
            why(
                a_pod(PROBED),
                observed(RUNS),
                probes=[a_report(ProbeKind.READINESS, ProbeState(False, True, 1))],
            ),
            "ReadinessPending",
            "succeeded 1 of 2 times",
            "the probe runs again",
            4.0,
            ago(9),
            id="readiness-is-on-its-way",
        ),
        pytest.param(
            why(
                a_pod(a_container(liveness_probe=LIVENESS)),
                observed(RUNS),
                ready=True,
                probes=[a_report(ProbeKind.LIVENESS, ProbeState(True, False, 2), message="HTTP 500")],
            ),
            "LivenessFailing",
            "2 of 3 times in a row: HTTP 500",
            "one more failure",
            4.0,
            ago(9),
            id="liveness-is-about-to-kill",
        ),
        pytest.param(
            why(
                a_pod(replace(PROBED, liveness_probe=LIVENESS)),
                observed(RUNS),
                probes=[UNREADY, a_report(ProbeKind.LIVENESS, ProbeState(False, False, 3), due=None)],
            ),
            "LivenessFailed",
            "3 of 3 times in a row",
            "it is stopped, with 30 s to end",
            None,
            ago(9),
            id="liveness-failed",
        ),
        pytest.param(
            why(a_pod(PROBED, creation_time=ago(900)), observed(RUNS), status=None, probes=[]),
            "Adopted",
            "ran before this kubelet started",
            "first answer of its probes",
            None,
            ago(900),
            id="adopted-and-not-probed",
        ),
        pytest.param(
            why(a_pod(), observed(), store_fault="The disk of the object store is full"),
            "StoreFull",
            "disk of the object store is full",
            "free some space",
            None,
            None,
            id="the-store-is-full",
        ),
        pytest.param(
            why(a_pod(), observed(), store_fault="cannot open the file"),
            "StoreDegraded",
            "cannot open the file",
            "tried again every 5 s",
            None,
            None,
            id="the-store-is-degraded",
        ),
        pytest.param(
            why(a_pod(), observed(), disk_fault="3% of the disk is free"),
            "DiskPressure",
            "3% of the disk is free",
            "free some space",
            None,
            None,
            id="the-disk-is-full",
        ),
        pytest.param(
            why(a_pod(), observed(), manifest_fault="its file was refused: spec.image: missing"),
            "ManifestRefused",
            "spec.image: missing",
            "correct the file",
            None,
            None,
            id="the-manifest-is-refused",
        ),
        pytest.param(
            why(a_pod(), observed(), runtime_fault="NetworkReady is false: no bridge"),
            "RuntimeNotAnswering",
            "NetworkReady is false",
            "containers that run go on",
            None,
            None,
            id="the-runtime-has-a-fault",
        ),
    ],
)
def test_the_first_cause_is_the_one_to_mend(
    found: Explanation,
    reason: str,
    words: str,
    next_step: str,
    next_seconds: float | None,
    since: datetime | None,
) -> None:
    """With what is so, since when, what is tried next and when."""
    first = found.causes[0]

    assert first.reason == reason
    assert words in first.message
    assert next_step in first.next_step
    assert (first.next_seconds, first.since) == (next_seconds, since)


def test_a_cause_shows_the_event_that_proves_it() -> None:
    """The latest of its kind, with its count."""
    events = [an_event("BackOff", "old"), an_event("Pulled"), an_event("BackOff", "new")]
    found = why(a_pod(), observed(CRASHED), memory=CRASHES, events=events)

    assert [(e.message, e.count) for e in found.causes[0].evidence] == [("new", 4)]


def test_every_container_has_its_own_causes() -> None:
    """In the manifest's order, each with its name; one that is fine has none."""
    pod = a_pod(PROBED, a_container(name="good"), a_container(name="late"))
    good = replace(RUNS, id=ContainerId("good-0"), name="good")
    found = why(pod, observed(RUNS, good), probes=[UNREADY])

    assert [(c.container, c.reason, c.scope) for c in found.causes] == [
        ("app", "ReadinessFailing", Scope.CONTAINER),
        ("late", "ContainerCreating", Scope.CONTAINER),
    ]
    assert found.message == "pod/web is not Ready: container app: ReadinessFailing"


def test_a_container_that_waits_after_its_sandbox_went_is_told_before_the_sandbox() -> None:
    """Nothing is made anew until the wait is over, so the wait is the cause."""
    found = why(a_pod(), observed(CRASHED, sandboxes=(a_sandbox(ready=False),)), memory=CRASHES)

    assert [c.reason for c in found.causes] == ["CrashLoopBackOff"]


def test_a_ready_pod_tells_since_when_and_why() -> None:
    """Ready is explained, too, with what may end it."""
    pod, good = a_pod(PROBED), a_report(ProbeKind.READINESS, ProbeState(True, True, 9))
    steady = why(pod, observed(RUNS), ready=True, probes=[good])
    shaky = why(pod, observed(RUNS), ready=True, probes=[replace(UNREADY, state=ProbeState(True, False, 2))])
    plain = why(a_pod(), observed(RUNS))

    assert (steady.verdict, steady.since, steady.message) == (Verdict.READY, ago(60), "pod/web is Ready")
    assert [c.message for c in steady.causes] == ["it runs, and its readiness probe succeeds"]
    assert [c.reason for c in shaky.causes] == ["ReadinessWavering"]
    assert "one more failure and it is not ready" in shaky.causes[0].next_step
    assert [c.message for c in plain.causes] == ["it runs, and has no readiness probe"]


def test_a_finished_pod_tells_how_each_container_ended() -> None:
    """And that nothing follows."""
    pod = a_pod(a_container(), a_container(name="b"), restart_policy=RestartPolicy.NEVER)
    good = replace(CRASHED, id=ContainerId("b-0"), name="b", attempt=0, exit_code=0, reason="")
    found = why(pod, observed(CRASHED, good))

    assert found.verdict is Verdict.FINISHED
    assert [(c.container, c.reason) for c in found.causes] == [("app", "OOMKilled"), ("b", "Completed")]
    assert found.causes[0].message == "it ended with exit code 137 (SIGKILL), OOMKilled"
    assert all(c.next_step.startswith("nothing") for c in found.causes)


STOPPING = Doing(plan.StopContainer(ContainerId("app-0"), "app", 20, "deleted"), ago(5))


@pytest.mark.parametrize(
    ("seen", "values", "reason", "words", "next_seconds"),
    [
        pytest.param(
            observed(RUNS),
            {"doing": STOPPING},
            "Stopping",
            "waiting for container app to end; the grace is 20 s",
            15.0,
            id="within-the-grace",
        ),
        pytest.param(
            observed(RUNS),
            {"doing": replace(STOPPING, since=ago(25))},
            "Stopping",
            "waiting for container app",
            None,
            id="the-grace-is-over",
        ),
        pytest.param(
            observed(), {}, "RemovingSandbox", "every container has ended", None, id="only-the-sandbox"
        ),
        pytest.param(BARE, {}, "Finalizing", "nothing of it runs", None, id="nothing-but-files"),
        pytest.param(
            observed(),
            {
                "failure": Failure("busy", plan.StopSandbox(SandboxId("s"), ""), ago(8), 2),
                "next_seconds": 2.0,
            },
            "DeletionFailing",
            "stopping its sandbox failed 2 times: busy",
            2.0,
            id="a-step-fails",
        ),
    ],
)
def test_a_deleted_pod_tells_what_it_waits_for(
    seen: ObservedPod, values: dict[str, Any], reason: str, words: str, next_seconds: float | None
) -> None:
    """And how much of its grace is left."""
    pod = a_pod(deletion_time=ago(6), deletion_grace_seconds=20)
    found = why(pod, seen, **values)
    first = found.causes[0]

    assert (found.verdict, found.since) == (Verdict.DELETING, ago(6))
    assert (first.reason, first.next_seconds) == (reason, next_seconds)
    assert words in first.message


def test_a_deleted_pod_whose_runtime_is_away_says_so_first() -> None:
    """Nothing can be stopped before it answers."""
    failure = Failure("no answer", None, ago(9), 3)
    found = why(a_pod(deletion_time=ago(6)), observed(RUNS), failure=failure)

    assert [c.reason for c in found.causes] == ["RuntimeNotAnswering", "Stopping"]


def test_a_status_that_is_not_told_yet_is_no_cause_of_its_own() -> None:
    """A container without a probe is ready as soon as it runs."""
    pod = a_pod()
    before = status_of(pod, observed(), waiting={"app": Waiting("ContainerCreating")})
    found = why(pod, observed(RUNS), status=before)

    assert [c.reason for c in found.causes] == ["Starting"]


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (0, "", "exit code 0"),
        (1, "Error", "exit code 1"),
        (143, "Error", "exit code 143 (SIGTERM)"),
        (139, "Error", "exit code 139 (SIGSEGV)"),
        (255, "Error", "exit code 255"),
        (137, "OOMKilled", "exit code 137 (SIGKILL), OOMKilled"),
    ],
)
def test_an_exit_code_is_told_with_its_signal(code: int, reason: str, words: str) -> None:
    """128 and a signal's number mean that signal; other codes are the program's."""
    assert exit_words(code, reason) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.42, "0.4 s"), (12.2, "12 s"), (119, "119 s"), (185, "3 min 5 s"), (7300, "2 h")],
)
def test_a_length_of_time_is_short(value: float, words: str) -> None:
    """Two units at most."""
    assert seconds(value) == words


def test_the_state_of_a_probe_counts_as_the_prober_counts() -> None:
    """What is explained is folded by the same step that moves the verdict."""
    state = probes.initial(ProbeKind.READINESS)
    for _ in range(2):
        state = probes.step(state, False, READINESS)
    found = why(a_pod(PROBED), observed(RUNS), probes=[a_report(ProbeKind.READINESS, state)])

    assert "2 of 3 times in a row" in found.causes[0].message


STARTUP = Probe(HttpGet(80), failure_threshold=3)


@pytest.mark.parametrize(
    ("outcomes", "reason", "words"),
    [
        ([], "NotProbedYet", "its startup probe has not answered yet"),
        ([False], "StartupFailing", "its startup probe fails, 1 of 3 times in a row"),
        ([False] * 3, "StartupFailed", "its startup probe fails, 3 of 3 times in a row"),
    ],
)
def test_a_container_that_has_not_started_tells_of_its_startup_probe(
    outcomes: list[bool], reason: str, words: str
) -> None:
    """And of no other, for none runs before."""
    state = probes.initial(ProbeKind.STARTUP)
    for outcome in outcomes:
        state = probes.step(state, outcome, STARTUP)
    report = a_report(ProbeKind.STARTUP, state, probe=STARTUP)
    found = why(a_pod(replace(PROBED, startup_probe=STARTUP)), observed(RUNS), probes=[report])

    assert [cause.reason for cause in found.causes] == [reason]
    assert words in found.causes[0].message
