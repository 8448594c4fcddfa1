"""What the soak runs: bystanders that nobody touches, and victims of several kinds. Pure."""

from __future__ import annotations

from typing import Any

from tests.lab.dockerd import TEST_IMAGE

Object = dict[str, Any]
KINDS = ("plain", "served", "double", "crashing", "finishing")
_FOREVER = "trap 'exit 0' TERM; sleep 1000000 & wait"
_SERVE = "trap 'exit 0' TERM; httpd -f -p 8080 -h /etc & wait"
_TICK = "trap 'exit 0' TERM; while :; do echo tick; sleep 5 & wait $!; done"


def container(name: str, script: str, **more: Any) -> Object:
    """Write a container that runs a shell script."""
    return {
        "name": name,
        "image": TEST_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script],
        **more,
    }


def pod(name: str, *containers: Object, app: str = "", policy: str = "Always", **spec: Any) -> Object:
    """Write a pod."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": app or name}},
        "spec": {
            "terminationGracePeriodSeconds": 2,
            "restartPolicy": policy,
            "containers": list(containers),
            **spec,
        },
    }


def service(name: str) -> Object:
    """Write a service to the pods with its name."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
    }


def _http(**more: int) -> Object:
    return {"httpGet": {"path": "/passwd", "port": 8080}, "periodSeconds": 2, "timeoutSeconds": 5, **more}


def _server(name: str, **more: Any) -> Object:
    return container(name, _SERVE, readinessProbe=_http(), **more)


def bystanders() -> list[Object]:
    """Write the pods that must stay as they are, and the service of two of them."""
    data: dict[str, Any] = {"volumes": [{"name": "data", "emptyDir": {}}]}
    mount = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    return [
        service("steady"),
        pod("steady-1", _server("app"), app="steady"),
        pod("steady-2", _server("app", livenessProbe=_http(failureThreshold=5)), app="steady"),
        pod("idle", container("app", _FOREVER)),
        pod("talker", container("app", _TICK)),
        pod("double", container("app", _FOREVER, **mount), container("side", _FOREVER, **mount), **data),
        pod("never", container("app", _FOREVER), policy="Never"),
    ]


def victim(kind: str, name: str) -> list[Object]:
    """Write a pod of a kind, with its service if it has one."""
    match kind:
        case "served":
            return [service(name), pod(name, _server("app"))]
        case "double":
            mount = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
            both = [container(each, _FOREVER, **mount) for each in ("app", "side")]
            return [pod(name, *both, volumes=[{"name": "data", "emptyDir": {}}])]
        case "crashing":
            return [pod(name, container("app", "echo crashing; sleep 1; exit 3"))]
        case "finishing":
            return [pod(name, container("app", "echo done"), policy="Never")]
        case _:
            return [pod(name, container("app", _FOREVER))]
