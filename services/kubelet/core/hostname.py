"""A pod's names, and its /etc/hosts. Pure.

The host name is what the pod asks for, else its name, cut to 63 characters. A subdomain makes a domain of it
(SUBDOMAIN.NAMESPACE.svc.DOMAIN), which the kernel is told when `setHostnameAsFQDN` asks for it.
`hostnameOverride` goes before all of that.

Source: Kubernetes "DNS for Services and Pods" and KEP-4762; the kubelet's `GeneratePodHostNameAndDomain` and
`managedHostsFileContent`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LABEL_LIMIT = 63
# __NEW_UTS_LEN of the kernel.
KERNEL_LIMIT = 64
_HEAD = "# Kubernetes-managed hosts file{}.\n"
_OWN = (
    "127.0.0.1\tlocalhost\n"
    "::1\tlocalhost ip6-localhost ip6-loopback\n"
    "fe00::0\tip6-localnet\n"
    "fe00::0\tip6-mcastprefix\n"
    "fe00::1\tip6-allnodes\n"
    "fe00::2\tip6-allrouters\n"
)


class NameTooLongError(ValueError):
    """The kernel takes no host name as long as this pod's."""


@dataclass(frozen=True, slots=True)
class HostAlias:
    """More names of an address, in a pod's /etc/hosts."""

    ip: str
    hostnames: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Naming:
    """What a pod says of its names, besides `hostname`."""

    subdomain: str = ""
    hostname_as_fqdn: bool = False
    hostname_override: str = ""
    host_aliases: tuple[HostAlias, ...] = ()


@dataclass(frozen=True, slots=True)
class Names:
    """A pod's host name, and the domain it is in; empty without one."""

    hostname: str
    domain: str = ""

    @property
    def full(self) -> str:
        """Name with domain."""
        return f"{self.hostname}.{self.domain}" if self.domain else self.hostname


def names(pod: str, namespace: str, hostname: str, naming: Naming, cluster_domain: str) -> Names:
    """Return a pod's names. `hostname` is what its spec says."""
    if naming.hostname_override:
        return Names(naming.hostname_override)
    short = (hostname or pod)[:LABEL_LIMIT].rstrip("-.")
    domain = f"{naming.subdomain}.{namespace}.svc.{cluster_domain}" if naming.subdomain else ""
    return Names(short, domain)


def kernel_name(found: Names, naming: Naming) -> str:
    """Return what the kernel is told. Raises `NameTooLongError`."""
    if not naming.hostname_as_fqdn or not found.domain:
        return found.hostname
    if len(found.full) > KERNEL_LIMIT:
        raise NameTooLongError(
            f"Failed to construct FQDN from pod hostname and cluster domain, FQDN {found.full} is too long "
            f"({KERNEL_LIMIT} characters is the max, {len(found.full)} characters requested)"
        )
    return found.full


def hosts_text(found: Names, addresses: Sequence[str], aliases: Sequence[HostAlias] = ()) -> str:
    """Write a pod's /etc/hosts."""
    known = f"{found.full}\t{found.hostname}" if found.domain else found.hostname
    lines = "".join(f"{address}\t{known}\n" for address in addresses)
    return _HEAD.format("") + _OWN + lines + _alias_text(aliases)


def host_hosts_text(nodes_own: str, aliases: Sequence[HostAlias] = ()) -> str:
    """Write the /etc/hosts of a pod on the host's network, from the node's."""
    own = nodes_own if nodes_own.endswith("\n") or not nodes_own else f"{nodes_own}\n"
    return _HEAD.format(" (host network)") + own + _alias_text(aliases)


def _alias_text(aliases: Sequence[HostAlias]) -> str:
    if not aliases:
        return ""
    lines = "".join("\t".join((alias.ip, *alias.hostnames)) + "\n" for alias in aliases)
    return f"\n# Entries added by HostAliases.\n{lines}"
