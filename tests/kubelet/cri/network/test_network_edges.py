"""Names, settings and switches of the pod network."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from services.kubelet.cri.network.config import BridgeConfig
from services.kubelet.cri.network.naming import PortMark, mac_address, parse_port_mark, port_mark, veth_name
from services.kubelet.cri.network.sysctls import Sysctls


def test_a_veth_name_follows_from_the_sandbox_id_and_fits_the_kernel() -> None:
    """Fifteen characters; other sandboxes get other names."""
    names = {veth_name("tp", f"sandbox-{n}") for n in range(10_000)}

    assert len(names) == 10_000
    assert {len(name) for name in names} == {15}
    assert veth_name("tp", "sandbox-1") == veth_name("tp", "sandbox-1")


def test_an_addresss_mac_is_local_and_unicast() -> None:
    """The first octet's second-lowest bit is set, its lowest is not."""
    assert mac_address(IPv4Address("10.201.0.200")) == "0a:58:0a:c9:00:c8"


def test_a_ports_mark_reads_back() -> None:
    """From it the leases are rebuilt."""
    mark = PortMark("f" * 64, IPv4Address("10.201.0.9"), "tripod0")

    assert parse_port_mark(port_mark(mark)) == mark
    assert len(port_mark(mark)) < 256  # linux/if.h: IFALIASZ


@pytest.mark.parametrize(
    "alias",
    [
        "",
        "eth0",
        "io.tripod.sandbox=",
        "io.tripod.sandbox=a address=no bridge=b",
        "io.tripod.sandbox=a address=1.2.3.4",
    ],
)
def test_a_foreign_alias_is_no_mark(alias: str) -> None:
    """Nothing is adopted from a link that somebody else has labelled."""
    assert parse_port_mark(alias) is None


def test_wrong_settings_are_all_named_at_once() -> None:
    """One start is enough to learn of every fault."""
    with pytest.raises(ValueError, match="pod_cidr") as wrong:
        BridgeConfig(
            state_directory=Path("/nowhere"),
            bridge="a-name-beyond-15",
            pod_cidr="10.0.0.0/31",
            chain_prefix="-X",
            veth_prefix="toolong",
            mtu_bytes=68,
        )

    assert [fault.split(":")[0] for fault in str(wrong.value).split("; ")] == [
        "pod_cidr",
        "bridge",
        "veth_prefix",
        "chain_prefix",
        "mtu_bytes",
    ]


@pytest.fixture
def proc_sys(tmp_path: Path) -> Path:
    """A tree that looks like /proc/sys with both switches off."""
    root = tmp_path / "sys"
    for key in ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables"):
        (root / key).parent.mkdir(parents=True)
        (root / key).write_text("0\n")
    return root


def read(root: Path) -> tuple[str, str]:
    """Read both switches."""
    keys = ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables")
    return (root / keys[0]).read_text().strip(), (root / keys[1]).read_text().strip()


def test_switches_are_turned_on_and_put_back_after_a_restart(tmp_path: Path, proc_sys: Path) -> None:
    """The second run finds 1 and must still know that the host had 0."""
    record = tmp_path / "sysctls.json"

    assert Sysctls(proc_sys, record).turn_on() == ()
    assert Sysctls(proc_sys, record).turn_on() == ()
    assert read(proc_sys) == ("1", "1")

    Sysctls(proc_sys, record).restore()

    assert read(proc_sys) == ("0", "0")
    assert not record.exists()


def test_a_switch_that_was_on_before_stays_on_after_clean_up(tmp_path: Path, proc_sys: Path) -> None:
    """Docker's own forwarding must not end with ours."""
    (proc_sys / "net/ipv4/ip_forward").write_text("1\n")
    sysctls = Sysctls(proc_sys, tmp_path / "sysctls.json")

    sysctls.turn_on()
    sysctls.restore()

    assert read(proc_sys) == ("1", "0")


def test_a_missing_switch_is_told_with_its_remedy(tmp_path: Path, proc_sys: Path) -> None:
    """Without br_netfilter pods run, but services between pods of the bridge do not."""
    (proc_sys / "net/bridge/bridge-nf-call-iptables").unlink()

    (off,) = Sysctls(proc_sys, tmp_path / "sysctls.json").turn_on()

    assert not off.vital
    assert off.hint.startswith("modprobe br_netfilter")


def test_a_switch_that_could_not_be_set_is_not_put_back_later(tmp_path: Path, proc_sys: Path) -> None:
    """An administrator who sets it himself keeps his setting."""
    key = proc_sys / "net/ipv4/ip_forward"
    sysctls = Sysctls(proc_sys, tmp_path / "sysctls.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_text", _read_only)
        off = sysctls.turn_on()
    key.write_text("1")

    sysctls.restore()

    assert [switch.key for switch in off] == ["net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables"]
    assert key.read_text() == "1"


def _read_only(*_: object, **__: object) -> None:
    raise OSError(30, "Read-only file system")
