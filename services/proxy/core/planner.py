"""Services and pods as they are told, and what is decided of them. Pure.

An index by namespace and label finds the pods of a service and the services of a
pod, so that a change decides anew for the services that it touches and no others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet

from services.proxy.core import endpoints
from services.proxy.core.model import Decision, Pod, Service

_Label = tuple[str, str, str]


class Planner:
    """Belongs to one thread. `decisions` are as of the last `decide`."""

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}
        self.pods: dict[str, Pod] = {}
        self.decisions: dict[str, Decision] = {}
        self._services_by_label: defaultdict[_Label, set[str]] = defaultdict(set)
        self._pods_by_label: defaultdict[_Label, set[str]] = defaultdict(set)
        self._dirty: set[str] = set()

    def put_service(self, uid: str, service: Service | None) -> None:
        """Take a service as it is now; None when it is gone."""
        before = self.services.pop(uid, None)
        if before is not None:
            _unfile(self._services_by_label, _first_label(before), uid)
        if service is not None:
            self.services[uid] = service
            _file(self._services_by_label, _first_label(service), uid)
        self._dirty.add(uid)

    def put_pod(self, uid: str, pod: Pod | None) -> None:
        """Take a pod as it is now; None when it is gone."""
        before = self.pods.pop(uid, None)
        if before is not None:
            _unfile(self._pods_by_label, _labels(before), uid)
            self._dirty |= {service.uid for service in self.behind(before)}
        if pod is not None:
            self.pods[uid] = pod
            _file(self._pods_by_label, _labels(pod), uid)
            self._dirty |= {service.uid for service in self.behind(pod)}

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
            for uid in self._services_by_label.get(label, ()):
                if endpoints.selects(self.services[uid], pod):
                    yield self.services[uid]

    def decide(self) -> Mapping[str, Decision | None]:
        """Decide for what was touched; returns what came out differently, None for a gone service."""
        dirty, self._dirty = self._dirty, set()
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
        found = [self._pods_by_label.get(label, set()) for label in labels]
        return [self.pods[uid] for uid in min(found, key=len, default=set())]


def _labels(pod: Pod) -> list[_Label]:
    return [(pod.namespace, *item) for item in pod.labels.items()]


def _first_label(service: Service) -> list[_Label]:
    """Return the one label that a service is filed under; an empty selector selects nothing."""
    return [(service.namespace, *item) for item in sorted(service.selector.items())[:1]]


def _file(index: defaultdict[_Label, set[str]], labels: list[_Label], uid: str) -> None:
    for label in labels:
        index[label].add(uid)


def _unfile(index: defaultdict[_Label, set[str]], labels: list[_Label], uid: str) -> None:
    for label in labels:
        index[label].discard(uid)
        if not index[label]:
            del index[label]
