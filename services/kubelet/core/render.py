"""Pods and services as Kubernetes JSON. Pure. Reading what this writes gives the same value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from services.kubelet.core import quantity, render_lifecycle, render_policy, render_volume
from services.kubelet.core.model import (
    ConfigMap,
    Container,
    GrpcCheck,
    Namespace,
    Pod,
    PodSpec,
    Probe,
    ProbeAction,
    Resources,
    Secret,
    Service,
    ServiceAccount,
    TcpSocket,
)
from services.kubelet.core.observed import ObservedPod, RuntimeState
from services.kubelet.core.resources import quality_of_service

Json = dict[str, Any]
Named = Pod | Service | ConfigMap | Secret | ServiceAccount | Namespace


def rfc3339(moment: datetime | None) -> str | None:
    """Write a time in whole seconds, as Kubernetes does; None for none."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment else None


def pod(value: Pod, status: Mapping[str, Any] | None = None) -> Json:
    """Write a pod, with its status where there is one; its quality of service comes from its spec."""
    meta = metadata(value)
    if value.deletion_time:
        meta["deletionTimestamp"] = rfc3339(value.deletion_time)
        meta["deletionGracePeriodSeconds"] = value.deletion_grace_seconds
    made: Json = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": pod_spec(value.spec)}
    if status is None:
        return made
    return {**made, "status": {"qosClass": quality_of_service(value), **status}}


def observed(value: ObservedPod) -> Json:
    """Write a pod as the runtime has it: which containers run, and no more than that."""
    meta = {"name": value.name, "namespace": value.namespace, "uid": value.uid}
    running = [c for c in value.containers if c.state is RuntimeState.RUNNING]
    containers = [{"name": c.name, "image": c.image, "resources": {}} for c in running]
    return {"metadata": meta, "spec": {"containers": containers}, "status": {}}


def portable(value: Pod) -> str:
    """Write a pod so that a lost store can take it back from the runtime, by its UID."""
    body = pod(value)
    body["metadata"] = {
        name: body["metadata"][name]
        for name in ("name", "namespace", "labels", "annotations")
        if name in body["metadata"]
    }
    created = value.creation_time.isoformat() if value.creation_time else ""
    return json.dumps({"created": created, "body": json.dumps(body)}, separators=(",", ":"))


def metadata(value: Named) -> Json:
    """Write an object's metadata."""
    return kept(
        {
            "name": value.name,
            "namespace": value.namespace,
            "uid": value.uid,
            "resourceVersion": str(value.revision),
            "creationTimestamp": rfc3339(value.creation_time),
            "labels": dict(value.labels),
            "annotations": dict(value.annotations),
        }
    )


def kept(values: Json) -> Json:
    """Leave out what is empty; false and zero stay."""
    return {key: value for key, value in values.items() if value is not None and value not in ("", [], {})}


def pod_spec(spec: PodSpec) -> Json:
    """Write a pod's spec."""
    return kept(
        {
            "containers": [_container(container) for container in spec.containers],
            "initContainers": [_container(container) for container in spec.init_containers],
            "ephemeralContainers": [_container(container) for container in spec.ephemeral_containers],
            "volumes": [render_volume.volume(volume) for volume in spec.volumes],
            "restartPolicy": spec.restart_policy.value,
            "terminationGracePeriodSeconds": spec.termination_grace_period_seconds,
            "hostname": spec.hostname,
            "enableServiceLinks": None if spec.enable_service_links else False,
            "imagePullSecrets": [{"name": name} for name in spec.image_pull_secrets],
            "serviceAccountName": spec.service_account_name if spec.service_account_name != "default" else "",
            "automountServiceAccountToken": spec.automount_service_account_token,
            "securityContext": render_policy.pod_security(spec.security),
            "readinessGates": [{"conditionType": gate} for gate in spec.readiness_gates],
            "runtimeClassName": spec.runtime_class_name,
            **render_policy.namespaces(spec.namespaces),
            **render_policy.dns(spec.dns),
            **render_policy.naming(spec.naming),
            **render_policy.scheduling(spec.scheduling),
            "activeDeadlineSeconds": spec.active_deadline_seconds,
        }
    )


