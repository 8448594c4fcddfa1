"""A pod's own labels never pass for ours."""

from __future__ import annotations

from services.kubelet.adapters import cri_client
from services.kubelet.adapters.cri_client import MANIFEST_ANNOTATION, POD_UID_LABEL
from services.kubelet.ports import SandboxConfig
from tests.builders import a_pod


def test_labels_of_a_pod_cannot_name_another_owner() -> None:
    """Whatever they claim, the runtime is told the pod's own UID, name and manifest."""
    claims = {
        POD_UID_LABEL: "victim",
        "io.kubernetes.pod.name": "victim",
        "io.kubernetes.pod.namespace": "kube-system",
    }
    pod = a_pod(uid="uid-1", labels=claims, annotations={MANIFEST_ANNOTATION: "victim"})
    config = cri_client._sandbox_config(SandboxConfig(pod, 0, "web", "/logs", manifest="mine"))

    assert config.labels[POD_UID_LABEL] == "uid-1"
    assert config.labels["io.kubernetes.pod.name"] == "web"
    assert config.labels["io.kubernetes.pod.namespace"] == "default"
    assert config.annotations[MANIFEST_ANNOTATION] == "mine"
