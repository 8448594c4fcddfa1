"""A page of gauges as Prometheus text. Pure.

Source: the Prometheus text format 0.0.4. prometheus_client would cost 2 MB and a server of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def page(help_texts: Mapping[str, str], values: Mapping[str, float]) -> bytes:
    """Write each gauge that has a value, those of one name together.

    A name may carry labels, as `NAME{LABEL="VALUE"}`; `help_texts` are one line each, by plain name.
    """
    lines, told = [], set()
    for name, value in values.items():
        plain = name.partition("{")[0]
        if plain not in told:
            told.add(plain)
            lines.append(f"# HELP {plain} {help_texts[plain]}\n# TYPE {plain} gauge\n")
        lines.append(f"{name} {float(value)!r}\n")
    return "".join(lines).encode()


def labelled(name: str, labels: Sequence[str], values: Sequence[str], more: str = "") -> str:
    """Write a name with its labels; `more` is a label that is written already."""
    pairs = [f'{label}="{_escaped(value)}"' for label, value in zip(labels, values, strict=True)]
    inside = ",".join([*pairs, more] if more else pairs)
    return f"{name}{{{inside}}}" if inside else name


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
