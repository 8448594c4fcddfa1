"""Addresses are never double, rest as long as they can, and survive a restart anywhere."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from services.kubelet.cri.network import ipam, leases
from services.kubelet.cri.network.errors import NetworkError
from services.kubelet.cri.network.leases import LeaseFile

POOL = IPv4Network("10.201.0.0/29")  # .1 is the gateway, .2 to .6 are for pods
SANDBOXES = st.sampled_from([f"sandbox-{n}" for n in range(7)])


def addresses(*sandbox_ids: str, start: ipam.Leases | None = None) -> list[str]:
    """Allocate for each in turn and list what they got."""
    state = start or ipam.Leases(POOL)
    got = []
    for sandbox_id in sandbox_ids:
        state, lease = ipam.allocate(state, sandbox_id)
        got.append(str(lease.address))
    return got


def test_the_gateway_network_and_broadcast_address_are_never_handed_out() -> None:
    """Five of the eight addresses of a /29 are left for pods."""
    got = addresses("a", "b", "c", "d", "e")

    assert got == ["10.201.0.2", "10.201.0.3", "10.201.0.4", "10.201.0.5", "10.201.0.6"]


def test_a_sandbox_keeps_its_address_when_it_asks_again() -> None:
    """A repeated attach must not use up another one."""
    assert addresses("a", "b", "a") == ["10.201.0.2", "10.201.0.3", "10.201.0.2"]


def test_a_released_address_rests_until_the_others_had_their_turn() -> None:
    """A next pod must not get the connections that others still hold to the last one."""
    state, first = ipam.allocate(ipam.Leases(POOL), "a")
    got = []
    for n in range(5):
        state = ipam.release(state, "a" if n == 0 else f"next-{n - 1}")
        state, lease = ipam.allocate(state, f"next-{n}")
        got.append(lease.address)

    assert first.address not in got[:4]
    assert got[4] == first.address


def test_a_full_pool_is_a_clear_error_that_tells_the_cidr() -> None:
    """The sixth pod in a /29 fails, and succeeds after a release."""
    state = ipam.Leases(POOL)
    for sandbox_id in "abcde":
        state, _ = ipam.allocate(state, sandbox_id)

    with pytest.raises(NetworkError, match=r"All 5 addresses of the pod CIDR 10\.201\.0\.0/29") as full:
        ipam.allocate(state, "f")
    _, lease = ipam.allocate(ipam.release(state, "c"), "f")

    assert full.value.reason == "POD_ADDRESSES_EXHAUSTED"
    assert str(lease.address) == "10.201.0.4"


def test_releasing_what_is_not_leased_changes_nothing() -> None:
    """A second detach is no error."""
    state = ipam.Leases(POOL)

    assert ipam.release(state, "unknown") is state
    assert ipam.confirm(state, "unknown") is state


def test_an_adopted_lease_never_displaces_a_known_one() -> None:
    """What the file says wins over what a link's mark says."""
    state, known = ipam.allocate(ipam.Leases(POOL), "a")
    double = ipam.Lease("b", known.address, wired=True)
    other = ipam.Lease("a", IPv4Address("10.201.0.6"), wired=True)

    assert ipam.adopt(ipam.adopt(state, double), other) is state


def test_a_changed_pod_cidr_keeps_old_leases_and_starts_the_new_pool_afresh(tmp_path: Path) -> None:
    """Running pods keep what they have; new ones come from the new pool."""
    file = LeaseFile(tmp_path / "leases.json")
    state, old = ipam.allocate(ipam.Leases(POOL), "old")
    file.save(state)
    loaded = file.load(IPv4Network("10.99.0.0/24"))

    assert loaded is not None
    assert loaded.find("old") == old
    assert addresses("new", start=loaded) == ["10.99.0.2"]


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"version": 1, "lea', id="torn"),
        pytest.param(b"[]", id="other-shape"),
        pytest.param(b'{"version": 2}', id="newer-version"),
        pytest.param(
            b'{"version":1,"pod_cidr":"10.201.0.0/29","last_offset":2,"leases":['
            b'{"sandbox_id":"a","address":"10.201.0.2","hostname":"","wired":true},'
            b'{"sandbox_id":"b","address":"10.201.0.2","hostname":"","wired":true}]}',
            id="an-address-twice",
        ),
    ],
)
def test_a_damaged_file_is_set_aside_and_never_overwritten(tmp_path: Path, damaged: bytes) -> None:
    """Whoever looks for the cause later finds the bytes; a second damaged file does not replace the first."""
    path = tmp_path / "leases.json"
    for _ in range(2):
        path.write_bytes(damaged)
        assert LeaseFile(path).load(POOL) is None

    assert [(tmp_path / f"leases.json.damaged-{n}").read_bytes() for n in (1, 2)] == [damaged, damaged]
    assert not path.exists()


