"""Decide where each port of a service leads, with a reason for each pod. Pure.

Source: Kubernetes EndpointSlice conditions (`ready`, `serving`, `terminating`) and
KEP-1669: ready endpoints are used; when there are none, those that terminate and
still serve are, so that a last pod can be replaced without refusing anyone.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from services.proxy.core.model import Decision, Endpoint, Pod, PortDecision, Service, ServicePort

_ORDER = attrgetter("name", "uid")


def decide(service: Service, pods: Iterable[Pod]) -> Decision:
    """Decide for one service."""
    matching = sorted([pod for pod in pods if selects(service, pod)], key=_ORDER)
    return Decision(service, tuple([_decide_port(service, port, matching) for port in service.ports]))


def selects(service: Service, pod: Pod) -> bool:
    """Tell whether a pod stands behind a service. An empty selector selects nothing."""
    if service.namespace != pod.namespace or not service.selector:
        return False
    return service.selector.items() <= pod.labels.items()


def _decide_port(service: Service, port: ServicePort, pods: list[Pod]) -> PortDecision:
    endpoints = [_judge(service, port, pod) for pod in pods]
    if not any(endpoint.used for endpoint in endpoints):
        endpoints = [_last_resort(endpoint) for endpoint in endpoints]
    return PortDecision(port, tuple(endpoints))


def _judge(service: Service, port: ServicePort, pod: Pod) -> Endpoint:
    number = target_number(port, pod)
    used, reason, message = _verdict(service, pod, port, number)
    return Endpoint(
        *(pod.uid, pod.name, pod.address, number),
        *(used, pod.ready, pod.serving, pod.terminating),
        *(reason, message),
    )


def _verdict(service: Service, pod: Pod, port: ServicePort, number: int) -> tuple[bool, str, str]:
    if pod.ended:
        return False, "Ended", "its containers have ended"
    if not pod.address:
        return False, "NoAddress", "it has no address yet"
    if not number:
        return False, "NoSuchPort", f"no container port is called {port.target!r}"
    if pod.terminating:
        return False, "Terminating", "it is stopping"
    if pod.ready:
        return True, "Ready", "it is ready"
    if service.publish_not_ready:
        return True, "NotReadyPublished", "it is not ready, which the service asks to overlook"
    return False, "NotReady", "it is not ready"


def _last_resort(endpoint: Endpoint) -> Endpoint:
    if endpoint.reason != "Terminating" or not endpoint.serving:
        return endpoint
    message = "it is stopping, but still serves, and no other pod is ready"
    return endpoint._replace(used=True, reason="TerminatingServing", message=message)


def target_number(port: ServicePort, pod: Pod) -> int:
    """Resolve a target port at a pod; 0 when the pod has no port of that name."""
    if isinstance(port.target, int):
        return port.target
    named = (p.number for p in pod.ports if p.name == port.target and p.protocol is port.protocol)
    return next(named, 0)
