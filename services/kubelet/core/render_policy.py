"""What a pod says of its rights, its network and its place, as Kubernetes JSON. Pure.

Only what was said is written: reading it gives the same value.
"""

from __future__ import annotations

import json
from typing import Any

from services.kubelet.core import quantity
from services.kubelet.core.dns import DnsWish
from services.kubelet.core.hostname import Naming
from services.kubelet.core.scheduling import Scheduling, Toleration
from services.kubelet.core.security import (
    ContainerSecurity,
    HostNamespaces,
    PodSecurity,
    Profile,
    SeLinuxOptions,
)

Json = dict[str, Any]


def _given(values: Json) -> Json:
    """Leave out what was not said; false and zero stay."""
    return {key: value for key, value in values.items() if value is not None and value not in ("", [], {})}


def namespaces(value: HostNamespaces) -> Json:
    """Write which namespaces of the host a pod is in."""
    flags = {
        "hostNetwork": value.network,
        "hostPID": value.pid,
        "hostIPC": value.ipc,
        "shareProcessNamespace": value.share_processes,
    }
    return {name: True for name, given in flags.items() if given}


def pod_security(value: PodSecurity) -> Json:
    """Write a pod's `securityContext`."""
    own = _given(
        {
            "supplementalGroups": list(value.supplemental_groups),
            "supplementalGroupsPolicy": "Strict" if value.strict_groups else None,
            "fsGroup": value.fs_group,
            "fsGroupChangePolicy": "OnRootMismatch" if value.fs_group_on_root_mismatch else None,
            "sysctls": [{"name": name, "value": text} for name, text in value.sysctls],
        }
    )
    return _shared(value) | own


def container_security(value: ContainerSecurity) -> Json:
    """Write a container's `securityContext`."""
    capabilities = {"add": list(value.capabilities_added), "drop": list(value.capabilities_dropped)}
    own = _given(
        {
            "capabilities": _given(capabilities),
            "privileged": value.privileged,
            "allowPrivilegeEscalation": value.allow_privilege_escalation,
            "readOnlyRootFilesystem": value.read_only_root_filesystem,
        }
    )
    return _shared(value) | own


def _shared(value: PodSecurity | ContainerSecurity) -> Json:
    made = {
        "runAsUser": value.run_as_user,
        "runAsGroup": value.run_as_group,
        "runAsNonRoot": value.run_as_non_root,
        "seccompProfile": _profile(value.seccomp),
        "appArmorProfile": _profile(value.apparmor),
    }
    # An empty context is said, too: it goes before the pod's.
    return {**_given(made), **({"seLinuxOptions": _selinux(value.selinux)} if value.selinux else {})}


def _profile(value: Profile | None) -> Json | None:
    return _given({"type": value.type.value, "localhostProfile": value.localhost}) if value else None


def _selinux(value: SeLinuxOptions) -> Json:
    return _given({"user": value.user, "role": value.role, "type": value.type, "level": value.level})


def dns(value: DnsWish) -> Json:
    """Write `dnsPolicy` and `dnsConfig`."""
    options = [_given({"name": option.name, "value": option.value}) for option in value.options]
    config = {"nameservers": list(value.servers), "searches": list(value.searches), "options": options}
    return _given({"dnsPolicy": value.policy.value, "dnsConfig": _given(config)})


def naming(value: Naming) -> Json:
    """Write a pod's names besides `hostname`."""
    made = {
        "subdomain": value.subdomain,
        "hostnameOverride": value.hostname_override,
        "setHostnameAsFQDN": value.hostname_as_fqdn or None,
        "hostAliases": [_given({"ip": a.ip, "hostnames": list(a.hostnames)}) for a in value.host_aliases],
    }
    return _given(made)


def scheduling(value: Scheduling) -> Json:
    """Write where and before whom a pod runs."""
    made = {
        "nodeName": value.node_name,
        "nodeSelector": dict(value.node_selector),
        "tolerations": [_toleration(one) for one in value.tolerations],
        "priority": value.priority,
        "priorityClassName": value.priority_class_name,
        "preemptionPolicy": value.preemption_policy,
        "schedulerName": value.scheduler_name,
        "os": {"name": value.os} if value.os else None,
        "overhead": {name: _amount(name, count) for name, count in value.overhead},
    }
    return {**_given(made), **{name: json.loads(text) for name, text in value.kept}}


def _amount(name: str, count: int) -> str:
    return quantity.format_millicores(count) if name == "cpu" else quantity.format_bytes(count)


def _toleration(value: Toleration) -> Json:
    made = {
        "key": value.key,
        "operator": value.operator,
        "value": value.value,
        "effect": value.effect,
        "tolerationSeconds": value.seconds,
    }
    return _given(made)
