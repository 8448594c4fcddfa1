"""What can go wrong with the pod network. Every change may be tried again with the same arguments."""

from __future__ import annotations

from services.common.errors import Code, TripodError


class NetworkError(TripodError):
    """The pod network could not do what was asked. `reason` says which of the cases below it was."""


def pool_exhausted(pool: str, lease_count: int) -> NetworkError:
    """Every address of the pod CIDR is taken."""
    return NetworkError(
        f"All {lease_count} addresses of the pod CIDR {pool} are taken",
        code=Code.RESOURCE_EXHAUSTED,
        reason="POD_ADDRESSES_EXHAUSTED",
        metadata={"pod_cidr": pool, "lease_count": str(lease_count)},
        retry_after_seconds=5.0,
    )


def netns_gone(sandbox_id: str, pid: int) -> NetworkError:
    """The process, and with it the sandbox's network namespace, has ended."""
    return NetworkError(
        f"Sandbox {sandbox_id} has no network namespace: process {pid} has ended",
        code=Code.FAILED_PRECONDITION,
        reason="SANDBOX_NETNS_GONE",
        metadata={"sandbox_id": sandbox_id, "pid": str(pid)},
    )


def netns_is_the_hosts(sandbox_id: str, pid: int) -> NetworkError:
    """The process lives in the host's network: wiring it would reconfigure the host."""
    return NetworkError(
        f"Process {pid} of sandbox {sandbox_id} is in the host's network namespace",
        code=Code.FAILED_PRECONDITION,
        reason="SANDBOX_NETNS_IS_THE_HOSTS",
        metadata={"sandbox_id": sandbox_id, "pid": str(pid)},
    )


def name_taken(name: str) -> NetworkError:
    """A link of that name exists and is not ours."""
    return NetworkError(
        f"A network link {name} exists that Tripod did not make",
        code=Code.FAILED_PRECONDITION,
        reason="LINK_NAME_TAKEN",
        metadata={"link": name},
    )


def in_use(directory: str, owner: str) -> NetworkError:
    """Another process runs a pod network on the same state directory."""
    return NetworkError(
        f"Another process holds the pod network's state in {directory}: {owner}",
        code=Code.FAILED_PRECONDITION,
        reason="NETWORK_STATE_IN_USE",
        metadata={"directory": directory, "pid": owner},
    )


def kernel_refused(what: str, cause: str) -> NetworkError:
    """The kernel refused a change of links, addresses or routes."""
    return NetworkError(
        f"The kernel refused to {what}: {cause}",
        code=Code.INTERNAL,
        reason="NETLINK_REFUSED",
        metadata={"operation": what, "cause": cause},
    )


def iptables_failed(command: str, cause: str) -> NetworkError:
    """An iptables program is missing or refused its input."""
    return NetworkError(
        f"{command} failed: {cause}",
        code=Code.UNAVAILABLE,
        reason="IPTABLES_FAILED",
        metadata={"command": command, "cause": cause},
    )


def timed_out(what: str, seconds: float) -> NetworkError:
    """A change did not end in its time; it may still take effect."""
    return NetworkError(
        f"Pod network: {what} took longer than {seconds:g} s",
        code=Code.DEADLINE_EXCEEDED,
        reason="NETWORK_TIMEOUT",
        metadata={"operation": what, "limit_seconds": f"{seconds:g}"},
    )
