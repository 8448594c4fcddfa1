"""The spec of a pod: fields, rules and defaults. Pure.

Source: Kubernetes API reference, `PodSpec` v1. `_LATER` names what Kubernetes has
and we refuse for now, with the values that change nothing.
"""

from __future__ import annotations

from typing import Any

from services.kubelet.core import manifest_network, manifest_scheduling, manifest_security
from services.kubelet.core.brought import DownwardFiles, Projected, ResourceRef
from services.kubelet.core.fields import DNS_LABEL, DNS_SUBDOMAIN, Faults, Fields
from services.kubelet.core.manifest_config import read_secret_names
from services.kubelet.core.manifest_container import Kind, read_container
from services.kubelet.core.manifest_lifecycle import check_sleeps
from services.kubelet.core.manifest_ports import read_host_ports
from services.kubelet.core.manifest_probe import MAX_SECONDS
from services.kubelet.core.manifest_volume import read_volume
from services.kubelet.core.model import Container, PodSpec, RestartPolicy, Volume
from services.kubelet.core.rules import STANDALONE, Rules

_LATER: dict[str, tuple[Any, ...]] = {
    "hostUsers": (True,),
    "resourceClaims": ([],),
    "resources": ({},),
}
_POLICY = (
    *("securityContext", "hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"),
    *("dnsPolicy", "dnsConfig", "subdomain", "setHostnameAsFQDN", "hostnameOverride", "hostAliases"),
    *("readinessGates", "runtimeClassName"),
    *manifest_scheduling.FIELDS,
)


def read_pod_spec(value: Any, faults: Faults, rules: Rules = STANDALONE) -> PodSpec:
    """Read and check a pod's spec."""
    spec = Fields(
        value,
        "spec",
        faults,
        known=(
            *("containers", "initContainers", "ephemeralContainers", "volumes", "restartPolicy"),
            *("terminationGracePeriodSeconds", "activeDeadlineSeconds", "hostname"),
            *("enableServiceLinks", "imagePullSecrets", "serviceAccount", "serviceAccountName"),
            "automountServiceAccountToken",
            *_POLICY,
        ),
        later=_LATER,
    )
    volumes = tuple(read_volume(item, path, faults) for item, path in spec.items("volumes"))
    faults.unique(spec.at("volumes"), [volume.name for volume in volumes])
    by_name = {volume.name: volume for volume in volumes}
    initial, containers, ephemeral = (
        _containers(spec, kind, by_name) for kind in (Kind.INIT, Kind.MAIN, Kind.EPHEMERAL)
    )
    namespaces = manifest_security.read_namespaces(spec)
    network = namespaces.network
    initial = read_host_ports(initial, spec.at(Kind.INIT.value), faults, host_network=network)
    containers = read_host_ports(containers, spec.at(Kind.MAIN.value), faults, host_network=network)
    _check_names(spec, initial, containers, ephemeral)
    _check_targets(spec, ephemeral, {c.name for c in (*initial, *containers)})
    lists = {Kind.INIT: initial, Kind.MAIN: containers, Kind.EPHEMERAL: ephemeral}
    _check_containers_named(spec, lists, volumes)
    grace = spec.whole("terminationGracePeriodSeconds", 30, low=0, high=MAX_SECONDS)
    for kind, found in ((Kind.INIT, initial), (Kind.MAIN, containers)):
        for index, container in enumerate(found):
            check_sleeps(container, f"{spec.at(kind.value)}[{index}]", grace, faults)
    policy = spec.text("restartPolicy", "Always", choices=[p.value for p in RestartPolicy])
    return PodSpec(
        containers=containers,
        init_containers=initial,
        ephemeral_containers=ephemeral,
        volumes=volumes,
        restart_policy=RestartPolicy(policy),
        termination_grace_period_seconds=grace,
        hostname=spec.text("hostname", form=DNS_LABEL, what="a DNS label"),
        enable_service_links=spec.flag("enableServiceLinks", default=True),
        image_pull_secrets=read_secret_names(spec, "imagePullSecrets"),
        service_account_name=_service_account(spec),
        automount_service_account_token=(
            spec.flag("automountServiceAccountToken") if spec.has("automountServiceAccountToken") else None
        ),
        security=manifest_security.read_pod_security(spec),
        namespaces=namespaces,
        dns=manifest_network.read_dns(spec),
        naming=manifest_network.read_naming(spec, host_network=namespaces.network),
        scheduling=manifest_scheduling.read_scheduling(spec, rules),
        readiness_gates=manifest_security.read_readiness_gates(spec, faults, cluster=rules.cluster),
        runtime_class_name=spec.text("runtimeClassName", form=DNS_SUBDOMAIN, what="a DNS name"),
        active_deadline_seconds=_deadline(spec),
    )


def _service_account(spec: Fields) -> str:
    """Read `serviceAccountName`, and its old name `serviceAccount`, which must not say another one."""
    what = "a DNS name"
    name = spec.text("serviceAccountName", form=DNS_SUBDOMAIN, what=what)
    old = spec.text("serviceAccount", form=DNS_SUBDOMAIN, what=what)
    if name and old and name != old:
        spec.fault("serviceAccount", "differs from serviceAccountName, whose old name it is")
    return name or old or "default"


def _containers(spec: Fields, kind: Kind, volumes: dict[str, Volume]) -> tuple[Container, ...]:
    """Read one list of containers."""
    items = spec.items(kind.value, required=kind is Kind.MAIN)
    return tuple(read_container(item, path, spec.faults, volumes, kind) for item, path in items)


def _check_names(spec: Fields, *lists: tuple[Container, ...]) -> None:
    """Note names that stand twice, in one list or in two of them."""
    names = [[container.name for container in found] for found in lists]
    for kind, found in zip((Kind.INIT, Kind.MAIN, Kind.EPHEMERAL), names, strict=True):
        spec.faults.unique(spec.at(kind.value), found)
    spec.faults.unique(spec.path, [name for found in names for name in set(found)])


def _check_targets(spec: Fields, ephemeral: tuple[Container, ...], names: set[str]) -> None:
    """Note ephemeral containers whose target is no container of the pod."""
    for index, container in enumerate(ephemeral):
        if container.target and container.target not in names:
            path = f"{spec.at(Kind.EPHEMERAL.value)}[{index}].targetContainerName"
            spec.faults.add(path, f"no container is called {container.target!r}")


def _deadline(spec: Fields) -> int | None:
    name = "activeDeadlineSeconds"
    return spec.whole(name, 1, low=1, high=MAX_SECONDS) if spec.has(name) else None


def _check_containers_named(
    spec: Fields, lists: dict[Kind, tuple[Container, ...]], volumes: tuple[Volume, ...]
) -> None:
    """See that every `containerName` of a resourceFieldRef is a container of the pod."""
    names = {c.name for kind in (Kind.INIT, Kind.MAIN) for c in lists[kind]}
    asked = [
        (f"{spec.at(kind.value)}[{number}].env", variable.source)
        for kind, containers in lists.items()
        for number, container in enumerate(containers)
        for variable in container.env
    ]
    asked += [
        (f"{spec.at('volumes')}[{number}]", item.source)
        for number, volume in enumerate(volumes)
        if isinstance(volume.source, Projected)
        for source in volume.source.sources
        if isinstance(source, DownwardFiles)
        for item in source.items
    ]
    for place, source in asked:
        if isinstance(source, ResourceRef) and source.container and source.container not in names:
            spec.faults.add(place, f"containerName: no container is called {source.container!r}")
