"""One container of a pod: fields, rules and defaults. Pure.

Source: Kubernetes API reference, `Container` v1. `_LATER` names what Kubernetes has
and we refuse for now, with the values that change nothing.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from services.kubelet.core import env
from services.kubelet.core.fields import DNS_LABEL, Faults, Fields, path_fault
from services.kubelet.core.images import IMAGE, default_policy
from services.kubelet.core.manifest_lifecycle import (
    read_lifecycle,
    read_message_path,
    read_message_policy,
    read_restart_policy,
    read_restart_rules,
)
from services.kubelet.core.manifest_mount import lies_in, read_mounts
from services.kubelet.core.manifest_ports import read_port
from services.kubelet.core.manifest_probe import read_probe
from services.kubelet.core.manifest_resources import read_resize_policy, read_resources
from services.kubelet.core.manifest_security import read_container_security
from services.kubelet.core.manifest_source import read_env_from, read_variable
from services.kubelet.core.model import Container, PullPolicy, RestartPolicy, Volume


class Kind(Enum):
    """Which list of a pod's spec a container stands in."""

    MAIN = "containers"
    INIT = "initContainers"
    EPHEMERAL = "ephemeralContainers"


_LATER: dict[str, tuple[Any, ...]] = {
    "volumeDevices": ([],),
}


_KNOWN = (
    *("name", "image", "command", "args", "workingDir", "env", "envFrom", "ports", "resources"),
    *("volumeMounts", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "imagePullPolicy"),
    *("tty", "stdin", "stdinOnce", "securityContext", "resizePolicy", "restartPolicy", "restartPolicyRules"),
    *("terminationMessagePath", "terminationMessagePolicy"),
)
# An ephemeral container has none of these, a plain init container none of the first four.
_NOT_EPHEMERAL = (
    *("livenessProbe", "readinessProbe", "startupProbe", "lifecycle"),
    *("ports", "resources", "resizePolicy", "restartPolicy", "restartPolicyRules"),
)
_NOT_INITIAL = _NOT_EPHEMERAL[:4]


def read_container(
    value: Any, path: str, faults: Faults, volumes: dict[str, Volume], kind: Kind = Kind.MAIN
) -> Container:
    """Read a container that may mount `volumes`."""
    fields = Fields(
        value,
        path,
        faults,
        known=[name for name in _KNOWN if kind is not Kind.EPHEMERAL or name not in _NOT_EPHEMERAL]
        + (["targetContainerName"] if kind is Kind.EPHEMERAL else []),
        later=_LATER if kind is not Kind.EPHEMERAL else _LATER | dict.fromkeys(_NOT_EPHEMERAL, ([], {})),
    )
    if kind is Kind.INIT:
        _check_initial(fields)
    image = fields.text("image", required=True, form=IMAGE, what="an image reference")
    ports = tuple(read_port(item, place, faults) for item, place in fields.items("ports"))
    faults.unique(fields.at("ports"), [port.name for port in ports])
    variables = tuple(read_variable(item, place, faults) for item, place in fields.items("env"))
    command, args = fields.texts("command"), fields.texts("args")
    try:
        env.check(variables, (*command, *args))
    except env.TooLongError as error:
        fields.fault("env", str(error))
    return Container(
        name=fields.text("name", required=True, form=DNS_LABEL, what="a DNS label"),
        image=image,
        command=command,
        args=args,
        working_dir=_working_dir(fields),
        env=variables,
        env_from=tuple(read_env_from(item, place, faults) for item, place in fields.items("envFrom")),
        ports=ports,
        resources=read_resources(fields),
        volume_mounts=read_mounts(fields, volumes),
        liveness_probe=read_probe(fields, "livenessProbe", ports),
        readiness_probe=read_probe(fields, "readinessProbe", ports),
        startup_probe=read_probe(fields, "startupProbe", ports),
        image_pull_policy=_pull_policy(fields, image),
        tty=fields.flag("tty"),
        stdin=fields.flag("stdin"),
        security=read_container_security(fields),
        resize_policy=read_resize_policy(fields),
        stdin_once=fields.flag("stdinOnce"),
        restart_policy=read_restart_policy(fields),
        restart_rules=read_restart_rules(fields),
        lifecycle=read_lifecycle(fields, ports),
        termination_message_path=read_message_path(fields),
        termination_message_policy=read_message_policy(fields),
        target=fields.text("targetContainerName") if kind is Kind.EPHEMERAL else "",
    )


def _check_initial(fields: Fields) -> None:
    """Note what an init container may not have: a plain one has ended before anything asks for it."""
    if fields.raw("restartPolicy") == RestartPolicy.ALWAYS.value:
        if fields.has("restartPolicyRules"):
            fields.fault("restartPolicyRules", "must not be set for a container that is always restarted")
        return
    for name in _NOT_INITIAL:
        if fields.raw(name) not in (None, {}):
            fields.fault(name, "must not be set for an init container without restartPolicy: Always")


def _working_dir(container: Fields) -> str:
    """Read `workingDir`. A runtime once handed its own open folders over by /proc (CVE-2024-21626)."""
    place = container.text("workingDir")
    if place and (wrong := path_fault(place)):
        container.fault("workingDir", wrong)
    elif lies_in(place, "proc"):
        container.fault("workingDir", "must not lie in /proc")
    return place


def _pull_policy(fields: Fields, image: str) -> PullPolicy:
    """Default as Kubernetes: Always for the tag latest, else IfNotPresent."""
    chosen = fields.text("imagePullPolicy", default_policy(image), choices=[p.value for p in PullPolicy])
    return PullPolicy(chosen)
