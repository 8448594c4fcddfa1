"""What people and programs read: tables, JSON, YAML, names."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

import yaml

FORMATS = ("table", "wide", "json", "yaml", "name")


def age(start: str, now: datetime) -> str:
    """Say how long ago an RFC 3339 time was: `42s`, `3m12s`, `5h`, `2d`; `-` for none."""
    if not start:
        return "-"
    passed = max(0, int((now - datetime.fromisoformat(start.replace("Z", "+00:00"))).total_seconds()))
    if passed < 120:
        return f"{passed}s"
    if passed < 600:
        return f"{passed // 60}m{passed % 60}s"
    if passed < 7200:
        return f"{passed // 60}m"
    return f"{passed // 3600}h" if passed < 172_800 else f"{passed // 86_400}d"


def length(seconds: float) -> str:
    """Write a length of time: `0.4 s`, `12 s`, `3 min 5 s`, `5 h`, `2 d`."""
    if seconds < 1:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 and whole < 600 else "")
    return f"{whole // 3600} h" if whole < 172_800 else f"{whole // 86_400} d"


@dataclass(frozen=True, slots=True)
class Paint:
    """Colours, or none."""

    on: bool = False

    @classmethod
    def of(cls, stream: TextIO) -> Paint:
        """Colour what goes to a terminal, unless NO_COLOR is set (no-color.org)."""
        return cls(stream.isatty() and not os.environ.get("NO_COLOR"))

    def good(self, text: str) -> str:
        """Write in green."""
        return self._in("32", text)

    def warn(self, text: str) -> str:
        """Write in yellow."""
        return self._in("33", text)

    def bad(self, text: str) -> str:
        """Write in red."""
        return self._in("31", text)

    def strong(self, text: str) -> str:
        """Write in bold."""
        return self._in("1", text)

    def dim(self, text: str) -> str:
        """Write faintly."""
        return self._in("2", text)

    def _in(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.on and text else text


def now() -> datetime:
    """Return the time against which ages are told."""
    return datetime.now(UTC)  # noqa: TID251  # a command reads the clock once, here


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out columns as kubectl does: three blanks between, no lines."""
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def dump(objects: Sequence[Mapping[str, Any]], fmt: str, *, single: bool) -> str:
    """Render objects as JSON, YAML or names. Many become a `List`."""
    if fmt == "name":
        return "\n".join(f"{o['kind'].lower()}/{o['metadata']['name']}" for o in objects)
    value: Any = (
        objects[0] if single and objects else {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    )
    if fmt == "json":
        return json.dumps(value, indent=2, ensure_ascii=False)
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True)).rstrip()


def error(message: str, advice: str = "") -> None:
    """Print an error, red on a terminal."""
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{red}error:{plain} {message}", file=sys.stderr)
    if advice:
        print(f"  {advice}", file=sys.stderr)
