"""Security contexts and host namespaces of a manifest: fields and rules. Pure.

Source: Kubernetes API reference, `PodSecurityContext` and `SecurityContext` v1, and the API server's
validation.
User namespaces (`hostUsers: false`) are left out, and with them `procMount: Unmasked`, which needs one.
"""

from __future__ import annotations

import re
from typing import Any

from services.kubelet.core import security, sysctls
from services.kubelet.core.fields import Faults, Fields
from services.kubelet.core.security import (
    ContainerSecurity,
    HostNamespaces,
    PodSecurity,
    Profile,
    ProfileType,
    SeLinuxOptions,
)

MAX_ID = 2**31 - 1
_CAPABILITY = re.compile(r"[A-Za-z0-9_]{1,64}")
_SELINUX = re.compile(r"[-A-Za-z0-9_.:,]{1,255}")
_SHARED = ("runAsUser", "runAsGroup", "runAsNonRoot", "seccompProfile", "appArmorProfile", "seLinuxOptions")


def read_namespaces(spec: Fields) -> HostNamespaces:
    """Read which namespaces of the host a pod is in."""
    found = HostNamespaces(
        network=spec.flag("hostNetwork"),
        pid=spec.flag("hostPID"),
        ipc=spec.flag("hostIPC"),
        share_processes=spec.flag("shareProcessNamespace"),
    )
    if found.pid and found.share_processes:
        spec.fault("shareProcessNamespace", "cannot be true together with hostPID")
    return found


def read_pod_security(spec: Fields) -> PodSecurity:
    """Read a pod's `securityContext`."""
    if not spec.has("securityContext"):
        return PodSecurity()
    fields = Fields(
        spec.raw("securityContext"),
        spec.at("securityContext"),
        spec.faults,
        known=(
            *_SHARED,
            *("supplementalGroups", "supplementalGroupsPolicy", "fsGroup", "fsGroupChangePolicy", "sysctls"),
        ),
        # Both ways to label volumes are one where nothing is labelled.
        later={"seLinuxChangePolicy": ("MountOption", "Recursive"), "windowsOptions": ({},)},
    )
    merge = fields.text("supplementalGroupsPolicy", "Merge", choices=("Merge", "Strict"))
    change = fields.text("fsGroupChangePolicy", "Always", choices=("Always", "OnRootMismatch"))
    return PodSecurity(
        run_as_user=_id(fields, "runAsUser"),
        run_as_group=_id(fields, "runAsGroup"),
        run_as_non_root=_flag(fields, "runAsNonRoot"),
        supplemental_groups=_groups(fields),
        strict_groups=merge == "Strict",
        fs_group=_id(fields, "fsGroup"),
        fs_group_on_root_mismatch=change == "OnRootMismatch",
        sysctls=_sysctls(fields),
        seccomp=_profile(fields, "seccompProfile"),
        apparmor=_profile(fields, "appArmorProfile"),
        selinux=_selinux(fields),
    )


def read_container_security(container: Fields) -> ContainerSecurity:
    """Read a container's `securityContext`."""
    if not container.has("securityContext"):
        return ContainerSecurity()
    fields = Fields(
        container.raw("securityContext"),
        container.at("securityContext"),
        container.faults,
        known=(
            *_SHARED,
            *(
                "capabilities",
                "privileged",
                "allowPrivilegeEscalation",
                "readOnlyRootFilesystem",
                "procMount",
            ),
        ),
        later={"windowsOptions": ({},)},
    )
    added, dropped = _capabilities(fields)
    if fields.raw("procMount") == "Unmasked":
        fields.fault("procMount", "Unmasked needs hostUsers: false, which is not supported yet")
    else:
        fields.text("procMount", "Default", choices=("Default", "Unmasked"))
    found = ContainerSecurity(
        run_as_user=_id(fields, "runAsUser"),
        run_as_group=_id(fields, "runAsGroup"),
        run_as_non_root=_flag(fields, "runAsNonRoot"),
        capabilities_added=added,
        capabilities_dropped=dropped,
        privileged=_flag(fields, "privileged"),
        allow_privilege_escalation=_flag(fields, "allowPrivilegeEscalation"),
        read_only_root_filesystem=_flag(fields, "readOnlyRootFilesystem"),
        seccomp=_profile(fields, "seccompProfile"),
        apparmor=_profile(fields, "appArmorProfile"),
        selinux=_selinux(fields),
    )
    _check_escalation(fields, found)
    return found


