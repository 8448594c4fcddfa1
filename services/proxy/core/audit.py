"""Compare the kernel's rules with those that were decided. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from services.proxy.core.conntrack import Flow, wrong
from services.proxy.core.ruleset import Damage, Ruleset


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference; `leaked` is there and should not be, else it is missing."""

    category: str
    id: str
    leaked: bool
    message: str = ""


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
        Finding("flow", f"{f.protocol} {f.address}:{f.port}", True, f"It goes to {f.endpoint}")
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


def _text(key: object) -> str:
    return " ".join(str(part) for part in key) if isinstance(key, tuple) else str(key)
