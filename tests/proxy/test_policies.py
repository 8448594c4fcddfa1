"""What policies, affinity and source ranges make of a packet, in rules as values."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.proxy.core import compose, ruleset, slices, ways
from services.proxy.core.model import Protocol, Service, ServicePort
from services.proxy.core.packet import Fate, Outcome, trace
from services.proxy.core.parts import Surroundings
from services.proxy.core.ruleset import Ruleset
from services.proxy.core.slices import Here, Slice, SliceEndpoint, SlicePort
from tests.fakes.kernel import apply

NODE, VIP, POD, OUTSIDE = "192.0.2.1", "10.2.0.1", "10.1.0.7", "198.51.100.9"
BALANCER, EXTERNAL = "203.0.113.5", "203.0.113.6"
NEAR, FAR = ("10.1.0.1", 8080), ("10.1.1.1", 8080)
AROUND = Surroundings((NODE,), shared=True, pods=("10.1.0.0/16",))
WEB = Service(
    *("s", "default", "web", VIP, (ServicePort(80, 0, node_port=30080),), {}),
    external_ips=(EXTERNAL,),
    balancer_ips=(BALANCER,),
)
BOTH, NONE = frozenset({NEAR, FAR}), frozenset[tuple[str, int]]()


def rules(*services: Service, near: bool = True, far: bool = True, around: Surroundings = AROUND) -> Ruleset:
    """Build the rules of services with an endpoint here and one elsewhere."""
    endpoints = [SliceEndpoint(NEAR[0], node="a", pod_name="near")] if near else []
    endpoints += [SliceEndpoint(FAR[0], node="b", pod_name="far")] if far else []
    told = Slice("default/web-1", "default/web", (SlicePort("", Protocol.TCP, 8080),), tuple(endpoints))
    return compose.build([slices.decide(service, [told], Here("a")) for service in services], around)


def sent(made: Ruleset, source: str, destination: str, *, own: bool = False) -> Outcome:
    """Send a packet to the service's port, or its node port."""
    port = 30080 if destination == NODE else 80
    return trace(made, source=source, destination=destination, protocol="tcp", port=port, own=own)


OUTER_LOCAL, INNER_LOCAL = replace(WEB, external_local=True), replace(WEB, internal_local=True)


@pytest.mark.parametrize(
    ("service", "source", "own", "destination", "targets", "masqueraded"),
    [
        pytest.param(WEB, POD, False, VIP, BOTH, False, id="a-pod-keeps-its-address"),
        pytest.param(WEB, OUTSIDE, False, VIP, BOTH, True, id="from-outside-to-the-inside"),
        pytest.param(WEB, NODE, True, VIP, BOTH, True, id="the-node-itself"),
        pytest.param(WEB, OUTSIDE, False, NODE, BOTH, True, id="a-node-port"),
        pytest.param(WEB, POD, False, NODE, BOTH, True, id="a-pod-to-a-node-port"),
        pytest.param(WEB, OUTSIDE, False, EXTERNAL, BOTH, True, id="an-external-address"),
        pytest.param(WEB, OUTSIDE, False, BALANCER, BOTH, True, id="a-balancers-address"),
        pytest.param(OUTER_LOCAL, OUTSIDE, False, NODE, {NEAR}, False, id="local-keeps-the-client"),
        pytest.param(OUTER_LOCAL, OUTSIDE, False, BALANCER, {NEAR}, False, id="local-balancer"),
        pytest.param(OUTER_LOCAL, POD, False, NODE, BOTH, False, id="a-pod-is-not-outside"),
        pytest.param(OUTER_LOCAL, NODE, True, NODE, BOTH, True, id="nor-is-the-node"),
        pytest.param(OUTER_LOCAL, POD, False, VIP, BOTH, False, id="outer-policy-inside"),
        pytest.param(INNER_LOCAL, POD, False, VIP, {NEAR}, False, id="inner-policy"),
        pytest.param(INNER_LOCAL, OUTSIDE, False, NODE, BOTH, True, id="inner-policy-outside"),
    ],
)
@pytest.mark.parametrize("affinity_seconds", [0, 60], ids=["", "sticky"])
def test_a_packet_goes_where_the_policy_says(
    service: Service,
    source: str,
    destination: str,
    targets: frozenset[tuple[str, int]],
    affinity_seconds: int,
    *,
    own: bool,
    masqueraded: bool,
) -> None:
    """And its source is the node's, or stays."""
    made = rules(replace(service, affinity_seconds=affinity_seconds))

    outcome = sent(made, source, destination, own=own)

    assert (outcome.fate, set(outcome.targets)) == (Fate.TRANSLATED, set(targets))
    assert outcome.masqueraded == (outcome.targets if masqueraded else NONE)


