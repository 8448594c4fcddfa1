"""Messages for the kernel, without a kernel."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Iterable
from dataclasses import replace
from socket import inet_ntoa

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tripod.kubelet.v1 import object_service_pb2 as object_pb
from tripod.kubelet.v1 import pod_service_pb2 as pod_pb

from services.proxy.adapters import conntrack, kubelet_client, nfelements, nfmessages
from services.proxy.adapters.nfframe import SETS
from services.proxy.adapters.nfsocket import InterruptedDumpError
from services.proxy.adapters.nftables import changing
from services.proxy.core.conntrack import StaleFlows
from services.proxy.core.ruleset import Change, Ruleset
from services.proxy.errors import KernelRefusedError

ADDRESSES = st.integers(0, 2**32 - 1).map(lambda number: inet_ntoa(number.to_bytes(4, "big")))
PORTS = st.integers(1, 65535)
PLACES = st.tuples(ADDRESSES, st.sampled_from(["tcp", "udp"]), PORTS)
RULES = st.builds(
    Ruleset,
    endpoints=st.dictionaries(
        st.tuples(ADDRESSES, st.sampled_from(["tcp", "udp"]), PORTS, st.integers(0, 300)),
        st.tuples(ADDRESSES, PORTS),
        max_size=3,
    ),
    services=st.dictionaries(PLACES, st.integers(1, 12345), max_size=3),
    refused=st.frozensets(PLACES, max_size=3),
    addresses=st.frozensets(ADDRESSES, max_size=3),
    hairpins=st.frozensets(ADDRESSES, max_size=3),
)


def lists(messages: list[bytes]) -> dict[str, list[bytes]]:
    """Return the lists of elements by set, as the kernel would dump them."""
    found: dict[str, list[bytes]] = {name: [] for name in SETS}
    for message in nfmessages.messages(b"".join(messages)):
        inner = nfmessages.attributes(message.body)
        found[nfmessages.as_text(inner[2])].append(inner[3])
    return found


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(RULES)
def test_elements_are_read_as_they_were_written(rules: Ruleset) -> None:
    """Both directions of the encoding."""
    assert nfelements.read(lists(list(nfelements.added("t", rules))), []) == rules


def test_no_attribute_is_longer_than_its_length_can_say() -> None:
    """Tens of thousands of elements are spread over messages, and none is lost."""
    many = Ruleset({(f"10.2.{i // 250}.{i % 250}", "tcp", 80, 0): ("10.1.0.1", 80) for i in range(5000)})

    messages = list(nfelements.added("t", many))

    assert max(map(len, messages)) < 65_536
    assert nfelements.read(lists(messages), []) == many


@pytest.mark.parametrize("name", list(SETS))
def test_an_element_with_something_foreign_is_no_element_of_ours(name: str) -> None:
    """Such as a time-out that others gave it."""
    key = nfmessages.nested(1, nfmessages.attribute(1, bytes(SETS[name].key_length)))
    foreign = nfmessages.nested(1, key + nfmessages.attribute(4, bytes(8)))
    found = {other: [foreign] if other == name else [] for other in SETS}

    with pytest.raises(ValueError, match=name):
        nfelements.read(found, [])


def test_no_change_is_no_message() -> None:
    """The kernel is not troubled for nothing."""
    assert changing("t", Change(Ruleset(), Ruleset())) == []


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_torn_messages_do_no_harm(data: bytes) -> None:
    """Whatever comes from the socket, reading ends."""
    for message in nfmessages.messages(data):
        nfmessages.attributes(message.body)


def side(source: bytes, destination: bytes, ports: tuple[int, int]) -> bytes:
    """Encode one direction of a UDP flow."""
    addresses = nfmessages.nested(1, nfmessages.attribute(1, source), nfmessages.attribute(2, destination))
    numbers = (
        nfmessages.attribute(kind, port.to_bytes(2, "big")) for kind, port in zip((2, 3), ports, strict=True)
    )
    return addresses + nfmessages.nested(2, nfmessages.attribute(1, b"\x11"), *numbers)


def tracked(port: int) -> tuple[bytes, bytes]:
    """Encode a flow that a pod sent from a port, as the kernel tells it and as it is known by."""
    original = nfmessages.nested(1, side(bytes([10, 1, 0, 9]), bytes([10, 2, 0, 1]), (port, 53)))
    reply = nfmessages.nested(2, side(bytes([10, 1, 0, 3]), bytes([10, 1, 0, 9]), (5353, port)))
    identity = nfmessages.attribute(12, b"\0\0\0\7")
    return original + reply + identity, original + identity


def test_a_flow_is_known_by_the_kernels_own_words() -> None:
    """Its tuple and its number go back as they came."""
    body, known_by = tracked(4000)

    found = conntrack.read(body)

    assert found is not None
    assert (found.flow.protocol, found.flow.address, found.flow.port) == ("udp", "10.2.0.1", 53)
    assert found.flow.endpoint == ("10.1.0.3", 5353)
    assert found.known_by == known_by
    assert conntrack.read(b"") is None


class TrackingKernel:
    """A kernel with two flows, whose first list is interrupted and which holds on to the first flow."""

    def __init__(self) -> None:
        self.interruptions = 1
        self.deletions: list[bytes] = []

    def ask(self, request: bytes) -> list[nfmessages.Message]:
        """List flows, or delete one."""
        return list(self.each(request))

    def each(self, request: bytes) -> Iterable[nfmessages.Message]:
        """Do so."""
        (asked,) = nfmessages.messages(request)
        if asked.flags & nfmessages.DUMP != nfmessages.DUMP:
            self.deletions.append(request)
            if len(self.deletions) == 1:
                raise KernelRefusedError("EBUSY")
            return []
        if self.interruptions:
            self.interruptions -= 1
            raise InterruptedDumpError
        return [replace(asked, body=tracked(port)[0]) for port in (4000, 4001)]

    def close(self) -> None:
        """Nothing to close."""


class BusyKernel:
    """A kernel with many TCP flows and one of UDP."""

    def ask(self, request: bytes) -> list[nfmessages.Message]:
        """List all of them at once."""
        return list(self.each(request))

    def each(self, request: bytes) -> Iterable[nfmessages.Message]:
        """List one after the other."""
        (asked,) = nfmessages.messages(request)
        for port in range(1024, 9024):
            body, _ = tracked(port)
            yield replace(asked, body=body if port == 1024 else body.replace(b"\x11", b"\x06"))

    def close(self) -> None:
        """Nothing to close."""


def test_all_flows_of_a_busy_node_are_never_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked at twice a minute, and nearly all are none of ours."""
    monkeypatch.setattr(conntrack, "NetlinkSocket", BusyKernel)
    tracemalloc.start()
    try:
        flows = asyncio.run(conntrack.ConntrackFlows().udp())
        asyncio.run(conntrack.ConntrackFlows().delete([StaleFlows("10.2.0.1", "udp", 9, ("10.1.0.3", 9))]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert [flow.endpoint for flow in flows] == [("10.1.0.3", 5353)]
    assert peak < 1 << 20


def test_a_flow_that_stays_keeps_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a list that is interrupted, which is asked for again."""
    kernel = TrackingKernel()
    monkeypatch.setattr(conntrack, "NetlinkSocket", lambda: kernel)

    flows = [StaleFlows("10.2.0.1", "udp", 53, ("10.1.0.3", 5353))]
    asyncio.run(conntrack.ConntrackFlows().delete(flows))

    assert len(kernel.deletions) == 2


@pytest.mark.parametrize(
    ("addresses", "taken"),
    [
        (["10.1.0.1"], "10.1.0.1"),
        (["fd00::1", "10.1.0.1"], "10.1.0.1"),
        (["fd00::1"], ""),
        (["10.1"], ""),
        ([], ""),
    ],
)
def test_only_an_ipv4_address_comes_into_the_rules(addresses: list[str], taken: str) -> None:
    """One pod or service with another would have every rule refused."""
    pod = kubelet_client.pod_value(pod_pb.Pod(uid="u", pod_ips=addresses))
    service = kubelet_client.service_value(object_pb.Service(uid="u", cluster_ip=(addresses or [""])[-1]))

    assert pod.address == taken
    assert service.cluster_ip == taken
