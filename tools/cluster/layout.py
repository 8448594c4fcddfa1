"""Where a cluster's files lie, who may do what in it, and the commands of its control plane.

Source: the reference pages of etcd, kube-apiserver, kube-controller-manager and kube-scheduler; kubeadm's
"Implementation details" for names of files, users and groups.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tools.cluster.certificates import Authority, Pair, signing_key, write_private

SERVICE_CIDR = "10.96.0.0/16"
# The first address of the service network is the API server's own.
_KUBERNETES_SERVICE = "10.96.0.1"
POD_CIDR = "10.210.0.0/16"
COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the parts of a control plane listen."""

    api: int = 6443
    etcd: int = 2379
    etcd_peers: int = 2380
    controllers: int = 10257
    scheduler: int = 10259


@dataclass(frozen=True, slots=True)
class Layout:
    """One cluster: its folder, the address that its API server is reached by, and its networks.

    `more` are further flags of a component. `fsync` may be left out where a lost disk is no loss.
    """

    folder: Path
    address: str = "127.0.0.1"
    ports: Ports = field(default_factory=Ports)
    names: tuple[str, ...] = ()
    service_cidr: str = SERVICE_CIDR
    pod_cidr: str = POD_CIDR
    fsync: bool = True
    more: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where the API server is."""
        return f"https://{self.address}:{self.ports.api}"

    @property
    def pki(self) -> Path:
        """The folder of keys and certificates."""
        return self.folder / "pki"

    @property
    def admin(self) -> Path:
        """The kubeconfig of one who may do everything."""
        return self.folder / "admin.conf"

    def authority(self) -> Authority:
        """Return the authority that every party of the cluster trusts."""
        return Authority.read(self.pki, "ca")

    def kubeconfig(self, path: Path, user: str, *groups: str, url: str = "") -> Path:
        """Write the kubeconfig of a user, by a certificate of its own; return its path."""
        pair = self.authority().client(user, *groups)
        return write_kubeconfig(path, url or self.url, self.authority().pair.certificate, user, pair)


def save(layout: Layout) -> Layout:
    """Remember where the cluster of a folder is reached; returns the layout."""
    layout.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (layout.folder / "cluster.json").write_text(json.dumps({"address": layout.address}) + "\n")
    return layout


def load(folder: Path) -> Layout | None:
    """Return the layout that was saved in a folder; None when there is none."""
    try:
        found = json.loads((folder / "cluster.json").read_text())
    except FileNotFoundError:
        return None
    return Layout(folder, found["address"])


def prepare(layout: Layout) -> None:
    """Write keys, certificates and kubeconfigs; those that are there are kept."""
    if not (layout.pki / "ca.crt").exists():
        _authorities(layout.pki)
    if not (layout.pki / "apiserver.crt").exists():
        _certificates(layout)
    for name, user, groups in (
        ("admin", "kubernetes-admin", ("system:masters",)),
        ("controller-manager", "system:kube-controller-manager", ()),
        ("scheduler", "system:kube-scheduler", ()),
    ):
        if not (layout.folder / f"{name}.conf").exists():
            layout.kubeconfig(layout.folder / f"{name}.conf", user, *groups)


def _authorities(pki: Path) -> None:
    private, public = signing_key()
    pki.mkdir(parents=True, exist_ok=True)
    write_private(pki / "sa.key", private)
    (pki / "sa.pub").write_bytes(public)
    Authority.make("front-proxy-ca").pair.write(pki, "front-proxy-ca")
    Authority.make("kubernetes").pair.write(pki, "ca")


def _certificates(layout: Layout) -> None:
    authority, front = layout.authority(), Authority.read(layout.pki, "front-proxy-ca")
    # To the kubelets the API server is a client of its own.
    kubelets = authority.client("kube-apiserver-kubelet-client", "system:masters")
    kubelets.write(layout.pki, "apiserver-kubelet-client")
    front.client("front-proxy-client").write(layout.pki, "front-proxy-client")
    names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ]
    names += ["localhost", "127.0.0.1", _KUBERNETES_SERVICE, layout.address, *layout.names]
    authority.server("kube-apiserver", tuple(dict.fromkeys(names))).write(layout.pki, "apiserver")


def write_kubeconfig(path: Path, url: str, authority: bytes, user: str, pair: Pair) -> Path:
    """Write a kubeconfig that needs no other file, for its owner's eyes alone."""
    cluster = {"server": url, "certificate-authority-data": _text(authority)}
    client = {"client-certificate-data": _text(pair.certificate), "client-key-data": _text(pair.key)}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tripod", "cluster": cluster}],
        "users": [{"name": user, "user": client}],
        "contexts": [{"name": "tripod", "context": {"cluster": "tripod", "user": user}}],
        "current-context": "tripod",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # JSON is YAML.
    write_private(path, (json.dumps(config, indent=1) + "\n").encode())
    return path


