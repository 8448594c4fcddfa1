"""How a pod of the API is read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from services.kubelet.core import kube_pod, kube_references
from services.kubelet.core.model import ObjectKey


def a_body(**values: Any) -> dict[str, Any]:
    """Write a pod as an API server has it, with the defaults that it adds."""
    container = {
        "name": "app",
        "image": "app:1",
        "resources": {},
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "imagePullPolicy": "IfNotPresent",
    }
    spec = {
        "containers": [container],
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "nodeName": "worker",
        "securityContext": {},
        "schedulerName": "default-scheduler",
        "priority": 0,
        "preemptionPolicy": "PreemptLowerPriority",
        "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}],
        **values.pop("spec", {}),
    }
    meta = {
        "name": "web",
        "namespace": "default",
        "uid": "uid-1",
        "resourceVersion": "7",
        "generation": 3,
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "r"}],
        "managedFields": [{"manager": "kubectl"}],
        **values.pop("metadata", {}),
    }
    return {"metadata": meta, "spec": spec, "status": {"phase": "Pending"}, **values}


def test_a_pod_is_read_with_what_the_api_gave_it() -> None:
    """UID, revision and generation are the API's."""
    known = kube_pod.read(a_body())

    assert known.supported
    assert (known.pod.uid, known.pod.namespace, known.pod.name) == ("uid-1", "default", "web")
    assert (known.revision, known.generation, known.pod.generation) == (7, 3, 3)
    assert known.pod.spec.containers[0].image == "app:1"
    assert "managedFields" not in known.body["metadata"]


def test_what_is_kept_reads_the_same() -> None:
    """A start without the API runs the very pod that was accepted."""
    known = kube_pod.read(a_body())

    assert kube_pod.read(known.body).pod == known.pod


def test_a_deletion_is_read_with_its_grace() -> None:
    """Whoever deletes a pod may give it another grace than its spec has."""
    meta = {"deletionTimestamp": "2026-01-01T00:01:00Z", "deletionGracePeriodSeconds": 5}

    pod = kube_pod.read(a_body(metadata=meta)).pod

    assert pod.deletion_time is not None
    assert pod.deletion_grace_seconds == 5


def test_a_field_that_cannot_be_honoured_is_named() -> None:
    """A pod of the API is never run without something that it asks for."""
    volume = {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}

    known = kube_pod.read(a_body(spec={"volumes": [volume]}))

    assert not known.supported
    assert "spec.volumes[0].persistentVolumeClaim" in known.unsupported()


def test_readiness_gates_are_met_by_conditions_of_others() -> None:
    """Only the gates that the pod names count."""
    conditions = [
        {"type": "example.com/balanced", "status": "True"},
        {"type": "example.com/other", "status": "True"},
        {"type": "example.com/late", "status": "False"},
    ]
    gates = [{"conditionType": "example.com/balanced"}, {"conditionType": "example.com/late"}]

    pod = kube_pod.read(a_body(spec={"readinessGates": gates}, status={"conditions": conditions})).pod

    assert pod.conditions_met == {"example.com/balanced"}


def test_a_mirror_is_known_by_its_annotation() -> None:
    """It is never run."""
    known = kube_pod.read(a_body(metadata={"annotations": {"kubernetes.io/config.mirror": "uid-s"}}))

    assert known.mirror == "uid-s"


def test_what_is_no_object_is_refused() -> None:
    """An object without a UID cannot be told from another one."""
    with pytest.raises(ValueError):
        kube_pod.read({"metadata": {"name": "web", "namespace": "default"}})


def test_all_that_a_pod_names_is_found() -> None:
    """Variables, volumes, projections and pull secrets, of every kind of container."""
    spec = {
        "imagePullSecrets": [{"name": "registry"}],
        "initContainers": [{"name": "i", "envFrom": [{"configMapRef": {"name": "from-init"}}]}],
        "containers": [
            {"name": "c", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "key", "key": "k"}}}]}
        ],
        "volumes": [
            {"name": "a", "configMap": {"name": "files"}},
            {"name": "b", "secret": {"secretName": "hidden"}},
            {
                "name": "c",
                "projected": {"sources": [{"configMap": {"name": "part"}}, {"serviceAccountToken": {}}]},
            },
            {"name": "d", "emptyDir": {}},
        ],
    }

    found = kube_references.references({"metadata": {"namespace": "ns"}, "spec": spec})

    assert found == {
        ObjectKey("Secret", "ns", "registry"),
        ObjectKey("ConfigMap", "ns", "from-init"),
        ObjectKey("Secret", "ns", "key"),
        ObjectKey("ConfigMap", "ns", "files"),
        ObjectKey("Secret", "ns", "hidden"),
        ObjectKey("ConfigMap", "ns", "part"),
    }


def test_when_a_pod_began_is_read_from_its_status() -> None:
    """A kubelet that kept nothing yet goes on counting from there."""
    found = kube_pod.read({**a_body(), "status": {"phase": "Pending", "startTime": "2026-01-01T00:00:05Z"}})

    assert found.pod.start_time == datetime(2026, 1, 1, 0, 0, 5, tzinfo=UTC)
