"""What a kubeconfig may say, and what is said about one that cannot be used."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.common.kubeaccess import Access, KubeconfigError, Pem, in_cluster
from services.common.kubeconfig import load, read


def written(
    tmp_path: Path, *, cluster: Any = None, user: Any = None, mode: int = 0o600, current: str = "x"
) -> Path:
    """Write a kubeconfig of one context."""
    value = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "c", "cluster": {"server": "https://api:6443"} if cluster is None else cluster}
        ],
        "users": [{"name": "u", "user": user or {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": current,
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(value))
    path.chmod(mode)
    return path


def faults(path: Path) -> dict[str, str]:
    """Return what is said about a file."""
    with pytest.raises(KubeconfigError) as caught:
        read(path)
    return {fault.field: fault.description for fault in caught.value.violations}


def test_the_current_context_is_read(tmp_path: Path) -> None:
    """Certificates may be data or files, which are relative to the kubeconfig."""
    authority = base64.b64encode(b"PEM").decode()
    path = written(
        tmp_path,
        cluster={
            "server": "https://api:6443/",
            "certificate-authority-data": authority,
            "tls-server-name": "kubernetes",
            "proxy-url": "http://proxy:3128",
            "disable-compression": True,
        },
        user={"client-certificate": "node.crt", "client-key": "/etc/node.key", "tokenFile": "token"},
    )

    access = load(str(path))

    assert access == Access(
        server="https://api:6443",
        user=access.user,
        authority=Pem(data=b"PEM"),
        server_name="kubernetes",
        proxy="http://proxy:3128",
        compress=False,
    )
    assert access.user.certificate == Pem(file=tmp_path / "node.crt")
    assert access.user.key == Pem(file=Path("/etc/node.key"))
    assert access.user.token_file == tmp_path / "token"


def test_a_plugin_is_read(tmp_path: Path) -> None:
    """A command with a slash is relative to the file, another is found in PATH."""
    plugin = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "./login",
        "args": ["-v"],
        "env": [{"name": "REGION", "value": "here"}],
        "interactiveMode": "IfAvailable",
        "provideClusterInfo": True,
        "installHint": "install it",
    }

    made = read(written(tmp_path, user={"exec": plugin})).user.plugin

    assert made is not None
    assert (made.command, made.args, made.env) == (str(tmp_path / "login"), ("-v",), (("REGION", "here"),))
    assert made.provide_cluster_info


@pytest.mark.parametrize(
    ("cluster", "user", "expected"),
    [
        pytest.param({"server": "https://a", "sever": "x"}, {}, "clusters[0].cluster.sever", id="unknown"),
        pytest.param({}, {}, "clusters[0].cluster.server", id="no-server"),
        pytest.param({"server": "api:6443"}, {}, "clusters[0].cluster.server", id="no-url"),
        pytest.param(
            {"server": "https://a", "proxy-url": "socks5://p"},
            {},
            "clusters[0].cluster.proxy-url",
            id="socks-proxy",
        ),
        pytest.param(
            {"server": "https://a", "insecure-skip-tls-verify": True, "certificate-authority": "ca"},
            {},
            "clusters[0].cluster.insecure-skip-tls-verify",
            id="trust-and-distrust",
        ),
        pytest.param(None, {"username": "me"}, "users[0].user.username", id="basic-authentication"),
        pytest.param(None, {"as": "admin"}, "users[0].user.as", id="impersonation"),
        pytest.param(None, {"auth-provider": {"name": "x"}}, "users[0].user.auth-provider", id="provider"),
        pytest.param(None, {"client-key": "k"}, "users[0].user.client-certificate", id="half-a-pair"),
        pytest.param(None, {"client-key-data": "?"}, "users[0].user.client-key-data", id="not-base64"),
        pytest.param(
            None,
            {
                "exec": {
                    "apiVersion": "client.authentication.k8s.io/v1",
                    "command": "x",
                    "interactiveMode": "Always",
                }
            },
            "users[0].user.exec.interactiveMode",
            id="a-plugin-that-asks",
        ),
        pytest.param(
            None,
            {"exec": {"apiVersion": "v1alpha1", "command": "x"}},
            "users[0].user.exec.apiVersion",
            id="old",
        ),
    ],
)
def test_a_field_is_honoured_or_refused_with_its_path(
    tmp_path: Path, cluster: Any, user: Any, expected: str
) -> None:
    """Nothing that somebody wrote is ignored."""
    assert expected in faults(written(tmp_path, cluster=cluster, user=user))


def test_a_context_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A typing error is found before a node starts without its cluster."""
    assert "'y'" in faults(written(tmp_path, current="y"))["contexts"]


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """Whoever reads it is the node."""
    assert "chmod 600" in faults(written(tmp_path, mode=0o644))[""]


def test_no_error_quotes_the_file(tmp_path: Path) -> None:
    """A broken file may hold a token on the very line that is broken."""
    path = tmp_path / "kubeconfig"
    path.write_text("users: [}{ token: s3cret")
    path.chmod(0o600)

    with pytest.raises(KubeconfigError) as caught:
        read(path)

    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_pod_takes_what_it_is_given(tmp_path: Path) -> None:
    """The service account's files and two variables say everything."""
    for name in ("token", "ca.crt"):
        (tmp_path / name).write_text("x")
    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}

    access = in_cluster(environ, tmp_path)

    assert access.server == "https://[fd00::1]:443"
    assert access.user.token_file == tmp_path / "token"


def test_outside_a_pod_all_that_is_missing_is_told(tmp_path: Path) -> None:
    """One start shows every fault."""
    with pytest.raises(KubeconfigError) as caught:
        in_cluster({}, tmp_path)

    assert len(caught.value.violations) == 4
