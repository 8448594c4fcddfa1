"""What a manifest says of where and before whom a pod runs: fields and rules. Pure.

Source: Kubernetes API reference, `PodSpec`, `Affinity`, `Toleration`, `TopologySpreadConstraint` v1, and the
API server's validation. What only a scheduler reads is checked and kept as it came; standalone, with one
node, it changes nothing. A gate would keep a pod waiting for somebody who is not there: it is refused then.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from services.kubelet.core.fields import DNS_SUBDOMAIN, Faults, Fields, label_key_fault, label_value_fault
from services.kubelet.core.manifest_resources import SHARED
from services.kubelet.core.rules import Rules
from services.kubelet.core.scheduling import OPERATORS, Requirement, Scheduling, Term, Toleration

FIELDS = (
    *("nodeName", "nodeSelector", "affinity", "tolerations", "priority", "priorityClassName"),
    *("preemptionPolicy", "schedulerName", "topologySpreadConstraints", "schedulingGates", "os"),
    "overhead",
)
_EFFECTS = ("", "NoSchedule", "PreferNoSchedule", "NoExecute")
_SELECTOR_OPERATORS = OPERATORS[:4]
_PRIORITY = 2**31
_SECONDS = 2**62
_WHOLE = re.compile(r"[+-]?[0-9]{1,19}")


def read_scheduling(spec: Fields, rules: Rules) -> Scheduling:
    """Read all of `FIELDS`."""
    required = _affinity(spec)
    _spread(spec)
    _gates(spec, rules)
    selector = spec.mapping("nodeSelector", values=label_value_fault)
    return Scheduling(
        node_name=spec.text("nodeName", form=DNS_SUBDOMAIN, what="the name of a node"),
        node_selector=MappingProxyType(selector),
        required=required,
        tolerations=tuple(_toleration(item, path, spec.faults) for item, path in spec.items("tolerations")),
        priority=_number(spec, "priority", _PRIORITY),
        priority_class_name=spec.text("priorityClassName", form=DNS_SUBDOMAIN, what="a DNS name"),
        preemption_policy=spec.text("preemptionPolicy", choices=("", "PreemptLowerPriority", "Never")),
        scheduler_name=spec.text("schedulerName", form=DNS_SUBDOMAIN, what="a DNS name"),
        os=_os(spec, rules),
        overhead=_overhead(spec, rules),
        kept=_kept(spec),
    )


def _kept(spec: Fields) -> tuple[tuple[str, str], ...]:
    names = ("affinity", "topologySpreadConstraints", "schedulingGates")
    given = [(name, spec.raw(name)) for name in names if spec.raw(name)]
    return tuple((name, _json(value)) for name, value in given)


def _json(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError):  # Faulty, as the reading of its parts has told.
        return "null"


def _number(fields: Fields, name: str, limit: int) -> int | None:
    return fields.whole(name, 0, low=-limit, high=limit) if fields.has(name) else None


def _os(spec: Fields, rules: Rules) -> str:
    if not spec.has("os"):
        return ""
    fields = Fields(spec.raw("os"), spec.at("os"), spec.faults, known=("name",))
    # In a cluster the pod is rejected, as its status then tells.
    return fields.text("name", required=True, choices=("linux", "windows") if rules.cluster else ("linux",))


def _overhead(spec: Fields, rules: Rules) -> tuple[tuple[str, int], ...]:
    """Read what a pod's runtime takes besides; the API server fills it in by the pod's runtime class."""
    if spec.raw("overhead") and not rules.cluster:
        spec.fault("overhead", "needs a cluster: its API server fills it in by the runtime class")
        return ()
    return tuple(sorted(spec.amounts("overhead", SHARED).items()))


def _gates(spec: Fields, rules: Rules) -> None:
    gates = [
        Fields(item, path, spec.faults, known=("name",)).text("name", required=True)
        for item, path in spec.items("schedulingGates")
    ]
    if gates and not rules.cluster:
        spec.fault("schedulingGates", "needs a cluster: on this node nobody would ever open a gate")


def _toleration(value: Any, path: str, faults: Faults) -> Toleration:
    known = ("key", "operator", "value", "effect", "tolerationSeconds")
    fields = Fields(value, path, faults, known=known)
    key = fields.text("key")
    if key and (wrong := label_key_fault(key)):
        fields.fault("key", wrong)
    operator = fields.text("operator", "Equal", choices=("Equal", "Exists")) or "Equal"
    text = fields.text("value")
    effect = fields.text("effect", choices=_EFFECTS)
    if not key and operator != "Exists":
        fields.fault("operator", "must be Exists when key is empty")
    if text and operator == "Exists":
        fields.fault("value", "must be empty when operator is Exists")
    elif wrong := label_value_fault(text):
        fields.fault("value", wrong)
    seconds = _number(fields, "tolerationSeconds", _SECONDS)
    if seconds is not None and effect != "NoExecute":
        fields.fault("effect", "must be NoExecute when tolerationSeconds is given")
    return Toleration(key, operator, text, effect, seconds)


def _affinity(spec: Fields) -> tuple[Term, ...] | None:
    if not spec.has("affinity"):
        return None
    kinds = ("nodeAffinity", "podAffinity", "podAntiAffinity")
    fields = Fields(spec.raw("affinity"), spec.at("affinity"), spec.faults, known=kinds)
    for name in kinds[1:]:
        if fields.has(name):
            _pod_affinity(_part(fields, name, _REQUIRED, _PREFERRED))
    return (
        _node_affinity(_part(fields, "nodeAffinity", _REQUIRED, _PREFERRED)) if fields.has(kinds[0]) else None
    )


_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


def _part(fields: Fields, name: str, *known: str) -> Fields:
    return Fields(fields.raw(name), fields.at(name), fields.faults, known=known)


def _node_affinity(fields: Fields) -> tuple[Term, ...] | None:
    for item, path in fields.items(_PREFERRED):
        one = Fields(item, path, fields.faults, known=("weight", "preference"))
        one.whole("weight", 1, low=1, high=100, required=True)
        _term(one.raw("preference"), one.at("preference"), fields.faults)
    if not fields.has(_REQUIRED):
        return None
    required = _part(fields, _REQUIRED, "nodeSelectorTerms")
    items = required.items("nodeSelectorTerms", required=True)
    return tuple(_term(item, path, fields.faults) for item, path in items)


def _term(value: Any, path: str, faults: Faults) -> Term:
    fields = Fields(value, path, faults, known=("matchExpressions", "matchFields"))
    labels = tuple(_requirement(item, place, faults) for item, place in fields.items("matchExpressions"))
    return Term(labels, tuple(_field(item, place, faults) for item, place in fields.items("matchFields")))


def _requirement(value: Any, path: str, faults: Faults, operators: Sequence[str] = OPERATORS) -> Requirement:
    fields = Fields(value, path, faults, known=("key", "operator", "values"))
    key = fields.text("key", required=True)
    if key and (wrong := label_key_fault(key)):
        fields.fault("key", wrong)
    operator = fields.text("operator", required=True, choices=operators)
    values = fields.texts("values")
    if operator in ("In", "NotIn") and not values:
        fields.fault("values", f"needs one item at least for {operator}")
    elif operator in ("Exists", "DoesNotExist") and values:
        fields.fault("values", f"must be empty for {operator}")
    elif operator in ("Gt", "Lt") and (len(values) != 1 or not _WHOLE.fullmatch(values[0])):
        fields.fault("values", f"must be one whole number, in quotes, for {operator}")
    return Requirement(key, operator, values)


def _field(value: Any, path: str, faults: Faults) -> Requirement:
    fields = Fields(value, path, faults, known=("key", "operator", "values"))
    key = fields.text("key", required=True, choices=("metadata.name",))
    operator = fields.text("operator", required=True, choices=("In", "NotIn"))
    values = fields.texts("values")
    if len(values) != 1:
        fields.fault("values", "must be one name")
    return Requirement(key, operator, values)


def _pod_affinity(fields: Fields) -> None:
    for item, path in fields.items(_REQUIRED):
        _pod_term(item, path, fields.faults)
    for item, path in fields.items(_PREFERRED):
        one = Fields(item, path, fields.faults, known=("weight", "podAffinityTerm"))
        one.whole("weight", 1, low=1, high=100, required=True)
        _pod_term(one.raw("podAffinityTerm"), one.at("podAffinityTerm"), fields.faults)


def _pod_term(value: Any, path: str, faults: Faults) -> None:
    known = (
        "labelSelector",
        "namespaces",
        "topologyKey",
        "namespaceSelector",
        "matchLabelKeys",
        "mismatchLabelKeys",
    )
    fields = Fields(value, path, faults, known=known)
    _topology_key(fields)
    for name in ("labelSelector", "namespaceSelector"):
        _selector(fields, name)
    for name in ("namespaces", "matchLabelKeys", "mismatchLabelKeys"):
        fields.texts(name)


def _topology_key(fields: Fields) -> None:
    key = fields.text("topologyKey", required=True)
    if key and (wrong := label_key_fault(key)):
        fields.fault("topologyKey", wrong)


def _selector(fields: Fields, name: str) -> None:
    if not fields.has(name):
        return
    selector = _part(fields, name, "matchLabels", "matchExpressions")
    selector.mapping("matchLabels", values=label_value_fault)
    for item, path in selector.items("matchExpressions"):
        _requirement(item, path, fields.faults, _SELECTOR_OPERATORS)


def _spread(spec: Fields) -> None:
    known = ("maxSkew", "topologyKey", "whenUnsatisfiable", "labelSelector", "minDomains")
    policies = ("nodeAffinityPolicy", "nodeTaintsPolicy")
    for item, path in spec.items("topologySpreadConstraints"):
        one = Fields(item, path, spec.faults, known=(*known, *policies, "matchLabelKeys"))
        one.whole("maxSkew", 1, low=1, high=2**31 - 1, required=True)
        one.whole("minDomains", 1, low=1, high=2**31 - 1)
        _topology_key(one)
        one.text("whenUnsatisfiable", required=True, choices=("DoNotSchedule", "ScheduleAnyway"))
        _selector(one, "labelSelector")
        one.texts("matchLabelKeys")
        for name in policies:
            one.text(name, choices=("Honor", "Ignore"))
