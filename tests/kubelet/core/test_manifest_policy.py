"""Rights, network and place of a pod: read, written, read again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.kubelet.core import manifest, render
from services.kubelet.core.model import ContainerPort, Pod, PodSpec, PodUid, Protocol
from services.kubelet.core.rules import CLUSTER, STANDALONE, Rules

SELECTOR = {"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "a", "operator": "Exists"}]}
POD_TERM = {"labelSelector": SELECTOR, "topologyKey": "kubernetes.io/hostname", "namespaces": ["a"]}
EXPRESSION = {"key": "disk", "operator": "In", "values": ["ssd"]}
AFFINITY = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [
                {
                    "matchExpressions": [EXPRESSION, {"key": "cores", "operator": "Gt", "values": ["4"]}],
                    "matchFields": [{"key": "metadata.name", "operator": "In", "values": ["one"]}],
                }
            ]
        },
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 1, "preference": {"matchExpressions": [EXPRESSION]}}
        ],
    },
    "podAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": POD_TERM}]
    },
    "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [POD_TERM]},
}
LOCAL = {"type": "Localhost", "localhostProfile": "team/strict.json"}
SHARED = {
    "runAsUser": 1000,
    "runAsGroup": 0,
    "runAsNonRoot": True,
    "seccompProfile": LOCAL,
    "appArmorProfile": {"type": "Unconfined"},
    "seLinuxOptions": {"level": "s0:c123,c456", "type": "spc_t"},
}


def read(spec: dict[str, Any], rules: Rules = STANDALONE) -> PodSpec:
    """Read a pod's spec that has no fault."""
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": spec}
    (draft,), faults = manifest.read(json.dumps(body).encode(), rules)
    assert faults == []
    assert isinstance(draft.spec, PodSpec)
    return draft.spec


def with_container(**values: Any) -> dict[str, Any]:
    """Write a spec of one container."""
    return {"containers": [{"name": "app", "image": "app:1", **values}]}


@pytest.mark.parametrize(
    "given",
    [
        {"securityContext": {**SHARED, "fsGroup": 5, "fsGroupChangePolicy": "OnRootMismatch"}},
        {"securityContext": {"supplementalGroups": [0, 5], "supplementalGroupsPolicy": "Strict"}},
        {"securityContext": {"sysctls": [{"name": "net/ipv4/tcp_rmem", "value": "4096 131072 6291456"}]}},
        {"hostNetwork": True, "hostPID": True, "hostIPC": True},
        {"shareProcessNamespace": True},
        {"dnsPolicy": "None", "dnsConfig": {"nameservers": ["::1"], "searches": ["a.b.", "_x"]}},
        {"dnsConfig": {"options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}},
        {"subdomain": "sub", "setHostnameAsFQDN": True, "hostname": "www"},
        {"hostnameOverride": "a.b.c"},
        {"hostAliases": [{"ip": "10.0.0.1", "hostnames": ["db", "db.shop"]}]},
        {"runtimeClassName": "gvisor"},
        {"nodeName": "one", "nodeSelector": {"disk": "ssd"}, "affinity": AFFINITY},
        {"os": {"name": "linux"}, "priority": -5, "priorityClassName": "low", "preemptionPolicy": "Never"},
        {"schedulerName": "mine"},
        {
            "tolerations": [
                {"operator": "Exists"},
                {
                    "key": "a",
                    "operator": "Equal",
                    "value": "b",
                    "effect": "NoExecute",
                    "tolerationSeconds": 0,
                },
            ]
        },
        {
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "zone",
                    "whenUnsatisfiable": "DoNotSchedule",
                    "labelSelector": SELECTOR,
                    "matchLabelKeys": ["pod-template-hash"],
                    "nodeAffinityPolicy": "Honor",
                }
            ]
        },
    ],
    ids=lambda given: "-".join(given),
)
def test_what_a_pod_says_is_written_as_it_was_read(given: dict[str, Any]) -> None:
    """All of it, and reading it gives the same value."""
    spec = read(with_container() | given)
    written = render.pod_spec(spec)

    assert given.items() <= written.items()
    assert read(written) == spec


@pytest.mark.parametrize(
    "given",
    [
        {"securityContext": SHARED},
        {"securityContext": {"privileged": True, "procMount": "Default"}},
        {"securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": False}},
        {"securityContext": {"capabilities": {"add": ["CAP_NET_ADMIN", "sys_time"], "drop": ["ALL"]}}},
        {"securityContext": {"seLinuxOptions": {}}},
        {"ports": [{"containerPort": 80, "hostPort": 8080, "hostIP": "127.0.0.1", "protocol": "SCTP"}]},
        {"resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"}]},
        {
            "resources": {
                "requests": {"ephemeral-storage": "1Gi", "hugepages-2Mi": "4Mi", "example.com/gpu": "2"},
                "limits": {"ephemeral-storage": "2Gi", "hugepages-2Mi": "4Mi", "example.com/gpu": "2"},
            }
        },
    ],
    ids=lambda given: "-".join(given),
)
def test_what_a_container_says_is_written_as_it_was_read(given: dict[str, Any]) -> None:
    """All of it but what changes nothing, and reading it gives the same value."""
    spec = read(with_container(**given))
    written = render.pod_spec(spec)
    again = written["containers"][0]
    for name, value in given.items():
        wanted = {k: v for k, v in value.items() if k != "procMount"} if isinstance(value, dict) else value

        assert again[name] == wanted
    assert read(written) == spec


def test_a_port_of_a_pod_on_the_hosts_network_is_the_hosts() -> None:
    """So two pods that ask for it clash."""
    spec = read(with_container(ports=[{"containerPort": 80}]) | {"hostNetwork": True})

    assert spec.containers[0].ports == (ContainerPort(80, "", Protocol.TCP, 80),)


def test_a_limit_is_the_request_of_a_disk_too() -> None:
    """As for CPU and memory."""
    spec = read(with_container(resources={"limits": {"ephemeral-storage": "1Gi"}}))

    assert spec.containers[0].resources.other_requests == (("ephemeral-storage", 1 << 30),)


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"readinessGates": [{"conditionType": "example.com/ready"}]}, "spec.readinessGates"),
        ({"schedulingGates": [{"name": "wait"}]}, "spec.schedulingGates"),
        ({"os": {"name": "windows"}}, "spec.os.name"),
        ({"overhead": {"cpu": "250m", "memory": "64Mi"}}, "spec.overhead"),
    ],
)
def test_what_needs_a_cluster_is_read_in_one_alone(given: dict[str, Any], path: str) -> None:
    """Standalone, nobody would honour it."""
    spec = with_container() | given
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": spec}
    _, faults = manifest.read(json.dumps(body).encode())

    assert [fault.field for fault in faults] == [f"Pod web: {path}"]
    assert read(render.pod_spec(read(spec, CLUSTER)), CLUSTER) == read(spec, CLUSTER)


def test_a_whole_pod_is_carried_by_the_runtime() -> None:
    """A lost store takes it back from there."""
    spec = read(with_container(securityContext=SHARED) | {"hostNetwork": True, "affinity": AFFINITY})
    text = render.portable(Pod(PodUid("u"), "default", "web", spec))

    assert read(json.loads(json.loads(text)["body"])["spec"]) == spec
