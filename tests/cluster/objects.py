"""Objects that the tests of a cluster apply, and what they need around them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.lab.dockerd import TEST_IMAGE
from tests.lab.kubernetes import needs_kubernetes

# All of them run on one event loop, as the cluster does.
marks = [
    pytest.mark.cluster,
    pytest.mark.netns,
    needs_kubernetes,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(300),
]
SERVER_PORT = 8080
_SHORT = {"terminationGracePeriodSeconds": 1}
# A web server that says which pod it is in, and its version.
_SERVE = "mkdir -p /tmp/www; echo $HOSTNAME $VERSION > /tmp/www/index.html; exec httpd -f -p 8080 -h /tmp/www"


def container(*command: str, **more: Any) -> dict[str, Any]:
    """Write a container `app` of the test image."""
    words = list(command) or ["sleep", "1000000"]
    return {"name": "app", "image": TEST_IMAGE, "imagePullPolicy": "Never", "command": words, **more}


def pod(
    name: str, *command: str, node: str = "", labels: Mapping[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """Write a pod that sleeps for ever, or runs `command`; `more` are fields of its container."""
    spec: dict[str, Any] = {"containers": [container(*command, **more)], **_SHORT}
    if node:
        spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": dict(labels or {})},
        "spec": spec,
    }


def server(version: str = "1", **more: Any) -> dict[str, Any]:
    """Write a container that serves its pod's name and a version, with a readiness probe."""
    probe = {"httpGet": {"path": "/", "port": SERVER_PORT}, "periodSeconds": 1}
    return container(
        "sh",
        "-c",
        _SERVE,
        env=[{"name": "VERSION", "value": version}],
        ports=[{"name": "http", "containerPort": SERVER_PORT}],
        readinessProbe=probe,
        **more,
    )


def service(name: str, **spec: Any) -> dict[str, Any]:
    """Write a service of the pods that are labelled with its name."""
    ports = [{"name": "http", "port": 80, "targetPort": "http"}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": ports, **spec},
    }


def deployment(name: str, template: Mapping[str, Any], *, replicas: int = 2) -> dict[str, Any]:
    """Write a deployment whose update never has fewer pods than it should."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {**_SHORT, **template}},
        },
    }
