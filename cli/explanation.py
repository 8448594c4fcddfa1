"""`tripod explain`: why a pod fares as it does, in plain sentences. Pure but for `ask`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cli.node import DEADLINE_SECONDS, Node
from cli.output import Paint, length

_GOOD = ("Ready", "Finished")
_LOGS = ("CrashLoopBackOff", "Restarting", "LivenessFailed")


@dataclass(frozen=True, slots=True)
class Evidence:
    """An event that shows a cause."""

    reason: str
    message: str
    count: int
    last: datetime


@dataclass(frozen=True, slots=True)
class Cause:
    """One cause, as the kubelet told it."""

    scope: str
    container: str
    reason: str
    message: str
    next_step: str
    since: datetime | None = None
    next_seconds: float | None = None
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a pod fares; `now` is the node's time."""

    namespace: str
    name: str
    verdict: str
    message: str
    now: datetime
    since: datetime | None = None
    causes: tuple[Cause, ...] = ()
    trace_id: str = ""


def ask(node: Node, namespace: str, name: str) -> Explanation:
    """Ask the kubelet. The error for an unknown pod is `NOT_FOUND`."""
    from tripod.kubelet.v1 import pod_service_pb2 as pb

    request = pb.ExplainRequest(namespace=namespace, pod_name=name)
    answer = node.pods().Explain(request, timeout=DEADLINE_SECONDS)
    verdict = pb.PodVerdict.Name(answer.verdict).removeprefix("POD_VERDICT_").title().replace("_", "")
    return Explanation(
        namespace=answer.namespace,
        name=answer.pod_name,
        verdict=verdict,
        message=answer.message,
        now=_moment(answer.time),
        since=_moment(answer.since_time) if answer.HasField("since_time") else None,
        causes=tuple(_cause(cause) for cause in answer.causes),
        trace_id=answer.trace_id,
    )


def _cause(cause: Any) -> Cause:
    from tripod.kubelet.v1 import pod_service_pb2 as pb

    return Cause(
        scope=pb.CauseScope.Name(cause.scope).removeprefix("CAUSE_SCOPE_").lower(),
        container=cause.container,
        reason=cause.reason,
        message=cause.message,
        next_step=cause.next_step,
        since=_moment(cause.since_time) if cause.HasField("since_time") else None,
        next_seconds=cause.next_attempt_seconds if cause.HasField("next_attempt_seconds") else None,
        evidence=tuple(Evidence(e.reason, e.message, e.count, _moment(e.last_time)) for e in cause.evidence),
    )


def _moment(stamp: Any) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)  # type: ignore[no-any-return]  # a protobuf Timestamp


def as_text(told: Explanation, paint: Paint) -> str:
    """Write it for people."""
    mark = paint.good if told.verdict in _GOOD else paint.bad
    since = f", for {_ago(told.since, told.now)}" if told.since else ""
    what = told.message.split(": ")[0]
    lines = [mark(what) + since]
    for cause in told.causes:
        lines += ["", *_cause_lines(told, cause, paint)]
    hints = _hints(told)
    return "\n".join([*lines, "", *hints] if hints else lines)


def _cause_lines(told: Explanation, cause: Cause, paint: Paint) -> list[str]:
    place = f"container {cause.container}" if cause.container else f"the {cause.scope}"
    since = f", for {_ago(cause.since, told.now)}" if cause.since else ""
    lines = [f"  {place}: {paint.strong(cause.reason)}{since}", f"    {_capital(cause.message)}."]
    if cause.next_step:
        lines.append(f"    Next: {cause.next_step}{_when(cause)}.")
    for event in cause.evidence:
        often = f", {event.count} times" if event.count > 1 else ""
        lines.append(f"    Event: {event.reason}, {_ago(event.last, told.now)} ago{often}")
    return lines


def _when(cause: Cause) -> str:
    if cause.next_seconds is None:
        return ""
    return ", due now" if cause.next_seconds < 0.5 else f", in {length(cause.next_seconds)}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".")


def _ago(moment: datetime, now: datetime) -> str:
    return length(max(0.0, (now - moment).total_seconds()))


def _hints(told: Explanation) -> list[str]:
    """Name the commands that show more."""
    place = "" if told.namespace == "default" else f" -n {told.namespace}"
    hints = [
        f"tripod logs {told.name} -c {cause.container} --previous{place}"
        for cause in told.causes
        if cause.reason in _LOGS
    ]
    if any(cause.scope == "node" for cause in told.causes):
        hints.append("tripod doctor")
    if told.trace_id:
        hints.append(f"tripod trace pod/{told.name}{place}")
    return [f"See: {hint}" if i == 0 else f"     {hint}" for i, hint in enumerate(hints)]


def first(causes: Sequence[Cause]) -> str:
    """Write the first cause in one line, for `describe`; empty when there is none."""
    if not causes:
        return ""
    cause = causes[0]
    place = f"container {cause.container}: " if cause.container else ""
    return f"{place}{cause.reason}: {cause.message}; next: {cause.next_step}{_when(cause)}"


def as_values(told: Explanation) -> dict[str, Any]:
    """Write it for programs."""
    return {
        "namespace": told.namespace,
        "name": told.name,
        "verdict": told.verdict,
        "message": told.message,
        "since": _stamp(told.since),
        "traceId": told.trace_id,
        "causes": [
            {
                "scope": cause.scope,
                "container": cause.container,
                "reason": cause.reason,
                "message": cause.message,
                "since": _stamp(cause.since),
                "nextStep": cause.next_step,
                "nextAttemptSeconds": cause.next_seconds,
                "events": [
                    {"reason": e.reason, "message": e.message, "count": e.count, "last": _stamp(e.last)}
                    for e in cause.evidence
                ],
            }
            for cause in told.causes
        ],
    }


def _stamp(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")
