"""One container of a pod: fields, rules and defaults. Pure.

Source: Kubernetes API reference, `Container` v1. `_LATER` names what Kubernetes has
and we refuse for now, with the values that change nothing.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

from services.kubelet.core import env
from services.kubelet.core.fields import DNS_LABEL, ENV_NAME, Faults, Fields, path_fault
from services.kubelet.core.manifest_lifecycle import (
    read_lifecycle,
    read_message_path,
    read_message_policy,
    read_restart_policy,
    read_restart_rules,
)
from services.kubelet.core.manifest_ports import read_port
from services.kubelet.core.manifest_probe import read_probe
from services.kubelet.core.manifest_resources import read_resize_policy, read_resources
from services.kubelet.core.manifest_security import read_container_security
from services.kubelet.core.model import Container, EnvVar, PullPolicy, RestartPolicy, VolumeMount


class Kind(Enum):
    """Which list of a pod's spec a container stands in."""

    MAIN = "containers"
    INIT = "initContainers"
    EPHEMERAL = "ephemeralContainers"


_IMAGE = re.compile(r"\S{1,1024}")
_LATER: dict[str, tuple[Any, ...]] = {
    "envFrom": ([],),
    "volumeDevices": ([],),
}


_KNOWN = (
    *("name", "image", "command", "args", "workingDir", "env", "ports", "resources", "volumeMounts"),
    *("livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "imagePullPolicy"),
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
    value: Any, path: str, faults: Faults, volumes: set[str], kind: Kind = Kind.MAIN
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
    image = fields.text("image", required=True, form=_IMAGE, what="an image reference")
    ports = tuple(read_port(item, place, faults) for item, place in fields.items("ports"))
    faults.unique(fields.at("ports"), [port.name for port in ports])
    variables = tuple(_env(item, place, faults) for item, place in fields.items("env"))
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
        ports=ports,
        resources=read_resources(fields),
        volume_mounts=_mounts(fields, volumes),
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
    elif _lies_in(place, "proc"):
        container.fault("workingDir", "must not lie in /proc")
    return place


def _lies_in(place: str, top: str) -> bool:
    return [part for part in place.split("/") if part not in ("", ".")][:1] == [top]


def _pull_policy(fields: Fields, image: str) -> PullPolicy:
    """Default as Kubernetes: Always for the tag latest, else IfNotPresent."""
    default = PullPolicy.ALWAYS if tag_is_latest(image) else PullPolicy.IF_NOT_PRESENT
    chosen = fields.text("imagePullPolicy", default.value, choices=[p.value for p in PullPolicy])
    return PullPolicy(chosen)


def tag_is_latest(image: str) -> bool:
    """Tell whether an image's tag is `latest`, written or implied."""
    last = image.rsplit("/", 1)[-1]
    return "@" not in last and (last.endswith(":latest") or ":" not in last)


def _env(value: Any, path: str, faults: Faults) -> EnvVar:
    fields = Fields(value, path, faults, known=("name", "value"), later={"valueFrom": ()})
    name = fields.text("name", required=True, form=ENV_NAME, what="a name for a variable")
    return EnvVar(name, fields.text("value"))


def _mounts(container: Fields, volumes: set[str]) -> tuple[VolumeMount, ...]:
    found = []
    for value, path in container.items("volumeMounts"):
        fields = Fields(
            value,
            path,
            container.faults,
            known=("name", "mountPath", "readOnly"),
            later={
                "subPath": ("",),
                "subPathExpr": ("",),
                "mountPropagation": ("None",),
                "recursiveReadOnly": ("Disabled",),
            },
        )
        name = fields.text("name", required=True)
        if name and name not in volumes:
            fields.fault("name", f"no volume is called {name!r}")
        found.append(VolumeMount(name, _mount_path(fields), fields.flag("readOnly")))
    paths = [mount.mount_path for mount in found]
    for place in sorted({place for place in paths if paths.count(place) > 1}):
        container.fault("volumeMounts", f"{place!r} is mounted twice")
    return tuple(found)


def _mount_path(mount: Fields) -> str:
    """Read `mountPath`, in its shortest form: two ways to write a place are one place."""
    place = mount.text("mountPath", required=True)
    if not place:
        return place
    if wrong := path_fault(place) or ("must be without ':'" if ":" in place else None):
        mount.fault("mountPath", wrong)
    elif _lies_in(place, "proc"):
        mount.fault("mountPath", "must not lie in /proc")
    short = "/" + "/".join(part for part in place.split("/") if part not in ("", "."))
    if short == "/":
        mount.fault("mountPath", "must not be the root of the container")
    return short