def _container(value: Container) -> Json:
    made = kept(
        {
            "name": value.name,
            "image": value.image,
            "imagePullPolicy": value.image_pull_policy.value,
            "command": list(value.command),
            "args": list(value.args),
            "workingDir": value.working_dir,
            "env": [render_volume.variable(item) for item in value.env],
            "envFrom": [render_volume.env_from(source) for source in value.env_from],
            "ports": [
                kept(
                    {
                        "name": p.name,
                        "containerPort": p.container_port,
                        "protocol": p.protocol.value,
                        "hostPort": p.host_port or None,
                        "hostIP": p.host_ip,
                    }
                )
                for p in value.ports
            ],
            "resources": _resources(value.resources),
            "volumeMounts": [render_volume.mount(item) for item in value.volume_mounts],
            "livenessProbe": _probe(value.liveness_probe),
            "readinessProbe": _probe(value.readiness_probe),
            "startupProbe": _probe(value.startup_probe),
            "securityContext": render_policy.container_security(value.security),
            "resizePolicy": [{"resourceName": n, "restartPolicy": p} for n, p in value.resize_policy],
            **render_lifecycle.of_container(value),
        }
    )
    flags = {"tty": value.tty, "stdin": value.stdin, "stdinOnce": value.stdin_once}
    return {**made, **{name: True for name, on in flags.items() if on}}


def _resources(value: Resources) -> Json:
    def amounts(cpu: int | None, memory: int | None, others: tuple[tuple[str, int], ...]) -> Json:
        return kept(
            {
                "cpu": quantity.format_millicores(cpu) if cpu is not None else None,
                "memory": quantity.format_bytes(memory) if memory is not None else None,
                **{name: _amount(name, count) for name, count in others},
            }
        )

    return kept(
        {
            "requests": amounts(
                value.cpu_request_millicores, value.memory_request_bytes, value.other_requests
            ),
            "limits": amounts(value.cpu_limit_millicores, value.memory_limit_bytes, value.other_limits),
        }
    )


def _amount(name: str, count: int) -> str:
    return str(count) if "/" in name else quantity.format_bytes(count)


def _probe(value: Probe | None) -> Json | None:
    if value is None:
        return None
    return kept(
        {
            **_action(value.action),
            "initialDelaySeconds": value.initial_delay_seconds,
            "periodSeconds": value.period_seconds,
            "timeoutSeconds": value.timeout_seconds,
            "successThreshold": value.success_threshold,
            "failureThreshold": value.failure_threshold,
            "terminationGracePeriodSeconds": value.termination_grace_period_seconds,
        }
    )


def _action(value: ProbeAction) -> Json:
    if isinstance(value, TcpSocket):
        return {"tcpSocket": kept({"port": value.port, "host": value.host})}
    if isinstance(value, GrpcCheck):
        return {"grpc": kept({"port": value.port, "service": value.service})}
    return render_lifecycle.action(value)


def service(value: Service) -> Json:
    """Write a service."""
    spec = kept(
        {
            "type": value.type.value,
            "clusterIP": value.cluster_ip or "None",
            "selector": dict(value.selector),
            "ports": [
                kept(
                    {
                        "name": p.name,
                        "protocol": p.protocol.value,
                        "port": p.port,
                        "targetPort": p.target_port,
                        "nodePort": p.node_port or None,
                    }
                )
                for p in value.ports
            ],
            "sessionAffinity": "ClientIP" if value.affinity_timeout_seconds else "None",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": value.affinity_timeout_seconds}}
            if value.affinity_timeout_seconds
            else None,
            "externalTrafficPolicy": "Local" if value.external_traffic_local else "Cluster",
            "internalTrafficPolicy": "Local" if value.internal_traffic_local else "Cluster",
        }
    )
    if value.publish_not_ready_addresses:
        spec["publishNotReadyAddresses"] = True
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata(value), "spec": spec}


def differences(before: Any, after: Any, path: str = "spec") -> list[str]:
    """List the paths at which two JSON values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = sorted({*before, *after})
        return [p for n in names for p in differences(before.get(n), after.get(n), f"{path}.{n}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [p for i, (x, y) in pairs for p in differences(x, y, f"{path}[{i}]")]
    return [] if before == after else [path]
