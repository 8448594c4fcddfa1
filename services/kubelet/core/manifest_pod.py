"""The spec of a pod: fields, rules and defaults. Pure.

Source: Kubernetes API reference, `PodSpec` v1. `_LATER` names what Kubernetes has
and we refuse for now, with the values that change nothing.
"""

from __future__ import annotations

from typing import Any

from services.kubelet.core import manifest_network, manifest_scheduling, manifest_security
from services.kubelet.core.fields import DNS_LABEL, DNS_SUBDOMAIN, Faults, Fields
from services.kubelet.core.manifest_config import read_secret_names
from services.kubelet.core.manifest_container import read_container
from services.kubelet.core.manifest_ports import read_host_ports
from services.kubelet.core.manifest_probe import MAX_SECONDS
from services.kubelet.core.manifest_volume import read_volume
from services.kubelet.core.model import PodSpec, RestartPolicy
from services.kubelet.core.rules import STANDALONE, Rules

_LATER: dict[str, tuple[Any, ...]] = {
    "activeDeadlineSeconds": (),
    "ephemeralContainers": ([],),
    "hostUsers": (True,),
    "initContainers": ([],),
    "overhead": ({},),
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
            *("containers", "volumes", "restartPolicy", "terminationGracePeriodSeconds", "hostname"),
            *("enableServiceLinks", "imagePullSecrets", "serviceAccount", "serviceAccountName"),
            "automountServiceAccountToken",
            *_POLICY,
        ),
        later=_LATER,
    )
    volumes = tuple(read_volume(item, path, faults) for item, path in spec.items("volumes"))
    faults.unique(spec.at("volumes"), [volume.name for volume in volumes])
    containers = tuple(
        read_container(item, path, faults, {volume.name for volume in volumes})
        for item, path in spec.items("containers", required=True)
    )
    faults.unique(spec.at("containers"), [container.name for container in containers])
    namespaces = manifest_security.read_namespaces(spec)
    containers = read_host_ports(containers, spec.at("containers"), faults, host_network=namespaces.network)
    policy = spec.text("restartPolicy", "Always", choices=[p.value for p in RestartPolicy])
    return PodSpec(
        containers=containers,
        volumes=volumes,
        restart_policy=RestartPolicy(policy),
        termination_grace_period_seconds=spec.whole(
            "terminationGracePeriodSeconds", 30, low=0, high=MAX_SECONDS
        ),
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
    )


def _service_account(spec: Fields) -> str:
    """Read `serviceAccountName`, and its old name `serviceAccount`, which must not say another one."""
    what = "a DNS name"
    name = spec.text("serviceAccountName", form=DNS_SUBDOMAIN, what=what)
    old = spec.text("serviceAccount", form=DNS_SUBDOMAIN, what=what)
    if name and old and name != old:
        spec.fault("serviceAccount", "differs from serviceAccountName, whose old name it is")
    return name or old or "default"
