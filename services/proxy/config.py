"""Settings of the proxy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.common.settings import setting


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """Every knob of the proxy."""

    node_name: str = setting("", help="Name of the node, for traces; empty takes the host's name.")
    run_directory: Path = setting(Path("/run/tripod"), help="Unix sockets.")
    kubelet_address: str = setting("", help="The kubelet; empty means kubelet.sock in the run directory.")
    kubeconfig: str = setting(
        "", help="Join the cluster of this file, or in-cluster; empty follows the kubelet alone."
    )
    cluster_cidr: tuple[str, ...] = setting(
        (), help="Networks of all the cluster's pods; none means this node's, as its Node says."
    )
    node_routes: str = setting(
        "auto", help="Route to other nodes' pods: on, off, or auto: where no CNI configuration is."
    )
    cni_conf_dir: Path = setting(Path("/etc/cni/net.d"), help="Folder of CNI configurations.")
    healthz_listen: str = setting(
        "0.0.0.0:10256", help="Where load balancers ask for health, in a cluster; empty for nowhere."
    )
    listen: str = setting("127.0.0.1:50052", help="Loopback address for gRPC; empty listens on none.")
    http_listen: str = setting("127.0.0.1:10249", help="Loopback address for HTTP.")
    docker_host: str = setting("unix:///var/run/docker.sock", help="Whose socket's group may use ours.")
    table: str = setting("tripod-proxy", help="Name of our nftables table.")
    localhost_ports: bool = setting(True, help="Serve node ports on 127.0.0.1, too.")
    drift_seconds: int = setting(30, help="How often the kernel's rules are compared with ours.")
    log_level: str = setting("info", help="debug, info, warning or error.")
    log_format: str = setting("auto", help="json, console or auto.")
    failpoints: str = setting("", help="Break on purpose, for tests: see services/common/failpoints.py.")
    allow_failpoints: bool = setting(False, help="Let failpoints be armed.")
