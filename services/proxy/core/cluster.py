"""Services, slices and nodes as an API server tells them, and what is decided of them. Pure.

A change decides anew for the services that it touches: a slice for its own, this node's zone
for all. Which sources count as pods comes from the setting, else from this node's own network.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, collapse_addresses

from services.proxy.core import slices
from services.proxy.core.model import Decision, Service
from services.proxy.core.parts import Surroundings
from services.proxy.core.slices import Here, Slice, SliceEndpoint


@dataclass(frozen=True, slots=True)
class Node:
    """A node; `pod_cidrs` are the IPv4 networks of its pods, `address` its InternalIP."""

    name: str
    pod_cidrs: tuple[str, ...] = ()
    address: str = ""
    zone: str = ""
    leaving: bool = False


class ClusterPlan:
    """Belongs to one thread. `decisions` are as of the last `decide`."""

    def __init__(self, node_name: str, cluster_cidrs: Sequence[str] = ()) -> None:
        self.services: dict[str, Service] = {}
        self.nodes: dict[str, Node] = {}
        self.decisions: dict[str, Decision] = {}
        self._name = node_name
        self._cluster_cidrs = _collapsed(cluster_cidrs)
        self._uids: dict[str, str] = {}
        self._slices: defaultdict[str, dict[str, Slice]] = defaultdict(dict)
        self._dirty: dict[str, None] = {}

    @property
    def here(self) -> Here:
        """Return what decisions need to know of this node."""
        own = self.nodes.get(self._name)
        return Here(self._name, own.zone if own else "")

    def put_service(self, uid: str, service: Service | None) -> None:
        """Take a service as it is now; None when it is gone."""
        before = self.services.pop(uid, None)
        if before is not None and self._uids.get(_key(before)) == uid:
            del self._uids[_key(before)]
        if service is not None:
            self.services[uid] = service
            self._uids[_key(service)] = uid
        self._dirty[uid] = None

    def put_slice(self, key: str, before: Slice | None, after: Slice | None) -> None:
        """Take a slice as it is now; None when it is gone."""
        for one, put in ((before, False), (after, True)):
            if one is None:
                continue
            of_service = self._slices[one.service]
            if put:
                of_service[key] = one
            else:
                of_service.pop(key, None)
            if not of_service:
                del self._slices[one.service]
            if one.service in self._uids:
                self._dirty[self._uids[one.service]] = None

    def put_node(self, name: str, node: Node | None) -> None:
        """Take a node as it is now; None when it is gone."""
        before = self.here
        if node is None:
            self.nodes.pop(name, None)
        else:
            self.nodes[name] = node
        if self.here != before:
            self._dirty |= dict.fromkeys(self.services)

    def behind(self, service_key: str) -> Iterator[Service]:
        """Yield the service of this NAMESPACE/NAME, if it is known."""
        uid = self._uids.get(service_key)
        if uid is not None:
            yield self.services[uid]

    def ready(self, service_key: str) -> dict[str, SliceEndpoint]:
        """Return the ready endpoints of a service that are pods, by the pod's UID."""
        told = self._slices[service_key].values() if service_key in self._slices else ()
        return {e.pod_uid: e for one in told for e in one.endpoints if e.ready and e.pod_uid}

    def surroundings(self, addresses: Sequence[str]) -> Surroundings:
        """Return what rules need to know of this node."""
        own = self.nodes.get(self._name)
        pods = self._cluster_cidrs or (_collapsed(own.pod_cidrs) if own else ())
        return Surroundings(addresses, shared=True, pods=pods)

    def decide(self) -> Mapping[str, Decision | None]:
        """Decide for what was touched; returns what came out differently, None for a gone service."""
        dirty, self._dirty = self._dirty, {}
        changed: dict[str, Decision | None] = {}
        here = self.here
        for uid in dirty:
            service = self.services.get(uid)
            if service is None:
                if self.decisions.pop(uid, None) is not None:
                    changed[uid] = None
                continue
            told = self._slices[_key(service)].values() if _key(service) in self._slices else ()
            decision = slices.decide(service, told, here)
            if self.decisions.get(uid) != decision:
                self.decisions[uid] = changed[uid] = decision
        return changed


def _key(service: Service) -> str:
    return f"{service.namespace}/{service.name}"


def _collapsed(networks: Sequence[str]) -> tuple[str, ...]:
    return tuple(map(str, collapse_addresses(map(IPv4Network, networks))))
