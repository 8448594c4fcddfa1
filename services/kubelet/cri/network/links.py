"""Change links, addresses and routes by rtnetlink. The only importer of pyroute2, and a lazy one.

Every function may be repeated: it brings about a state and accepts what is already so. Calls block for 1 to
5 ms. A thread keeps its netlink socket, since opening one costs as much as three requests. Work inside a
sandbox runs in a fresh thread that enters its network namespace with setns(2) and then ends, so that no other
code can ever run in the wrong namespace by accident. (3.5 ms; `pyroute2.NetNS` takes 24 ms.)

Source: rtnetlink(7), veth(4), setns(2); IFLA_BRPORT_* in linux/if_link.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final, TypeVar

from services.kubelet.cri.network import errors
from services.kubelet.cri.network.naming import SANDBOX_LINK

T = TypeVar("T")

_CLONE_NEWNET: Final = 0x40000000  # linux/sched.h
_HAIRPIN: Final = 1  # IFLA_BRPORT_MODE


@dataclass(frozen=True, slots=True)
class Port:
    """A link as found on the host. `bridge` is "" for a link that is no bridge's port; `alias` may be ""."""

    name: str
    kind: str
    bridge: str
    alias: str


@dataclass(frozen=True, slots=True)
class SandboxAddress:
    """What a sandbox's end of the pair is given."""

    address: IPv4Address
    pool: IPv4Network
    gateway: IPv4Address


def list_links() -> tuple[Port, ...]:
    """List every link of the host."""
    with _netlink("list the links") as ipr:
        found = list(ipr.get_links())
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in found}
        return tuple(_port(link, names.get(link.get_attr("IFLA_MASTER"), "")) for link in found)


def find_link(name: str) -> Port | None:
    """Return one link of the host by its name; None if there is none."""
    with _netlink(f"look at {name}") as ipr:
        link = _find(ipr, name)
        if link is None:
            return None
        master = link.get_attr("IFLA_MASTER")
        bridge = ipr.link("get", index=master)[0].get_attr("IFLA_IFNAME") if master else ""
        return _port(link, bridge)


def default_route_mtu() -> int | None:
    """Return the MTU in bytes of the link of the default route with the lowest metric; None without one."""
    with _netlink("read the default route") as ipr:
        routes = [route for route in ipr.get_default_routes(family=_AF_INET) if route.get_attr("RTA_OIF")]
        if not routes:
            return None
        best = min(routes, key=lambda route: route.get_attr("RTA_PRIORITY") or 0)
        mtu = ipr.get_links(best.get_attr("RTA_OIF"))[0].get_attr("IFLA_MTU")
        return int(mtu)


def rival_routes(pool: IPv4Network, *, bridge: str) -> tuple[str, ...]:
    """List routes through other links that take addresses of the pool away from the bridge."""
    with _netlink("list the routes") as ipr:
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in ipr.get_links()}
        return tuple(
            f"{destination} dev {device}"
            for route in ipr.get_routes(family=_AF_INET, table=_MAIN_TABLE)
            if (target := route.get_attr("RTA_DST")) is not None
            and (destination := IPv4Network((target, route["dst_len"]))).subnet_of(pool)
            and (device := names.get(route.get_attr("RTA_OIF"), "?")) != bridge
        )


def ensure_bridge(
    name: str, *, gateway: IPv4Address, pool: IPv4Network, mac: str, mtu: int, alias: str
) -> None:
    """Make the bridge whole: there, up, with its address, MTU and alias.

    The MAC is set at once: a bridge without one takes over that of a port, and changes it when the port
    goes, which breaks the pods' neighbour tables. Raises `NetworkError` LINK_NAME_TAKEN for a link of
    another kind.
    """
    with _netlink(f"make the bridge {name}") as ipr:
        link = _find(ipr, name)
        if link is None:
            _accept_existing(lambda: ipr.link("add", ifname=name, kind="bridge", address=mac))
            link = _get(ipr, name)
        if _kind(link) != "bridge":
            raise errors.name_taken(name)
        ipr.link("set", index=link["index"], state="up", mtu=mtu, ifalias=alias)
        _accept_existing(
            lambda: ipr.addr("add", index=link["index"], address=str(gateway), prefixlen=pool.prefixlen)
        )


def create_pair(name: str, *, bridge: str, netns: int, mac: str, mtu: int) -> None:
    """Create a veth whose other end, `eth0`, is born in the namespace `netns` (an open file descriptor).

    Raises `NetworkError` LINK_NAME_TAKEN when the namespace has an `eth0` that is not this pair's.
    """
    with _netlink(f"create the pair {name}") as ipr:
        peer = {"ifname": SANDBOX_LINK, "net_ns_fd": netns, "mtu": mtu, "address": mac}
        master = _index(bridge)
        try:
            ipr.link("add", ifname=name, kind="veth", master=master, mtu=mtu, state="up", peer=peer)
        except _netlink_error() as err:
            if err.code == errno.EEXIST:
                raise errors.name_taken(SANDBOX_LINK) from err
            raise


def ensure_port(name: str, *, bridge: str, alias: str) -> None:
    """Make the host's end whole: a port of the bridge, up, with hairpin and its alias.

    Hairpin lets a pod reach itself through a service address: the packet leaves by the port it came from.
    """
    with _netlink(f"set up the port {name}") as ipr:
        index = _index(name)
        ipr.link("set", index=index, master=_index(bridge), state="up")
        ipr.brport("set", index=index, mode=_HAIRPIN)
        ipr.link("set", index=index, ifalias=alias)


