"""What a pod and its containers may do, and what that comes to for one container. Pure.

The rules:

- What a container says goes before what its pod says; a part that neither says is the image's or a default.
- Nothing said about seccomp means RuntimeDefault, for every container that is not privileged. The original
  leaves such a container unconfined unless it is told otherwise (`seccompDefault`).
- `allowPrivilegeEscalation: false` alone sets no_new_privs; nothing said leaves it off, as the original does.
- `runAsNonRoot` is checked before every start. A name cannot be checked, so it is refused; a number that was
  checked is the one that the container runs as, whatever the image's name leads to by then.
- The paths of /proc and /sys that are hidden or read-only are said, for some runtimes hide none unasked.

Source: Kubernetes API reference, `PodSecurityContext` and `SecurityContext` v1; the kubelet's
`DetermineEffectiveSecurityContext` and `verifyRunAsNonRoot`. User namespaces are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import PurePosixPath
from typing import TypeVar

T = TypeVar("T")

MASKED_PATHS = (
    *("/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"),
    "/sys/devices/virtual/powercap",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


class ProfileType(Enum):
    """Where a profile comes from."""

    RUNTIME_DEFAULT = "RuntimeDefault"
    LOCALHOST = "Localhost"
    UNCONFINED = "Unconfined"


@dataclass(frozen=True, slots=True)
class Profile:
    """A seccomp or AppArmor profile; `localhost` names it when its type is Localhost."""

    type: ProfileType
    localhost: str = ""


@dataclass(frozen=True, slots=True)
class SeLinuxOptions:
    """An SELinux context; an empty part is the runtime's."""

    user: str = ""
    role: str = ""
    type: str = ""
    level: str = ""


@dataclass(frozen=True, slots=True)
class PodSecurity:
    """A pod's `securityContext`. None means that nothing is said."""

    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_non_root: bool | None = None
    supplemental_groups: tuple[int, ...] = ()
    strict_groups: bool = False
    fs_group: int | None = None
    fs_group_on_root_mismatch: bool = False
    sysctls: tuple[tuple[str, str], ...] = ()
    seccomp: Profile | None = None
    apparmor: Profile | None = None
    selinux: SeLinuxOptions | None = None


@dataclass(frozen=True, slots=True)
class ContainerSecurity:
    """A container's `securityContext`. None means that nothing is said; capabilities are without CAP_."""

    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_non_root: bool | None = None
    capabilities_added: tuple[str, ...] = ()
    capabilities_dropped: tuple[str, ...] = ()
    privileged: bool | None = None
    allow_privilege_escalation: bool | None = None
    read_only_root_filesystem: bool | None = None
    seccomp: Profile | None = None
    apparmor: Profile | None = None
    selinux: SeLinuxOptions | None = None


@dataclass(frozen=True, slots=True)
class HostNamespaces:
    """Which namespaces of the host a pod is in, and whether its containers see each other's processes."""

    network: bool = False
    pid: bool = False
    ipc: bool = False
    share_processes: bool = False


@dataclass(frozen=True, slots=True)
class Rights:
    """What one container gets. `user` is a number or, from the image, a name; empty means the image's own."""

    user: str = ""
    group: int | None = None
    groups: tuple[int, ...] = ()
    strict_groups: bool = False
    must_not_be_root: bool = False
    capabilities_added: tuple[str, ...] = ()
    capabilities_dropped: tuple[str, ...] = ()
    privileged: bool = False
    no_new_privileges: bool = False
    read_only_root: bool = False
    seccomp: Profile = Profile(ProfileType.RUNTIME_DEFAULT)
    apparmor: Profile | None = None
    selinux: SeLinuxOptions | None = None

    @property
    def needs_image_user(self) -> bool:
        """Whether the image must say as whom it runs: to be checked, or because a group needs a user."""
        return not self.user and (self.must_not_be_root or self.group is not None)


def rights(pod: PodSecurity, container: ContainerSecurity) -> Rights:
    """Merge what a pod and one of its containers ask for."""
    user = _first(container.run_as_user, pod.run_as_user)
    fs_group = () if pod.fs_group is None else (pod.fs_group,)
    return Rights(
        user="" if user is None else str(user),
        group=_first(container.run_as_group, pod.run_as_group),
        groups=tuple(dict.fromkeys((*pod.supplemental_groups, *fs_group))),
        strict_groups=pod.strict_groups,
        must_not_be_root=bool(_first(container.run_as_non_root, pod.run_as_non_root)),
        capabilities_added=container.capabilities_added,
        capabilities_dropped=container.capabilities_dropped,
        privileged=bool(container.privileged),
        no_new_privileges=container.allow_privilege_escalation is False,
        read_only_root=bool(container.read_only_root_filesystem),
        seccomp=_first(container.seccomp, pod.seccomp) or Profile(ProfileType.RUNTIME_DEFAULT),
        apparmor=_first(container.apparmor, pod.apparmor),
        selinux=_first(container.selinux, pod.selinux),
    )


def _first(mine: T | None, pods: T | None) -> T | None:
    return pods if mine is None else mine


def root_fault(wanted: Rights, *, image_user: str, pod: str, container: str) -> str:
    """Say why a container would break `runAsNonRoot`; "" when it would not.

    `image_user` is what the image says: a number, a name, or nothing, which is root. `pod` is for people.
    """
    if not wanted.must_not_be_root:
        return ""
    where = f'(pod: "{pod}", container: {container})'
    if wanted.user:
        breaks = wanted.user == "0"
        return f"container's runAsUser breaks non-root policy {where}" if breaks else ""
    if image_user in ("", "0"):
        return f"container has runAsNonRoot and image will run as root {where}"
    if not image_user.isdigit():
        return (
            f"container has runAsNonRoot and image has non-numeric user ({image_user}), "
            f"cannot verify user is non-root {where}"
        )
    return ""


def localhost_fault(path: str) -> str:
    """Say what is wrong with a profile's name below the node's folder of profiles; "" when nothing is."""
    if not path:
        return "is required for type Localhost"
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts:
        return "must be a path below the node's folder of profiles, without '..'"
    return ""
