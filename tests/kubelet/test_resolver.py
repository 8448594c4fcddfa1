"""The node's resolv.conf as pods get it."""

from __future__ import annotations

from pathlib import Path

from services.kubelet.adapters.files import resolver
from services.kubelet.core.dns import NodeDns


def test_servers_on_loopback_are_for_the_hosts_network(tmp_path: Path) -> None:
    """A pod has another loopback; the last search line counts, as for the C library."""
    path = tmp_path / "resolv.conf"
    path.write_text(
        "# by hand\nnameserver 127.0.0.53\nnameserver 9.9.9.9\nsearch a b\nsearch c\n"
        "options edns0 timeout:2\nsortlist 1.2.3.4\nnameserver\n"
    )

    assert resolver(path) == NodeDns(
        servers=("9.9.9.9",),
        searches=("c",),
        options=("edns0", "timeout:2"),
        own_servers=("127.0.0.53", "9.9.9.9"),
    )


def test_a_node_without_the_file_has_no_resolver(tmp_path: Path) -> None:
    """And pods start all the same."""
    assert resolver(tmp_path / "none") == NodeDns()
