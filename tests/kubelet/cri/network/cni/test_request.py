"""What CNI plugins are given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.kubelet.cri.network.cni import conf, request
from services.kubelet.cri.network.details import HostPort, PodDetails

POD = PodDetails(
    name="web",
    namespace="shop",
    uid="u-1",
    annotations={
        request.INGRESS: "10M",
        request.IPS: "10.0.0.9, fd00::9",
        request.MAC: "0a:58:00:00:00:01",
    },
    ports=(HostPort(8080, 80), HostPort(0, 81), HostPort(53, 53, "udp", "192.0.2.1")),
    dns_servers=("10.202.0.10",),
    dns_searches=("shop.svc",),
)
ALL = frozenset({"portMappings", "bandwidth", "dns", "ips", "mac"})


def network(*plugins: dict[str, Any], version: str = "1.0.0") -> conf.Network:
    """Build a network of plugins."""
    value = {"cniVersion": version, "name": "net", "plugins": list(plugins)}
    return conf.parse("f", json.dumps(value).encode())


def test_the_pod_is_named_in_the_arguments() -> None:
    """As other runtimes do, which plugins rely on."""
    assert request.arguments(POD, "abc") == (
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;"
        "K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u-1"
    )


@pytest.mark.parametrize("name", ["a;K8S_POD_NAME=b", "a=b", "a\0b"])
def test_a_name_cannot_bring_arguments_of_its_own(name: str) -> None:
    """It would pass for another pod."""
    with pytest.raises(ValueError, match="must have no"):
        request.arguments(PodDetails(name=name), "abc")


def test_capabilities_are_filled_from_the_pod() -> None:
    """Ports without a host's port are nobody's, protocols are in lower case."""
    assert request.capabilities(POD, ALL) == {
        "portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"},
        ],
        "bandwidth": {"ingressRate": 10_000_000, "ingressBurst": 2**31 - 1},
        "dns": {"servers": ["10.202.0.10"], "searches": ["shop.svc"]},
        "ips": ["10.0.0.9", "fd00::9"],
        "mac": "0a:58:00:00:00:01",
    }


def test_only_what_is_wanted_and_there_is_given() -> None:
    """A pod's annotations go only to plugins that ask for them."""
    assert request.capabilities(POD, frozenset({"mac", "infinibandGUID"})) == {"mac": "0a:58:00:00:00:01"}
    assert request.capabilities(PodDetails(), ALL) == {}
    assert request.capabilities(POD, frozenset({"io.kubernetes.cri.pod-annotations"})) == {
        "io.kubernetes.cri.pod-annotations": dict(POD.annotations)
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1k", 1000), ("1.5M", 1_500_000), ("2Gi", 2**31), ("1000", 1000), ("1P", 10**15)],
)
def test_a_bandwidth_is_read_in_bits(text: str, expected: int) -> None:
    """As Kubernetes writes quantities."""
    assert request.bits(text) == expected


@pytest.mark.parametrize("text", ["", "999", "1.1P", "-1M", "10m", "1e9", "10 M", "M"])
def test_a_bandwidth_that_kubernetes_refuses_is_refused(text: str) -> None:
    """From 1k to 1P."""
    with pytest.raises(ValueError, match="bandwidth"):
        request.bits(text)


def test_each_plugin_gets_its_own_capabilities_alone() -> None:
    """The key `capabilities` itself is removed."""
    made = network({"type": "a"}, {"type": "b", "x": 1, "capabilities": {"dns": True, "mac": False}})
    values = {"dns": {"servers": ["1.1.1.1"]}, "mac": "0a:58:00:00:00:01"}
    first, second = (request.configuration(made, plugin, values=values) for plugin in made.plugins)

    assert first == {"type": "a", "cniVersion": "1.0.0", "name": "net"}
    assert second == {
        "type": "b",
        "x": 1,
        "cniVersion": "1.0.0",
        "name": "net",
        "runtimeConfig": {"dns": {"servers": ["1.1.1.1"]}},
    }


def test_a_result_in_the_file_is_never_passed_on() -> None:
    """Only a plugin's own."""
    made = network({"type": "a", "prevResult": {"ips": []}})

    assert "prevResult" not in request.configuration(made, made.plugins[0])
    assert request.configuration(made, made.plugins[0], previous={"ips": [1]})["prevResult"] == {"ips": [1]}


def test_gc_is_told_who_is_left() -> None:
    """None left is an empty list, not a missing one."""
    made = network({"type": "a"}, version="1.1.0")

    assert request.configuration(made, made.plugins[0], valid=["s1"])[request.VALID_ATTACHMENTS] == [
        {"containerID": "s1", "ifname": "eth0"}
    ]
    assert request.configuration(made, made.plugins[0], valid=[])[request.VALID_ATTACHMENTS] == []


def test_the_environment_is_the_specifications_and_a_path() -> None:
    """Nothing of ours leaks into programs of others."""
    made = request.environment(
        "ADD", [Path("/a"), Path("/b")], sandbox_id="s1", netns="/run/netns/x", extra="IgnoreUnknown=1"
    )

    assert set(made) == {
        "PATH", "CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"
    }  # fmt: skip
    assert made["CNI_PATH"] == "/a:/b"
    assert set(request.environment("STATUS", [Path("/a")])) == {"PATH", "CNI_COMMAND", "CNI_PATH"}
