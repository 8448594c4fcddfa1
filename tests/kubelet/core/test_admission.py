"""A node takes what fits, and says why it does not take the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.kubelet.core import admission
from services.kubelet.core.admission import Node
from services.kubelet.core.model import (
    Container,
    ContainerPort,
    Pod,
    Protocol,
    Resources,
    RestartPolicy,
)
from services.kubelet.core.scheduling import Requirement, Scheduling, Taint, Term, Toleration
from services.kubelet.core.security import HostNamespaces, PodSecurity
from tests.builders import a_container, a_pod

NODE = Node(
    "one",
    {"kubernetes.io/os": "linux"},
    {"cpu": 4000, "memory": 8 << 30, "ephemeral-storage": 100 << 30, "pods": 3},
)


def asking(name: str = "new", **resources: object) -> Pod:
    """Make a pod of one container with requests."""
    return a_pod(a_container(resources=Resources(**resources)), uid=name, name=name)  # type: ignore[arg-type]  # of a table


def serving(name: str, *ports: ContainerPort) -> Pod:
    """Make a pod with ports."""
    return a_pod(a_container(ports=ports), uid=name, name=name)


def placed(**values: object) -> Pod:
    """Make a pod that says where it runs."""
    return a_pod(scheduling=replace(Scheduling(), **values))  # type: ignore[arg-type]  # of a table


WEB = ContainerPort(80, host_port=80)


@pytest.mark.parametrize(
    ("pod", "others", "reason", "path"),
    [
        pytest.param(asking(cpu_request_millicores=4000), (), "", "", id="all-of-it"),
        pytest.param(
            asking(cpu_request_millicores=4001),
            (),
            "OutOfcpu",
            "spec.containers[0].resources.requests.cpu",
            id="more-than-there-is",
        ),
        pytest.param(
            asking(cpu_request_millicores=3000),
            (asking("a", cpu_request_millicores=1001),),
            "OutOfcpu",
            "spec.containers[0].resources.requests.cpu",
            id="more-than-is-left",
        ),
        pytest.param(
            a_pod(
                *asking(cpu_request_millicores=3900).spec.containers,
                scheduling=Scheduling(overhead=(("cpu", 101),)),
            ),
            (),
            "OutOfcpu",
            "spec.containers[0].resources.requests.cpu",
            id="what-its-runtime-takes-counts",
        ),
        pytest.param(
            asking(memory_request_bytes=9 << 30),
            (),
            "OutOfmemory",
            "spec.containers[0].resources.requests.memory",
            id="memory",
        ),
        pytest.param(
            asking(other_requests=(("ephemeral-storage", 1 << 40),)),
            (),
            "OutOfephemeral-storage",
            "spec.containers[0].resources.requests.ephemeral-storage",
            id="disk",
        ),
        pytest.param(
            asking(other_requests=(("hugepages-2Mi", 2 << 20),)),
            (),
            "OutOfhugepages-2Mi",
            "spec.containers[0].resources.requests.hugepages-2Mi",
            id="huge-pages-of-which-there-are-none",
        ),
        pytest.param(
            asking(other_requests=(("example.com/gpu", 1),)),
            (),
            "OutOfexample.com/gpu",
            "spec.containers[0].resources.requests.example.com/gpu",
            id="what-the-node-has-not",
        ),
        pytest.param(asking(other_requests=(("example.com/gpu", 0),)), (), "", "", id="none-of-it"),
        pytest.param(asking(), [asking(n) for n in "abc"], "OutOfpods", "spec", id="too-many"),
        pytest.param(
            placed(node_selector={"disk": "ssd"}), (), "NodeAffinity", "spec.nodeSelector", id="selector"
        ),
        pytest.param(
            placed(required=(Term((Requirement("disk", "Exists"),)),)),
            (),
            "NodeAffinity",
            "spec.affinity.nodeAffinity",
            id="affinity",
        ),
        pytest.param(placed(node_name="two"), (), "NodeName", "spec.nodeName", id="another-node"),
        pytest.param(placed(node_name="one"), (), "", "", id="this-node"),
        pytest.param(placed(os="windows"), (), "PodOSNotSupported", "spec.os.name", id="another-system"),
        pytest.param(
            serving("new", ContainerPort(1), WEB),
            (serving("a", replace(WEB, host_ip="10.0.0.1")),),
            "NodePorts",
            "spec.containers[0].ports[1].hostPort",
            id="a-port-of-another",
        ),
        pytest.param(
            serving("new", WEB),
            (serving("a", replace(WEB, protocol=Protocol.UDP)),),
            "",
            "",
            id="udp-is-free",
        ),
        pytest.param(
            serving("new", replace(WEB, host_ip="10.0.0.2")),
            (serving("a", replace(WEB, host_ip="10.0.0.1")),),
            "",
            "",
            id="on-another-address",
        ),
        pytest.param(
            a_pod(security=PodSecurity(sysctls=(("kernel.msgmax", "1"),))),
            (),
            "SysctlForbidden",
            "spec.securityContext.sysctls",
            id="an-unsafe-sysctl",
        ),
        pytest.param(
            a_pod(
                security=PodSecurity(sysctls=(("net.ipv4.tcp_syncookies", "1"),)),
                namespaces=HostNamespaces(network=True),
            ),
            (),
            "SysctlForbidden",
            "spec.securityContext.sysctls",
            id="a-sysctl-of-the-host",
        ),
    ],
)
def test_a_pod_is_taken_or_told_why_not(pod: Pod, others: list[Pod], reason: str, path: str) -> None:
    """With the original's reason and the field of the manifest."""
    found = admission.check(pod, others, NODE)

    assert ((found.reason, found.path) if found else ("", "")) == (reason, path)


