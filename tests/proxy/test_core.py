"""Where services lead, why, and what the kernel is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.proxy.core import compose, conntrack, endpoints, ruleset
from services.proxy.core.model import ContainerPort, Decision, Pod, Protocol, Service, ServicePort
from services.proxy.core.packet import Fate, trace
from services.proxy.core.parts import Surroundings
from services.proxy.core.ruleset import Ruleset
from tests.fakes.kernel import apply

NODE = "192.0.2.1"


def a_pod(number: int = 1, **values: object) -> Pod:
    """Make a ready pod."""
    base = Pod(
        f"u{number}", "default", f"web-{number}", {"app": "web"}, f"10.1.0.{number}", ready=True, serving=True
    )
    return replace(base, **values)  # type: ignore[arg-type]


def a_service(*ports: ServicePort, **values: object) -> Service:
    """Make a service."""
    base = Service("s", "default", "web", "10.2.0.1", ports or (ServicePort(80, 8080),), {"app": "web"})
    return replace(base, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pod", "reason", "used"),
    [
        (a_pod(), "Ready", True),
        (a_pod(ready=False), "NotReady", False),
        (a_pod(address=""), "NoAddress", False),
        (a_pod(ended=True), "Ended", False),
        (a_pod(ready=False, terminating=True, serving=False), "Terminating", False),
        (a_pod(ready=False, terminating=True), "TerminatingServing", True),
    ],
)
def test_each_pod_is_used_or_not_for_a_reason(pod: Pod, reason: str, *, used: bool) -> None:
    """A person can ask why."""
    (port,) = endpoints.decide(a_service(), [pod]).ports

    assert [(e.reason, e.used) for e in port.endpoints] == [(reason, used)]


def test_a_stopping_pod_serves_only_while_no_other_is_ready() -> None:
    """The last resort of KEP-1669."""
    stopping = a_pod(1, ready=False, terminating=True)

    (port,) = endpoints.decide(a_service(), [stopping, a_pod(2)]).ports

    assert [e.pod_name for e in port.used()] == ["web-2"]


@pytest.mark.parametrize(
    ("selector", "namespace", "selected"),
    [
        ({"app": "web"}, "default", True),
        ({"app": "x"}, "default", False),
        ({}, "default", False),
        ({"app": "web"}, "o", False),
    ],
)
def test_a_selector_selects(selector: dict[str, str], namespace: str, *, selected: bool) -> None:
    """All labels, one namespace; empty selects nothing."""
    assert endpoints.selects(a_service(selector=selector), a_pod(namespace=namespace)) is selected


def test_a_named_port_is_looked_up_at_each_pod() -> None:
    """Pods of two versions may listen on two ports."""
    service = a_service(ServicePort(80, "http"))
    pods = [
        a_pod(1, ports=(ContainerPort(8080, "http"),)),
        a_pod(2, ports=(ContainerPort(9090, "http"), ContainerPort(53, "http", Protocol.UDP))),
        a_pod(3),
    ]

    (port,) = endpoints.decide(service, pods).ports

    assert [(e.port, e.reason) for e in port.endpoints] == [
        (8080, "Ready"),
        (9090, "Ready"),
        (0, "NoSuchPort"),
    ]


def rules(*services: Service, pods: list[Pod]) -> Ruleset:
    """Decide and build."""
    return compose.build([endpoints.decide(service, pods) for service in services], Surroundings([NODE]))


PODS = [a_pod(1), a_pod(2), a_pod(3)]
ALL = {(f"10.1.0.{i}", 8080) for i in (1, 2, 3)}


@pytest.mark.parametrize(
    ("destination", "protocol", "port", "fate", "targets"),
    [
        ("10.2.0.1", "tcp", 80, Fate.TRANSLATED, ALL),
        (NODE, "tcp", 30080, Fate.TRANSLATED, ALL),
        ("10.2.0.1", "tcp", 81, Fate.REFUSED, set()),
        ("10.2.0.1", "udp", 80, Fate.REFUSED, set()),
        (NODE, "tcp", 80, Fate.PASSED, set()),
        ("198.51.100.1", "tcp", 80, Fate.PASSED, set()),
    ],
)
def test_a_packet_goes_where_the_service_says(
    destination: str, protocol: str, port: int, fate: Fate, targets: set[tuple[str, int]]
) -> None:
    """Cluster address, node port, and what is neither."""
    made = rules(a_service(ServicePort(80, 8080, node_port=30080)), pods=PODS)

    outcome = trace(made, source="10.1.0.9", destination=destination, protocol=protocol, port=port)

    assert (outcome.fate, set(outcome.targets)) == (fate, targets)


def test_a_service_without_endpoints_refuses_at_once() -> None:
    """A refusal is quicker than a time-out, and says more."""
    made = rules(a_service(ServicePort(80, 8080, node_port=30080)), pods=[])

    for address, port in (("10.2.0.1", 80), (NODE, 30080)):
        assert trace(made, source="x", destination=address, protocol="tcp", port=port).fate is Fate.REFUSED


def test_a_pod_that_reaches_itself_sees_another_source() -> None:
    """Or its answer would never leave it."""
    outcome = trace(
        rules(a_service(), pods=PODS), source="10.1.0.2", destination="10.2.0.1", protocol="tcp", port=80
    )

    assert outcome.masqueraded == {("10.1.0.2", 8080)}


def test_headless_services_have_no_rules() -> None:
    """There is no address to lead from."""
    assert rules(a_service(cluster_ip=""), pods=PODS) == Ruleset()


SERVICES = st.lists(
    st.tuples(st.integers(1, 4), st.integers(80, 82), st.sampled_from(Protocol), st.booleans()),
    max_size=4,
    unique_by=lambda s: s[0],
)
SUBSETS = st.lists(st.integers(1, 5), unique=True, max_size=5)


def built(services: list[tuple[int, int, Protocol, bool]], numbers: list[int]) -> Ruleset:
    """Build the rules of some services over some pods."""
    made = [
        a_service(
            ServicePort(port, 8080, protocol, node_port=30000 + address if node else 0),
            uid=f"s{address}",
            cluster_ip=f"10.2.0.{address}",
        )
        for address, port, protocol, node in services
    ]
    return rules(*made, pods=[a_pod(number) for number in numbers])


@given(SERVICES, SUBSETS, SERVICES, SUBSETS)
def test_a_change_leads_to_what_it_was_made_for(
    services: list[tuple[int, int, Protocol, bool]],
    numbers: list[int],
    later_services: list[tuple[int, int, Protocol, bool]],
    later_numbers: list[int],
) -> None:
    """Whatever changes, nothing is refused and nothing is left behind; equal rules change nothing."""
    first, second = built(services, numbers), built(later_services, later_numbers)

    begun = apply(Ruleset(), ruleset.difference(Ruleset(), first))

    assert begun == first
    assert apply(begun, ruleset.difference(first, second)) == second
    assert not ruleset.difference(second, second)


def test_the_number_of_chains_is_that_of_counts() -> None:
    """A thousand services with three pods share one chain."""
    many = [a_service(uid=f"s{i}", cluster_ip=f"10.2.{i // 250}.{i % 250 + 1}") for i in range(1000)]

    assert rules(*many, pods=PODS).chains == {3}


def test_udp_flows_to_a_gone_endpoint_are_forgotten() -> None:
    """TCP ends by itself."""
    service = a_service(ServicePort(53, 53, Protocol.UDP), ServicePort(80, 80))
    before, after = rules(service, pods=PODS), rules(service, pods=PODS[:2])

    assert conntrack.stale(before, after) == [stale_at("10.1.0.3", 53)]
    assert conntrack.stale(rules(service, pods=[]), after) == [conntrack.StaleFlows("10.2.0.1", "udp", 53)]


def stale_at(address: str, port: int) -> conntrack.StaleFlows:
    """Make the flows to an endpoint of a UDP service."""
    return conntrack.StaleFlows("10.2.0.1", "udp", 53, (address, port))


def test_udp_flows_to_another_port_of_the_same_endpoints_are_forgotten() -> None:
    """The service's target port was changed; nobody listens at the old one."""
    before = rules(a_service(ServicePort(53, 53, Protocol.UDP)), pods=PODS[:1])
    after = rules(a_service(ServicePort(53, 5353, Protocol.UDP)), pods=PODS[:1])
    flow = conntrack.Flow("udp", "10.2.0.1", 53, ("10.1.0.1", 53))

    assert conntrack.stale(before, after) == [stale_at("10.1.0.1", 53)]
    assert conntrack.misled([flow], after) == [stale_at("10.1.0.1", 53)]


def test_udp_flows_to_an_endpoint_that_stops_stay_until_it_serves_no_more() -> None:
    """A server that drains still answers those who were with it."""
    service = a_service(ServicePort(53, 53, Protocol.UDP))
    stopping = replace(PODS[0], ready=False, terminating=True)
    before, during, after = (
        rules(service, pods=[first, PODS[1]])
        for first in (PODS[0], replace(stopping, serving=True), replace(stopping, serving=False))
    )
    flow = conntrack.Flow("udp", "10.2.0.1", 53, ("10.1.0.1", 53))

    assert conntrack.stale(before, during) == conntrack.misled([flow], during) == []
    assert conntrack.stale(during, after) == conntrack.misled([flow], after) == [stale_at("10.1.0.1", 53)]


def test_a_decision_is_of_its_service() -> None:
    """The value carries all that a reader needs."""
    decision = endpoints.decide(a_service(), PODS)

    assert isinstance(decision, Decision)
    assert decision.service.name == "web"
