"""CNI for tests: configurations, Debian's plugins as the real peer, a plugin that does what a test says."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from services.kubelet.cri.network import netns
from services.kubelet.cri.network.cni.config import CniConfig

PLUGINS = Path("/usr/lib/cni")
SUBNET = "10.231.9.0/24"
BRIDGE = "ttcni0"

_FAKE = """#!/bin/sh
data=$(cat)
printf '%s\\n' "$data" > "{folder}/$$.input"
env -u PWD -u SHLVL -u _ > "{folder}/$$.environment"
printf '%s %s\\n' "$CNI_COMMAND" "$$" >> "{folder}/calls"
[ -f "{folder}/$CNI_COMMAND.sh" ] && . "{folder}/$CNI_COMMAND.sh"
[ "$CNI_COMMAND" = ADD ] && cat "{folder}/result.json"
exit 0
"""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the fake plugin."""

    command: str
    pid: int
    environment: Mapping[str, str]
    given: Mapping[str, Any]


class FakePlugin:
    """A plugin named `fake` in a folder of its own; it gives one address and notes its calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "fake"
        self.folder.mkdir()
        self._notes = folder / "notes"
        self._notes.mkdir()
        program = self.folder / "fake"
        program.write_text(_FAKE.format(folder=self._notes))
        program.chmod(0o755)
        self.gives({"cniVersion": "1.0.0", "ips": [{"address": "10.231.9.77/24"}]})

    def gives(self, result: Any) -> None:
        """Have ADD print this."""
        (self._notes / "result.json").write_text(json.dumps(result))

    def does(self, command: str, script: str) -> None:
        """Have a command run this first."""
        (self._notes / f"{command}.sh").write_text(script)

    def fails(self, command: str, code: int, text: str) -> None:
        """Have a command fail as the specification says."""
        told = json.dumps({"cniVersion": "1.0.0", "code": code, "msg": text, "details": "the details"})
        self.does(command, f"echo '{told}'; exit 1\n")

    def recovers(self, command: str) -> None:
        """Have a command do well again."""
        (self._notes / f"{command}.sh").unlink()

    def calls(self, *commands: str) -> list[Call]:
        """Return the calls so far, all or those of some commands."""
        try:
            lines = (self._notes / "calls").read_text().splitlines()
        except FileNotFoundError:
            return []
        made = [self._call(*line.split()) for line in lines]
        return [call for call in made if not commands or call.command in commands]

    def _call(self, command: str, pid: str) -> Call:
        lines = (self._notes / f"{pid}.environment").read_text().splitlines()
        environment = dict(line.split("=", 1) for line in lines)
        return Call(command, int(pid), environment, json.loads((self._notes / f"{pid}.input").read_text()))


def needs_plugins() -> None:
    """Skip the test where Debian's plugins are not installed."""
    if not os.access(PLUGINS / "bridge", os.X_OK):
        pytest.skip("needs Debian's package containernetworking-plugins")


def bridge_plugins(folder: Path, *, subnet: str = SUBNET) -> list[dict[str, Any]]:
    """Return a chain of real plugins; the addresses are kept in `folder`."""
    ranges = [[{"subnet": subnet}]]
    ipam = {
        "type": "host-local",
        "dataDir": str(folder),
        "ranges": ranges,
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "hairpinMode": True, "ipam": ipam}
    return [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}, {"type": "firewall"}]


def write_conf(
    folder: Path,
    *plugins: Mapping[str, Any],
    file: str = "10-tt.conflist",
    name: str = "ttnet",
    version: str = "1.0.0",
    **more: Any,
) -> Path:
    """Write a configuration into a folder, in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    conf = {"cniVersion": version, "name": name, "plugins": list(plugins), **more}
    fresh = folder / f".{file}.new"
    fresh.write_text(json.dumps(conf))
    return fresh.replace(folder / file)


def config(folder: Path, *plugin_folders: Path, seconds: float = 20) -> CniConfig:
    """Settings whose every folder is below the test's own."""
    return CniConfig(
        state_directory=folder / "state",
        conf_folder=folder / "net.d",
        bin_folders=(*plugin_folders, PLUGINS),
        netns_folder=folder / "netns",
        operation_timeout_seconds=seconds,
        look_timeout_seconds=seconds,
    )


def leased(folder: Path) -> list[str]:
    """List the addresses that `host-local` holds."""
    return sorted(path.name for path in folder.glob("ttnet/10.*"))


def kept(config: CniConfig) -> list[Path]:
    """List the namespaces that are kept, or were not wholly let go."""
    return sorted(config.netns_folder.glob("*"))


def let_go(folder: Path) -> None:
    """Unmount the namespaces that a network of `config(folder)` has kept."""
    for path in (folder / "netns").glob("*"):
        netns.release(path)


def has_ended(pid: int) -> bool:
    """Tell whether a process runs no longer, be it waited for or not."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
