"""Set the kernel's switches that pod traffic needs, and put them back at clean-up.

A switch is changed only if it is not yet right; its old value reaches the disk first. Two are needed:

- `net.ipv4.ip_forward`: without it no packet leaves the bridge.
- `net.bridge.bridge-nf-call-iptables`: without it the answer of one pod to another on the same bridge
  bypasses the address translation, and connections to service addresses hang. Exists only once
  `br_netfilter` is loaded.

Left alone on purpose: `rp_filter`, whose strict form is right for the bridge (the only sources behind it
are the pod CIDR's) and whose host-wide value is the administrator's; `route_localnet`, which opens
127.0.0.0/8 (CVE-2020-8558).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.kubelet.cri.network.leases import replace_file


@dataclass(frozen=True, slots=True)
class Switch:
    """One entry under /proc/sys that must hold "1". `vital`: without it no pod has a network."""

    key: str
    vital: bool
    hint: str


SWITCHES: Final = (
    Switch("net/ipv4/ip_forward", vital=True, hint="sysctl -w net.ipv4.ip_forward=1"),
    Switch(
        "net/bridge/bridge-nf-call-iptables",
        vital=False,
        hint="modprobe br_netfilter && sysctl -w net.bridge.bridge-nf-call-iptables=1",
    ),
)


class Sysctls:
    """Turns `SWITCHES` on under `root`; remembers in the file `record` what they were. Calls block."""

    def __init__(self, root: Path, record: Path) -> None:
        self._root = root
        self._record = record

    def turn_on(self) -> tuple[Switch, ...]:
        """Set every switch to 1; return those that could not be set."""
        return tuple(switch for switch in SWITCHES if not self._turn_on(switch))

    def restore(self) -> None:
        """Put back every value that `turn_on` changed and that nobody has changed since."""
        for key, value in self._recorded().items():
            path = self._root / key
            if _read(path) == "1":
                path.write_text(value)
        self._record.unlink(missing_ok=True)

    def _turn_on(self, switch: Switch) -> bool:
        path = self._root / switch.key
        before = _read(path)
        if before == "1":
            return True
        if before is None:
            return False
        recorded = self._recorded()
        # The first value stays on record: a second run must not take our own work for the host's wish.
        self._write_record({switch.key: before, **recorded})
        try:
            path.write_text("1")
        except OSError:  # Read-only in a container, or not permitted. The caller reports it.
            self._write_record(recorded)
            return False
        return _read(path) == "1"

    def _write_record(self, values: Mapping[str, str]) -> None:
        replace_file(self._record, json.dumps(dict(values)).encode())

    def _recorded(self) -> Mapping[str, str]:
        try:
            values = json.loads(self._record.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        known = {switch.key for switch in SWITCHES}
        return {key: str(value) for key, value in values.items() if key in known}


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
