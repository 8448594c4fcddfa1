"""ConfigMaps, Secrets, ServiceAccounts and Namespaces as rows and as descriptions. Pure.

A Secret comes here without its values: the kubelet gives nobody more than their sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cli.output import age
from cli.views import Json, head, listed


def listing(kind: str, objects: Sequence[Json], now: datetime, *, namespaces: bool) -> str:
    """List objects of one of these kinds."""
    column = {"ConfigMap": ["DATA"], "Secret": ["TYPE", "DATA"], "ServiceAccount": ["PULL SECRETS"]}
    header = ["NAME", *column.get(kind, []), "AGE"]
    rows = [[o["metadata"]["name"], *_cells(kind, o), _age(o, now)] for o in objects]
    return listed(header, rows, objects, namespaces=namespaces and kind != "Namespace")


def _cells(kind: str, value: Json) -> list[str]:
    count = str(len(value.get("data", {})) + len(value.get("binaryData", {})))
    match kind:
        case "ConfigMap":
            return [count]
        case "Secret":
            return [str(value.get("type", "")), count]
        case "ServiceAccount":
            return [",".join(s["name"] for s in value.get("imagePullSecrets", [])) or "-"]
        case _:
            return []


def _age(value: Json, now: datetime) -> str:
    created = value["metadata"].get("creationTimestamp", "")
    return age(created, now) if created else "-"


def describe(value: Json) -> str:
    """Tell everything about one object."""
    lines = head(value["metadata"])
    match value["kind"]:
        case "ConfigMap":
            lines += [*_immutable(value), "Data:"]
            lines += [f"  {key}: {_shown(text)}" for key, text in sorted(value.get("data", {}).items())]
            binary = sorted(value.get("binaryData", {}).items())
            lines += [f"  {key}: {_decoded_bytes(text)} bytes" for key, text in binary]
        case "Secret":
            lines += [f"Type:          {value.get('type', '')}", *_immutable(value), "Data:"]
            lines += [f"  {key}: {size}" for key, size in sorted(value.get("data", {}).items())]
        case "ServiceAccount":
            lines.append(f"Pull secrets:  {_cells('ServiceAccount', value)[0]}")
    return "\n".join(lines)


def _immutable(value: Json) -> list[str]:
    return ["Immutable:     yes"] if value.get("immutable") else []


def _shown(text: str) -> str:
    """Put a value on lines of its own where it has many."""
    lines = text.rstrip("\n").split("\n")
    return lines[0] if len(lines) == 1 else "|\n" + "\n".join(f"    {line}" for line in lines)


def _decoded_bytes(base64: str) -> int:
    return len(base64) // 4 * 3 - base64.count("=")
