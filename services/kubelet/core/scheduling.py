"""Where a pod may run: selectors, affinity to nodes, tolerations, and what only a scheduler reads. Pure.

Of an affinity the required terms count here: the terms are alternatives, all requirements of one must hold,
and a term without any holds nowhere. What asks nothing of a node (preferences, affinity between pods, the
spread over topologies, gates) was checked when it was read, and is kept as it came.

Source: Kubernetes "Assigning Pods to Nodes" and "Taints and Tolerations"; component-helpers' `nodeaffinity`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

_NOTHING: Mapping[str, str] = MappingProxyType({})
_WHOLE = re.compile(r"[+-]?[0-9]{1,19}")
OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One requirement on a label, or on a field when it stands among a term's fields."""

    key: str
    operator: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Term:
    """Requirements that must hold together."""

    labels: tuple[Requirement, ...] = ()
    fields: tuple[Requirement, ...] = ()


@dataclass(frozen=True, slots=True)
class Toleration:
    """A taint that a pod bears. `seconds` limits how long it bears NoExecute; None means for ever."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""
    seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Scheduling:
    """What a pod says of where and before whom it runs.

    `required` are the terms of its affinity to nodes, None when it has none. `kept` has the fields that ask
    nothing of a node, each as JSON text, and the affinity as a whole. `overhead` is what a pod's runtime
    takes besides its containers: cpu in millicores, the rest in bytes.
    """

    node_name: str = ""
    node_selector: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    required: tuple[Term, ...] | None = None
    tolerations: tuple[Toleration, ...] = ()
    priority: int | None = None
    priority_class_name: str = ""
    preemption_policy: str = ""
    scheduler_name: str = ""
    os: str = ""
    overhead: tuple[tuple[str, int], ...] = ()
    kept: tuple[tuple[str, str], ...] = ()


def fits(wanted: Scheduling, labels: Mapping[str, str], node_name: str) -> bool:
    """Tell whether a node has what selector and affinity require."""
    if any(labels.get(key) != value for key, value in wanted.node_selector.items()):
        return False
    return wanted.required is None or any(holds(term, labels, node_name) for term in wanted.required)


def holds(term: Term, labels: Mapping[str, str], node_name: str) -> bool:
    """Tell whether every requirement of a term holds; an empty term holds nowhere."""
    if not term.labels and not term.fields:
        return False
    names = {"metadata.name": node_name}
    return all(_meets(one, labels) for one in term.labels) and all(_meets(one, names) for one in term.fields)


def _meets(one: Requirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(one.key)
    match one.operator:
        case "In":
            return value is not None and value in one.values
        case "NotIn":
            return value is None or value not in one.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt":
            return value is not None and _compares(one.operator, value, one.values[0])
        case _:
            return False


def _compares(operator: str, value: str, limit: str) -> bool:
    if not _WHOLE.fullmatch(value) or not _WHOLE.fullmatch(limit):
        return False
    return int(value) > int(limit) if operator == "Gt" else int(value) < int(limit)


@dataclass(frozen=True, slots=True)
class Taint:
    """A taint of a node."""

    key: str
    effect: str
    value: str = ""


def tolerates(toleration: Toleration, taint: Taint) -> bool:
    """Tell whether a toleration bears a taint; an empty key with Exists bears all, an empty effect each."""
    if toleration.effect and toleration.effect != taint.effect:
        return False
    if toleration.key and toleration.key != taint.key:
        return False
    return toleration.operator == "Exists" or toleration.value == taint.value
