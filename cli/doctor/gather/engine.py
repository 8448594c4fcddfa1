"""Ask the Docker Engine: two requests over its socket, with the standard library alone."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from datetime import datetime
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from cli import output
from cli.doctor.facts import EngineFacts
from cli.doctor.gather import host

_LIMIT_SECONDS = 5.0


class _Socket(HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_LIMIT_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def gather(address: str) -> EngineFacts:
    """Ask the engine what it is."""
    path = host.socket_path(address)
    if path is None:
        return EngineFacts(address, error="it is not a unix socket, and Tripod runs beside its engine")
    try:
        version = _get(path, "/version")
        before = output.now()
        info = _get(path, "/info")
        middle = before + (output.now() - before) / 2
    except PermissionError:
        return EngineFacts(address, denied=True)
    except (OSError, HTTPException, ValueError) as error:
        return EngineFacts(address, error=getattr(error, "strerror", None) or str(error) or "no answer")
    return parse(address, version, info, middle)


def _get(path: Path, what: str) -> dict[str, Any]:
    connection = _Socket(path)
    try:
        connection.request("GET", what)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise HTTPException(f"{what} answered {answer.status}")
        value = json.loads(body)
    finally:
        connection.close()
    if not isinstance(value, dict):
        raise ValueError(f"{what} answered no object")
    return value


def parse(address: str, version: Mapping[str, Any], info: Mapping[str, Any], now: datetime) -> EngineFacts:
    """Read the two answers. Pure but for the free disk, which is this host's."""
    root = str(info.get("DockerRootDir") or "")
    registries = info.get("RegistryConfig") or {}
    return EngineFacts(
        address=address,
        version=str(version.get("Version") or ""),
        api_version=str(version.get("ApiVersion") or ""),
        runc_version=_component(version, "runc"),
        live_restore=bool(info.get("LiveRestoreEnabled")),
        storage_driver=str(info.get("Driver") or ""),
        cgroup_driver=str(info.get("CgroupDriver") or ""),
        cgroup_version=str(info.get("CgroupVersion") or ""),
        runtimes=tuple(sorted(info.get("Runtimes") or {})),
        default_runtime=str(info.get("DefaultRuntime") or ""),
        root_directory=root,
        root_space=host.space(Path(root)) if root else None,
        skew_seconds=_skew(str(info.get("SystemTime") or ""), now),
        insecure_registries=_insecure(registries),
        mirrors=tuple(registries.get("Mirrors") or ()),
        proxies={
            name: str(info[key])
            for name, key in (
                ("http_proxy", "HttpProxy"),
                ("https_proxy", "HttpsProxy"),
                ("no_proxy", "NoProxy"),
            )
            if info.get(key)
        },
        warnings=tuple(str(warning) for warning in info.get("Warnings") or ()),
    )


def _component(version: Mapping[str, Any], name: str) -> str:
    parts = version.get("Components") or []
    return next((str(part.get("Version") or "") for part in parts if part.get("Name") == name), "")


def _insecure(registries: Mapping[str, Any]) -> tuple[str, ...]:
    # 127.0.0.0/8 and ::1 are always there: nobody stands between.
    networks = [str(cidr) for cidr in registries.get("InsecureRegistryCIDRs") or ()]
    named = [
        name for name, item in (registries.get("IndexConfigs") or {}).items() if not item.get("Secure", True)
    ]
    return tuple(sorted([cidr for cidr in networks if not cidr.startswith(("127.", "::1"))] + named))


def _skew(moment: str, now: datetime) -> float:
    """Return by how many seconds the engine's clock is ahead of `now`; 0 where it tells no time."""
    try:
        return (datetime.fromisoformat(moment) - now).total_seconds()
    except (ValueError, TypeError):
        return 0.0
