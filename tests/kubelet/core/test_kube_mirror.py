"""How static pods are called and shown in a cluster."""

from __future__ import annotations

from datetime import UTC, datetime

from services.kubelet.core import kube_mirror, kube_pod
from tests.builders import a_pod

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_static_pod_has_its_node_in_its_name() -> None:
    """The same file on two nodes makes two pods."""
    pod = kube_mirror.named(a_pod(), "worker")

    assert (pod.name, pod.uid) == ("web-worker", "uid-1")
    assert pod.annotations["kubernetes.io/config.source"] == "file"


def test_a_mirror_is_one_that_the_api_admits() -> None:
    """It says which pod it shows, is bound to the node, and belongs to it."""
    pod = kube_mirror.named(a_pod(), "worker")

    body = kube_mirror.mirror(pod, node="worker", node_uid="uid-n", seen=NOW)

    assert body["metadata"]["annotations"]["kubernetes.io/config.mirror"] == "uid-1"
    assert body["metadata"]["ownerReferences"][0]["uid"] == "uid-n"
    assert body["spec"]["nodeName"] == "worker"
    assert {"operator": "Exists", "effect": "NoExecute"} in body["spec"]["tolerations"]


def test_a_mirror_shows_one_pod_as_it_is_now() -> None:
    """A file that changed is another pod, whose mirror is another one."""
    pod = kube_mirror.named(a_pod(), "worker")
    body = kube_mirror.mirror(pod, node="worker", node_uid="uid-n", seen=NOW)
    body["metadata"] |= {"uid": "uid-m", "resourceVersion": "1"}
    shown = kube_pod.read(body)

    assert kube_mirror.shows(shown, pod)
    assert not kube_mirror.shows(shown, kube_mirror.named(a_pod(uid="uid-2"), "worker"))
