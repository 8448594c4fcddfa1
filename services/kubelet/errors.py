"""What the kubelet says when it cannot do what was asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from services.common.errors import Code, FieldViolation, TripodError

EMPTY: Mapping[str, str] = MappingProxyType({})


class KubeletError(TripodError):
    """A call to the kubelet failed."""


class TargetGoneError(KubeletError):
    """The container that an ephemeral one is to look at does not run."""

    def __init__(self, container: str) -> None:
        message = f"The target container {container} does not run"
        super().__init__(message, code=Code.FAILED_PRECONDITION, reason="TARGET_GONE")


class ManifestError(KubeletError):
    """A manifest that was refused as a whole; `violations` has every fault."""

    def __init__(self, violations: Sequence[FieldViolation], source: str = "") -> None:
        count = len(violations)
        super().__init__(
            f"{source or 'The manifest'} was refused, nothing was changed: {count} fault{'s' * (count != 1)}",
            code=Code.INVALID_ARGUMENT,
            reason="MANIFEST_INVALID",
            violations=violations,
            metadata={"source": source} if source else {},
        )


class ObjectNotFoundError(KubeletError):
    """There is no such object."""

    def __init__(self, kind: str, namespace: str, name: str) -> None:
        super().__init__(
            f"{kind.lower()}/{name} does not exist" + (f" in namespace {namespace}" if namespace else ""),
            code=Code.NOT_FOUND,
            reason="OBJECT_NOT_FOUND",
            metadata={"kind": kind, "namespace": namespace, "name": name},
        )


class ObjectTerminatingError(KubeletError):
    """A pod of this name still stops; its name is free again when it is gone."""

    def __init__(self, namespace: str, name: str) -> None:
        super().__init__(
            f"pod/{name} is still stopping; apply again when it is gone "
            f"(`tripod wait --for=delete pod/{name}`)",
            code=Code.ABORTED,
            reason="OBJECT_TERMINATING",
            metadata={"namespace": namespace, "name": name},
            retry_after_seconds=1.0,
        )


class StoreError(KubeletError):
    """The store's file cannot be used."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"Cannot use the object store {path}: {why}; nothing was changed. "
            "Running pods go on; the file is tried again every few seconds",
            code=Code.UNAVAILABLE,
            reason="STORE_UNUSABLE",
            metadata={"path": path},
            retry_after_seconds=5.0,
        )
        self.path = path
        self.why = why


class StoreFullError(KubeletError):
    """The disk that holds the store is full."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"The disk of the object store {path} is full; nothing was changed. "
            "Free some space: running pods go on, and pods can be deleted",
            code=Code.RESOURCE_EXHAUSTED,
            reason="STORE_FULL",
            metadata={"path": path},
            retry_after_seconds=10.0,
        )


class RuntimeListIncompleteError(KubeletError):
    """The runtime left something out of a list that it has all the same."""

    def __init__(self, missing_id: str) -> None:
        super().__init__(
            f"The runtime's list lacks {missing_id}, which the runtime has; nothing is done on such a list",
            code=Code.UNAVAILABLE,
            reason="RUNTIME_LIST_INCOMPLETE",
            metadata={"id": missing_id},
        )


class ClusterModeError(KubeletError):
    """This node belongs to a cluster, whose API server holds its objects."""

    def __init__(self, server: str, instead: str) -> None:
        super().__init__(
            f"This node belongs to a cluster: its objects are held by {server}. Use `{instead}` there, "
            "or the manifest directory for static pods",
            code=Code.FAILED_PRECONDITION,
            reason="CLUSTER_MODE",
            metadata={"server": server},
        )


class AppliedPodsError(KubeletError):
    """A node that is to join a cluster has pods that were applied to it, which no cluster would know."""

    def __init__(self, names: Sequence[str]) -> None:
        listed = ", ".join(names)
        super().__init__(
            f"This node cannot join a cluster while it has pods that were applied to it: {listed}. "
            "Start it without a kubeconfig and delete them, or put them into the manifest directory",
            code=Code.FAILED_PRECONDITION,
            reason="APPLIED_PODS_PRESENT",
            metadata={"pods": listed},
        )


class PodNotFoundError(KubeletError):
    """There is no such pod on this node. `refused` are manifests that may hold it, with their faults."""

    def __init__(self, namespace: str, name: str, refused: Mapping[str, str] = EMPTY) -> None:
        files = "".join(f"; the manifest {file} is refused: {fault}" for file, fault in refused.items())
        super().__init__(
            f"pod/{name} does not exist in namespace {namespace}{files}",
            code=Code.NOT_FOUND,
            reason="POD_NOT_FOUND",
            metadata={"namespace": namespace, "name": name},
        )


class ContainerUnknownError(KubeletError):
    """A pod has no container of that name."""

    def __init__(self, pod: str, container: str, names: Sequence[str]) -> None:
        known = ", ".join(names)
        what = f"has no container {container!r}" if container else "has many containers; name one"
        super().__init__(
            f"pod/{pod} {what} ({known})",
            code=Code.NOT_FOUND if container else Code.INVALID_ARGUMENT,
            reason="CONTAINER_UNKNOWN",
            metadata={"pod": pod, "container": container, "containers": known},
        )


class ContainerNotStartedError(KubeletError):
    """A container has not started, so has neither log nor process."""

    def __init__(self, pod: str, container: str, why: str) -> None:
        super().__init__(
            f"Container {container} of pod/{pod} {why}",
            code=Code.FAILED_PRECONDITION,
            reason="CONTAINER_NOT_STARTED",
            metadata={"pod": pod, "container": container},
        )


class LogUnreadableError(KubeletError):
    """A container's log file cannot be read, or is something that is not read."""

    def __init__(self, pod: str, container: str, why: str) -> None:
        super().__init__(
            f"The log of container {container} of pod/{pod} is not read: the file {why}",
            code=Code.FAILED_PRECONDITION,
            reason="LOG_UNREADABLE",
            metadata={"pod": pod, "container": container},
        )


def request_invalid(field: str, what: str) -> KubeletError:
    """Say which field of a request cannot be used, and why."""
    return KubeletError(
        f"{field}: {what}",
        code=Code.INVALID_ARGUMENT,
        reason="REQUEST_INVALID",
        violations=[FieldViolation(field, what)],
    )
