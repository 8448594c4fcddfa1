"""Where services lead by their EndpointSlices, and why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.proxy.core import health, slices
from services.proxy.core.model import PortDecision, Protocol, Service, ServicePort
from services.proxy.core.slices import Here, Slice, SliceEndpoint, SlicePort

HERE = Here("node-a", "zone-a")
HTTP = ServicePort(80, 0, name="http")
WEB = Service("s", "default", "web", "10.2.0.1", (HTTP,), {})
PORT = SlicePort("http", Protocol.TCP, 8080)


def an_endpoint(number: int = 1, **values: object) -> SliceEndpoint:
    """Make a ready endpoint of another node."""
    base = SliceEndpoint(f"10.1.0.{number}", node="node-b", pod_uid=f"u{number}", pod_name=f"web-{number}")
    return replace(base, **values)  # type: ignore[arg-type]


STOPPING = {"ready": False, "serving": True, "terminating": True}
STOPPED = {"ready": False, "serving": False, "terminating": True}
UNREADY = {"ready": False, "serving": False}
NEAR = {"node": "node-a"}


def a_slice(*endpoints: SliceEndpoint, name: str = "web-1", ports: tuple[SlicePort, ...] = (PORT,)) -> Slice:
    """Make a slice of the service."""
    return Slice(f"default/{name}", "default/web", ports, endpoints)


def decided(*told: Slice, service: Service = WEB, here: Here = HERE) -> PortDecision:
    """Decide for the service's only port."""
    (port,) = slices.decide(service, told, here).ports
    return port


def used(port: PortDecision) -> list[str]:
    """Return the pods that get traffic."""
    return [endpoint.pod_name for endpoint in port.used()]


@pytest.mark.parametrize(
    ("values", "reason", "is_used"),
    [
        pytest.param({}, "Ready", True, id="ready"),
        pytest.param(UNREADY, "NotReady", False, id="not-ready"),
        pytest.param(STOPPED, "Terminating", False, id="stops-and-serves-no-more"),
        pytest.param(STOPPING, "TerminatingServing", True, id="the-last-one-stops-and-still-serves"),
        pytest.param({"ready": True, "terminating": True}, "Ready", True, id="published-though-it-stops"),
    ],
)
def test_each_endpoint_is_used_or_not_for_a_reason(
    values: dict[str, object], reason: str, *, is_used: bool
) -> None:
    """A person can ask why."""
    (endpoint,) = decided(a_slice(an_endpoint(1, **values))).endpoints

    assert (reason, is_used) == (endpoint.reason, endpoint.used)


def test_a_stopping_endpoint_serves_only_while_none_is_ready() -> None:
    """KEP-1669: ready ones first."""
    port = decided(a_slice(an_endpoint(1, **STOPPING), an_endpoint(2)))

    assert used(port) == ["web-2"]
    assert [endpoint.reason for endpoint in port.endpoints] == ["Terminating", "Ready"]


def test_slices_of_one_service_are_one_list_and_each_address_is_in_it_once() -> None:
    """While an endpoint moves between slices both tell of it; the readier one is believed."""
    port = decided(
        a_slice(an_endpoint(1, **UNREADY), an_endpoint(2), name="old"),
        a_slice(an_endpoint(1), an_endpoint(2, **UNREADY), an_endpoint(3), name="new"),
    )

    assert used(port) == ["web-1", "web-2", "web-3"]
    assert len(port.endpoints) == 3


def test_a_port_is_that_of_the_slice_with_its_name_and_protocol() -> None:
    """Two versions of a pod may listen on two numbers, each in a slice of its own."""
    service = replace(WEB, ports=(HTTP, ServicePort(53, 0, Protocol.UDP, "http")))
    old = a_slice(an_endpoint(1), name="old")
    new = a_slice(
        an_endpoint(2),
        name="new",
        ports=(SlicePort("http", Protocol.TCP, 9090), SlicePort("http", Protocol.UDP, 53)),
    )

    first, second = slices.decide(service, [old, new], HERE).ports

    assert [(e.pod_name, e.port) for e in first.endpoints] == [("web-1", 8080), ("web-2", 9090)]
    assert [(e.pod_name, e.port) for e in second.endpoints] == [("web-2", 53)]


