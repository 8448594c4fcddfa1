"""Settings of pod networks by CNI. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

CONF_FOLDER: Final = Path("/etc/cni/net.d")
BIN_FOLDERS: Final = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")
# Where `ip netns` and other runtimes keep theirs: some plugins' daemons look only there.
NETNS_FOLDER: Final = Path("/run/netns")


@dataclass(frozen=True, slots=True)
class CniConfig:
    """Folders and limits. `state_directory` gets a folder `network/cni`.

    `operation_timeout_seconds` bounds one plugin's ADD, DEL or GC, `look_timeout_seconds` CHECK and STATUS.
    """

    state_directory: Path
    conf_folder: Path = CONF_FOLDER
    bin_folders: tuple[Path, ...] = tuple(map(Path, BIN_FOLDERS))
    netns_folder: Path = NETNS_FOLDER
    operation_timeout_seconds: float = 60.0
    look_timeout_seconds: float = 10.0

    def __post_init__(self) -> None:
        for path in (self.conf_folder, self.netns_folder, *self.bin_folders):
            # A plugin is a program that runs as root.
            if not path.is_absolute():
                raise ValueError(f"cni: {str(path)!r} must be an absolute path")

    @property
    def directory(self) -> Path:
        """Where the records are."""
        return self.state_directory / "network" / "cni"
