"""What the runtime says of itself: conditions, handlers, features, and with `verbose` its settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any

from tripod.cri.v1 import api_pb2 as pb

from services.common.logs import get_logger
from services.kubelet.cri.convert import Host
from services.kubelet.cri.docker_client import DockerClient
from services.kubelet.cri.errors import CriError, invalid
from services.kubelet.cri.ledger import LEDGER_INFO, LedgerTaker
from services.kubelet.cri.ports import PodNetwork

log = get_logger(__name__)
_ENGINE_KEYS = ("ServerVersion", "Driver", "CgroupDriver", "CgroupVersion", "DefaultRuntime", "DockerRootDir")


class StatusTaker:
    """Takes the status. `settings` are this server's, as they may be shown."""

    def __init__(
        self,
        client: DockerClient,
        network: PodNetwork,
        ledger: LedgerTaker,
        host: Host,
        *,
        settings: Mapping[str, str],
    ) -> None:
        self._client = client
        self._network = network
        self._ledger = ledger
        self._host = host
        self._settings = settings
        self._told_cidr = ""

    async def take(self, *, verbose: bool) -> pb.StatusResponse:
        """Say whether the engine answers and pods can be wired. Raises only for what `verbose` asks."""
        try:
            await self._client.version()
            runtime = pb.RuntimeCondition(type="RuntimeReady", status=True)
        except CriError as error:
            runtime = pb.RuntimeCondition(
                type="RuntimeReady", status=False, reason="EngineUnreachable", message=error.message
            )
        fault = self._network.ready()
        network = pb.RuntimeCondition(
            type="NetworkReady",
            status=fault is None,
            reason="" if fault is None else "NetworkNotReady",
            message=fault or "",
        )
        return pb.StatusResponse(
            status=pb.RuntimeStatus(conditions=[runtime, network, *_restrictions(self._host)]),
            info=await self._info() if verbose else {},
            runtime_handlers=_handlers(self._host),
            features=pb.RuntimeFeatures(supplemental_groups_policy=True),
        )

    async def _info(self) -> dict[str, str]:
        engine = await self._client.info()
        config: dict[str, Any] = {
            **self._settings,
            "api_version": self._client.api_version,
            "engine": {key: engine.get(key) for key in _ENGINE_KEYS},
        }
        if self._told_cidr:
            config["told_pod_cidr"] = self._told_cidr
        return {
            LEDGER_INFO: json.dumps(await self._ledger.take()),
            "config": json.dumps(config, sort_keys=True),
        }

    def tell_pod_cidr(self, cidr: str) -> None:
        """Take note of the node's pod CIDR. Raises `CriError` for what is none.

        Addresses come from this server's setting, which an upstream kubelet must not fail for.
        """
        try:
            networks = [ip_network(part.strip()) for part in cidr.split(",") if part.strip()]
        except ValueError as error:
            raise invalid("runtime_config.network_config.pod_cidr", str(error)) from error
        own = self._settings.get("pod_cidr", "")
        if networks and cidr != self._told_cidr and own not in map(str, networks):
            log.warning("Kept the pod CIDR of the settings", told=cidr, pod_cidr=own)
        self._told_cidr = cidr


def _handlers(host: Host) -> list[pb.RuntimeHandler]:
    """List the engine's runtimes, the default one by the name of none."""
    features = pb.RuntimeHandlerFeatures(recursive_read_only_mounts=host.recursive_read_only)
    return [pb.RuntimeHandler(name=name, features=features) for name in ("", *host.runtimes)]


def _restrictions(host: Host) -> list[pb.RuntimeCondition]:
    """Warn of what privileged containers lack on this host. The runtime is ready none the less."""
    if host.confinement.grantable is None:
        return []
    return [
        pb.RuntimeCondition(
            type="PrivilegesRestricted",
            status=True,
            reason="NoCapSysResource",
            message="The host lacks CAP_SYS_RESOURCE: negative out-of-memory scores become 0, and privileged "
            f"containers have {len(host.confinement.grantable)} capabilities and every device, no more",
        )
    ]
