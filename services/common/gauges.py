"""A page of gauges as Prometheus text. Pure.

Source: the Prometheus text format 0.0.4. prometheus_client would cost 2 MB and a server of its own.
"""

from __future__ import annotations

from collections.abc import Mapping


def page(help_texts: Mapping[str, str], values: Mapping[str, float]) -> bytes:
    """Write each gauge that has a value; `help_texts` are one line each, by name."""
    lines = [
        f"# HELP {name} {help_texts[name]}\n# TYPE {name} gauge\n{name} {float(value)!r}\n"
        for name, value in values.items()
    ]
    return "".join(lines).encode()