def _text(pem: bytes) -> str:
    return base64.b64encode(pem).decode()


def command(layout: Layout, component: str) -> list[str]:
    """Return a component's words, its program first."""
    words = {
        "etcd": _etcd,
        "kube-apiserver": _api_server,
        "kube-controller-manager": _controller_manager,
        "kube-scheduler": _scheduler,
    }[component](layout)
    return [component, *words, *layout.more.get(component, ())]


def _etcd(layout: Layout) -> list[str]:
    client, peer = (f"http://127.0.0.1:{port}" for port in (layout.ports.etcd, layout.ports.etcd_peers))
    words = ["--name=tripod", f"--data-dir={layout.folder}/etcd", "--log-level=warn"]
    words += [f"--listen-client-urls={client}", f"--advertise-client-urls={client}"]
    words += [f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"]
    words += [f"--initial-cluster=tripod={peer}"]
    return words if layout.fsync else [*words, "--unsafe-no-fsync"]


def _api_server(layout: Layout) -> list[str]:
    pki = layout.pki
    loopback = layout.address.startswith("127.")
    return [
        f"--etcd-servers=http://127.0.0.1:{layout.ports.etcd}",
        f"--bind-address={layout.address if loopback else '0.0.0.0'}",
        f"--advertise-address={layout.address}",
        f"--secure-port={layout.ports.api}",
        # The service `kubernetes` cannot lead to loopback.
        f"--endpoint-reconciler-type={'none' if loopback else 'lease'}",
        f"--service-cluster-ip-range={layout.service_cidr}",
        "--allow-privileged=true",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--client-ca-file={pki}/ca.crt",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--kubelet-certificate-authority={pki}/ca.crt",
        f"--kubelet-client-certificate={pki}/apiserver-kubelet-client.crt",
        f"--kubelet-client-key={pki}/apiserver-kubelet-client.key",
        "--kubelet-preferred-address-types=InternalIP,Hostname",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki}/sa.pub",
        f"--service-account-signing-key-file={pki}/sa.key",
        f"--requestheader-client-ca-file={pki}/front-proxy-ca.crt",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-username-headers=X-Remote-User",
        f"--proxy-client-cert-file={pki}/front-proxy-client.crt",
        f"--proxy-client-key-file={pki}/front-proxy-client.key",
    ]


def _controller_manager(layout: Layout) -> list[str]:
    kubeconfig, pki = layout.folder / "controller-manager.conf", layout.pki
    return [
        *_as_client(kubeconfig, layout.ports.controllers),
        f"--client-ca-file={pki}/ca.crt",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={pki}/sa.key",
        f"--root-ca-file={pki}/ca.crt",
        f"--cluster-signing-cert-file={pki}/ca.crt",
        f"--cluster-signing-key-file={pki}/ca.key",
        "--allocate-node-cidrs=true",
        f"--cluster-cidr={layout.pod_cidr}",
        f"--service-cluster-ip-range={layout.service_cidr}",
    ]


def _scheduler(layout: Layout) -> list[str]:
    return _as_client(layout.folder / "scheduler.conf", layout.ports.scheduler)


def _as_client(kubeconfig: Path, port: int) -> list[str]:
    words = [f"--{what}kubeconfig={kubeconfig}" for what in ("", "authentication-", "authorization-")]
    return [*words, "--bind-address=127.0.0.1", f"--secure-port={port}", "--leader-elect=false"]


@dataclass(frozen=True, slots=True)
class NodeFiles:
    """What a node needs to join: kubeconfigs of kubelet and proxy, and the kubelet's serving certificate.

    All lie in one folder, which can be copied to another machine.
    The API server trusts a kubelet whose certificate `authority` signed.
    """

    kubeconfig: Path
    proxy_kubeconfig: Path
    certificate: Path
    key: Path
    authority: Path


def prepare_node(layout: Layout, name: str, *addresses: str, url: str = "") -> NodeFiles:
    """Write a node's files; `addresses` are those that the API server finds the kubelet at.

    `url` is where the node finds the API server, when that is not where others do.
    """
    folder, user = layout.folder / "nodes" / name, f"system:node:{name}"
    authority = layout.authority()
    server = authority.server(user, (name, *addresses), "system:nodes")
    certificate, key = server.write(folder, "kubelet")
    (folder / "ca.crt").write_bytes(authority.pair.certificate)
    return NodeFiles(
        kubeconfig=layout.kubeconfig(folder / "kubelet.conf", user, "system:nodes", url=url),
        proxy_kubeconfig=layout.kubeconfig(folder / "proxy.conf", "system:kube-proxy", url=url),
        certificate=certificate,
        key=key,
        authority=folder / "ca.crt",
    )
