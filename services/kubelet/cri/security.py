"""What a container may do, in the engine's words. Pure.

Source: the CRI's `LinuxContainerSecurityContext`. Where the host lacks CAP_SYS_RESOURCE the engine refuses
`Privileged`, so it is made of its parts there: every capability that can be granted, every device, and no
profile that confines. What such a container lacks are writable cgroups and the missing capabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tripod.cri.v1 import api_pb2 as pb

from services.kubelet.cri.errors import invalid, unsupported

ALL: Final = "ALL"
_FIELD: Final = "config.linux.security_context"
_CAPABILITIES: Final = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"),
    *("SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW"),
    *("IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT"),
    *("SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD"),
    *("LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG"),
    *("WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE"),
)
# linux/capability.h numbers them from 0; engines before 23 know none from here on.
_KNOWN_TO_ALL: Final = _CAPABILITIES.index("PERFMON")
SYS_RESOURCE: Final = _CAPABILITIES.index("SYS_RESOURCE")


@dataclass(frozen=True, slots=True)
class Confinement:
    """What the host and the engine can do about a container's rights.

    `grantable` is None where `Privileged` and ALL work as they are; else the capabilities that can be given.
    """

    grantable: tuple[str, ...] | None = None
    apparmor: bool = False
    selinux: bool = False
    devices: tuple[str, ...] = field(default=())


def grantable(bounding_set: int, *, recent_engine: bool) -> tuple[str, ...] | None:
    """Return the capabilities that both the bounding set and the engine know; None where nothing lacks."""
    if bounding_set >> SYS_RESOURCE & 1:
        return None
    known = _CAPABILITIES if recent_engine else _CAPABILITIES[:_KNOWN_TO_ALL]
    return tuple(name for number, name in enumerate(known) if bounding_set >> number & 1)


def container(
    context: pb.LinuxContainerSecurityContext, host: Confinement, *, seccomp_profile: str = ""
) -> dict[str, Any]:
    """Return the part of a container's host configuration. Raises REQUEST_INVALID, UNSUPPORTED.

    `seccomp_profile` is the text of the localhost profile that the context names.
    """
    if context.privileged:
        return _privileged(context, host)
    made: dict[str, Any] = {
        "Privileged": False,
        "CapAdd": _added(context, host),
        "CapDrop": [_plain(name) for name in context.capabilities.drop_capabilities],
        "SecurityOpt": [*_no_new_privileges(context), *_seccomp(context, seccomp_profile)],
    }
    made["SecurityOpt"] += [*_apparmor(context, host), *_selinux(context.selinux_options, host)]
    # None given means the engine's own; the CRI's caller sends the list that it wants.
    if context.masked_paths:
        made["MaskedPaths"] = list(context.masked_paths)
    if context.readonly_paths:
        made["ReadonlyPaths"] = list(context.readonly_paths)
    return made


def _privileged(context: pb.LinuxContainerSecurityContext, host: Confinement) -> dict[str, Any]:
    options = _no_new_privileges(context)
    if host.grantable is None:
        return {"Privileged": True, "SecurityOpt": options}
    # The engine ignores the name of a security system that the host has not.
    return {
        "Privileged": False,
        "CapAdd": list(host.grantable),
        "SecurityOpt": [*options, "seccomp=unconfined", "apparmor=unconfined", "label=disable"],
        "MaskedPaths": [],
        "ReadonlyPaths": [],
        "DeviceCgroupRules": ["a *:* rwm"],
        "Devices": [device(path, path, "rwm") for path in host.devices],
    }


def device(host_path: str, container_path: str, permissions: str) -> dict[str, str]:
    """Return one device in the engine's words."""
    return {"PathOnHost": host_path, "PathInContainer": container_path, "CgroupPermissions": permissions}


def _no_new_privileges(context: pb.LinuxContainerSecurityContext) -> list[str]:
    return ["no-new-privileges"] if context.no_new_privs else []


def _added(context: pb.LinuxContainerSecurityContext, host: Confinement) -> list[str]:
    if context.capabilities.add_ambient_capabilities:
        raise unsupported(
            f"{_FIELD}.capabilities.add_ambient_capabilities", "The Docker Engine sets no ambient capability"
        )
    names = [_plain(name) for name in context.capabilities.add_capabilities]
    if ALL not in names or host.grantable is None:
        return names
    return list(dict.fromkeys([*host.grantable, *(name for name in names if name != ALL)]))


def _plain(name: str) -> str:
    return name.upper().removeprefix("CAP_")


