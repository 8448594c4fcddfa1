"""Objects as rows and as descriptions. Pure: JSON in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from cli.output import age, table

Json = Mapping[str, Any]


def pods(objects: Sequence[Json], now: datetime, *, wide: bool, namespaces: bool) -> str:
    """List pods."""
    header = ["NAME", "READY", "STATUS", "RESTARTS", "AGE"] + (["IP", "IMAGES"] if wide else [])
    rows = [_pod_row(pod, now, wide=wide) for pod in objects]
    return listed(header, rows, objects, namespaces=namespaces)


def listed(header: list[str], rows: list[list[str]], objects: Sequence[Json], *, namespaces: bool) -> str:
    """Lay rows out as a table, with each object's namespace where that is wanted."""
    if not rows:
        return "No objects found."
    if namespaces:
        header = ["NAMESPACE", *header]
        rows = [[o["metadata"]["namespace"], *row] for o, row in zip(objects, rows, strict=True)]
    return table(header, rows)


def _pod_row(pod: Json, now: datetime, *, wide: bool) -> list[str]:
    status = pod.get("status", {})
    names = {c["name"] for c in (*sidecars(pod), *pod["spec"]["containers"])}
    every = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
    statuses = [item for item in every if item["name"] in names]
    total = len(names)
    row = [
        pod["metadata"]["name"],
        f"{sum(1 for s in statuses if s.get('ready'))}/{total}",
        pod_state(pod),
        str(sum(int(s.get("restartCount", 0)) for s in statuses)),
        age(pod["metadata"].get("creationTimestamp", ""), now),
    ]
    if wide:
        row += [status.get("podIP") or "-", ",".join(c["image"] for c in pod["spec"]["containers"])]
    return row


def sidecars(pod: Json) -> list[Json]:
    """Return the init containers that run beside the main ones."""
    return [c for c in pod["spec"].get("initContainers", []) if c.get("restartPolicy") == "Always"]


def pod_state(pod: Json) -> str:
    """Say in one word how a pod fares, as kubectl does: the first container's trouble, or the phase.

    `Init:1/3` is a pod of whose three init containers one is done.
    """
    if pod["metadata"].get("deletionTimestamp"):
        return "Terminating"
    status = pod.get("status", {})
    if status.get("reason"):
        return str(status["reason"])
    if beginning := _beginning(pod):
        return beginning
    for container in status.get("containerStatuses", []):
        state = container.get("state", {})
        for kind in ("waiting", "terminated"):
            reason = state.get(kind, {}).get("reason")
            if reason:
                return str(reason)
    return str(status.get("reason") or status.get("phase") or "Pending")


def _beginning(pod: Json) -> str:
    """Say which init container a pod waits for; nothing for a pod that is initialized."""
    status, beside = pod.get("status", {}), {c["name"] for c in sidecars(pod)}
    conditions = {c["type"]: c["status"] for c in status.get("conditions", [])}
    items = status.get("initContainerStatuses", [])
    if conditions.get("Initialized") == "True":
        return ""
    for index, item in enumerate(items):
        state = item.get("state", {})
        if item.get("started") if item["name"] in beside else item.get("ready"):
            continue
        details = state.get("terminated") or state.get("waiting") or {}
        if details.get("reason") not in (None, "PodInitializing"):
            return f"Init:{details['reason']}"
        return f"Init:{index}/{len(items)}"
    return ""


def services(objects: Sequence[Json], now: datetime, *, wide: bool, namespaces: bool) -> str:
    """List services."""
    header = ["NAME", "TYPE", "CLUSTER-IP", "PORT(S)", "AGE"] + (["SELECTOR"] if wide else [])
    rows = [_service_row(service, now, wide=wide) for service in objects]
    return listed(header, rows, objects, namespaces=namespaces)


def _service_row(service: Json, now: datetime, *, wide: bool) -> list[str]:
    spec = service["spec"]
    row = [
        service["metadata"]["name"],
        spec.get("type", "ClusterIP"),
        spec.get("clusterIP") or "-",
        ",".join(_port(port) for port in spec.get("ports", [])) or "-",
        age(service["metadata"].get("creationTimestamp", ""), now),
    ]
    if wide:
        row.append(",".join(f"{k}={v}" for k, v in sorted(spec.get("selector", {}).items())) or "-")
    return row


