"""Every name of a span and of an attribute that Tripod makes; docs/telemetry.md explains them.

Names have few values: what varies goes into attributes. Spans of RPCs are named
after the method, those of engine calls `docker <resource>.<verb>`,
those of calls to a Kubernetes API server `kube <verb> <resource>`.
"""

from __future__ import annotations

# Episodes: the roots of a pod's traces.
POD_START = "pod.start"
POD_RESTART = "pod.restart"
POD_STOP = "pod.stop"

# Phases.
POD_RECEIVE = "pod.receive"
WORKER_QUEUE = "worker.queue"
POD_OBSERVE = "pod.observe"
IMAGE_CHECK = "image.check"
IMAGE_PULL = "image.pull"
SANDBOX_CREATE = "sandbox.create"
SANDBOX_STOP = "sandbox.stop"
VOLUME_MOUNT = "volume.mount"
NETWORK_ATTACH = "network.attach"
NETWORK_DETACH = "network.detach"
CONTAINER_CREATE = "container.create"
CONTAINER_START = "container.start"
CONTAINER_STOP = "container.stop"
CONTAINER_HOOK = "container.hook"
CONTAINER_BACKOFF = "container.backoff"
PROBE_READINESS_WAIT = "probe.readiness.wait"
INIT_WAIT = "init.wait"
STATUS_PUBLISH = "status.publish"
OBJECTS_APPLY = "objects.apply"
ENDPOINTS_PROGRAM = "endpoints.program"

PHASES = frozenset(
    {
        POD_START,
        POD_RESTART,
        POD_STOP,
        POD_RECEIVE,
        WORKER_QUEUE,
        POD_OBSERVE,
        IMAGE_CHECK,
        IMAGE_PULL,
        SANDBOX_CREATE,
        SANDBOX_STOP,
        VOLUME_MOUNT,
        NETWORK_ATTACH,
        NETWORK_DETACH,
        CONTAINER_CREATE,
        CONTAINER_START,
        CONTAINER_STOP,
        CONTAINER_HOOK,
        CONTAINER_BACKOFF,
        PROBE_READINESS_WAIT,
        INIT_WAIT,
        STATUS_PUBLISH,
        OBJECTS_APPLY,
        ENDPOINTS_PROGRAM,
    }
)


def known(name: str) -> bool:
    """Tell whether a span may have this name."""
    return name in PHASES or name.startswith(("docker ", "kube ")) or "/" in name