def seccomp_file(context: pb.LinuxContainerSecurityContext) -> str:
    """Return the path of the localhost profile that must be read; "" if none."""
    if context.privileged:
        return ""
    if context.HasField("seccomp"):
        return context.seccomp.localhost_ref if context.seccomp.profile_type == _LOCALHOST else ""
    kind, _, path = context.seccomp_profile_path.partition("/")
    return path if kind == "localhost" else ""


_LOCALHOST: Final = pb.SecurityProfile.Localhost
_UNCONFINED: Final = pb.SecurityProfile.Unconfined


def _seccomp(context: pb.LinuxContainerSecurityContext, profile: str) -> list[str]:
    if profile:
        return [f"seccomp={profile}"]
    if context.HasField("seccomp"):
        if context.seccomp.profile_type == _LOCALHOST:
            raise invalid(f"{_FIELD}.seccomp.localhost_ref", "must not be empty")
        return ["seccomp=unconfined"] if context.seccomp.profile_type == _UNCONFINED else []
    # The CRI: without a profile a container is unconfined.
    confined = context.seccomp_profile_path in ("runtime/default", "docker/default")
    return [] if confined else ["seccomp=unconfined"]


def _apparmor(context: pb.LinuxContainerSecurityContext, host: Confinement) -> list[str]:
    """Return the AppArmor option; the typed field goes before the old one."""
    wanted = _apparmor_name(context)
    if not host.apparmor:
        if wanted in ("", "unconfined"):
            return []
        raise unsupported(f"{_FIELD}.apparmor", "AppArmor is not enabled on the host")
    # The engine's default profile is what it takes unasked.
    return [] if wanted in ("", "runtime/default") else [f"apparmor={wanted}"]


def _apparmor_name(context: pb.LinuxContainerSecurityContext) -> str:
    if not context.HasField("apparmor"):
        return context.apparmor_profile.removeprefix("localhost/")
    if context.apparmor.profile_type == _UNCONFINED:
        return "unconfined"
    if context.apparmor.profile_type != _LOCALHOST:
        return "runtime/default"
    if not context.apparmor.localhost_ref:
        raise invalid(f"{_FIELD}.apparmor.localhost_ref", "must not be empty")
    return context.apparmor.localhost_ref.removeprefix("localhost/")


def _selinux(options: pb.SELinuxOption, host: Confinement) -> list[str]:
    """Return the parts of an SELinux context that are asked for."""
    parts = {name: getattr(options, name) for name in ("user", "role", "type", "level")}
    asked = [f"label={name}:{value}" for name, value in parts.items() if value]
    if asked and not host.selinux:
        raise unsupported(f"{_FIELD}.selinux_options", "SELinux is not enabled on the host")
    return asked


def user(context: pb.LinuxContainerSecurityContext) -> str:
    """Return the engine's user. Raises REQUEST_INVALID for a group without a user."""
    name = str(context.run_as_user.value) if context.HasField("run_as_user") else context.run_as_username
    group = f":{context.run_as_group.value}" if context.HasField("run_as_group") else ""
    if group and not name:
        raise invalid(f"{_FIELD}.run_as_group", "needs run_as_user or run_as_username")
    return name + group


def needs_strict_groups(context: pb.LinuxContainerSecurityContext, engine_user: str) -> bool:
    """Tell whether the image's groups must be kept out.

    The engine leaves them out for a user with an explicit group alone.
    """
    strict = context.supplemental_groups_policy == pb.SupplementalGroupsPolicy.Value("Strict")
    return strict and ":" not in engine_user


def primary_group(passwd: str, engine_user: str) -> int:
    """Return the group that an image's /etc/passwd gives a user, as the engine would: 0 for unknown ones."""
    wanted = engine_user or "0"
    for line in passwd.splitlines():
        parts = line.split(":")
        if len(parts) > 3 and wanted in (parts[0], parts[2]) and parts[3].isdigit():
            return int(parts[3])
    return 0


def process_user(status: Mapping[str, Sequence[str]]) -> pb.ContainerUser | None:
    """Build the user of a process from the fields of its `/proc/PID/status`; None if they are not there."""
    try:
        uid, gid = int(status["Uid"][0]), int(status["Gid"][0])
        groups = [int(group) for group in status["Groups"]]
    except (KeyError, IndexError, ValueError):
        return None
    return pb.ContainerUser(linux=pb.LinuxContainerUser(uid=uid, gid=gid, supplemental_groups=groups))
