"""Every field is honoured or refused with its path."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.kubelet.core import manifest, render
from services.kubelet.core.fields import Faults
from services.kubelet.core.manifest_service import ServiceDraft, read_service_spec
from services.kubelet.core.model import PodSpec, PullPolicy

POD = """
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers:
    - name: app
      image: app:1
"""


def faults(text: str | bytes) -> dict[str, str]:
    """Read a manifest and return its faults by path."""
    data = text.encode() if isinstance(text, str) else text
    _, found = manifest.read(data)
    return {fault.field: fault.description for fault in found}


def pod_with(
    spec: dict[str, Any] | None = None, container: dict[str, Any] | None = None, **meta: Any
) -> bytes:
    """Write a pod as JSON with more in its spec, its first container or its metadata."""
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", **meta},
        "spec": {"containers": [{"name": "app", "image": "app:1", **(container or {})}], **(spec or {})},
    }
    return json.dumps(body).encode()


def service_with(**spec: Any) -> bytes:
    """Write a service as JSON."""
    whole = {"selector": {"app": "web"}, "ports": [{"port": 80}], **spec}
    return json.dumps(
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": whole}
    ).encode()


@pytest.mark.parametrize(
    ("data", "path", "words"),
    [
        (pod_with({"restartPolcy": "Never"}), "spec.restartPolcy", "did you mean restartPolicy?"),
        (
            pod_with(container={"imagePullPolicy": "Sometimes"}),
            "spec.containers[0].imagePullPolicy",
            "not one of",
        ),
        (pod_with({"initContainers": [{"name": "x"}]}), "spec.initContainers[0].image", "is required"),
        (pod_with({"hostUsers": False}), "spec.hostUsers", "not supported yet"),
        (pod_with(container={"startupProbe": {}}), "spec.containers[0].startupProbe", "give one of httpGet"),
        (
            pod_with(container={"startupProbe": {"grpc": {"port": 0}}}),
            "spec.containers[0].startupProbe.grpc.port",
            "not from 1 to 65535",
        ),
        (
            pod_with(container={"startupProbe": {"grpc": {"port": 1}, "successThreshold": 2}}),
            "spec.containers[0].startupProbe.successThreshold",
            "must be 1 for a startup probe",
        ),
        (
            pod_with(container={"readinessProbe": {"grpc": {"port": 1}, "tcpSocket": {"port": 1}}}),
            "spec.containers[0].readinessProbe",
            "has two actions: tcpSocket and grpc",
        ),
        (
            pod_with({"volumes": [{"name": "c", "configMap": {}}]}),
            "spec.volumes[0].configMap.name",
            "is required",
        ),
        (
            pod_with({"volumes": [{"name": "c", "emptyDir": {"medium": "HugePages"}}]}),
            "spec.volumes[0].emptyDir.medium",
            "not supported yet",
        ),
        (
            pod_with({"volumes": [{"name": "h", "hostPath": {"path": "/h", "type": "Folder"}}]}),
            "spec.volumes[0].hostPath.type",
            "not one of",
        ),
        (pod_with(name="Web"), "metadata.name", "is not a DNS name"),
        (pod_with(labels={"app": True}), "metadata.labels[app]", "put it in quotes"),
        (pod_with(labels={"-x": "y"}), "metadata.labels[-x]", "letter or digit at both ends"),
        (pod_with(uid="1"), "metadata.uid", "not supported yet"),
        (pod_with({"containers": []}), "spec.containers", "needs one item"),
        (
            pod_with(container={"env": [{"name": "A", "value": 1}]}),
            "spec.containers[0].env[0].value",
            "put it in quotes",
        ),
        (
            pod_with(container={"env": [{"name": "A", "valueFrom": {}}]}),
            "spec.containers[0].env[0].valueFrom",
            "needs one source",
        ),
        (
            pod_with(container={"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}}),
            "spec.containers[0].resources.requests.cpu",
            "more than the limit",
        ),
        (
            pod_with(container={"resources": {"limits": {"memory": "64MB"}}}),
            "spec.containers[0].resources.limits.memory",
            "is no quantity",
        ),
        (
            pod_with(container={"volumeMounts": [{"name": "x", "mountPath": "/x"}]}),
            "spec.containers[0].volumeMounts[0].name",
            "no volume is called 'x'",
        ),
        (
            pod_with(container={"livenessProbe": {"httpGet": {"port": 80}, "successThreshold": 2}}),
            "spec.containers[0].livenessProbe.successThreshold",
            "must be 1",
        ),
        (
            pod_with(container={"readinessProbe": {"httpGet": {"port": "web"}}}),
            "spec.containers[0].readinessProbe.httpGet.port",
            "no port of the container is called 'web'",
        ),
        (
            pod_with(container={"readinessProbe": {"httpGet": {"port": 80}, "exec": {"command": ["x"]}}}),
            "spec.containers[0].readinessProbe",
            "two actions",
        ),
        (
            pod_with(container={"ports": [{"containerPort": 70000}]}),
            "spec.containers[0].ports[0].containerPort",
            "not from 1",
        ),
    ],
)
def test_a_pod_is_refused_with_the_path_and_the_reason(data: bytes, path: str, words: str) -> None:
    """A person finds the line and knows what to write."""
    found = faults(data)

    assert list(found) == [f"Pod {'web' if path != 'metadata.name' else '#1'}: {path}"]
    assert words in next(iter(found.values()))


@pytest.mark.parametrize(
    ("spec", "seconds"),
    [
        ({}, 0),
        ({"sessionAffinity": "None"}, 0),
        ({"sessionAffinity": "ClientIP"}, 10_800),
        (
            {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}},
            60,
        ),
    ],
)
def test_a_client_stays_with_its_endpoint_as_long_as_asked(spec: dict[str, Any], seconds: int) -> None:
    """Three hours where nobody says how long."""
    faults = Faults()
    given = {"selector": {"app": "web"}, "ports": [{"port": 80}], **spec}

    draft = read_service_spec(given, faults)

    assert not faults.found
    assert draft.affinity_timeout_seconds == seconds


@pytest.mark.parametrize(
    ("data", "path", "words"),
    [
        (service_with(type="LoadBalancer"), "spec.type", "not supported yet"),
        (
            service_with(sessionAffinity="Cookie"),
            "spec.sessionAffinity",
            "'Cookie'",
        ),
        (
            service_with(sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}}),
            "spec.sessionAffinityConfig",
            "needs sessionAffinity: ClientIP",
        ),
        (
            service_with(
                sessionAffinity="ClientIP", sessionAffinityConfig={"clientIP": {"timeoutSeconds": 90_000}}
            ),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            "90000 is not from 1 to 86400",
        ),
        (
            service_with(sessionAffinity="ClientIP", sessionAffinityConfig={"cookie": {}}),
            "spec.sessionAffinityConfig.cookie",
            "unknown field",
        ),
        (service_with(selector={}), "spec.selector", "is required"),
        (service_with(ports=[]), "spec.ports", "needs one item"),
        (service_with(ports=[{"port": 80}, {"port": 81}]), "spec.ports[0].name", "is required"),
        (
            service_with(ports=[{"port": 80, "nodePort": 30000}]),
            "spec.ports[0].nodePort",
            "needs type NodePort",
        ),
        (service_with(clusterIP="localhost"), "spec.clusterIP", "neither an IPv4 address"),
        (
            service_with(ports=[{"port": 80, "protocol": "DCCP"}]),
            "spec.ports[0].protocol",
            "is not one of TCP, UDP, SCTP",
        ),
    ],
)
def test_a_service_is_refused_with_the_path_and_the_reason(data: bytes, path: str, words: str) -> None:
    """As for pods."""
    found = faults(data)

    assert f"Service web: {path}" in found
    assert words in found[f"Service web: {path}"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2", "stands twice"),
        ("? [1]\n: x", "is not text"),
        ("{", "line"),
        ("&a [*a]", "nested deeper"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1]\n"
            + "\n".join(
                f"{c}: &{c} [{','.join(f'*{p}' for _ in range(9))}]"
                for p, c in zip("abcdefg", "bcdefgh", strict=True)
            ),
            "aliases",
        ),
        ("[" * 100 + "]" * 100, "nested deeper"),
        ("", "holds no object"),
        ("x" * ((4 << 20) + 1), "at most"),
        ("!!python/object:os.system {}", "tag"),
    ],
    ids=[
        "duplicate-key",
        "key-no-text",
        "broken",
        "recursive-alias",
        "alias-bomb",
        "deep",
        "empty",
        "too-large",
        "tag",
    ],
)
def test_what_is_no_manifest_is_refused(text: str, words: str) -> None:
    """Nothing is guessed, and nothing explodes."""
    found = faults(text)

    assert list(found) == ["manifest"]
    assert words in found["manifest"]


def test_the_faults_of_all_documents_come_at_once() -> None:
    """A person mends a file once."""
    text = POD.replace("image: app:1", "imag: x") + "---\nkind: Foo\napiVersion: v1\nmetadata: {name: y}\n"

    assert set(faults(text)) == {
        "Pod web: spec.containers[0].imag",
        "Pod web: spec.containers[0].image",
        "Foo y: kind",
    }


def test_two_documents_of_one_name_are_refused() -> None:
    """The last would win in silence."""
    assert faults(POD + "---" + POD) == {"pod/default/web": "stands more than once in the manifest"}


def test_defaults_are_those_of_kubernetes() -> None:
    """What is not said is what Kubernetes would say."""
    (draft,), _ = manifest.read(pod_with(container={"image": "app", "ports": [{"containerPort": 80}]}))

    assert isinstance(draft.spec, PodSpec)
    assert draft.key.namespace == "default"
    assert draft.spec.termination_grace_period_seconds == 30
    assert draft.spec.containers[0].image_pull_policy is PullPolicy.ALWAYS


def test_what_is_written_is_read_back_the_same() -> None:
    """The store keeps JSON, and loses nothing."""
    container = {
        "command": ["a", "b"],
        "env": [{"name": "A", "value": ""}],
        "ports": [{"name": "http", "containerPort": 80}],
        "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}},
        "volumeMounts": [{"name": "d", "mountPath": "/d", "readOnly": True}],
        "livenessProbe": {"exec": {"command": ["x"]}, "periodSeconds": 3},
        "readinessProbe": {"httpGet": {"port": "http", "httpHeaders": [{"name": "A", "value": "b"}]}},
        "tty": True,
    }
    spec = {
        "volumes": [{"name": "d", "hostPath": {"path": "/x"}}],
        "restartPolicy": "Never",
    }
    (draft,), none = manifest.read(pod_with(spec, container))
    assert none == []
    assert isinstance(draft.spec, PodSpec)

    again = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web"},
        "spec": render.pod_spec(draft.spec),
    }
    (second,), _ = manifest.read(json.dumps(again).encode())

    assert second.spec == draft.spec


def test_how_containers_begin_and_end_is_read_back_the_same() -> None:
    """Every kind of container, with all that only some may have."""
    hooks = {
        "postStart": {
            "httpGet": {"port": 80, "scheme": "HTTPS", "httpHeaders": [{"name": "A", "value": "b"}]}
        },
        "preStop": {"sleep": {"seconds": 0}},
        "stopSignal": "SIGRTMIN+1",
    }
    container = {
        "lifecycle": hooks,
        "livenessProbe": {"exec": {"command": ["x"]}, "terminationGracePeriodSeconds": 3},
        "terminationMessagePath": "/x",
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "stdin": True,
        "stdinOnce": True,
        "restartPolicy": "Never",
        "restartPolicyRules": [
            {"action": "Restart", "exitCodes": {"operator": "NotIn", "values": [0, 1]}},
            {"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}},
        ],
    }
    sidecar = {
        "restartPolicy": "Always",
        "lifecycle": {"postStart": {"exec": {"command": ["x"]}}},
        "startupProbe": {"exec": {"command": ["x"]}},
    }
    spec = {
        "initContainers": [{"name": "i", "image": "i:1"}, {"name": "s", "image": "s:1", **sidecar}],
        "ephemeralContainers": [{"name": "d", "image": "d:1", "targetContainerName": "app"}],
        "activeDeadlineSeconds": 5,
    }
    (draft,), none = manifest.read(pod_with(spec, container))
    assert none == []
    assert isinstance(draft.spec, PodSpec)

    written = render.pod_spec(draft.spec)
    again = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": written}
    (second,), _ = manifest.read(json.dumps(again).encode())

    assert second.spec == draft.spec
    assert written["containers"][0]["restartPolicyRules"] == container["restartPolicyRules"]
    assert written["containers"][0]["lifecycle"]["preStop"] == {"sleep": {"seconds": 0}}
    assert [c.name for c in draft.spec.sidecars] == ["s"]
    assert [c.name for c in draft.spec.every] == ["i", "s", "app", "d"]


def test_a_list_is_its_items() -> None:
    """`kubectl get -o yaml` gives a List."""
    text = json.dumps({"kind": "List", "apiVersion": "v1", "items": [json.loads(service_with())]})

    (draft,), found = manifest.read(text.encode())

    assert found == []
    assert isinstance(draft.spec, ServiceDraft)
