"""Decide where each port of a service leads from its EndpointSlices, with a reason for each. Pure.

All slices of a service are taken together. An endpoint that two of them tell, while it moves
from one to another, is one: the readier wins. Traffic goes to ready endpoints, among them to
those that hints give to this node or its zone; where none is left, to those that stop and still
serve (KEP-1669). For traffic that must stay on this node the same is decided among those here,
without hints. Only addresses of IPv4 are known.

Source: Kubernetes `discovery.k8s.io/v1` EndpointSlice; kube-proxy `topology.go`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from services.proxy.core.model import Decision, Endpoint, PortDecision, Protocol, Service, ServicePort


class SlicePort(NamedTuple):
    """A port of a slice; `name` is that of the service's port."""

    name: str
    protocol: Protocol
    number: int


@dataclass(frozen=True, slots=True)
class SliceEndpoint:
    """One endpoint of a slice. Hints are None where there are none at all."""

    address: str
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node: str = ""
    pod_uid: str = ""
    pod_name: str = ""
    hinted_zones: frozenset[str] = frozenset()
    hinted_nodes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Slice:
    """One EndpointSlice; `trigger_ns` is when what it tells happened, 0 when it does not say."""

    key: str
    service: str
    ports: tuple[SlicePort, ...] = ()
    endpoints: tuple[SliceEndpoint, ...] = ()
    trigger_ns: int = 0


@dataclass(frozen=True, slots=True)
class Here:
    """The node that decides."""

    node: str = ""
    zone: str = ""


def decide(service: Service, slices: Iterable[Slice], here: Here) -> Decision:
    """Decide for one service."""
    listed = sorted(slices, key=lambda one: one.key)
    return Decision(service, tuple([_decide_port(port, listed, here) for port in service.ports]))


def _decide_port(port: ServicePort, slices: Sequence[Slice], here: Here) -> PortDecision:
    told: dict[tuple[str, int], SliceEndpoint] = {}
    for number, one in _told(port, slices):
        known = told.get((one.address, number))
        if known is None or _rank(one) > _rank(known):
            told[one.address, number] = one
    candidates = [(one, number) for (_, number), one in told.items()]
    everywhere = _chosen(candidates, _hinted(candidates, here))
    nearby = [candidate for candidate in candidates if candidate[0].node == here.node]
    here_too = set(_chosen(nearby, nearby))
    judged = [
        _judge(one, number, used=(one, number) in everywhere, used_here=(one, number) in here_too, here=here)
        for one, number in candidates
    ]
    return PortDecision(port, tuple(sorted(judged, key=lambda e: (e.pod_name, e.pod_uid, e.address, e.port))))


def _told(port: ServicePort, slices: Sequence[Slice]) -> Iterator[tuple[int, SliceEndpoint]]:
    for one in slices:
        for name, protocol, number in one.ports:
            if name == port.name and protocol is port.protocol:
                for endpoint in one.endpoints:
                    yield number, endpoint


def _rank(one: SliceEndpoint) -> tuple[bool, bool, bool]:
    return one.ready, one.serving, not one.terminating


_Candidate = tuple[SliceEndpoint, int]


def _chosen(candidates: Sequence[_Candidate], preferred: Sequence[_Candidate]) -> set[_Candidate]:
    """Return the ready ones of the preferred; if there are none, all that stop and still serve."""
    ready = {candidate for candidate in preferred if candidate[0].ready}
    return ready or {c for c in candidates if c[0].serving and c[0].terminating}


def _hinted(candidates: Sequence[_Candidate], here: Here) -> Sequence[_Candidate]:
    """Return those that hints give to this node, else to its zone, else all.

    Hints count only where every ready endpoint has one and one names us: else some would get no
    traffic from anywhere, or we would have no endpoint.
    """
    ready = [one for one, _ in candidates if one.ready]
    if all(one.hinted_nodes for one in ready) and any(here.node in one.hinted_nodes for one in ready):
        return [c for c in candidates if here.node in c[0].hinted_nodes]
    if all(one.hinted_zones for one in ready) and any(here.zone in one.hinted_zones for one in ready):
        return [c for c in candidates if here.zone in c[0].hinted_zones]
    return candidates


def _judge(one: SliceEndpoint, number: int, *, used: bool, used_here: bool, here: Here) -> Endpoint:
    reason, message = _reason(one, used=used)
    return Endpoint(
        *(one.pod_uid, one.pod_name, one.address, number),
        *(used, one.ready, one.serving, one.terminating),
        *(reason, message, one.node == here.node, used_here),
    )


def _reason(one: SliceEndpoint, *, used: bool) -> tuple[str, str]:
    if one.ready:
        return ("Ready", "it is ready") if used else ("HintedElsewhere", f"it is ready, but {_hint(one)}")
    if used:
        return "TerminatingServing", "it is stopping, but still serves, and no other endpoint is ready"
    return ("Terminating", "it is stopping") if one.terminating else ("NotReady", "it is not ready")


def _hint(one: SliceEndpoint) -> str:
    nodes = ", ".join(sorted(one.hinted_nodes))
    zones = ", ".join(sorted(one.hinted_zones))
    return f"its hints name {f'node {nodes}' if nodes else ''}{' and ' if nodes and zones else ''}" + (
        f"zone {zones}" if zones else ""
    )
