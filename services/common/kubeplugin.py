"""Ask a command who we are: the credential plugins of a kubeconfig.

Source: client-go `plugin/pkg/client/auth/exec`, the `ExecCredential` v1 API.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from services.common.errors import Code, TripodError
from services.common.kubeaccess import NO_PEM, Access, ExecPlugin, Pem

_PLUGIN_SECONDS = 60.0
_PLUGIN_LIMIT_BYTES = 1 << 20


class CredentialsError(TripodError):
    """Who we are cannot be told now: a file that cannot be read, a plugin that failed."""

    def __init__(self, what: str) -> None:
        super().__init__(what, code=Code.UNAUTHENTICATED, reason="CREDENTIALS_UNUSABLE")


@dataclass(frozen=True, slots=True)
class Given:
    """What a plugin gave."""

    token: str = field(default="", repr=False)
    certificate: Pem = NO_PEM
    key: Pem = NO_PEM
    expires: datetime | None = None


async def ask(plugin: ExecPlugin, access: Access) -> Given:
    """Run a plugin. Nothing that it prints reaches an error. Raises `CredentialsError`."""
    spec: dict[str, Any] = {"interactive": False}
    if plugin.provide_cluster_info:
        spec["cluster"] = _cluster(access)
    asked = {"apiVersion": plugin.api_version, "kind": "ExecCredential", "spec": spec}
    environment = {**os.environ, **dict(plugin.env), "KUBERNETES_EXEC_INFO": json.dumps(asked)}
    hint = f" ({plugin.install_hint})" if plugin.install_hint else ""
    try:
        process = await asyncio.create_subprocess_exec(
            plugin.command,
            *plugin.args,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=_PLUGIN_LIMIT_BYTES,
        )
    except OSError as error:
        raise CredentialsError(f"Cannot run {plugin.command}: {error.strerror}{hint}") from error
    output = b""
    try:
        async with asyncio.timeout(_PLUGIN_SECONDS):
            assert process.stdout is not None
            while part := await process.stdout.read(1 << 16):
                output += part
                if len(output) > _PLUGIN_LIMIT_BYTES:
                    raise CredentialsError(f"{plugin.command} printed more than {_PLUGIN_LIMIT_BYTES} bytes")
            code = await process.wait()
    except TimeoutError:
        raise CredentialsError(f"{plugin.command} did not end within {_PLUGIN_SECONDS:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code:
        raise CredentialsError(f"{plugin.command} ended with {code}")
    return _read(plugin, output)


def _cluster(access: Access) -> dict[str, Any]:
    authority = access.authority.file.read_bytes() if access.authority.file else access.authority.data
    told: dict[str, Any] = {
        "server": access.server,
        "tls-server-name": access.server_name,
        "insecure-skip-tls-verify": not access.verify,
        "certificate-authority-data": base64.b64encode(authority).decode(),
        "proxy-url": access.proxy,
    }
    return {name: value for name, value in told.items() if value}


def _read(plugin: ExecPlugin, output: bytes) -> Given:
    try:
        answer = json.loads(output)
        status = answer["status"]
        made = Given(
            token=status.get("token", ""),
            certificate=Pem(data=status.get("clientCertificateData", "").encode()),
            key=Pem(data=status.get("clientKeyData", "").encode()),
            expires=_moment(status.get("expirationTimestamp")),
        )
        fits = answer["kind"] == "ExecCredential" and answer["apiVersion"] == plugin.api_version
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CredentialsError(f"{plugin.command} printed no ExecCredential") from None
    if not fits or bool(made.certificate) != bool(made.key) or not (made.token or made.certificate):
        raise CredentialsError(f"{plugin.command} printed no usable ExecCredential of {plugin.api_version}")
    return made


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