@pytest.mark.parametrize(
    ("service", "near", "far", "source", "destination", "fate"),
    [
        pytest.param(OUTER_LOCAL, False, True, OUTSIDE, NODE, Fate.DROPPED, id="none-here-drops"),
        pytest.param(OUTER_LOCAL, False, True, POD, NODE, Fate.TRANSLATED, id="but-not-what-pods-send"),
        pytest.param(OUTER_LOCAL, False, False, OUTSIDE, NODE, Fate.REFUSED, id="none-anywhere-refuses"),
        pytest.param(INNER_LOCAL, False, True, POD, VIP, Fate.DROPPED, id="inside-none-here-drops"),
        pytest.param(INNER_LOCAL, False, False, POD, VIP, Fate.REFUSED, id="inside-none-anywhere-refuses"),
        pytest.param(WEB, False, True, POD, VIP, Fate.TRANSLATED, id="without-a-policy"),
    ],
)
@pytest.mark.parametrize("affinity_seconds", [0, 60], ids=["", "sticky"])
def test_without_an_endpoint_here_it_drops_and_without_any_it_refuses(
    service: Service,
    source: str,
    destination: str,
    fate: Fate,
    affinity_seconds: int,
    *,
    near: bool,
    far: bool,
) -> None:
    """A load balancer then tries another node; a client of nothing hears so at once."""
    made = rules(replace(service, affinity_seconds=affinity_seconds), near=near, far=far)

    assert sent(made, source, destination).fate is fate


def test_a_node_alone_keeps_every_clients_address() -> None:
    """All its pods answer through it, whatever the policies are."""
    service = replace(WEB, external_local=True, internal_local=True)
    made = rules(service, around=Surroundings((NODE,)))

    assert made.masquerades == {}
    assert sent(made, OUTSIDE, NODE).targets == BOTH
    assert set(made.chains) == {2}


def test_where_pods_networks_are_not_known_the_inside_keeps_its_source() -> None:
    """As the original without a way to tell pods; the outside is masqueraded all the same."""
    made = rules(WEB, around=replace(AROUND, pods=()))

    assert sent(made, OUTSIDE, VIP).masqueraded == NONE
    assert sent(made, OUTSIDE, NODE).masqueraded == BOTH


@pytest.mark.parametrize(
    ("ranges", "source", "destination", "fate"),
    [
        (("198.51.100.0/24",), OUTSIDE, BALANCER, Fate.TRANSLATED),
        (("203.0.113.0/24",), OUTSIDE, BALANCER, Fate.DROPPED),
        (("203.0.113.0/24",), OUTSIDE, NODE, Fate.TRANSLATED),
        (("203.0.113.0/24",), OUTSIDE, EXTERNAL, Fate.TRANSLATED),
        (("203.0.113.128/25",), BALANCER, BALANCER, Fate.DROPPED),
        (("192.0.2.0/24",), BALANCER, BALANCER, Fate.TRANSLATED),
    ],
)
def test_source_ranges_guard_a_balancers_address_alone(
    ranges: tuple[str, ...], source: str, destination: str, fate: Fate
) -> None:
    """Where the node is let in, the address itself is: it may be the node's own."""
    made = rules(replace(WEB, source_ranges=ranges))

    assert sent(made, source, destination).fate is fate


