"""Settings of cAdvisor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.common.settings import setting


@dataclass(frozen=True, slots=True)
class CadvisorConfig:
    """Every knob of cAdvisor."""

    node_name: str = setting("", help="Name of the node, for traces; empty takes the host's name.")
    run_directory: Path = setting(Path("/run/tripod"), help="Unix sockets.")
    cgroup_root: Path = setting(
        Path(),
        help="Where the host's cgroup tree is; empty takes /host/cgroup if it is there, else /sys/fs/cgroup.",
    )
    proc_root: Path = setting(Path("/proc"), help="Where the host's processes are.")
    cri_address: str = setting("", help="CRI server for names; empty means cri.sock in the run directory.")
    listen: str = setting("127.0.0.1:50053", help="Loopback address for gRPC; empty listens on none.")
    http_listen: str = setting("127.0.0.1:4194", help="Loopback address for HTTP.")
    docker_host: str = setting("unix:///var/run/docker.sock", help="Whose socket's group may use ours.")
    history_seconds: int = setting(120, help="How many snapshots are kept for the live page.")
    log_level: str = setting("info", help="debug, info, warning or error.")
    log_format: str = setting("auto", help="json, console or auto.")
    failpoints: str = setting("", help="Break on purpose, for tests: see services/common/failpoints.py.")
    allow_failpoints: bool = setting(False, help="Let failpoints be armed.")
