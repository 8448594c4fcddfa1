"""One container of a pod: fields, rules and defaults. Pure.

Source: Kubernetes API reference, `Container` v1. `_LATER` names what Kubernetes has
and we refuse for now, with the values that change nothing.
"""

from __future__ import annotations

import re
from typing import Any

from services.kubelet.core import env, quantity
from services.kubelet.core.fields import DNS_LABEL, ENV_NAME, PORT_NAME, Faults, Fields, path_fault
from services.kubelet.core.manifest_probe import MAX_PORT, read_probe
from services.kubelet.core.model import (
    Container,
    ContainerPort,
    EnvVar,
    Protocol,
    PullPolicy,
    Resources,
    VolumeMount,
)

_IMAGE = re.compile(r"\S{1,1024}")
_LATER: dict[str, tuple[Any, ...]] = {
    "envFrom": ([],),
    "lifecycle": ({},),
    "resizePolicy": ([],),
    "restartPolicy": (),
    "securityContext": ({},),
    "stdinOnce": (False,),
    "terminationMessagePath": ("/dev/termination-log",),
    "terminationMessagePolicy": ("File",),
    "volumeDevices": ([],),
}


def read_container(value: Any, path: str, faults: Faults, volumes: set[str]) -> Container:
    """Read a container that may mount `volumes`."""
    fields = Fields(
        value,
        path,
        faults,
        known=[
            "name",
            "image",
            "command",
            "args",
            "workingDir",
            "env",
            "ports",
            "resources",
            "volumeMounts",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
            "imagePullPolicy",
            "tty",
            "stdin",
        ],
        later=_LATER,
    )
    image = fields.text("image", required=True, form=_IMAGE, what="an image reference")
    ports = tuple(_port(item, place, faults) for item, place in fields.items("ports"))
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
        resources=_resources(fields),
        volume_mounts=_mounts(fields, volumes),
        liveness_probe=read_probe(fields, "livenessProbe", ports),
        readiness_probe=read_probe(fields, "readinessProbe", ports),
        startup_probe=read_probe(fields, "startupProbe", ports),
        image_pull_policy=_pull_policy(fields, image),
        tty=fields.flag("tty"),
        stdin=fields.flag("stdin"),
    )


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


def _port(value: Any, path: str, faults: Faults) -> ContainerPort:
    later = {"hostPort": (0,), "hostIP": ("",)}
    fields = Fields(value, path, faults, known=("containerPort", "name", "protocol"), later=later)
    number = fields.whole("containerPort", 1, low=1, high=MAX_PORT, required=True)
    name = fields.text("name", form=PORT_NAME, what="a port name: up to 15 of a-z, 0-9 and '-'")
    return ContainerPort(number, name, read_protocol(fields))


def read_protocol(fields: Fields) -> Protocol:
    """Read `protocol`; SCTP is known to Kubernetes alone."""
    if fields.raw("protocol") == "SCTP":
        fields.fault("protocol", "not supported yet")
        return Protocol.TCP
    return Protocol(fields.text("protocol", "TCP", choices=[p.value for p in Protocol]))


def _resources(container: Fields) -> Resources:
    if not container.has("resources"):
        return Resources()
    fields = Fields(
        container.raw("resources"),
        container.at("resources"),
        container.faults,
        known=("requests", "limits"),
        later={"claims": ([],)},
    )
    readers = {"cpu": quantity.millicores, "memory": quantity.whole}
    requests, limits = fields.amounts("requests", readers), fields.amounts("limits", readers)
    for name, limit in limits.items():
        if requests.get(name, 0) > limit:
            fields.faults.add(f"{fields.at('requests')}.{name}", "is more than the limit")
    return Resources(
        # A limit without a request is the request, too.
        cpu_request_millicores=requests.get("cpu", limits.get("cpu")),
        cpu_limit_millicores=limits.get("cpu"),
        memory_request_bytes=requests.get("memory", limits.get("memory")),
        memory_limit_bytes=limits.get("memory"),
    )


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
