"""Environment variables and the `$(NAME)` references in them. Pure.

Source: Kubernetes `Container.command`, `args` and `env[].value`: `$(NAME)` is
replaced by a variable defined before, `$$` is one dollar, an unknown reference stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from services.kubelet.core.model import EnvVar

_REFERENCE = re.compile(r"\$(\$|\(([^()]*)\))")


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace the references of one text."""

    def replaced(match: re.Match[str]) -> str:
        if match[1] == "$":
            return "$"
        return values.get(match[2], match[0])

    return _REFERENCE.sub(replaced, text)


def environment(variables: Sequence[EnvVar]) -> dict[str, str]:
    """Compute the variables in order; each may refer to those before it. The last of a name wins."""
    values: dict[str, str] = {}
    for variable in variables:
        values[variable.name] = expand(variable.value, values)
    return values
