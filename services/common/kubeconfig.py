"""Read how a Kubernetes API server is reached: a kubeconfig file, or what a pod is given.

Source: `clientcmd.k8s.io` v1 `Config`. Only what the current context names is read, and each
field of that is honoured or refused with its path. `extensions` and `preferences` are other
programs' own. Values of credentials never reach an error.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from services.common.errors import FieldViolation
from services.common.kubeaccess import IN_CLUSTER, Access, ExecPlugin, KubeconfigError, Pem, User, in_cluster

_EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
_TOP = ("apiVersion", "kind", "preferences", "clusters", "users", "contexts", "current-context", "extensions")
_CLUSTER = (
    "server",
    "tls-server-name",
    "insecure-skip-tls-verify",
    "certificate-authority",
    "certificate-authority-data",
    "proxy-url",
    "disable-compression",
    "extensions",
)
_USER = (
    "client-certificate",
    "client-certificate-data",
    "client-key",
    "client-key-data",
    "token",
    "tokenFile",
    "exec",
    "extensions",
)
_REFUSED = {
    "username": "basic authentication is not spoken; use a certificate or a token",
    "password": "basic authentication is not spoken; use a certificate or a token",
    "auth-provider": "was removed from Kubernetes; use exec",
    "as": "impersonation is not supported",
    "as-uid": "impersonation is not supported",
    "as-groups": "impersonation is not supported",
    "as-user-extra": "impersonation is not supported",
}
_EXEC = ("apiVersion", "command", "args", "env", "installHint", "provideClusterInfo", "interactiveMode")


def load(place: str, environ: Mapping[str, str] = os.environ) -> Access:
    """Read the kubeconfig file `place`, or what a pod is given when it is `in-cluster`.

    Raises `KubeconfigError`.
    """
    return in_cluster(environ) if place == IN_CLUSTER else read(Path(place))


def read(path: Path) -> Access:
    """Read the current context of a file. Raises `KubeconfigError`."""
    try:
        mode = path.stat().st_mode
        value = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise KubeconfigError(str(path), [FieldViolation("", error.strerror or str(error))]) from error
    except yaml.YAMLError as error:
        # Not the error's text: it quotes the file, which holds credentials.
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else ""
        raise KubeconfigError(str(path), [FieldViolation(where, "is not YAML")]) from None
    reader = _Reader(path.parent)
    access = reader.access(value)
    if stat.S_IMODE(mode) & 0o077:
        reader.fault("", "can be read by others than its owner: chmod 600")
    if reader.faults:
        raise KubeconfigError(str(path), reader.faults)
    return access


class _Reader:
    """Reads one file; gathers faults. Paths are relative to the file's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.faults: list[FieldViolation] = []

    def fault(self, path: str, what: str) -> None:
        """Note a fault."""
        self.faults.append(FieldViolation(path, what))

    def access(self, value: Any) -> Access:
        """Read the whole."""
        top = self._mapping(value, "", _TOP)
        for name, wanted in (("apiVersion", "v1"), ("kind", "Config")):
            if top.get(name, wanted) != wanted:
                self.fault(name, f"must be {wanted}")
        current = self._text(top, "", "current-context", required=True)
        context, at = self._named(top, "contexts", "context", current)
        context = self._mapping(context, at, ("cluster", "user", "namespace", "extensions"))
        cluster, where = self._named(
            top, "clusters", "cluster", self._text(context, at, "cluster", required=True)
        )
        named_user = self._text(context, at, "user")
        user, path = self._named(top, "users", "user", named_user) if named_user else ({}, "users")
        if self.faults:
            return Access("")
        return self._cluster(cluster, where, self._user(user, path), self._text(context, at, "namespace"))

    def _cluster(self, value: Any, at: str, user: User, namespace: str) -> Access:
        cluster = self._mapping(value, at, _CLUSTER)
        server = self._text(cluster, at, "server", required=True).rstrip("/")
        parts = urlsplit(server)
        if server and (parts.scheme not in ("http", "https") or not parts.hostname or parts.query):
            self.fault(f"{at}.server", "must be like https://HOST:PORT")
        proxy = self._text(cluster, at, "proxy-url")
        if proxy and urlsplit(proxy).scheme not in ("http", "https"):
            self.fault(f"{at}.proxy-url", "only http and https proxies are spoken")
        authority = self._pem(cluster, at, "certificate-authority")
        insecure = self._flag(cluster, at, "insecure-skip-tls-verify")
        if insecure and authority:
            self.fault(f"{at}.insecure-skip-tls-verify", "contradicts the certificate authority")
        return Access(
            server=server,
            user=user,
            authority=authority,
            verify=not insecure,
            server_name=self._text(cluster, at, "tls-server-name"),
            proxy=proxy,
            compress=not self._flag(cluster, at, "disable-compression"),
            namespace=namespace or "default",
        )

    def _user(self, value: Any, at: str) -> User:
        user = self._mapping(value, at, _USER, _REFUSED)
        certificate = self._pem(user, at, "client-certificate")
        key = self._pem(user, at, "client-key")
        if bool(certificate) != bool(key):
            self.fault(
                f"{at}.client-{'key' if certificate else 'certificate'}", "is missing beside the other"
            )
        token, file = self._text(user, at, "token"), self._text(user, at, "tokenFile")
        return User(
            certificate=certificate,
            key=key,
            token=token,
            token_file=self._folder / file if file else None,
            plugin=self._plugin(user["exec"], f"{at}.exec") if user.get("exec") else None,
        )

    def _plugin(self, value: Any, at: str) -> ExecPlugin:
        plugin = self._mapping(value, at, _EXEC)
        version = self._text(plugin, at, "apiVersion", required=True)
        if version and version not in _EXEC_VERSIONS:
            self.fault(f"{at}.apiVersion", f"must be one of {', '.join(_EXEC_VERSIONS)}")
        if plugin.get("interactiveMode") == "Always":
            self.fault(f"{at}.interactiveMode", "a service has nobody to ask")
        elif plugin.get("interactiveMode", "Never") not in ("Never", "IfAvailable"):
            self.fault(f"{at}.interactiveMode", "must be Never or IfAvailable")
        command = self._text(plugin, at, "command", required=True)
        env = [self._variable(item, f"{at}.env[{i}]") for i, item in enumerate(self._list(plugin, at, "env"))]
        args = self._list(plugin, at, "args")
        if not all(isinstance(item, str) for item in args):
            self.fault(f"{at}.args", "must be a list of text")
        return ExecPlugin(
            # A command with a slash is relative to the file; one without is looked for in PATH.
            command=str(self._folder / command) if "/" in command else command,
            api_version=version,
            args=tuple(map(str, args)),
            env=tuple(env),
            install_hint=self._text(plugin, at, "installHint"),
            provide_cluster_info=self._flag(plugin, at, "provideClusterInfo"),
        )

    def _variable(self, value: Any, at: str) -> tuple[str, str]:
        item = self._mapping(value, at, ("name", "value"))
        return self._text(item, at, "name", required=True), self._text(item, at, "value")

    def _named(self, top: dict[str, Any], listed: str, inner: str, name: str) -> tuple[Any, str]:
        """Find an entry of a list by its name; returns what it holds and the path of that."""
        if not name:
            return {}, listed
        for index, value in enumerate(self._list(top, "", listed)):
            if isinstance(value, dict) and value.get("name") == name:
                entry = self._mapping(value, f"{listed}[{index}]", ("name", inner))
                return entry.get(inner) or {}, f"{listed}[{index}].{inner}"
        self.fault(listed, f"has none of the name {name!r}")
        return {}, listed

    def _pem(self, value: dict[str, Any], at: str, name: str) -> Pem:
        # As the original has it, data wins over a file.
        text = self._text(value, at, f"{name}-data")
        if text:
            try:
                return Pem(data=base64.b64decode(text, validate=True))
            except binascii.Error:
                self.fault(f"{at}.{name}-data", "is not base64")
        file = self._text(value, at, name)
        return Pem(file=self._folder / file) if file else Pem()

    def _mapping(
        self, value: Any, at: str, known: tuple[str, ...], refused: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.fault(at, "must be a mapping")
            return {}
        for name, given in value.items():
            if name not in known and given not in (None, "", [], {}):
                why = (refused or {}).get(name, "unknown field")
                self.fault(f"{at}.{name}" if at else str(name), why)
        return value

    def _list(self, value: dict[str, Any], at: str, name: str) -> list[Any]:
        found = value.get(name)
        if found is None or isinstance(found, list):
            return found or []
        self.fault(f"{at}.{name}" if at else name, "must be a list")
        return []

    def _text(self, value: dict[str, Any], at: str, name: str, *, required: bool = False) -> str:
        found = value.get(name)
        path = f"{at}.{name}" if at else name
        if found is not None and not isinstance(found, str):
            self.fault(path, "must be text")
            return ""
        if required and not found:
            self.fault(path, "is required")
        return found or ""

    def _flag(self, value: dict[str, Any], at: str, name: str) -> bool:
        found = value.get(name)
        if found is not None and not isinstance(found, bool):
            self.fault(f"{at}.{name}", "must be true or false")
        return found is True