def paired(name: str, *, netns: int) -> bool:
    """Tell whether the host's link `name` is one end of a veth whose other end is `eth0` in `netns`."""
    with _netlink(f"look at {name}") as ipr:
        outer = _find(ipr, name)
    inner = in_netns(netns, _sandbox_link) if outer is not None else None
    if outer is None or inner is None:
        return False
    return bool(
        outer.get_attr("IFLA_LINK") == inner["index"] and inner.get_attr("IFLA_LINK") == outer["index"]
    )


def configure_sandbox(netns: int, wanted: SandboxAddress) -> None:
    """Inside the namespace: `lo` and `eth0` up, this address alone on `eth0`, and the default route."""
    in_netns(netns, lambda: _configure(wanted))


def delete_link(name: str) -> None:
    """Delete a link, and with it its other end. A link that is gone is no error."""
    with _netlink(f"delete {name}") as ipr:
        link = _find(ipr, name)
        if link is not None:
            _accept_missing(lambda: ipr.link("del", index=link["index"]))


def in_netns(netns: int, body: Callable[[], T]) -> T:
    """Run `body` in a thread of its own inside the namespace and return its result."""
    result: Future[T] = Future()
    thread = threading.Thread(target=_enter, args=(netns, body, result), name="sandbox-netns", daemon=True)
    thread.start()
    thread.join()
    return result.result()


def _enter(netns: int, body: Callable[[], T], result: Future[T]) -> None:
    try:
        setns(netns)
        result.set_result(body())
    except BaseException as err:
        result.set_exception(err)
    finally:
        close()


def setns(netns: int) -> None:
    """Move the calling thread into a network namespace. Raises `OSError`."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(netns, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def _sandbox_link() -> Any:
    with _netlink("look into the sandbox") as ipr:
        return _find(ipr, SANDBOX_LINK)


def _configure(wanted: SandboxAddress) -> None:
    with _netlink("configure the sandbox") as ipr:
        ipr.link("set", index=_index("lo"), state="up")
        index = _index(SANDBOX_LINK)
        for found in ipr.get_addr(family=_AF_INET, index=index):
            if found.get_attr("IFA_ADDRESS") != str(wanted.address):
                ipr.addr(
                    "del", index=index, address=found.get_attr("IFA_ADDRESS"), prefixlen=found["prefixlen"]
                )
        _accept_existing(
            lambda: ipr.addr("add", index=index, address=str(wanted.address), prefixlen=wanted.pool.prefixlen)
        )
        ipr.link("set", index=index, state="up")
        ipr.route("replace", dst="default", gateway=str(wanted.gateway), oif=index)


_AF_INET: Final = 2
_MAIN_TABLE: Final = 254


_kept = threading.local()


@contextmanager
def _netlink(purpose: str) -> Iterator[Any]:
    """Lend the calling thread's socket, made in its namespace; turn refusals into a `NetworkError`.

    After anything but a plain refusal of the kernel the socket is not used again.
    """
    from pyroute2 import IPRoute  # Half a second of imports that a node without pods never needs.

    try:
        if not hasattr(_kept, "socket"):
            _kept.socket = IPRoute()
        yield _kept.socket
    except _netlink_error() as err:
        raise errors.kernel_refused(purpose, str(err)) from err
    except OSError as err:
        close()
        raise errors.kernel_refused(purpose, str(err)) from err
    except BaseException:
        close()
        raise


def close() -> None:
    """Close the calling thread's socket. May be repeated."""
    kept = _kept.__dict__.pop("socket", None)
    if kept is not None:
        kept.close()


def _netlink_error() -> Any:
    from pyroute2.netlink.exceptions import NetlinkError

    return NetlinkError


def _find(ipr: Any, name: str) -> Any:
    try:
        return ipr.link("get", ifname=name)[0]
    except _netlink_error() as err:
        if err.code == errno.ENODEV:
            return None
        raise


def _index(name: str) -> int:
    """Return a link's index in the calling thread's namespace. Raises `OSError` ENODEV."""
    try:
        return socket.if_nametoindex(name)
    except OSError as err:
        raise OSError(errno.ENODEV, f"no link {name}") from err


def _get(ipr: Any, name: str) -> Any:
    link = _find(ipr, name)
    if link is None:
        raise OSError(errno.ENODEV, f"no link {name}")
    return link


def _port(link: Any, bridge: str) -> Port:
    return Port(
        name=link.get_attr("IFLA_IFNAME"),
        kind=_kind(link),
        bridge=bridge,
        alias=link.get_attr("IFLA_IFALIAS") or "",
    )


def _kind(link: Any) -> str:
    info = link.get_attr("IFLA_LINKINFO")
    return str(info.get_attr("IFLA_INFO_KIND") or "") if info else ""


def _accept_existing(change: Callable[[], object]) -> None:
    _accept(change, errno.EEXIST)


def _accept_missing(change: Callable[[], object]) -> None:
    _accept(change, errno.ENODEV)


def _accept(change: Callable[[], object], number: int) -> None:
    try:
        change()
    except _netlink_error() as err:
        if err.code != number:
            raise
