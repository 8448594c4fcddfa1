"""`/configz`: what is in force, in the words of the original's configuration file.

Source: k8s.io/kubelet config/v1beta1 `KubeletConfiguration`. What we have no
setting for is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from services.kubelet.config import KubeletConfig
from services.kubelet.core.listening import split_address


def configz(config: KubeletConfig, listen: str) -> dict[str, Any]:
    """Write the page. It has no secret: no setting is one."""
    host, port = split_address(listen)
    manifests = config.manifest_directory
    made: dict[str, Any] = {
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "staticPodPath": str(manifests if manifests != Path() else config.state_directory / "manifests"),
        "address": host,
        "port": port,
        "readOnlyPort": int(config.http_listen.rpartition(":")[2]),
        "tlsCertFile": _text(config.tls_cert_file),
        "tlsPrivateKeyFile": _text(config.tls_private_key_file),
        "authentication": {
            "x509": {"clientCAFile": _text(config.client_ca_file)},
            "webhook": {"cacheTTL": "2m0s"},
            "anonymous": {"enabled": False},
        },
        "authorization": {
            "mode": config.authorization_mode,
            "webhook": {"cacheAuthorizedTTL": "5m0s", "cacheUnauthorizedTTL": "30s"},
        },
        "streamingConnectionIdleTimeout": "4h0m0s",
        "podCIDR": config.pod_cidr,
        "containerLogMaxSize": f"{config.container_log_max_mebibytes}Mi",
        "containerLogMaxFiles": config.container_log_max_files,
        "containerRuntimeEndpoint": config.cri_endpoint or f"unix://{config.run_directory}/cri.sock",
        "enableSystemLogHandler": False,
        "enableProfilingHandler": False,
        "enableDebugFlagsHandler": False,
    }
    return {"kubeletconfig": made}


def _text(path: Path) -> str:
    return "" if path == Path() else str(path)