@pytest.mark.parametrize(
    ("ranges", "allowed"),
    [
        pytest.param(("10.0.0.0/8", "10.1.0.0/16"), {"10.0.0.0/8"}, id="a-range-in-another"),
        pytest.param(
            ("203.0.113.0/24", "192.0.2.0/24"), {"203.0.113.0/24", "192.0.2.0/24"}, id="the-address"
        ),
        pytest.param(("10.0.0.0/24", "10.0.1.0/24"), {"10.0.0.0/23"}, id="neighbours"),
    ],
)
def test_no_source_is_let_in_twice(ranges: tuple[str, ...], allowed: set[str]) -> None:
    """The kernel takes no ranges that overlap, and one service's would keep all others' rules out."""
    made = rules(replace(WEB, source_ranges=ranges))

    assert {source for *_, source in made.allowed} == allowed


def test_only_a_sticky_service_has_chains_of_its_own() -> None:
    """And each of its ports one group, whatever address leads there."""
    sticky = replace(WEB, affinity_seconds=60)
    made = rules(sticky)

    (stick,) = made.sticks
    assert (stick.timeout_seconds, stick.targets) == (60, (FAR, NEAR))
    assert set(made.services.values()) == {ways.sticky(stick.group)}
    assert made.chains == set()
    assert made.endpoints == {}


def test_services_that_come_and_go_leave_nothing_behind() -> None:
    """Each that keeps its clients has ways of its own."""
    cached = (ways.name, ways.split, ways.branch, ways.branches, ways.shared, ways.indices, ways.group)
    for number in range(ways.REMEMBERED + 100):
        sticky = replace(WEB, uid=f"s{number}", affinity_seconds=60, external_local=True)
        assert len(rules(sticky).services) == 4

    assert {function.cache_info().currsize <= ways.REMEMBERED for function in cached} == {True}


SERVICES = st.lists(
    st.builds(
        Service,
        uid=st.sampled_from(["s1", "s2", "s3"]),
        namespace=st.just("default"),
        name=st.sampled_from(["web", "api"]),
        cluster_ip=st.sampled_from([VIP, "10.2.0.2", ""]),
        ports=st.sampled_from([(ServicePort(80, 0),), (ServicePort(80, 0, node_port=30080),)]),
        selector=st.just({}),
        affinity_seconds=st.sampled_from([0, 0, 60, 90]),
        external_local=st.booleans(),
        internal_local=st.booleans(),
        external_ips=st.sampled_from([(), (EXTERNAL,)]),
        balancer_ips=st.sampled_from([(), (BALANCER,)]),
        source_ranges=st.sampled_from([(), ("192.0.2.0/24",), ("198.51.100.0/24", "203.0.113.0/24")]),
    ),
    max_size=3,
    unique_by=lambda service: (service.name, service.cluster_ip),
)


@given(SERVICES, st.booleans(), st.booleans(), SERVICES, st.booleans(), st.booleans(), st.booleans())
def test_a_change_of_any_policy_leads_to_what_it_was_made_for(
    services: list[Service],
    near: bool,  # drawn
    far: bool,  # drawn
    later: list[Service],
    later_near: bool,  # drawn
    later_far: bool,  # drawn
    alone: bool,  # drawn
) -> None:
    """Service by service as well as at once."""
    first = rules(*services, near=near, far=far)
    second = rules(*later, near=later_near, far=later_far, around=Surroundings((NODE,)) if alone else AROUND)

    begun = apply(Ruleset(), ruleset.difference(Ruleset(), first))

    assert begun == first
    assert apply(begun, ruleset.difference(first, second)) == second
