"""Deciding and composing anew only what changed gives what deciding everything gives."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.proxy.core import compose, endpoints, ruleset
from services.proxy.core.compose import Composer
from services.proxy.core.model import Pod, Protocol, Service, ServicePort
from services.proxy.core.parts import Lead, Part, Surroundings, part
from services.proxy.core.planner import Planner
from services.proxy.core.ruleset import Ruleset
from tests.fakes.kernel import apply

NODES = Surroundings(["192.0.2.1", "192.0.2.2"])
APPS = st.sampled_from(["a", "b"])


@st.composite
def a_service(draw: st.DrawFn) -> Service:
    """Draw one of four services; two may claim one address or node port."""
    uid = draw(st.sampled_from(["s1", "s2", "s3", "s4"]))
    port = ServicePort(
        draw(st.integers(80, 81)),
        8080,
        draw(st.sampled_from(Protocol)),
        node_port=draw(st.sampled_from([0, 30080])),
    )
    address = draw(st.sampled_from(["10.2.0.1", "10.2.0.2", ""]))
    selector = draw(st.sampled_from([{"app": "a"}, {"app": "b"}, {"app": "a", "tier": "x"}, {}]))
    return Service(uid, draw(st.sampled_from(["n", "m"])), uid, address, (port,), selector)


@st.composite
def a_pod(draw: st.DrawFn) -> Pod:
    """Draw one of five pods."""
    number = draw(st.integers(1, 5))
    labels = {"app": draw(APPS)} | draw(st.sampled_from([{}, {"tier": "x"}]))
    ready, stopping = draw(st.booleans()), draw(st.booleans())
    return Pod(
        f"p{number}",
        draw(st.sampled_from(["n", "m"])),
        f"pod-{number}",
        labels,
        draw(st.sampled_from([f"10.1.0.{number}", "10.1.0.9", ""])),
        ready=ready and not stopping,
        serving=ready,
        terminating=stopping,
    )


STEPS = st.lists(
    st.one_of(a_service(), a_pod(), st.sampled_from(["s1", "s2", "p1", "p2", "decide"])), max_size=25
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_any_order_of_news_leads_to_the_same_rules(steps: list[Service | Pod | str]) -> None:
    """And the change that is taken leads there from what was taken before."""
    planner, composer, kernel = Planner(), Composer(), Ruleset()

    for step in [*steps, "decide"]:
        if isinstance(step, Service):
            planner.put_service(step.uid, step)
        elif isinstance(step, Pod):
            planner.put_pod(step.uid, step)
        elif step != "decide":
            (planner.put_service if step[0] == "s" else planner.put_pod)(step, None)
        else:
            for uid, decision in planner.decide().items():
                composer.put(uid, part(decision, NODES) if decision else None)
            kernel = apply(kernel, ruleset.difference(*composer.take()))

            wanted = [
                endpoints.decide(service, planner.pods.values()) for service in planner.services.values()
            ]
            assert planner.decisions == {decision.service.uid: decision for decision in wanted}
            assert composer.rules == compose.build(wanted, NODES)
            assert kernel == composer.rules


def test_what_is_settled_is_not_taken_as_a_change() -> None:
    """After a look at the whole, only what came later is new."""
    composer = Composer()
    early, late = ("10.2.0.1", "tcp", 80), ("10.2.0.2", "tcp", 80)
    composer.put("s1", Part("10.2.0.1", {early: Lead(1, (("10.1.0.1", 8080),))}))
    composer.settle()
    composer.put("s2", Part("10.2.0.2", {late: Lead(1, (("10.1.0.2", 8080),))}))

    was, now = composer.take()

    assert was == Ruleset()
    # The chain for one endpoint was there already.
    assert now == Ruleset(
        endpoints={(*late, 0): ("10.1.0.2", 8080)},
        services={late: 1},
        addresses={"10.2.0.2"},
        hairpins={"10.1.0.2"},
    )


def test_a_pod_touches_its_own_services_only() -> None:
    """Ten thousand others are not looked at."""
    planner = Planner()
    for name in ("a", "b"):
        planner.put_service(name, Service(name, "n", name, "10.2.0.1", (ServicePort(80, 80),), {"app": name}))
    planner.decide()

    planner.put_pod("p", Pod("p", "n", "p", {"app": "a"}, "10.1.0.1", ready=True, serving=True))

    assert planner.decide().keys() == {"a"}
    assert planner.decide() == {}


def test_what_a_snapshot_does_not_tell_is_gone() -> None:
    """A watch that began anew leaves nothing behind, not even in the index."""
    planner = Planner()
    planner.put_service("s", Service("s", "n", "s", "10.2.0.1", (ServicePort(80, 80),), {"app": "a"}))
    planner.put_pod("p", Pod("p", "n", "p", {"app": "a"}, "10.1.0.1", ready=True, serving=True))
    planner.decide()

    planner.retain_pods(set())
    changed = planner.decide()["s"]
    planner.retain_services(set())

    assert changed is not None
    assert changed.ports[0].endpoints == ()
    assert planner.decide() == {"s": None}
    assert planner.decisions == {}