@pytest.mark.parametrize(
    ("endpoints", "everywhere", "here"),
    [
        pytest.param([an_endpoint(1), an_endpoint(2, **NEAR)], [1, 2], [2], id="the-one-that-is-here"),
        pytest.param([an_endpoint(1)], [1], [], id="none-is-here"),
        pytest.param(
            [an_endpoint(1), an_endpoint(2, **NEAR, **STOPPING)], [1], [2], id="here-the-last-stops"
        ),
        pytest.param([an_endpoint(1, **NEAR, **UNREADY)], [], [], id="here-but-not-ready"),
    ],
)
def test_what_must_stay_here_is_decided_of_its_own(
    endpoints: list[SliceEndpoint], everywhere: list[int], here: list[int]
) -> None:
    """The last resort of one is not that of the other."""
    port = decided(a_slice(*endpoints))

    assert used(port) == [f"web-{number}" for number in everywhere]
    assert [endpoint.pod_name for endpoint in port.used_here()] == [f"web-{number}" for number in here]


ZONE_A, ZONE_B = frozenset({"zone-a"}), frozenset({"zone-b"})
NODE_A, NODE_B = frozenset({"node-a"}), frozenset({"node-b"})


@pytest.mark.parametrize(
    ("endpoints", "expected"),
    [
        pytest.param(
            [an_endpoint(1, hinted_zones=ZONE_A), an_endpoint(2, hinted_zones=ZONE_B)], [1], id="our-zone"
        ),
        pytest.param([an_endpoint(1, hinted_zones=ZONE_A), an_endpoint(2)], [1, 2], id="one-has-no-hint"),
        pytest.param([an_endpoint(1, hinted_zones=ZONE_B)], [1], id="none-names-us"),
        pytest.param(
            [
                an_endpoint(1, hinted_zones=ZONE_A, hinted_nodes=NODE_B),
                an_endpoint(2, hinted_zones=ZONE_A, hinted_nodes=NODE_A),
            ],
            [2],
            id="our-node-before-our-zone",
        ),
        pytest.param(
            [an_endpoint(1, hinted_zones=ZONE_A), an_endpoint(2, **UNREADY)],
            [1],
            id="unready-ones-do-not-count",
        ),
        pytest.param(
            [an_endpoint(1, hinted_zones=ZONE_A, **STOPPING), an_endpoint(2, hinted_zones=ZONE_B)],
            [2],
            id="no-fallback-when-others-are-ready",
        ),
    ],
)
def test_hints_choose_among_the_ready(endpoints: list[SliceEndpoint], expected: list[int]) -> None:
    """Only where all have one and one names us: traffic is never lost for a hint."""
    assert used(decided(a_slice(*endpoints))) == [f"web-{number}" for number in expected]


def test_a_hint_that_excludes_is_told() -> None:
    """The endpoint is ready and gets nothing from here."""
    port = decided(a_slice(an_endpoint(1, hinted_zones=ZONE_A), an_endpoint(2, hinted_zones=ZONE_B)))

    assert (port.endpoints[1].reason, port.endpoints[1].message) == (
        "HintedElsewhere",
        "it is ready, but its hints name zone zone-b",
    )


@pytest.mark.parametrize(
    ("endpoints", "count"),
    [
        pytest.param([an_endpoint(1, **NEAR), an_endpoint(2, **NEAR), an_endpoint(3)], 2, id="those-here"),
        pytest.param([an_endpoint(1, **NEAR), an_endpoint(2, **NEAR, **STOPPING)], 1, id="one-stops"),
        pytest.param([an_endpoint(1, **NEAR, **STOPPING)], 0, id="the-last-stops-and-still-serves"),
        pytest.param([an_endpoint(1, **NEAR, **STOPPING), an_endpoint(2)], 0, id="others-are-elsewhere"),
    ],
)
def test_a_load_balancer_is_told_of_ready_endpoints_alone(endpoints: list[SliceEndpoint], count: int) -> None:
    """It sends elsewhere while the last one here stops, which serves what comes until then."""
    balanced = replace(WEB, external_local=True, health_port=32000)
    decision = slices.decide(balanced, [a_slice(*endpoints)], HERE)

    assert health.ports([decision])[32000].count == count
    assert len(decision.ports[0].used_here()) >= count
