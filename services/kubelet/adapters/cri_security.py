"""Rights, namespaces and host ports of pods as CRI messages."""

from __future__ import annotations

from tripod.cri.v1 import api_pb2 as pb

from services.kubelet.core.model import Pod, Protocol
from services.kubelet.core.security import (
    MASKED_PATHS,
    READONLY_PATHS,
    Profile,
    ProfileType,
    Rights,
    SeLinuxOptions,
)

_PROFILES = {
    ProfileType.RUNTIME_DEFAULT: pb.SecurityProfile.RuntimeDefault,
    ProfileType.LOCALHOST: pb.SecurityProfile.Localhost,
    ProfileType.UNCONFINED: pb.SecurityProfile.Unconfined,
}
_PROTOCOLS = {Protocol.TCP: pb.TCP, Protocol.UDP: pb.UDP, Protocol.SCTP: pb.SCTP}


def sandbox_linux(pod: Pod) -> pb.LinuxPodSandboxConfig:
    """Build what a pod's sandbox may do; some runtimes refuse privileged containers in one that is not."""
    security = pod.spec.security
    context = pb.LinuxSandboxSecurityContext(
        namespace_options=namespaces(pod),
        seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault),
        privileged=any(container.security.privileged for container in pod.spec.every),
        selinux_options=_selinux(security.selinux),
        supplemental_groups=security.supplemental_groups,
    )
    return pb.LinuxPodSandboxConfig(security_context=context, sysctls=dict(security.sysctls))


def namespaces(pod: Pod) -> pb.NamespaceOption:
    """Build the namespaces of a pod's sandbox and containers."""
    asked = pod.spec.namespaces
    shared = pb.POD if asked.share_processes else pb.CONTAINER
    return pb.NamespaceOption(
        network=pb.NODE if asked.network else pb.POD,
        ipc=pb.NODE if asked.ipc else pb.POD,
        pid=pb.NODE if asked.pid else shared,
    )


def port_mappings(pod: Pod) -> list[pb.PortMapping]:
    """List the ports of the node that lead to a pod; one on the host's network has them itself."""
    if pod.spec.namespaces.network:
        return []
    return [
        pb.PortMapping(
            protocol=_PROTOCOLS[port.protocol],
            container_port=port.container_port,
            host_port=port.host_port,
            host_ip=port.host_ip,
        )
        for container in pod.spec.lasting
        for port in container.ports
        if port.host_port
    ]


def container_context(pod: Pod, given: Rights) -> pb.LinuxContainerSecurityContext:
    """Build what a container may do."""
    context = pb.LinuxContainerSecurityContext(
        namespace_options=namespaces(pod),
        privileged=given.privileged,
        no_new_privs=given.no_new_privileges,
        readonly_rootfs=given.read_only_root,
        capabilities=pb.Capability(
            add_capabilities=given.capabilities_added, drop_capabilities=given.capabilities_dropped
        ),
        supplemental_groups=given.groups,
        supplemental_groups_policy=pb.Strict if given.strict_groups else pb.Merge,
        selinux_options=_selinux(given.selinux),
    )
    if not given.privileged:
        context.seccomp.CopyFrom(_profile(given.seccomp))
        context.masked_paths.extend(MASKED_PATHS)
        context.readonly_paths.extend(READONLY_PATHS)
    if given.apparmor is not None:
        context.apparmor.CopyFrom(_profile(given.apparmor))
    if given.user.isdigit():
        context.run_as_user.value = int(given.user)
    else:
        context.run_as_username = given.user
    if given.group is not None:
        context.run_as_group.value = given.group
    return context


def _profile(profile: Profile) -> pb.SecurityProfile:
    return pb.SecurityProfile(profile_type=_PROFILES[profile.type], localhost_ref=profile.localhost)


def _selinux(options: SeLinuxOptions | None) -> pb.SELinuxOption | None:
    if options is None:
        return None
    return pb.SELinuxOption(user=options.user, role=options.role, type=options.type, level=options.level)