def test_who_has_what_is_lacking_is_told() -> None:
    """The one with most comes first."""
    others = [asking("a", cpu_request_millicores=500), asking("b", cpu_request_millicores=2000)]
    found = admission.check(asking(cpu_request_millicores=2000), others, NODE)

    assert found is not None
    assert found.description == (
        "OutOfcpu: Node didn't have enough resource: cpu, requested: 2000, used: 2500, capacity: 4000; "
        "default/b has 2; default/a has 500m"
    )
    assert found.status_message.startswith("Pod was rejected: Node didn't have enough resource: cpu")


def test_a_port_s_holder_is_told() -> None:
    """By its name."""
    found = admission.check(serving("new", WEB), [serving("a", WEB)], NODE)

    assert found is not None
    assert found.holders == ("default/a has 80/TCP",)


def test_in_a_cluster_others_count_what_a_node_does_not_list() -> None:
    """The scheduler's extenders do; huge pages are the node's all the same."""
    node = replace(NODE, in_cluster=True)

    assert admission.check(asking(other_requests=(("example.com/gpu", 1),)), [], node) is None
    assert admission.check(asking(other_requests=(("hugepages-2Mi", 1),)), [], node) is not None


@pytest.mark.parametrize(
    ("taint", "tolerations", "taken"),
    [
        (Taint("a", "NoSchedule"), (), True),
        (Taint("a", "NoExecute"), (), False),
        (Taint("a", "NoExecute"), (Toleration("a", "Exists"),), True),
    ],
)
def test_a_taint_that_ends_pods_keeps_them_out(
    taint: Taint, tolerations: tuple[Toleration, ...], taken: bool
) -> None:
    """The others are the scheduler's."""
    node = replace(NODE, taints=(taint,))

    assert (admission.check(placed(tolerations=tolerations), [], node) is None) is taken


def test_a_pod_takes_the_most_that_it_takes_at_any_time() -> None:
    """Its main containers and sidecars, or an init container with the sidecars before it (KEP-753)."""

    def asks(name: str, cpu: int, **values: object) -> Container:
        resources = Resources(cpu_request_millicores=cpu)
        return a_container(name=name, resources=resources, **values)

    def side(name: str, cpu: int) -> Container:
        return asks(name, cpu, restart_policy=RestartPolicy.ALWAYS)

    def cpu(*initial: Container) -> int:
        pod = a_pod(asks("a", 100), asks("b", 100), init_containers=initial)
        return admission.requests(pod.spec)["cpu"]

    assert cpu() == 200
    assert cpu(asks("i", 150)) == 200
    assert cpu(asks("i", 300), asks("j", 250)) == 300
    assert cpu(side("s", 50)) == 250
    assert cpu(side("s", 50), asks("i", 300)) == 350
    assert cpu(asks("i", 300), side("s", 50)) == 300


def test_an_init_container_s_request_has_its_path() -> None:
    """The largest is told."""
    greedy = a_container(name="i", resources=Resources(cpu_request_millicores=5000))
    found = admission.check(a_pod(init_containers=(greedy,)), [], NODE)

    assert found is not None
    assert found.path == "spec.initContainers[0].resources.requests.cpu"