def test_an_unreadable_file_is_an_error_and_not_an_empty_list(tmp_path: Path) -> None:
    """Reading fails for another reason than absence: nobody may conclude that all addresses are free."""
    path = tmp_path / "leases.json"
    path.mkdir()

    with pytest.raises(OSError, match="directory"):
        LeaseFile(path).load(POOL)


@given(
    rows=st.dictionaries(SANDBOXES, st.integers(2, 6), max_size=5).filter(
        lambda rows: len(set(rows.values())) == len(rows)
    ),
    last=st.integers(1, 6),
    wired=st.booleans(),
)
def test_leases_read_back_as_they_were_written(rows: dict[str, int], last: int, wired: bool) -> None:
    """The file holds the whole state."""
    state = ipam.Leases(POOL, last)
    for sandbox_id, offset in rows.items():
        state = ipam.adopt(state, ipam.Lease(sandbox_id, POOL[offset], "host", wired))

    assert leases.decode(leases.encode(state), POOL) == state


class InterruptedSaveError(Exception):
    """Stands for a kill at some point of a save."""


class LeaseMachine(RuleBasedStateMachine):
    """Attach, detach, restart and kills in any order, against a plain model."""

    directory: Path

    @initialize()
    def start(self) -> None:
        """Begin with an empty directory."""
        self.path = self.directory / "leases.json"
        self.path.unlink(missing_ok=True)
        self.state = ipam.Leases(POOL)
        self.acknowledged: dict[str, IPv4Address] = {}

    @rule(sandbox_id=SANDBOXES)
    def allocate(self, sandbox_id: str) -> None:
        """An address is acknowledged once it is saved."""
        try:
            state, lease = ipam.allocate(self.state, sandbox_id)
        except NetworkError:
            assert len(self.acknowledged) == 5
            return
        LeaseFile(self.path).save(state)
        self.state = state
        assert self.acknowledged.setdefault(sandbox_id, lease.address) == lease.address

    @rule(sandbox_id=SANDBOXES)
    def release(self, sandbox_id: str) -> None:
        """A released address is free again."""
        self.state = ipam.release(self.state, sandbox_id)
        LeaseFile(self.path).save(self.state)
        self.acknowledged.pop(sandbox_id, None)

    @rule(sandbox_id=SANDBOXES, call=st.sampled_from(["open", "replace"]))
    def killed_while_allocating(self, sandbox_id: str, call: str) -> None:
        """The save stops before one of its calls; whatever the next run reads must hold together."""
        try:
            state, _ = ipam.allocate(self.state, sandbox_id)
        except NetworkError:
            return
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, call, _interrupt)
            with pytest.raises(InterruptedSaveError):
                LeaseFile(self.path).save(state)
        self.restart()

    @rule()
    def restart(self) -> None:
        """Another run reads the file."""
        self.state = LeaseFile(self.path).load(POOL) or ipam.Leases(POOL)

    @invariant()
    def nobody_lost_or_shares_an_address(self) -> None:
        """What was acknowledged holds, and no address occurs twice or outside the pool."""
        held = [lease.address for lease in self.state.by_sandbox.values()]

        assert len(set(held)) == len(held)
        assert all(POOL[2] <= address <= POOL[6] for address in held)
        assert {key: lease.address for key, lease in self.state.by_sandbox.items()} == self.acknowledged


def _interrupt(*_: object, **__: object) -> None:
    raise InterruptedSaveError


def test_no_order_of_events_loses_or_doubles_an_address(tmp_path: Path) -> None:
    """Any sequence of allocations, releases, restarts and interrupted saves."""
    machine = type("Machine", (LeaseMachine,), {"directory": tmp_path})

    run_state_machine_as_test(machine, settings=settings(max_examples=40, deadline=None))
