"""Write findings for people and for programs. Pure."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence

from cli.doctor.finding import Finding, Level
from cli.output import Paint

Findings = Mapping[str, Sequence[Finding]]
_WIDTH = 6
_COLUMNS = 90


def failed(findings: Findings) -> bool:
    """Tell whether anything is broken."""
    return _count(findings, Level.BROKEN) > 0


def as_text(findings: Findings, paint: Paint, *, verbose: bool) -> str:
    """Write each group: its faults with reason and fix; what is fine only when asked for."""
    title = max((len(name) for name in findings), default=0)
    lines: list[str] = []
    for name, group in findings.items():
        told = [f for f in group if verbose or f.level is not Level.OK]
        fine = sum(f.level is Level.OK for f in group)
        lines.append(f"{paint.strong(name.ljust(title))}  {_sum(fine, group, paint)}")
        for finding in sorted(told, key=lambda f: _ORDER[f.level]):
            lines += _finding(finding, paint)
    return "\n".join([*lines, "", _conclusion(findings, paint)])


_ORDER = {Level.BROKEN: 0, Level.WARN: 1, Level.UNSEEN: 2, Level.OK: 3}


def _sum(fine: int, group: Sequence[Finding], paint: Paint) -> str:
    if not group:
        return paint.dim("nothing to look at")
    return paint.good(f"{fine} fine") if fine == len(group) else f"{fine} of {len(group)} fine"


def _finding(finding: Finding, paint: Paint) -> list[str]:
    mark = {
        Level.OK: paint.good,
        Level.WARN: paint.warn,
        Level.BROKEN: paint.bad,
        Level.UNSEEN: paint.dim,
    }[finding.level]
    pad = " " * (_WIDTH + 4)
    lines = [f"  {mark(finding.level.value.ljust(_WIDTH))}  {finding.what}"]
    if finding.level is Level.UNSEEN:
        lines[0] += f": {finding.why}"
    elif finding.why:
        lines += [f"{pad}{line}" for line in textwrap.wrap(finding.why, _COLUMNS)]
    if finding.fix:
        lines.append(f"{pad}{paint.dim('Fix:')} {finding.fix}")
    return lines


def _conclusion(findings: Findings, paint: Paint) -> str:
    broken, warned = _count(findings, Level.BROKEN), _count(findings, Level.WARN)
    hidden = _count(findings, Level.UNSEEN)
    parts = []
    if broken:
        parts.append(paint.bad(f"{broken} {'thing is' if broken == 1 else 'things are'} broken"))
    if warned:
        parts.append(paint.warn(f"{warned} could be better"))
    told = ", ".join(parts) or paint.good("Everything that was looked at is fine")
    unseen = f"; {hidden} could not be looked at" if hidden else ""
    return f"{told}{unseen}."


def _count(findings: Findings, level: Level) -> int:
    return sum(f.level is level for group in findings.values() for f in group)


def as_json(findings: Findings) -> str:
    """Write everything, what is fine too."""
    return json.dumps(
        {
            "broken": failed(findings),
            "counts": {level.value: _count(findings, level) for level in Level},
            "findings": [
                {"group": name, "level": f.level.value, "what": f.what, "why": f.why, "fix": f.fix}
                for name, group in findings.items()
                for f in group
            ],
        },
        indent=2,
        ensure_ascii=False,
    )