def _port(port: Json) -> str:
    node = f":{port['nodePort']}" if port.get("nodePort") else ""
    return f"{port['port']}{node}/{port.get('protocol', 'TCP')}"


def describe_pod(pod: Json, events: Sequence[Json], now: datetime, *, why: str = "") -> str:
    """Tell everything about a pod that a person may ask; `why` is the first cause that it is not Ready."""
    meta, spec, status = pod["metadata"], pod["spec"], pod.get("status", {})
    lines = [
        *head(meta),
        f"Node address:  {status.get('hostIP') or '-'}",
        f"Started:       {status.get('startTime') or '-'}",
        f"Status:        {pod_state(pod)}" + (f" ({status['message']})" if status.get("message") else ""),
        *([f"Why:           {why}"] if why else []),
        f"IP:            {status.get('podIP') or '-'}",
        f"Restarts when: {spec.get('restartPolicy', 'Always')}",
        *_titled("Init containers:", spec, status, "init"),
        *_titled("Ephemeral containers:", spec, status, "ephemeral"),
        "Containers:",
    ]
    lines += _containers(spec["containers"], status.get("containerStatuses", []))
    lines += ["Conditions:", *_conditions(status.get("conditions", [])), "Events:", *_events(events, now)]
    return "\n".join(lines)


def head(meta: Json) -> list[str]:
    """Tell the metadata of any object."""
    labels = ", ".join(f"{k}={v}" for k, v in sorted(meta.get("labels", {}).items()))
    return [
        f"Name:          {meta['name']}",
        *([f"Namespace:     {meta['namespace']}"] if meta.get("namespace") else []),
        f"UID:           {meta.get('uid', '-')}",
        f"Labels:        {labels or '-'}",
    ]


def _titled(title: str, spec: Json, status: Json, kind: str) -> list[str]:
    containers = spec.get(f"{kind}Containers", [])
    told = status.get(f"{kind}ContainerStatuses", [])
    return [title, *_containers(containers, told)] if containers else []


def _containers(containers: Sequence[Json], statuses: Sequence[Json]) -> list[str]:
    by_name = {status["name"]: status for status in statuses}
    return [line for c in containers for line in _container(c, by_name.get(c["name"], {}))]


def _container(container: Json, status: Json) -> list[str]:
    lines = [f"  {container['name']}:", f"    Image:     {container['image']}"]
    if status.get("containerID"):
        lines.append(f"    Id:        {status['containerID']}")
    lines.append(f"    State:     {_state(status.get('state', {}))}")
    if status.get("lastState"):
        lines.append(f"    Last:      {_state(status['lastState'])}")
    lines.append(f"    Ready:     {'yes' if status.get('ready') else 'no'}")
    lines.append(f"    Restarts:  {status.get('restartCount', 0)}")
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        if container.get(probe):
            lines.append(f"    {probe[:-5].capitalize()}: {_probe(container[probe])}")
    return lines


def _state(state: Json) -> str:
    for kind, detail in state.items():
        parts = [f"exit code {detail['exitCode']}"] if "exitCode" in detail else []
        parts += [str(detail[key]) for key in ("reason", "message") if detail.get(key)]
        parts += [f"since {detail['startedAt']}"] if kind == "running" and detail.get("startedAt") else []
        return kind + (f" ({'; '.join(parts)})" if parts else "")
    return "waiting"


def _probe(probe: Json) -> str:
    if "httpGet" in probe:
        get = probe["httpGet"]
        what = f"GET {get.get('scheme', 'HTTP').lower()}://:{get['port']}{get.get('path', '/')}"
    elif "tcpSocket" in probe:
        what = f"TCP :{probe['tcpSocket']['port']}"
    else:
        what = f"exec {' '.join(probe.get('exec', {}).get('command', []))}"
    return (
        f"{what}, every {probe.get('periodSeconds', 10)}s within {probe.get('timeoutSeconds', 1)}s, "
        f"fails after {probe.get('failureThreshold', 3)}"
    )


