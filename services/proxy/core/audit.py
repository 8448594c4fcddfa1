"""Compare the kernel's rules with those that were decided. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from services.proxy.core.conntrack import Flow, wrong
from services.proxy.core.ruleset import Ruleset


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference; `leaked` is there and should not be, else it is missing."""

    category: str
    id: str
    leaked: bool
    message: str = ""


def audit(wanted: Ruleset, found: Ruleset | None, flows: Sequence[Flow]) -> list[Finding]:
    """Return the differences, by category and id."""
    if found is None:
        return [Finding("rule", "table", False, "Our table is missing, or its chains were changed")]
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
    for name in ("refused", "addresses", "hairpins"):
        for key in getattr(wanted, name) ^ getattr(found, name):
            yield Finding("rule", f"{name} {_text(key)}", key in getattr(found, name))


def _text(key: object) -> str:
    return " ".join(str(part) for part in key) if isinstance(key, tuple) else str(key)
