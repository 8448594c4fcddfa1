"""The spec of a pod: fields, rules and defaults. Pure.

Source: Kubernetes API reference, `PodSpec` v1. `_LATER` tables name what Kubernetes
has and we refuse for now, with the values that change nothing.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Any

from services.kubelet.core import env, quantity
from services.kubelet.core.fields import (
    DNS_LABEL,
    DNS_SUBDOMAIN,
    ENV_NAME,
    PORT_NAME,
    Faults,
    Fields,
    control_fault,
    path_fault,
)
from services.kubelet.core.model import (
    Container,
    ContainerPort,
    EmptyDir,
    EnvVar,
    ExecAction,
    GrpcCheck,
    HostPath,
    HttpGet,
    PodSpec,
    Probe,
    ProbeAction,
    Protocol,
    PullPolicy,
    Resources,
    RestartPolicy,
    TcpSocket,
    Volume,
    VolumeMount,
)

MAX_PORT = 65_535
_MAX_SECONDS = 2**31 - 1
_IMAGE = re.compile(r"\S{1,1024}")
_HEADER = re.compile(r"[-A-Za-z0-9]+")
_POD_LATER: dict[str, tuple[Any, ...]] = {
    "activeDeadlineSeconds": (),
    "affinity": ({},),
    "automountServiceAccountToken": (False,),
    "dnsConfig": ({},),
    "dnsPolicy": ("ClusterFirst", "Default"),
    "enableServiceLinks": (False,),
    "ephemeralContainers": ([],),
    "hostAliases": ([],),
    "hostIPC": (False,),
    "hostNetwork": (False,),
    "hostPID": (False,),
    "hostUsers": (True,),
    "imagePullSecrets": ([],),
    "initContainers": ([],),
    "nodeName": ("",),
    "nodeSelector": ({},),
    "os": ({"name": "linux"},),
    "overhead": ({},),
    "preemptionPolicy": (),
    "priority": (0,),
    "priorityClassName": ("",),
    "readinessGates": ([],),
    "resourceClaims": ([],),
    "resources": ({},),
    "runtimeClassName": (),
    "schedulerName": ("", "default-scheduler"),
    "schedulingGates": ([],),
    "securityContext": ({},),
    "serviceAccount": ("",),
    "serviceAccountName": ("",),
    "setHostnameAsFQDN": (False,),
    "shareProcessNamespace": (False,),
    "subdomain": ("",),
    "tolerations": ([],),
    "topologySpreadConstraints": ([],),
}
_CONTAINER_LATER: dict[str, tuple[Any, ...]] = {
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
_HOST_PATH_LATER = (
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
    "CharDevice",
    "BlockDevice",
)
_VOLUME_LATER = [
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "configMap",
    "csi",
    "downwardAPI",
    "ephemeral",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "glusterfs",
    "image",
    "iscsi",
    "nfs",
    "persistentVolumeClaim",
    "photonPersistentDisk",
    "portworxVolume",
    "projected",
    "quobyte",
    "rbd",
    "scaleIO",
    "secret",
    "storageos",
    "vsphereVolume",
]


def read_pod_spec(value: Any, faults: Faults) -> PodSpec:
    """Read and check a pod's spec."""
    spec = Fields(
        value,
        "spec",
        faults,
        known=("containers", "volumes", "restartPolicy", "terminationGracePeriodSeconds", "hostname"),
        later=_POD_LATER,
    )
    volumes = tuple(_volume(item, path, faults) for item, path in spec.items("volumes"))
    _unique(faults, spec.at("volumes"), [volume.name for volume in volumes])
    containers = tuple(
        _container(item, path, faults, {volume.name for volume in volumes})
        for item, path in spec.items("containers", required=True)
    )
    _unique(faults, spec.at("containers"), [container.name for container in containers])
    policy = spec.text("restartPolicy", "Always", choices=[p.value for p in RestartPolicy])
    return PodSpec(
        containers=containers,
        volumes=volumes,
        restart_policy=RestartPolicy(policy),
        termination_grace_period_seconds=spec.whole(
            "terminationGracePeriodSeconds", 30, low=0, high=_MAX_SECONDS
        ),
        hostname=spec.text("hostname", form=DNS_LABEL, what="a DNS label"),
    )


def _unique(faults: Faults, path: str, names: list[str]) -> None:
    for name in sorted({name for name in names if name and names.count(name) > 1}):
        faults.add(path, f"the name {name!r} stands twice")


def _volume(value: Any, path: str, faults: Faults) -> Volume:
    fields = Fields(
        value,
        path,
        faults,
        known=("name", "emptyDir", "hostPath"),
        later=dict.fromkeys(_VOLUME_LATER, ()),
    )
    name = fields.text("name", required=True, form=DNS_LABEL, what="a DNS label")
    if fields.has("emptyDir") and fields.has("hostPath"):
        faults.add(path, "has two sources; give one")
    if fields.has("hostPath"):
        return Volume(name, _host_path(fields.raw("hostPath"), fields.at("hostPath"), faults))
    # A volume without a source is an emptyDir.
    if fields.has("emptyDir"):
        later = {"medium": ("",), "sizeLimit": ()}
        Fields(fields.raw("emptyDir"), fields.at("emptyDir"), faults, known=(), later=later)
    return Volume(name, EmptyDir())


