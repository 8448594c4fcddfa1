"""How the Node, its status and its lease are written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.kubelet.core import kube_node
from services.kubelet.core.kube_node import Registration
from services.kubelet.core.node import NodeCondition, NodeStatus, RuntimeFeatures, RuntimeHandler
from services.kubelet.core.node_images import Image

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WANTED = Registration("worker", {"kubernetes.io/hostname": "worker", "zone": "a"}, version="v1.37.2+tripod")


def a_status(*, ready: bool = True, **values: Any) -> NodeStatus:
    """Make a status."""
    conditions = (
        NodeCondition("MemoryPressure", False, "KubeletHasSufficientMemory", "", NOW, NOW),
        NodeCondition("Ready", ready, "KubeletReady" if ready else "KubeletNotReady", "", NOW, NOW),
        NodeCondition("ApiServerReachable", True, "", "", NOW, NOW),
    )
    given: dict[str, Any] = {
        "capacity": {"cpu": "2", "pods": "110"},
        "allocatable": {"cpu": "2", "pods": "110"},
        "addresses": (("InternalIP", "192.0.2.1"), ("Hostname", "worker")),
        "info": {"kubelet_version": "0.1.0", "architecture": "amd64", "machine_id": "m"},
        **values,
    }
    return NodeStatus(name="worker", pod_cidr="", service_cidr="", conditions=conditions, **given)


def test_labels_and_taints_are_settings() -> None:
    """As the flags of the original have them."""
    assert kube_node.read_labels(["zone=a", "empty="]) == {"zone": "a", "empty": ""}
    assert kube_node.read_taints(["dedicated=gpu:NoSchedule", "plain:NoExecute"]) == (
        {"key": "dedicated", "value": "gpu", "effect": "NoSchedule"},
        {"key": "plain", "effect": "NoExecute"},
    )


@pytest.mark.parametrize("text", ["novalue", "=x"])
def test_a_label_of_another_form_is_refused(text: str) -> None:
    """It would be missing in silence."""
    with pytest.raises(ValueError, match="node_labels"):
        kube_node.read_labels([text])


@pytest.mark.parametrize("text", ["key", "key=value", "key=value:Sometimes"])
def test_a_taint_of_another_form_is_refused(text: str) -> None:
    """A node would take what it must not."""
    with pytest.raises(ValueError, match="register_with_taints"):
        kube_node.read_taints([text])


def test_only_our_labels_are_kept_right() -> None:
    """What an administrator added stays."""
    node = {"metadata": {"labels": {"kubernetes.io/hostname": "other", "mine": "1"}}}

    assert kube_node.label_patch(node, WANTED) == {
        "metadata": {"labels": {"kubernetes.io/hostname": "worker", "zone": "a"}}
    }
    done = {"metadata": {"labels": {**WANTED.labels, "mine": "1"}}}
    assert kube_node.label_patch(done, WANTED) is None


def test_a_status_tells_the_conditions_of_the_original_alone() -> None:
    """What is said to people at the node is not told to the cluster."""
    made = kube_node.status(a_status(), WANTED, {}, NOW)

    assert [c["type"] for c in made["conditions"]] == ["MemoryPressure", "Ready"]
    assert made["nodeInfo"]["kubeletVersion"] == "v1.37.2+tripod"
    assert made["daemonEndpoints"] == {"kubeletEndpoint": {"Port": 10250}}


def test_time_alone_is_no_change() -> None:
    """An idle node is told each five minutes, not each ten seconds."""
    first = kube_node.status(a_status(), WANTED, {}, NOW)
    later = kube_node.status(a_status(), WANTED, first, NOW + timedelta(seconds=10))

    assert not kube_node.changed(first, later)
    assert kube_node.changed(first, kube_node.status(a_status(ready=False), WANTED, first, NOW))
    assert later["conditions"][1]["lastHeartbeatTime"] == "2026-01-01T00:00:10Z"
    assert later["conditions"][1]["lastTransitionTime"] == "2026-01-01T00:00:00Z"


def test_the_runtime_and_the_machine_are_told() -> None:
    """No user namespaces, which pods of ours cannot have, whatever the runtime can."""
    features = RuntimeFeatures((RuntimeHandler("", True), RuntimeHandler("runc")), strict_groups=True)
    made = kube_node.status(a_status(runtime=features, system_uuid="u", swap_bytes=4096), WANTED, {}, NOW)

    assert made["features"] == {"supplementalGroupsPolicy": True}
    assert made["runtimeHandlers"] == [
        {"name": "", "features": {"recursiveReadOnlyMounts": True, "userNamespaces": False}},
        {"name": "runc", "features": {"recursiveReadOnlyMounts": False, "userNamespaces": False}},
    ]
    assert (made["nodeInfo"]["machineID"], made["nodeInfo"]["systemUUID"]) == ("m", "u")
    assert made["nodeInfo"]["swap"] == {"capacity": 4096}
    unknown = kube_node.status(a_status(system_uuid="u", swap_bytes=4096), WANTED, made, NOW)
    assert not kube_node.changed(made, unknown)
    assert kube_node.changed(unknown, made)


def test_images_count_as_a_change_and_stay_while_they_are_not_known() -> None:
    """The API answers without what is empty."""
    named, nameless = Image("a", 7, tags=("app:1",)), Image("b", 0)
    told = kube_node.status(a_status(images=(named, nameless)), WANTED, {}, NOW)
    answer = {**told, "images": [{"names": ["app:1"], "sizeBytes": 7}, {"names": None}]}

    assert told["images"] == [{"names": ["app:1"], "sizeBytes": 7}, {"names": [], "sizeBytes": 0}]
    assert not kube_node.changed(answer, told)
    assert kube_node.changed(answer, kube_node.status(a_status(images=(named,)), WANTED, answer, NOW))
    unknown = kube_node.status(a_status(), WANTED, answer, NOW)
    assert "images" not in unknown
    assert not kube_node.changed(answer, unknown)


def test_conditions_of_others_stay() -> None:
    """A patch names ours alone, and the API merges them by their type."""
    made = kube_node.status(a_status(), WANTED, {"conditions": [{"type": "NetworkUnavailable"}]}, NOW)

    patch = kube_node.status_patch("u", made)

    assert [c["type"] for c in patch["status"]["conditions"]] == ["MemoryPressure", "Ready"]
    assert patch["status"]["addresses"][0] == {"$patch": "replace"}


def test_a_lease_belongs_to_the_node() -> None:
    """It goes with it."""
    made = kube_node.lease("worker", "uid-n", NOW)

    assert made["metadata"]["ownerReferences"][0]["uid"] == "uid-n"
    assert made["spec"] == {
        "holderIdentity": "worker",
        "leaseDurationSeconds": 40,
        "renewTime": "2026-01-01T00:00:00.000000Z",
    }
