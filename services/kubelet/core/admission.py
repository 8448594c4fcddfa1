"""Whether this node takes a pod: what it may ask for, what is left, and where it wants to run. Pure.

The checks, in order; the first that fails gives its reason:

1. `SysctlForbidden`: a kernel setting that is neither safe nor allowed on this node.
2. `PodOSNotSupported`: a pod for another operating system.
3. `OutOfcpu`, `OutOfmemory`, `OutOfpods`, `OutOfephemeral-storage` and so on: requests beyond what is left.
4. `NodeAffinity`: the node's labels are not what selector or affinity requires.
5. `NodeName`: the pod names another node.
6. `NodePorts`: a host port that another pod of the node has.
7. `TaintToleration`: a NoExecute taint of the node that the pod does not bear.

How it is used: standalone, `apply` is refused with the `path` and the `description` of a refusal, which names
who has what is lacking. In a cluster the pod is there already, so before its first sandbox is made the caller
asks `check(pod, others, node)` with every other pod of the node that was admitted and has not ended. On a
refusal it sets the pod's status to phase Failed, `reason` to that of the refusal and `message` to
`status_message`, emits a Warning event of the same reason and `message`, and never starts the pod. A pod that
was admitted once (it has a sandbox, or its status says that it started) is not asked about again. For a
static pod `node` has no taints. `Node.in_cluster` leaves extended resources that the node lacks to others.

Source: the kubelet's `lifecycle/predicate.go` and `sysctl/allowlist.go`; the scheduler's `AdmissionCheck`.
Critical pods that make room for themselves (preemption), topology and eviction are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.kubelet.core import quantity, scheduling, sysctls
from services.kubelet.core.model import ContainerPort, Pod, PodSpec, Resources
from services.kubelet.core.scheduling import Taint

_ANY = ("", "0.0.0.0", "::")
_PODS = "pods"
_BYTES = ("memory", "ephemeral-storage")


@dataclass(frozen=True, slots=True)
class Node:
    """What the node is and has: `allocatable` has cpu in millicores, the rest in bytes or counts."""

    name: str
    labels: Mapping[str, str]
    allocatable: Mapping[str, int]
    taints: tuple[Taint, ...] = ()
    allowed_unsafe_sysctls: tuple[str, ...] = ()
    os: str = "linux"
    in_cluster: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a pod is not taken. `path` is that in its manifest; `holders` name pods that are in the way."""

    reason: str
    message: str
    path: str
    holders: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """What is said of the field: the reason, the message, and who has what is lacking."""
        return "; ".join((f"{self.reason}: {self.message}", *self.holders))

    @property
    def status_message(self) -> str:
        """What the status of a pod says that was not taken."""
        return f"Pod was rejected: {self.message}"


def check(pod: Pod, others: Sequence[Pod], node: Node) -> Refusal | None:
    """Return why a pod is not taken beside `others`, which have not ended; None when it is."""
    return (
        _sysctls(pod, node)
        or _system(pod, node)
        or _resources(pod, others, node)
        or _place(pod, node)
        or _ports(pod, others)
        or _taints(pod, node)
    )


def _sysctls(pod: Pod, node: Node) -> Refusal | None:
    names = [name for name, _ in pod.spec.security.sysctls]
    why = sysctls.refusal(names, pod.spec.namespaces, node.allowed_unsafe_sysctls)
    return Refusal("SysctlForbidden", why, "spec.securityContext.sysctls") if why else None


def _system(pod: Pod, node: Node) -> Refusal | None:
    wanted = pod.spec.scheduling.os
    if wanted in ("", node.os):
        return None
    why = f"Failed to admit pod as the OS field doesn't match node OS ({wanted}, {node.os})"
    return Refusal("PodOSNotSupported", why, "spec.os.name")


def requests(spec: PodSpec) -> dict[str, int]:
    """Return what a pod takes of the node: the most that it takes at any time.

    That is what its main containers and sidecars take together, or one of its init
    containers with the sidecars that started before it (KEP-753); and what its runtime takes.
    """
    total: dict[str, int] = {}
    for container in spec.lasting:
        _add(total, container_requests(container.resources))
    sidecars: dict[str, int] = {}
    for container in spec.init_containers:
        if container in spec.sidecars:
            _add(sidecars, container_requests(container.resources))
            continue
        beside = dict(sidecars)
        _add(beside, container_requests(container.resources))
        total |= {name: max(count, total.get(name, 0)) for name, count in beside.items()}
    _add(total, dict(spec.scheduling.overhead))
    return {_PODS: 1} | total


