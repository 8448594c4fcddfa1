"""Compare the kernel's rules and routes with those that were decided. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from services.proxy.core.conntrack import Flow, wrong
from services.proxy.core.routes import FoundRoute, RoutePlan, own
from services.proxy.core.ruleset import Damage, Ruleset


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference; `leaked` is there and should not be, else it is missing."""

    category: str
    id: str
    leaked: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class Audited:
    """Differences, how much was looked at by category, and why a category could not be looked at."""

    findings: Sequence[Finding] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    unavailable: Mapping[str, str] = field(default_factory=dict)


_DAMAGES = {
    Damage.TABLE: "Our table is missing",
    Damage.CHAINS: "Chains or sets of our table were changed",
    Damage.ELEMENTS: "Our table has elements that we do not make",
}


def audit(wanted: Ruleset, found: Ruleset | Damage, flows: Sequence[Flow]) -> list[Finding]:
    """Return the differences, by category and id."""
    if isinstance(found, Damage):
        return [Finding("rule", found.value, False, _DAMAGES[found])]
    made = [*_rules(wanted, found)]
    made += [
        Finding(
            "flow", f"{f.protocol} {f.address}:{f.port}", True, f"It goes to {f.endpoint[0]}:{f.endpoint[1]}"
        )
        for f in wrong(flows, wanted)
    ]
    return sorted(made, key=lambda finding: (finding.category, finding.id))


def _rules(wanted: Ruleset, found: Ruleset) -> Iterator[Finding]:
    for name in ("endpoints", "services"):
        ours, kernels = getattr(wanted, name), getattr(found, name)
        for key in ours.keys() | kernels.keys():
            if ours.get(key) != kernels.get(key):
                what = f"The kernel has {kernels.get(key)}, decided is {ours.get(key)}"
                yield Finding("rule", f"{name} {_text(key)}", key not in ours, what)
    for name in ("refused", "addresses", "hairpins", "chains"):
        for key in getattr(wanted, name) ^ getattr(found, name):
            yield Finding("rule", f"{name} {_text(key)}", key in getattr(found, name))


def audit_routes(plan: RoutePlan, found: Sequence[FoundRoute]) -> list[Finding]:
    """Return our routes that are missing, lead elsewhere, or should not be there."""
    ours = own(found)
    made = [Finding("route", n, False, f"It should lead to {gateway}") for n, gateway in plan.add.items()]
    made += [
        Finding("route", n, False, f"The kernel leads it to {_end(ours[n])}, decided is {gateway}")
        for n, gateway in plan.replace.items()
    ]
    made += [
        Finding("route", n, True, f"It leads to {_end(gateway)}, and no node's pods are to be reached so")
        for n, gateway in plan.remove.items()
    ]
    return sorted(made, key=lambda finding: finding.id)


def _end(gateway: str) -> str:
    return gateway or "a link"


def _text(key: object) -> str:
    return " ".join(str(part) for part in key) if isinstance(key, tuple) else str(key)
