"""Which tracked flows a change of rules makes wrong. Pure.

TCP connections end by themselves. A UDP flow is kept as long as packets come, so it
would go to an endpoint that is gone for ever; and a flow that began while a service
had no endpoints would never be translated. An endpoint that still serves, but gets no
new flows since it stops or hints and policies prefer others, keeps those that it has.

Source: kube-proxy `pkg/proxy/conntrack/cleanup.go`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.proxy.core.ruleset import Place, Ruleset, Target, targets


@dataclass(frozen=True, slots=True)
class StaleFlows:
    """Flows to delete: to a place, and if `endpoint` is given only those that went there."""

    address: str
    protocol: str
    port: int
    endpoint: Target | None = None


def stale(present: Ruleset, wanted: Ruleset) -> list[StaleFlows]:
    """Return the UDP flows that are wrong after a change."""
    found: set[StaleFlows] = set()
    for place in present.services.keys() | wanted.services.keys():
        address, protocol, port = place
        if protocol != "udp":
            continue
        before, after = _targets(present, place), _targets(wanted, place)
        found |= {StaleFlows(address, protocol, port, gone) for gone in before - after}
        if after and not targets(present, place):
            found.add(StaleFlows(address, protocol, port))
    return sorted(found, key=_order)


def untranslated(rules: Ruleset) -> list[StaleFlows]:
    """Return every place: after a repair, flows that began meanwhile are not translated."""
    return [StaleFlows(*place) for place in sorted(rules.services)]


def _targets(rules: Ruleset, place: Place) -> frozenset[Target]:
    return targets(rules, place) | rules.serving.get(place, frozenset())


def _order(flow: StaleFlows) -> tuple[str, int, Target]:
    return flow.address, flow.port, flow.endpoint or ("", 0)


@dataclass(frozen=True, slots=True)
class Flow:
    """One tracked flow: where it was sent, and who answers."""

    protocol: str
    address: str
    port: int
    endpoint: Target


def misled(flows: Sequence[Flow], rules: Ruleset) -> list[StaleFlows]:
    """Return the tracked flows that go where they should not, to be forgotten."""
    found = {
        StaleFlows(flow.address, flow.protocol, flow.port, flow.endpoint) for flow in wrong(flows, rules)
    }
    return sorted(found, key=_order)


def wrong(flows: Sequence[Flow], rules: Ruleset) -> list[Flow]:
    """Return the UDP flows to our places that go where no endpoint is (any more)."""
    return [
        flow
        for flow in flows
        if flow.protocol == "udp"
        and (place := (flow.address, flow.protocol, flow.port)) in rules.services
        and flow.endpoint not in _targets(rules, place)
    ]