def container_requests(value: Resources) -> dict[str, int]:
    """Return what one container requests."""
    found = {"cpu": value.cpu_request_millicores or 0, "memory": value.memory_request_bytes or 0}
    return found | dict(value.other_requests)


def _add(total: dict[str, int], more: Mapping[str, int]) -> None:
    for name, count in more.items():
        total[name] = total.get(name, 0) + count


def _resources(pod: Pod, others: Sequence[Pod], node: Node) -> Refusal | None:
    wanted = requests(pod.spec)
    taken = [(other, requests(other.spec)) for other in others]
    for name in sorted(wanted, key=lambda name: (name != _PODS, name)):
        if wanted[name] == 0 or (node.in_cluster and "/" in name and name not in node.allocatable):
            continue
        holders = {f"{o.namespace}/{o.name}": has[name] for o, has in taken if has.get(name)}
        used, capacity = sum(holders.values()), node.allocatable.get(name, 0)
        if used + wanted[name] > capacity:
            return _lacking(name, pod, holders, capacity)
    return None


def _lacking(name: str, pod: Pod, holders: Mapping[str, int], capacity: int) -> Refusal:
    wanted = requests(pod.spec)[name]
    used = sum(holders.values())
    message = (
        f"Node didn't have enough resource: {name}, requested: {wanted}, used: {used}, capacity: {capacity}"
    )
    most_first = sorted(holders, key=lambda holder: (-holders[holder], holder))
    told = () if name == _PODS else tuple(f"{h} has {_amount(name, holders[h])}" for h in most_first)
    return Refusal(f"OutOf{name}", message, _path(name, pod.spec), told)


def _path(name: str, spec: PodSpec) -> str:
    """Return the path of the largest request for a resource."""
    if name == _PODS:
        return "spec"
    lists = {"containers": spec.containers, "initContainers": spec.init_containers}
    asked = {
        f"spec.{kind}[{index}]": container_requests(container.resources).get(name, 0)
        for kind, containers in lists.items()
        for index, container in enumerate(containers)
    }
    return f"{max(asked, key=lambda path: asked[path])}.resources.requests.{name}"


def _amount(name: str, count: int) -> str:
    if name == "cpu":
        return quantity.format_millicores(count)
    return quantity.format_bytes(count) if name in _BYTES else str(count)


def _place(pod: Pod, node: Node) -> Refusal | None:
    wanted = pod.spec.scheduling
    if not scheduling.fits(wanted, node.labels, node.name):
        selected = all(node.labels.get(key) == value for key, value in wanted.node_selector.items())
        path = "spec.affinity.nodeAffinity" if selected else "spec.nodeSelector"
        why = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
        return Refusal("NodeAffinity", why, path)
    if wanted.node_name not in ("", node.name):
        why = "Predicate NodeName failed: node(s) didn't match the requested node name"
        return Refusal("NodeName", why, "spec.nodeName")
    return None


def _ports(pod: Pod, others: Sequence[Pod]) -> Refusal | None:
    taken = [(port, f"{other.namespace}/{other.name}") for other in others for _, port in _host_ports(other)]
    for path, port in _host_ports(pod):
        holder = next((name for other, name in taken if clash(port, other)), "")
        if holder:
            why = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
            place = f"{holder} has {port.host_port}/{port.protocol.value}"
            return Refusal("NodePorts", why, path, (place,))
    return None


def _host_ports(pod: Pod) -> Iterable[tuple[str, ContainerPort]]:
    lists = {"containers": pod.spec.containers, "initContainers": pod.spec.init_containers}
    for kind, containers in lists.items():
        for index, container in enumerate(containers):
            for number, port in enumerate(container.ports):
                if port.host_port:
                    yield f"spec.{kind}[{index}].ports[{number}].hostPort", port


def clash(one: ContainerPort, other: ContainerPort) -> bool:
    """Tell whether two host ports cannot be had together: the same port on the same address, or on all."""
    if (one.protocol, one.host_port) != (other.protocol, other.host_port):
        return False
    return one.host_ip == other.host_ip or one.host_ip in _ANY or other.host_ip in _ANY


def _taints(pod: Pod, node: Node) -> Refusal | None:
    tolerations = pod.spec.scheduling.tolerations
    for taint in node.taints:
        borne = any(scheduling.tolerates(one, taint) for one in tolerations)
        if taint.effect == "NoExecute" and not borne:
            why = "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate"
            return Refusal("TaintToleration", why, "spec.tolerations")
    return None
