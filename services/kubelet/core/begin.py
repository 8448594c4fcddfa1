"""Which containers of a pod have started, and which init container is awaited. Pure.

The rules:

- A container has started when it runs, its postStart hook has succeeded, and so has its
  startup probe, where it has one.
- Init containers come one after the other, in the present sandbox: a plain one is done
  when it has ended with 0, a sidecar when it has started.
- What is there of a later container shows that those before it are done, though
  somebody removed them. A sidecar that fails later holds nobody up.

Source: Kubernetes "Init Containers", "Sidecar Containers" (KEP-753); the kubelet's
`computeInitContainerActions`.
"""

from __future__ import annotations

from collections.abc import Set

from services.kubelet.core.memory import HookState, Memory
from services.kubelet.core.model import Container, ContainerId, Pod, PodSpec, RestartPolicy
from services.kubelet.core.observed import ObservedContainer, ObservedPod, RuntimeState
from services.kubelet.core.restarts import comes_back


def is_sidecar(spec: PodSpec, container: Container) -> bool:
    """Tell whether a container is an init container that runs beside the main ones."""
    return container.restart_policy is RestartPolicy.ALWAYS and container in spec.init_containers


def is_plain_init(spec: PodSpec, container: Container) -> bool:
    """Tell whether a container is an init container that has to end."""
    return container in spec.init_containers and not is_sidecar(spec, container)


def started(pod: Pod, observed: ObservedPod, memory: Memory) -> frozenset[ContainerId]:
    """Return the instances that have started: sidecars and main containers."""
    latest = ((spec, observed.latest(spec.name)) for spec in pod.spec.lasting)
    return frozenset(seen.id for spec, seen in latest if seen is not None and _started(spec, seen, memory))


def _started(spec: Container, seen: ObservedContainer, memory: Memory) -> bool:
    hooked = spec.lifecycle.post_start is None or memory.hooks.get(seen.id) is HookState.DONE
    probed = spec.startup_probe is None or seen.id in memory.begun
    return seen.state is RuntimeState.RUNNING and hooked and probed


def hooking(pod: Pod, observed: ObservedPod, memory: Memory) -> frozenset[ContainerId]:
    """Return the running instances whose postStart hook has not succeeded: none of them is probed."""
    latest = ((spec, observed.latest(spec.name)) for spec in pod.spec.lasting)
    return frozenset(
        seen.id
        for spec, seen in latest
        if seen is not None
        and seen.state is RuntimeState.RUNNING
        and spec.lifecycle.post_start is not None
        and memory.hooks.get(seen.id) is not HookState.DONE
    )


def here(observed: ObservedPod, name: str) -> ObservedContainer | None:
    """Return a container's newest instance if it belongs to the present, ready sandbox."""
    box, latest = observed.sandbox(), observed.latest(name)
    present = box is not None and box.ready and latest is not None and latest.sandbox_id == box.id
    return latest if present else None


def awaited(spec: PodSpec, observed: ObservedPod, begun: Set[ContainerId]) -> Container | None:
    """Return the init container that the others wait for; None once all are done. `begun` have started."""
    furthest = _furthest(spec, observed)
    for index, container in enumerate(spec.init_containers):
        if index < furthest:
            continue
        seen = here(observed, container.name)
        if seen is None or not _done(spec, container, seen, begun):
            return container
    return None


def _furthest(spec: PodSpec, observed: ObservedPod) -> int:
    """Return the place of the last container of which there is something in the present sandbox."""
    if any(here(observed, container.name) for container in spec.containers):
        return len(spec.init_containers)
    there = [i for i, container in enumerate(spec.init_containers) if here(observed, container.name)]
    return max(there, default=0)


def _done(spec: PodSpec, container: Container, seen: ObservedContainer, begun: Set[ContainerId]) -> bool:
    if is_sidecar(spec, container):
        return seen.id in begun
    return seen.state is RuntimeState.EXITED and seen.exit_code == 0


def failed_init(pod: Pod, observed: ObservedPod) -> Container | None:
    """Return the init container that failed and is not tried again."""
    for container in pod.spec.init_containers:
        seen = observed.latest(container.name)
        failed = seen is not None and seen.state is RuntimeState.EXITED and seen.exit_code != 0
        if failed and seen is not None and not comes_back(pod, container, seen.exit_code):
            return container
    return None
