"""Settings of the kubelet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.common.settings import setting

AUTO = "auto"
# Of a node of its own.
POD_CIDR = "10.201.0.0/24"


@dataclass(frozen=True, slots=True)
class KubeletConfig:
    """Every knob of the kubelet and of the CRI server in its process."""

    node_name: str = setting("", help="Name of the node; empty takes the host's name.")
    state_directory: Path = setting(Path("/var/lib/tripod"), help="What must survive a restart.")
    run_directory: Path = setting(Path("/run/tripod"), help="Unix sockets.")
    manifest_directory: Path = setting(
        Path(), help="Folder of manifests to run; empty means `manifests` in the state directory."
    )
    listen: str = setting("127.0.0.1:50051", help="Loopback address for gRPC; empty listens on none.")
    http_listen: str = setting("127.0.0.1:10255", help="Loopback address for HTTP.")
    kubelet_listen: str = setting(
        "", help="Address for HTTPS; empty is off alone and 0.0.0.0:10250 in a cluster."
    )
    tls_cert_file: Path = setting(
        Path(), help="Certificate for HTTPS; empty makes a self-signed one in the state directory."
    )
    tls_private_key_file: Path = setting(Path(), help="Key of that certificate.")
    client_ca_file: Path = setting(
        Path(), help="Authorities of clients' certificates for HTTPS; empty asks for none."
    )
    authorization_mode: str = setting(
        "", help="Webhook or AlwaysAllow for HTTPS; empty is Webhook in a cluster, AlwaysAllow alone."
    )
    docker_host: str = setting("unix:///var/run/docker.sock", help="Where the Docker Engine listens.")
    cri_endpoint: str = setting(
        "", help="A CRI server to use; empty runs our own on Docker, at cri.sock in the run directory."
    )
    kubeconfig: str = setting(
        "", help="Join the cluster of this file, or `in-cluster`; empty is a node of its own."
    )
    node_ip: str = setting("", help="The node's address; empty takes that of its default route.")
    node_labels: tuple[str, ...] = setting((), help="Labels of the Node in a cluster, as KEY=VALUE.")
    register_with_taints: tuple[str, ...] = setting(
        (), help="Taints that the Node is made with in a cluster, as KEY=VALUE:EFFECT."
    )
    pod_cidr: str = setting(
        "auto", help="Addresses of pods; auto: 10.201.0.0/24, in a cluster what it gives the node."
    )
    cluster_cidr: tuple[str, ...] = setting(
        (), help="Addresses of all nodes' pods, where this node is one of several."
    )
    service_cidr: str = setting("10.202.0.0/16", help="Addresses of services.")
    cluster_dns: tuple[str, ...] = setting(
        (), help="Addresses of the cluster's DNS; empty: pods have the node's."
    )
    cluster_domain: str = setting("cluster.local", help="The cluster's DNS domain.")
    allowed_unsafe_sysctls: tuple[str, ...] = setting(
        (), help="Sysctls, or prefixes of them with `*`, that pods may set besides the safe ones."
    )
    bridge: str = setting("tripod0", help="Name of the pod network's bridge.")
    chain_prefix: str = setting("TRIPOD", help="Prefix of our iptables chains.")
    veth_prefix: str = setting("tp", help="Prefix of the host's ends of pod links.")
    proc_sys: Path = setting(Path("/proc/sys"), help="Where sysctls can be written.")
    pod_network: str = setting(
        "auto", help="cni, bridge (the built-in one), or auto: CNI where a configuration of it is."
    )
    cni_conf_dir: Path = setting(Path("/etc/cni/net.d"), help="Folder of CNI configurations.")
    cni_bin_dirs: tuple[str, ...] = setting(
        ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"), help="Folders of CNI plugins, in order."
    )
    cni_netns_dir: Path = setting(
        Path("/run/netns"), help="Where network namespaces of CNI's sandboxes are kept."
    )
    token_issuer: str = setting(
        "", help="Who issues tokens of service accounts; empty means urn:tripod:node:NAME."
    )
    pause_image: str = setting("tripod-pause:1", help="Image of the container that holds a sandbox.")
    pull_progress_deadline_seconds: int = setting(
        60, help="Longest wait for an image without any progress of its pull."
    )
    cadvisor_address: str = setting(
        "", help="cAdvisor's gRPC address; empty means cadvisor.sock in the run directory."
    )
    cadvisor_metrics_url: str = setting("http://127.0.0.1:4194/metrics", help="cAdvisor's metrics page.")
    container_log_max_mebibytes: int = setting(10, help="Size at which a container's log is rotated.")
    container_log_max_files: int = setting(5, help="Log files to keep of a container, at least 2.")
    log_level: str = setting("info", help="debug, info, warning or error.")
    log_format: str = setting("auto", help="json, console or auto.")
    failpoints: str = setting("", help="Break on purpose, for tests: see services/common/failpoints.py.")
    allow_failpoints: bool = setting(False, help="Let failpoints be armed.")
