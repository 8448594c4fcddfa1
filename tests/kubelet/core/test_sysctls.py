"""A pod sets what is its own and safe, and what the node allows."""

from __future__ import annotations

import pytest

from services.kubelet.core import sysctls
from services.kubelet.core.security import HostNamespaces

OWN = HostNamespaces()


@pytest.mark.parametrize(
    ("name", "allowed", "namespaces", "words"),
    [
        pytest.param("net.ipv4.tcp_syncookies", (), OWN, "", id="safe"),
        pytest.param("net/ipv4/tcp_syncookies", (), OWN, "", id="safe-with-slashes"),
        pytest.param("kernel.shm_rmid_forced", (), OWN, "", id="safe-ipc"),
        pytest.param("net.core.somaxconn", (), OWN, '"net.core.somaxconn" not allowlisted', id="unsafe"),
        pytest.param("net.core.somaxconn", ("net.core.somaxconn",), OWN, "", id="allowed"),
        pytest.param("net.core.somaxconn", ("net.core.*",), OWN, "", id="allowed-by-prefix"),
        pytest.param("net.core.somaxconn", ("net.ipv4.*",), OWN, "not allowlisted", id="another-prefix"),
        pytest.param("kernel.msgmax", ("kernel.msg*",), OWN, "", id="allowed-ipc"),
        pytest.param("kernel.core_pattern", (), OWN, "not allowlisted", id="of-the-host"),
        pytest.param(
            "net.ipv4.tcp_syncookies",
            (),
            HostNamespaces(network=True),
            "not allowed with host net enabled",
            id="the-hosts-network",
        ),
        pytest.param(
            "kernel.msgmax",
            ("kernel.msg*",),
            HostNamespaces(ipc=True),
            "not allowed with host ipc enabled",
            id="the-hosts-ipc",
        ),
    ],
)
def test_a_sysctl_is_allowed_or_named(
    name: str, allowed: tuple[str, ...], namespaces: HostNamespaces, words: str
) -> None:
    """In the original's words."""
    why = sysctls.refusal([name], namespaces, allowed)

    assert words in why
    assert why.startswith("forbidden sysctl: ") if words else why == ""


@pytest.mark.parametrize(
    ("pattern", "good"),
    [
        ("net.core.somaxconn", True),
        ("net.*", True),
        ("kernel.msg*", True),
        ("kernel.sem", True),
        ("kernel.*", False),
        ("vm.overcommit_memory", False),
        ("*", False),
        ("net.core.*.x", False),
    ],
)
def test_a_node_allows_what_is_a_pods_own(pattern: str, *, good: bool) -> None:
    """A setting of the whole host is no pod's business."""
    assert (sysctls.pattern_fault(pattern) == "") is good


def test_a_link_s_name_may_have_dots() -> None:
    """With slashes the dots stay within a part."""
    assert sysctls.normal("net/ipv4/conf/eth0.1/forwarding") == "net.ipv4.conf.eth0/1.forwarding"