def _conditions(conditions: Sequence[Json]) -> list[str]:
    if not conditions:
        return ["  none yet"]
    rows = [
        ["  " + c["type"], c["status"], c.get("reason") or "-", c.get("message") or "-"] for c in conditions
    ]
    return table(["  TYPE", "STATUS", "REASON", "MESSAGE"], rows).splitlines()


def _events(events: Sequence[Json], now: datetime) -> list[str]:
    if not events:
        return ["  none remembered"]
    return ["  " + line for line in event_table(events, now).splitlines()]


def event_table(events: Sequence[Json], now: datetime, *, pods_shown: bool = False) -> str:
    """List events, oldest first."""
    if not events:
        return "No events remembered."
    header = ["LAST", "COUNT", "TYPE", "REASON"] + (["POD"] if pods_shown else []) + ["MESSAGE"]
    rows = [
        [age(e["lastTime"], now), str(e["count"]), e["type"], e["reason"]]
        + ([f"{e['namespace']}/{e['podName']}"] if pods_shown else [])
        + [e["message"]]
        for e in events
    ]
    return table(header, rows)


def describe_service(service: Json, programmed: Json | None, proxy_error: str) -> str:
    """Tell everything about a service, with where each port leads and why."""
    spec = service["spec"]
    selector = ", ".join(f"{k}={v}" for k, v in sorted(spec.get("selector", {}).items()))
    lines = [
        *head(service["metadata"]),
        f"Type:          {spec.get('type', 'ClusterIP')}",
        f"Address:       {spec.get('clusterIP') or '-'}",
        f"Selector:      {selector or '-'}",
    ]
    if programmed is None:
        return "\n".join(
            [*lines, f"Programmed:    not known ({proxy_error or 'the proxy does not have it yet'})"]
        )
    behind = int(programmed["programmedRevision"]) < int(programmed["decidedRevision"])
    lines.append(
        f"Programmed:    {'behind: ' + programmed['error'] if behind or programmed['error'] else 'yes'}"
    )
    lines.append("Ports:")
    for port in programmed["ports"]:
        lines += _programmed_port(port)
    return "\n".join(lines)


def _programmed_port(port: Json) -> list[str]:
    node = f", every node address:{port['nodePort']}" if port["nodePort"] else ""
    name = f" ({port['name']})" if port["name"] else ""
    lines = [f"  {port['port']}/{port['protocol']}{name}{node}"]
    if port["localhostError"]:
        lines.append(f"    localhost: {port['localhostError']}")
    if not port["endpoints"]:
        lines.append("    no pod matches: connections are refused")
    for endpoint in port["endpoints"]:
        mark = "->" if endpoint["used"] else "  "
        place = f"{endpoint['address']}:{endpoint['port']}" if endpoint["address"] else "no address"
        why = endpoint["message"] or endpoint["reason"]
        lines.append(f"    {mark} {place}  pod/{endpoint['podName']}  {why}".rstrip())
    return lines


def node(value: Json) -> str:
    """Tell about the node."""
    info = value["info"]
    addresses = ", ".join(f"{a['address']} ({a['type']})" for a in value["addresses"])
    lines = [
        f"Name:          {value['name']}",
        f"Addresses:     {addresses}",
        f"Kubelet:       {info['kubeletVersion']}",
        f"Runtime:       {info['containerRuntimeVersion']}",
        f"System:        {info['osImage']}, kernel {info['kernelVersion']}, {info['architecture']}",
        f"Capacity:      {_quantities(value['capacity'])}",
        f"Allocatable:   {_quantities(value['allocatable'])}",
        f"Pod addresses: {value['podCidr'] or '-'}",
        f"Services:      {value['serviceCidr'] or '-'}",
        "Conditions:",
    ]
    shown = [
        {**c, "status": c["status"].removeprefix("CONDITION_STATUS_").capitalize()}
        for c in value["conditions"]
    ]
    return "\n".join([*lines, *_conditions(shown)])


def _quantities(values: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sorted(values.items())) or "-"
