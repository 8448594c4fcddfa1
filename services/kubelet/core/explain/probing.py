"""Say what a running container's probes hold against it. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from services.kubelet.core.explain.cause import Cause, Container
from services.kubelet.core.model import Probe
from services.kubelet.core.observed import ObservedContainer
from services.kubelet.core.probes import ProbeKind, ProbeReport, fatal


def startup(container: Container, latest: ObservedContainer, probe: Probe) -> Iterator[Cause]:
    """Yield why a container counts as starting still; nothing once its startup probe has succeeded."""
    report = container.report(ProbeKind.STARTUP)
    if report is None or report.state.last_outcome is None:
        if report is not None:
            yield _unprobed(container, latest, probe, report)
    elif not report.state.last_outcome:
        yield _failing(container, report)


def liveness(container: Container) -> Iterator[Cause]:
    """Yield what a failing liveness probe leads to; nothing while it succeeds."""
    report = container.report(ProbeKind.LIVENESS)
    if report is not None and report.state.last_outcome is False:
        yield _failing(container, report)


def _failing(container: Container, report: ProbeReport) -> Cause:
    """Say what a probe that can end a container leads to."""
    kind = report.kind.value
    message = f"its {kind.lower()} probe fails, {_fails(report)}"
    evidence = container.latest_event("Unhealthy")
    if fatal(report.kind, report.state, report.probe):
        own = report.probe.termination_grace_period_seconds
        grace = container.pod.spec.termination_grace_period_seconds if own is None else own
        what = f"it is stopped, with {grace} s to end, and started again as its restart policy says"
        return container.cause(f"{kind}Failed", message, what, since=report.since, evidence=evidence)
    left = report.probe.failure_threshold - report.state.run_count
    return container.cause(
        f"{kind}Failing",
        message,
        f"the probe runs again; {_more(left)} and it is stopped and started again",
        since=report.since,
        next_seconds=container.seconds_until(report.due),
        evidence=evidence,
    )


def unready(container: Container, latest: ObservedContainer, probe: Probe) -> Cause:
    """Say why the readiness probe of a running container does not make it ready."""
    report = container.report(ProbeKind.READINESS)
    if report is None or report.state.last_outcome is None:
        return _unprobed(container, latest, probe, report)
    due = container.seconds_until(report.due)
    again = "the probe runs again" if due is not None else "the probe is running now"
    if report.state.last_outcome:
        count = f"{report.state.run_count} of {probe.success_threshold}"
        message = f"its readiness probe succeeded {count} times in a row"
        return container.cause("ReadinessPending", message, again, since=report.since, next_seconds=due)
    needed = probe.success_threshold
    mends = "one success makes" if needed == 1 else f"{needed} successes in a row make"
    return container.cause(
        "ReadinessFailing",
        f"its readiness probe fails, {_fails(report)}",
        f"{again}; {mends} it ready",
        since=report.since,
        next_seconds=due,
        evidence=container.latest_event("Unhealthy"),
    )


def _unprobed(
    container: Container, latest: ObservedContainer, probe: Probe, report: ProbeReport | None
) -> Cause:
    due = container.seconds_until(report.due) if report is not None else None
    delay = probe.initial_delay_seconds
    kind = report.kind.value.lower() if report is not None else "readiness"
    message = f"it runs, and its {kind} probe has not answered yet"
    message += f" (initialDelaySeconds is {delay})" if delay else ""
    what = "the first probe is sent" if due is not None else "the first probe is under way"
    return container.cause("NotProbedYet", message, what, since=latest.started_at, next_seconds=due)


def ready(container: Container) -> Cause:
    """Say why a running container counts as ready, and whether that may end."""
    since = container.latest.started_at if container.latest else None
    report = container.report(ProbeKind.READINESS)
    if report is None:
        words = "it runs" if container.spec.readiness_probe else "it runs, and has no readiness probe"
        return container.cause("Running", words, "", since=since)
    due = container.seconds_until(report.due)
    if report.state.last_outcome is False:
        left = report.probe.failure_threshold - report.state.run_count
        message = f"it runs; its readiness probe fails, {_fails(report)}"
        what = f"the probe runs again; {_more(left)} and it is not ready"
        return container.cause("ReadinessWavering", message, what, since=report.since, next_seconds=due)
    message = "it runs, and its readiness probe succeeds"
    return container.cause("Running", message, "the probe runs again", since=since, next_seconds=due)


def _fails(report: ProbeReport) -> str:
    """Say how often, of how many that count, and what the probe said."""
    count, threshold = report.state.run_count, report.probe.failure_threshold
    often = f"{count} times" if count > threshold else f"{count} of {threshold} times"
    return f"{often} in a row: {report.message or 'it gave no reason'}"


def _more(count: int) -> str:
    return "one more failure" if count == 1 else f"{count} more failures"
