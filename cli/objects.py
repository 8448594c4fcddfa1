"""apply, delete, get, describe: objects and what became of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from cli import config_views, explanation, output, views
from cli.errors import CliError, Exit
from cli.node import DEADLINE_SECONDS, Node
from cli.refs import Ref, labels

_SUFFIXES = (".yaml", ".yml", ".json")
_RESULTS = {1: "created", 2: "configured", 3: "unchanged"}


def sources(paths: Sequence[str]) -> list[tuple[str, bytes]]:
    """Read files, folders (their manifests by name) and `-` for standard input."""
    found: list[tuple[str, bytes]] = []
    for path in paths:
        if path == "-":
            found.append(("standard input", sys.stdin.buffer.read()))
            continue
        place = Path(path)
        files = [f for f in sorted(place.iterdir()) if f.suffix in _SUFFIXES] if place.is_dir() else [place]
        if not files:
            raise CliError(f"{path} holds no manifest (*.yaml, *.yml, *.json)", code=Exit.USAGE)
        found += [(str(file), _read(file)) for file in files]
    return found


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CliError(f"Cannot read {file}: {error.strerror}", code=Exit.USAGE) from error


def joined(parts: Sequence[tuple[str, bytes]]) -> tuple[str, bytes]:
    """Join manifests into one, so that all of them are applied or none."""
    if len(parts) == 1:
        return parts[0]
    documents = [data if data.endswith(b"\n") else data + b"\n" for _, data in parts]
    return ", ".join(name for name, _ in parts), b"---\n".join(documents)


def apply(node: Node, paths: Sequence[str], *, dry_run: bool) -> list[str]:
    """Apply manifests; returns one line for each object."""
    from tripod.kubelet.v1 import object_service_pb2 as pb

    source, manifest = joined(sources(paths))
    request = pb.ApplyObjectsRequest(manifest=manifest, source=source, dry_run=dry_run)
    answer = node.objects().ApplyObjects(request, timeout=DEADLINE_SECONDS, metadata=node.metadata())
    note = " (dry run)" if dry_run else ""
    return [
        f"{o.ref.kind.lower()}/{o.ref.name} {_RESULTS.get(o.result, 'applied')}{note}" for o in answer.objects
    ]


def named_in(paths: Sequence[str], namespace: str) -> list[tuple[str, Ref]]:
    """Return the objects that manifests name, with their namespaces."""
    import yaml

    found = []
    for source, data in sources(paths):
        try:
            documents = [d for d in yaml.safe_load_all(data) if d is not None]
        except yaml.YAMLError as error:
            raise CliError(f"{source}: {error}", code=Exit.USAGE) from error
        for document in _flat(documents):
            try:
                meta = document["metadata"]
                found.append((meta.get("namespace", namespace), Ref(document["kind"], meta["name"])))
            except (KeyError, TypeError) as error:
                raise CliError(
                    f"{source}: a document has no kind or metadata.name", code=Exit.USAGE
                ) from error
    return found


def _flat(documents: Sequence[Any]) -> list[Any]:
    flat: list[Any] = []
    for document in documents:
        is_list = isinstance(document, dict) and document.get("kind") == "List"
        flat += document.get("items", []) if is_list else [document]
    return flat


def delete(node: Node, refs: Sequence[tuple[str, Ref]], grace: int | None) -> list[str]:
    """Delete objects; returns one line for each. Those that do not exist are said so."""
    from tripod.kubelet.v1 import object_service_pb2 as pb

    wanted = [pb.ObjectRef(kind=ref.kind, namespace=namespace, name=ref.name) for namespace, ref in refs]
    request = pb.DeleteObjectsRequest(refs=wanted)
    if grace is not None:
        request.grace_period_seconds = grace
    answer = node.objects().DeleteObjects(request, timeout=DEADLINE_SECONDS, metadata=node.metadata())
    # A namespace lies in none, whatever we said.
    done = {(ref.kind, ref.namespace, ref.name) for ref in answer.deleted_refs}
    keys = [(w.kind, "" if w.kind == "Namespace" else w.namespace, w.name) for w in wanted]
    return [
        f"{kind.lower()}/{name} {'deleted' if (kind, place, name) in done else 'did not exist'}"
        for kind, place, name in keys
    ]


def fetch(node: Node, ref: Ref, namespace: str) -> dict[str, Any]:
    """Return one object as JSON values."""
    from tripod.kubelet.v1 import object_service_pb2 as pb

    wanted = pb.ObjectRef(kind=ref.kind, namespace=namespace, name=ref.name)
    answer = node.objects().GetObject(pb.GetObjectRequest(ref=wanted), timeout=DEADLINE_SECONDS)
    value: dict[str, Any] = json.loads(answer.object)
    return value


def listing(node: Node, kind: str, namespace: str, selector: str) -> list[dict[str, Any]]:
    """Return the objects of a kind as JSON values."""
    from tripod.kubelet.v1 import object_service_pb2 as pb

    request = pb.ListObjectsRequest(kind=kind, namespace=namespace, label_selector=labels(selector))
    answer = node.objects().ListObjects(request, timeout=DEADLINE_SECONDS)
    return [json.loads(item) for item in answer.objects]


def show(objects: Sequence[dict[str, Any]], kind: str, fmt: str, *, single: bool, namespaces: bool) -> str:
    """Render objects in the chosen format."""
    if fmt in ("json", "yaml", "name"):
        return output.dump(objects, fmt, single=single)
    view = {"Pod": views.pods, "Service": views.services}.get(kind)
    if view is None:
        return config_views.listing(kind, objects, output.now(), namespaces=namespaces)
    return view(objects, output.now(), wide=fmt == "wide", namespaces=namespaces)


def show_node(node: Node, fmt: str) -> str:
    """Render the node."""
    from google.protobuf.json_format import MessageToDict
    from tripod.kubelet.v1 import node_service_pb2 as pb

    answer = node.nodes().GetNode(pb.GetNodeRequest(), timeout=DEADLINE_SECONDS)
    value = MessageToDict(answer.node, always_print_fields_with_no_presence=True)
    if fmt == "name":
        return f"node/{value['name']}"
    if fmt == "json":
        return json.dumps(value, indent=2)
    return views.node(value)


def events(node: Node, namespace: str, pod: str) -> list[dict[str, Any]]:
    """Return the remembered events, oldest first."""
    from google.protobuf.json_format import MessageToDict
    from tripod.kubelet.v1 import pod_service_pb2 as pb

    request = pb.WatchEventsRequest(namespace=namespace, pod_name=pod, only_remembered=True)
    found = []
    for item in node.pods().WatchEvents(request, timeout=DEADLINE_SECONDS):
        if item.WhichOneof("item") == "event":
            value = MessageToDict(item.event, always_print_fields_with_no_presence=True)
            value["type"] = value["type"].removeprefix("EVENT_TYPE_").capitalize()
            found.append(value)
    return sorted(found, key=lambda event: str(event["lastTime"]))


def describe(node: Node, ref: Ref, namespace: str) -> str:
    """Tell everything about one object."""
    if ref.kind == "Node":
        return show_node(node, "table")
    found = fetch(node, ref, namespace)
    if ref.kind == "Pod":
        uid = found["metadata"].get("uid")
        mine = [e for e in events(node, namespace, ref.name) if e["podUid"] == uid]
        return views.describe_pod(found, mine, output.now(), why=_why(node, namespace, ref.name))
    if ref.kind != "Service":
        return config_views.describe(found)
    programmed, error = _programmed(node, ref, namespace)
    return views.describe_service(found, programmed, error)


def _why(node: Node, namespace: str, name: str) -> str:
    """Return the first cause why a pod is not Ready; empty when it is, or when the kubelet is older."""
    try:
        told = explanation.ask(node, namespace, name)
    except grpc.RpcError as error:
        # The pod may be gone between two calls, and an older kubelet does not know the call.
        if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED):
            return ""
        raise
    return "" if told.verdict == "Ready" else explanation.first(told.causes)


def _programmed(node: Node, ref: Ref, namespace: str) -> tuple[dict[str, Any] | None, str]:
    from google.protobuf.json_format import MessageToDict

    found, decided, error = proxy_view(node, namespace, ref.name)
    if found is None:
        return None, error
    value = MessageToDict(found, always_print_fields_with_no_presence=True)
    for port in value["ports"]:
        port["protocol"] = port["protocol"].removeprefix("PROTOCOL_")
        all_endpoints = decided.get((port["name"], port["port"]))
        if all_endpoints is not None:
            port["endpoints"] = [
                MessageToDict(e, always_print_fields_with_no_presence=True) for e in all_endpoints
            ]
    return value, error


def proxy_view(node: Node, namespace: str, name: str) -> tuple[Any, dict[tuple[str, int], Any], str]:
    """Ask the proxy what it programmed and decided for one service; says why when it cannot."""
    from tripod.proxy.v1 import proxy_service_pb2 as pb

    try:
        listed = node.proxy().ListServices(pb.ListServicesRequest(namespace=namespace), timeout=5)
        found = next((s for s in listed.services if s.name == name), None)
        decided: dict[tuple[str, int], Any] = {}
        stream = node.proxy().WatchEndpoints(pb.WatchEndpointsRequest(), timeout=5)
        for event in stream:
            kind = event.WhichOneof("event")
            if kind == "bookmark":
                stream.cancel()
                break
            endpoints = event.endpoints_upserted
            if kind == "endpoints_upserted" and (endpoints.namespace, endpoints.name) == (namespace, name):
                decided = {(port.name, port.port): list(port.endpoints) for port in endpoints.ports}
        return found, decided, ""
    except grpc.RpcError as error:
        return None, {}, f"the proxy does not answer: {error.details()}"
