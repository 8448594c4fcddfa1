"""A pod's names, and what its /etc/hosts says."""

from __future__ import annotations

import pytest

from services.kubelet.core import hostname
from services.kubelet.core.hostname import HostAlias, Names, Naming

FULL = Naming(subdomain="sub", hostname_as_fqdn=True)
LONG = "a" * 62 + "-bc"


@pytest.mark.parametrize(
    ("pod", "asked", "naming", "expected", "kernel"),
    [
        pytest.param("web", "", Naming(), Names("web"), "web", id="its-name"),
        pytest.param("web.1", "", Naming(), Names("web.1"), "web.1", id="with-a-dot"),
        pytest.param(LONG, "", Naming(), Names("a" * 62), "a" * 62, id="cut-without-a-dash-at-the-end"),
        pytest.param("web", "www", Naming(), Names("www"), "www", id="what-it-asks-for"),
        pytest.param(
            "web", "", Naming("sub"), Names("web", "sub.shop.svc.cluster.local"), "web", id="in-a-domain"
        ),
        pytest.param(
            "web",
            "",
            FULL,
            Names("web", "sub.shop.svc.cluster.local"),
            "web.sub.shop.svc.cluster.local",
            id="all-of-it",
        ),
        pytest.param(
            "web", "", Naming(hostname_as_fqdn=True), Names("web"), "web", id="all-without-a-domain"
        ),
        pytest.param(
            "web", "www", Naming("sub", hostname_override="a.b"), Names("a.b"), "a.b", id="what-goes-first"
        ),
    ],
)
def test_a_pod_has_a_name(pod: str, asked: str, naming: Naming, expected: Names, kernel: str) -> None:
    """The kernel is told the short one unless all is asked for."""
    found = hostname.names(pod, "shop", asked, naming, "cluster.local")

    assert found == expected
    assert hostname.kernel_name(found, naming) == kernel


def test_a_name_that_the_kernel_does_not_take_is_told() -> None:
    """64 characters are the most."""
    found = hostname.names("a" * 40, "shop", "", FULL, "cluster.local")

    with pytest.raises(hostname.NameTooLongError, match="64 characters is the max, 67 characters requested"):
        hostname.kernel_name(found, FULL)


def test_a_hosts_file_has_the_pod_and_its_aliases() -> None:
    """As the original writes it."""
    aliases = (HostAlias("10.0.0.9", ("db", "db.shop")), HostAlias("::9", ("six",)))
    text = hostname.hosts_text(Names("web", "sub.shop.svc.x"), ("10.1.0.2", "fd00::2"), aliases)

    assert text.splitlines()[0] == "# Kubernetes-managed hosts file."
    assert "10.1.0.2\tweb.sub.shop.svc.x\tweb\nfd00::2\tweb.sub.shop.svc.x\tweb\n" in text
    assert text.endswith("\n\n# Entries added by HostAliases.\n10.0.0.9\tdb\tdb.shop\n::9\tsix\n")


def test_a_hosts_file_without_aliases_ends_with_the_pod() -> None:
    """And one address has one name."""
    assert hostname.hosts_text(Names("web"), ("10.1.0.2",)).endswith("ip6-allrouters\n10.1.0.2\tweb\n")


def test_a_pod_on_the_hosts_network_has_the_nodes_file() -> None:
    """And its aliases."""
    text = hostname.host_hosts_text("127.0.0.1 localhost", (HostAlias("10.0.0.9", ("db",)),))

    assert text == (
        "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n"
        "\n# Entries added by HostAliases.\n10.0.0.9\tdb\n"
    )
