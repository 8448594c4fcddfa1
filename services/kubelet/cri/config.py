"""Settings of the CRI server. In the kubelet's process the kubelet's own settings fill them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.common.settings import setting
from services.kubelet.cri.network.cni.config import BIN_FOLDERS, CONF_FOLDER, NETNS_FOLDER


@dataclass(frozen=True, slots=True)
class CriConfig:
    """Every knob of the CRI server."""

    socket: Path = setting(Path("/run/tripod/cri.sock"), help="Unix socket to serve runtime.v1 on.")
    state_directory: Path = setting(Path("/var/lib/tripod/cri"), help="Folder for leases and log cursors.")
    docker_host: str = setting("unix:///var/run/docker.sock", help="Where the Docker Engine listens.")
    node_name: str = setting("tripod", help="Owner mark of sandboxes and containers.")
    pause_image: str = setting("tripod-pause:1", help="Image of the container that holds a sandbox.")
    pause_binary: Path = setting(Path("/usr/bin/catatonit"), help="Static program to make that image from.")
    bridge: str = setting("tripod0", help="Name of the pod network's bridge.")
    pod_cidr: str = setting("10.201.0.0/24", help="Addresses of pods.")
    cluster_cidr: tuple[str, ...] = setting(
        (), help="Addresses of all nodes' pods, where this node is one of several."
    )
    chain_prefix: str = setting("TRIPOD", help="Prefix of our iptables chains.")
    veth_prefix: str = setting("tp", help="Prefix of the host's ends of pod links.")
    proc_sys: Path = setting(Path("/proc/sys"), help="Where sysctls can be written.")
    pod_network: str = setting(
        "auto", help="cni, bridge (the built-in one), or auto: CNI where a configuration of it is."
    )
    cni_conf_dir: Path = setting(CONF_FOLDER, help="Folder of CNI configurations; the first by name counts.")
    cni_bin_dirs: tuple[str, ...] = setting(BIN_FOLDERS, help="Folders of CNI plugins, in order.")
    cni_netns_dir: Path = setting(NETNS_FOLDER, help="Where network namespaces of CNI's sandboxes are kept.")
    cni_deadline_seconds: int = setting(60, help="Longest wait for one CNI plugin.")
    engine_deadline_seconds: int = setting(60, help="Longest wait for one call to the engine.")
    pull_deadline_seconds: int = setting(1800, help="Longest wait for one image.")
    pull_progress_deadline_seconds: int = setting(
        60, help="Longest wait for an image without any progress of its pull."
    )
    log_level: str = setting("info", help="debug, info, warning or error.")
    log_format: str = setting("auto", help="json, console or auto.")
    failpoints: str = setting("", help="Break on purpose, for tests: see services/common/failpoints.py.")
    allow_failpoints: bool = setting(False, help="Let failpoints be armed.")
