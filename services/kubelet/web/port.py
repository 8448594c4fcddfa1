"""Put the secure port together: certificate, who may, routes.

Only imported where the port is open: making certificates costs memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.common.clock import Clock
from services.common.errors import Code
from services.common.watch import WatchHub
from services.kubelet.adapters.serving import OwnCertificate, Serving, TlsFiles
from services.kubelet.config import KubeletConfig
from services.kubelet.core.listening import split_address
from services.kubelet.core.status import PodStatus
from services.kubelet.errors import KubeletError
from services.kubelet.ports import PodSource, Reviewer, Runtime
from services.kubelet.web.authentication import Authenticator, by_node_token
from services.kubelet.web.checkpoint import CheckpointRoute
from services.kubelet.web.guard import Allows, ReviewedAccess, allow_always, guard
from services.kubelet.web.logs import LogRoutes
from services.kubelet.web.pages import Pages
from services.kubelet.web.secure import SecureServer, secure_application
from services.kubelet.web.streams import StreamRoutes
from services.kubelet.web.traffic import Traffic

WEBHOOK, ALWAYS_ALLOW = "Webhook", "AlwaysAllow"


@dataclass(frozen=True, slots=True)
class Node:
    """What the port shows and reaches. `names` are those that a certificate of ours is for.

    Without a `reviewer` the node's token is the only one that is known.
    """

    name: str
    names: Callable[[], Sequence[str]]
    source: PodSource
    runtime: Runtime
    statuses: WatchHub[PodStatus]
    log_root: Path
    token: str
    reviewer: Reviewer | None = None


def secure_port(
    config: KubeletConfig, node: Node, pages: Pages, traffic: Traffic, clock: Clock, *, listen: str
) -> SecureServer:
    """Make the server. Raises `KubeletError` for settings or files that cannot be used."""
    serving = _serving(config, node, clock)
    review = node.reviewer.review_token if node.reviewer else by_node_token(node.token)
    authenticator = Authenticator(review, lambda: serving.generation, clock)
    streams = StreamRoutes(node.source, node.runtime, clock)
    application = secure_application(
        guard(authenticator, _allows(config, node, clock), node.name),
        pages,
        logs=LogRoutes(node.source, node.runtime, node.statuses, clock, node.log_root),
        streams=streams,
        checkpoint=CheckpointRoute(node.source, node.runtime, clock, config.state_directory / "checkpoints"),
        traffic=traffic,
    )
    try:
        host, port = split_address(listen)
    except ValueError as error:
        raise _unusable("kubelet_listen", str(error)) from error
    return SecureServer(application, serving.context, host, port)


def _allows(config: KubeletConfig, node: Node, clock: Clock) -> Allows:
    mode = config.authorization_mode or (WEBHOOK if node.reviewer else ALWAYS_ALLOW)
    if mode == ALWAYS_ALLOW:
        return allow_always
    if mode != WEBHOOK:
        raise _unusable("authorization_mode", f"{mode!r} is neither {WEBHOOK} nor {ALWAYS_ALLOW}")
    if node.reviewer is None:
        raise _unusable("authorization_mode", f"{WEBHOOK} needs a kubeconfig: nobody else knows who may")
    return ReviewedAccess(node.reviewer, clock)


def _serving(config: KubeletConfig, node: Node, clock: Clock) -> Serving:
    authorities = config.client_ca_file if config.client_ca_file != Path() else None
    certificate, key = config.tls_cert_file, config.tls_private_key_file
    if (certificate == Path()) != (key == Path()):
        raise _unusable("tls_cert_file, tls_private_key_file", "one without the other")
    if certificate != Path():
        return Serving(TlsFiles(certificate, key, authorities), clock)
    own = OwnCertificate(config.state_directory / "pki/kubelet.pem", node.names, clock)
    return Serving(TlsFiles(own.path, own.path, authorities), clock, own.renew)


def _unusable(setting: str, why: str) -> KubeletError:
    return KubeletError(
        f"{setting}: {why}",
        code=Code.INVALID_ARGUMENT,
        reason="SETTINGS_INVALID",
        metadata={"setting": setting},
    )
