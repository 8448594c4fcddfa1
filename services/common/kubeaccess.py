"""How a Kubernetes API server is reached: where it is, whom we trust there, and who we are. Values alone.

Source: `clientcmd.k8s.io` v1 `Config`; what a pod is given (`rest.InClusterConfig`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.common.errors import Code, FieldViolation, TripodError

IN_CLUSTER = "in-cluster"
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class KubeconfigError(TripodError):
    """A kubeconfig that cannot be used; `violations` has every fault with its path."""

    def __init__(self, path: str, violations: list[FieldViolation]) -> None:
        lines = "; ".join(f"{v.field}: {v.description}" if v.field else v.description for v in violations)
        super().__init__(
            f"Cannot use the kubeconfig {path}: {lines}",
            code=Code.INVALID_ARGUMENT,
            reason="KUBECONFIG_INVALID",
            metadata={"path": path},
            violations=violations,
        )


@dataclass(frozen=True, slots=True)
class Pem:
    """PEM text, given or in a file that is read again when it changes. Neither: there is none."""

    data: bytes = field(default=b"", repr=False)
    file: Path | None = None

    def __bool__(self) -> bool:
        return bool(self.data or self.file)


NO_PEM = Pem()


@dataclass(frozen=True, slots=True)
class ExecPlugin:
    """A command that prints an `ExecCredential`."""

    command: str
    api_version: str
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    install_hint: str = ""
    provide_cluster_info: bool = False


@dataclass(frozen=True, slots=True)
class User:
    """Who we are. A token file is read again; a plugin gives a token, a certificate, or both."""

    certificate: Pem = Pem()
    key: Pem = Pem()
    token: str = field(default="", repr=False)
    token_file: Path | None = None
    plugin: ExecPlugin | None = None


@dataclass(frozen=True, slots=True)
class Access:
    """Where an API server is, whom we trust there, and who we are. `server` has no slash at its end."""

    server: str
    user: User = User()
    authority: Pem = Pem()
    verify: bool = True
    server_name: str = ""
    proxy: str = ""
    compress: bool = True
    namespace: str = "default"


def in_cluster(environ: Mapping[str, str], folder: Path = _ACCOUNT) -> Access:
    """Take the service account that a pod is given. Raises `KubeconfigError` outside a pod."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "")
    token, authority = folder / "token", folder / "ca.crt"
    faults = [
        FieldViolation(name, what)
        for name, missing, what in (
            ("KUBERNETES_SERVICE_HOST", not host, "is not set"),
            ("KUBERNETES_SERVICE_PORT", not port, "is not set"),
            (str(token), not token.exists(), "does not exist"),
            (str(authority), not authority.exists(), "does not exist"),
        )
        if missing
    ]
    if faults:
        raise KubeconfigError(IN_CLUSTER, faults)
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    return Access(server, User(token_file=token), Pem(file=authority))