def _host_path(value: Any, path: str, faults: Faults) -> HostPath:
    fields = Fields(value, path, faults, known=("path", "type"))
    place = fields.text("path", required=True)
    if place and (wrong := path_fault(place)):
        fields.fault("path", wrong)
    # A check of the host's files needs a sight of them that the kubelet does not have yet.
    if fields.raw("type") in _HOST_PATH_LATER:
        fields.fault("type", "not supported yet; leave it out, and the path must exist")
    else:
        fields.text("type", choices=("",))
    return HostPath(place)


def _container(value: Any, path: str, faults: Faults, volumes: set[str]) -> Container:
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
        later=_CONTAINER_LATER,
    )
    image = fields.text("image", required=True, form=_IMAGE, what="an image reference")
    ports = tuple(_port(item, place, faults) for item, place in fields.items("ports"))
    _unique(faults, fields.at("ports"), [port.name for port in ports])
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
        liveness_probe=_probe(fields, "livenessProbe", ports),
        readiness_probe=_probe(fields, "readinessProbe", ports),
        startup_probe=_probe(fields, "startupProbe", ports),
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


def _probe(container: Fields, name: str, ports: tuple[ContainerPort, ...]) -> Probe | None:
    if not container.has(name):
        return None
    fields = Fields(
        container.raw(name),
        container.at(name),
        container.faults,
        known=[
            "httpGet",
            "tcpSocket",
            "exec",
            "grpc",
            "initialDelaySeconds",
            "periodSeconds",
            "timeoutSeconds",
            "successThreshold",
            "failureThreshold",
        ],
        later={"terminationGracePeriodSeconds": ()},
    )
    success = fields.whole("successThreshold", 1, low=1, high=_MAX_SECONDS)
    if name != "readinessProbe" and success != 1:
        fields.fault("successThreshold", f"must be 1 for a {name.removesuffix('Probe')} probe")
    action = _action(fields, ports)
    if action is None:
        return None
    return Probe(
        action=action,
        initial_delay_seconds=fields.whole("initialDelaySeconds", 0, low=0, high=_MAX_SECONDS),
        period_seconds=fields.whole("periodSeconds", 10, low=1, high=_MAX_SECONDS),
        timeout_seconds=fields.whole("timeoutSeconds", 1, low=1, high=_MAX_SECONDS),
        success_threshold=success,
        failure_threshold=fields.whole("failureThreshold", 3, low=1, high=_MAX_SECONDS),
    )


def _action(probe: Fields, ports: tuple[ContainerPort, ...]) -> ProbeAction | None:
    given = [name for name in ("httpGet", "tcpSocket", "exec", "grpc") if probe.has(name)]
    if len(given) != 1:
        several = f"has {'two' if len(given) == 2 else len(given)} actions: {' and '.join(given)}"
        probe.faults.add(probe.path, several if given else "give one of httpGet, tcpSocket, exec or grpc")
        return None
    value, path = probe.raw(given[0]), probe.at(given[0])
    if given[0] == "exec":
        fields = Fields(value, path, probe.faults, known=("command",))
        command = fields.texts("command")
        if not command:
            fields.fault("command", "needs one item at least")
        return ExecAction(command)
    if given[0] == "tcpSocket":
        fields = Fields(value, path, probe.faults, known=("port", "host"))
        return TcpSocket(_target(fields, ports), _host(fields))
    if given[0] == "grpc":
        fields = Fields(value, path, probe.faults, known=("port", "service"))
        return GrpcCheck(fields.whole("port", 0, low=1, high=MAX_PORT, required=True), fields.text("service"))
    fields = Fields(value, path, probe.faults, known=("port", "path", "scheme", "host", "httpHeaders"))
    return HttpGet(
        port=_target(fields, ports),
        path=_url_path(fields),
        scheme=fields.text("scheme", "HTTP", choices=("HTTP", "HTTPS")),
        host=_host(fields),
        headers=tuple(_header(item, place, probe.faults) for item, place in fields.items("httpHeaders")),
    )


def _url_path(action: Fields) -> str:
    path = action.text("path", "/")
    if wrong := control_fault(path):
        action.fault("path", wrong)
    return path


def _host(action: Fields) -> str:
    """Read `host`. The node's own addresses reach what no pod may ask for (CVE-2022-3294)."""
    host = action.text("host")
    try:
        address = ip_address(host)
    except ValueError:
        if host and (not DNS_SUBDOMAIN.fullmatch(host) or host == "localhost"):
            action.fault("host", f"{host!r} is neither an address nor the name of another host")
    else:
        if address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified:
            action.fault("host", f"{host} is an address of the node itself or of its link")
    return host


def _header(value: Any, path: str, faults: Faults) -> tuple[str, str]:
    fields = Fields(value, path, faults, known=("name", "value"))
    name = fields.text("name", required=True, form=_HEADER, what="a header's name")
    text = fields.text("value")
    if wrong := control_fault(text):
        fields.fault("value", wrong)
    return name, text


def _target(fields: Fields, ports: tuple[ContainerPort, ...]) -> int | str:
    value = fields.raw("port")
    if isinstance(value, str):
        if all(port.name != value for port in ports):
            fields.fault("port", f"no port of the container is called {value!r}")
        return value
    return fields.whole("port", 1, low=1, high=MAX_PORT, required=True)
