"""What a load balancer is told of this node. Pure.

- `/healthz` of the proxy: whether rules keep up, and whether the node stays (KEP-3836).
- A service's health check port: how many of its endpoints are on this node.

Source: kube-proxy `pkg/proxy/healthcheck`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from services.proxy.core.model import Decision

# Twice the original's sync period.
LATE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Pace:
    """Whether rules keep up: when they last did, and how long a change has been waiting; None for none."""

    updated: datetime | None
    waiting_seconds: float | None

    @property
    def keeps_up(self) -> bool:
        """Whether rules are written, and no change waits for too long."""
        late = self.waiting_seconds is not None and self.waiting_seconds > LATE_SECONDS
        return self.updated is not None and not late


def proxy_answer(
    pace: Pace, now: datetime, *, eligible: bool, stays_matters: bool
) -> tuple[int, dict[str, object]]:
    """Return the status and the body for `/healthz`, or `/livez`, which asks not whether the node stays."""
    healthy = pace.keeps_up and (eligible or not stays_matters)
    updated = pace.updated or datetime.fromtimestamp(0, now.tzinfo)
    if pace.keeps_up and pace.waiting_seconds is None:
        updated = now
    body: dict[str, object] = {"lastUpdated": str(updated), "currentTime": str(now)}
    if stays_matters:
        body["nodeEligible"] = eligible
    return (200 if healthy else 503), body


@dataclass(frozen=True, slots=True)
class PortHealth:
    """A service with a health check port, and how many of its endpoints here are ready."""

    namespace: str
    name: str
    count: int


def ports(decisions: Iterable[Decision]) -> dict[int, PortHealth]:
    """Return the health check ports of services."""
    return {
        decision.service.health_port: PortHealth(
            decision.service.namespace, decision.service.name, _here(decision)
        )
        for decision in decisions
        if decision.service.health_port
    }


def _here(decision: Decision) -> int:
    """Count endpoints once, however many ports they serve.

    Those that stop are not among them, though the last of them gets traffic still: a load balancer is to
    send elsewhere meanwhile (KEP-1669).
    """
    used = [e for port in decision.ports for e in port.used_here()]
    return len({(e.address, e.pod_uid) for e in used if e.ready})


def no_local_endpoints(decision: Decision) -> Iterator[str]:
    """Yield each policy by which a port of the service drops: it has endpoints, and none here."""
    service = decision.service
    for port in decision.ports:
        if port.used() and not port.used_here():
            if service.internal_local:
                yield "internal"
            if service.external_local:
                yield "external"


def port_answer(found: PortHealth, *, proxy_healthy: bool) -> tuple[int, dict[str, object]]:
    """Return the status and the body that a health check port answers with."""
    body: dict[str, object] = {
        "service": {"namespace": found.namespace, "name": found.name},
        "localEndpoints": found.count,
        "serviceProxyHealthy": proxy_healthy,
    }
    return (200 if found.count and proxy_healthy else 503), body
