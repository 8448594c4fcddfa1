"""Services and pods as they are told, and what is decided of them. Pure.

An index by namespace and label finds the pods of a service and the services of a
pod, so that a change decides anew for the services that it touches and no others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from services.proxy.core import endpoints
from services.proxy.core.model import Decision, Pod, Service
from services.proxy.core.parts import Surroundings

_Label = tuple[str, str, str]


@dataclass(slots=True)
class _Filed:
    """What is filed under a label, by UID. Not sets: a small dict takes less memory, and keeps the order."""

    services: dict[str, Service] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)


class Planner:
    """Belongs to one thread. `decisions` are as of the last `decide`."""

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}
        self.pods: dict[str, Pod] = {}
        self.decisions: dict[str, Decision] = {}
        self._by_label: defaultdict[_Label, _Filed] = defaultdict(_Filed)
        self._dirty: dict[str, None] = {}

    def put_service(self, uid: str, service: Service | None) -> None:
        """Take a service as it is now; None when it is gone."""
        before = self.services.pop(uid, None)
        if before is not None:
            for label in _first_label(before):
                del self._by_label[label].services[uid]
                self._drop_empty(label)
        if service is not None:
            self.services[uid] = service
            for label in _first_label(service):
                self._by_label[label].services[uid] = service
        self._dirty[uid] = None

    def put_pod(self, uid: str, pod: Pod | None) -> None:
        """Take a pod as it is now; None when it is gone."""
        before = self.pods.pop(uid, None)
        if before is not None:
            for label in _labels(before):
                filed = self._by_label[label]
                del filed.pods[uid]
                self._touch(filed, before)
                self._drop_empty(label)
        if pod is not None:
            self.pods[uid] = pod
            for label in _labels(pod):
                filed = self._by_label[label]
                filed.pods[uid] = pod
                self._touch(filed, pod)

    def _touch(self, filed: _Filed, pod: Pod) -> None:
        for uid, service in filed.services.items():
            if endpoints.selects(service, pod):
                self._dirty[uid] = None

    def _drop_empty(self, label: _Label) -> None:
        filed = self._by_label[label]
        if not filed.services and not filed.pods:
            del self._by_label[label]

    def retain_services(self, told: AbstractSet[str]) -> None:
        """Forget the services that a snapshot did not tell."""
        for uid in self.services.keys() - told:
            self.put_service(uid, None)

    def retain_pods(self, told: AbstractSet[str]) -> None:
        """Forget the pods that a snapshot did not tell."""
        for uid in self.pods.keys() - told:
            self.put_pod(uid, None)

    def behind(self, pod: Pod) -> Iterator[Service]:
        """Yield the services that a pod stands behind."""
        for label in _labels(pod):
            if label in self._by_label:
                for service in self._by_label[label].services.values():
                    if endpoints.selects(service, pod):
                        yield service

    def surroundings(self, addresses: Sequence[str]) -> Surroundings:
        """Return what rules need to know of this node: it is alone."""
        return Surroundings(addresses)

    def decide(self) -> Mapping[str, Decision | None]:
        """Decide for what was touched; returns what came out differently, None for a gone service."""
        dirty, self._dirty = self._dirty, {}
        changed: dict[str, Decision | None] = {}
        for uid in dirty:
            service = self.services.get(uid)
            if service is None:
                if self.decisions.pop(uid, None) is not None:
                    changed[uid] = None
                continue
            decision = endpoints.decide(service, self._candidates(service))
            if self.decisions.get(uid) != decision:
                self.decisions[uid] = changed[uid] = decision
        return changed

    def _candidates(self, service: Service) -> Iterable[Pod]:
        """Return the pods of the selector's rarest label."""
        labels = [(service.namespace, *item) for item in service.selector.items()]
        found = [self._by_label[label].pods if label in self._by_label else {} for label in labels]
        return min(found, key=len, default={}).values()


def _labels(pod: Pod) -> list[_Label]:
    return [(pod.namespace, name, value) for name, value in pod.labels.items()]


def _first_label(service: Service) -> list[_Label]:
    """Return the one label that a service is filed under; an empty selector selects nothing."""
    return [(service.namespace, *item) for item in sorted(service.selector.items())[:1]]