def _check_escalation(fields: Fields, found: ContainerSecurity) -> None:
    if found.allow_privilege_escalation is not False:
        return
    if found.privileged:
        fields.fault("allowPrivilegeEscalation", "cannot be false while privileged is true")
    elif any(name.upper().removeprefix("CAP_") == "SYS_ADMIN" for name in found.capabilities_added):
        fields.fault("allowPrivilegeEscalation", "cannot be false while the capability SYS_ADMIN is added")


def _id(fields: Fields, name: str) -> int | None:
    return fields.whole(name, 0, low=0, high=MAX_ID) if fields.has(name) else None


def _flag(fields: Fields, name: str) -> bool | None:
    return fields.flag(name) if fields.has(name) else None


def _groups(fields: Fields) -> tuple[int, ...]:
    found = []
    for item, path in fields.items("supplementalGroups"):
        if isinstance(item, int) and not isinstance(item, bool) and 0 <= item <= MAX_ID:
            found.append(item)
        else:
            fields.faults.add(path, f"must be a whole number from 0 to {MAX_ID}")
    return tuple(found)


def _capabilities(fields: Fields) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if not fields.has("capabilities"):
        return (), ()
    place = fields.at("capabilities")
    lists = Fields(fields.raw("capabilities"), place, fields.faults, known=("add", "drop"))
    return _names(lists, "add"), _names(lists, "drop")


def _names(lists: Fields, name: str) -> tuple[str, ...]:
    found = lists.texts(name)
    for index, capability in enumerate(found):
        if not _CAPABILITY.fullmatch(capability):
            lists.faults.add(f"{lists.at(name)}[{index}]", f"{capability!r} is not the name of a capability")
    return found


def _profile(fields: Fields, name: str) -> Profile | None:
    if not fields.has(name):
        return None
    profile = Fields(
        fields.raw(name), fields.at(name), fields.faults, known=("type", "localhostProfile"), later={}
    )
    kind = profile.text("type", required=True, choices=[t.value for t in ProfileType])
    localhost = profile.text("localhostProfile")
    if not kind:
        return None
    if kind != ProfileType.LOCALHOST.value:
        if profile.has("localhostProfile"):
            profile.fault("localhostProfile", "is for type Localhost alone")
        return Profile(ProfileType(kind))
    seccomp = name == "seccompProfile"
    wrong = security.localhost_fault(localhost) if seccomp or not localhost else _apparmor_fault(localhost)
    if wrong:
        profile.fault("localhostProfile", wrong)
    return Profile(ProfileType(kind), localhost)


def _apparmor_fault(name: str) -> str:
    if name != name.strip() or len(name) > 4095:
        return "must be without spaces at its ends, and of 4095 characters at most"
    return "must be without control characters" if any(ord(c) < 32 for c in name) else ""


def _selinux(fields: Fields) -> SeLinuxOptions | None:
    if not fields.has("seLinuxOptions"):
        return None
    parts = ("user", "role", "type", "level")
    options = Fields(fields.raw("seLinuxOptions"), fields.at("seLinuxOptions"), fields.faults, known=parts)
    texts = [options.text(part, form=_SELINUX, what="a part of an SELinux context") for part in parts]
    return SeLinuxOptions(*texts)


def _sysctls(fields: Fields) -> tuple[tuple[str, str], ...]:
    found = []
    for value, path in fields.items("sysctls"):
        one = Fields(value, path, fields.faults, known=("name", "value"))
        name = one.text("name", required=True, form=sysctls.NAME, what="the name of a sysctl")
        found.append((name, _sysctl_value(one)))
    fields.faults.unique(fields.at("sysctls"), [sysctls.normal(name) for name, _ in found])
    return tuple(found)


def _sysctl_value(one: Fields) -> str:
    if not one.has("value"):
        one.fault("value", "is required")
    return one.text("value", form=sysctls.VALUE, what="a value of digits, letters, spaces and '-._:,/'")


def read_readiness_gates(spec: Fields, faults: Faults, *, cluster: bool) -> tuple[str, ...]:
    """Read the conditions that others must set before a pod is ready; standalone there are no others."""
    gates: list[str] = []
    for value, path in spec.items("readinessGates"):
        one: Any = Fields(value, path, faults, known=("conditionType",))
        gates.append(one.text("conditionType", required=True))
    if gates and not cluster:
        spec.fault("readinessGates", "needs a cluster: on this node nobody sets such conditions")
    return tuple(gates)
