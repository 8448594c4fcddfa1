"""Environment variables and the `$(NAME)` references in them. Pure.

Source: Kubernetes `Container.command`, `args` and `env[].value`: `$(NAME)` is
replaced by a variable defined before, `$$` is one dollar, an unknown reference stays.

A variable that refers twice to the one before doubles; forty of them would fill any
memory. What the kernel would not take is refused while it is computed (execve(2)).
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence

from services.kubelet.core.brought import EnvSource
from services.kubelet.core.model import EMPTY, EnvVar

# One argument or variable with its name, '=' and final NUL: MAX_ARG_STRLEN of the kernel.
TEXT_LIMIT_BYTES = 128 << 10
# All arguments and variables together.
TOTAL_LIMIT_BYTES = 1 << 20
_REFERENCE = re.compile(r"\$(\$|\(([^()]*)\))")


class TooLongError(ValueError):
    """What comes of the references is more than the kernel takes; says of what."""


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace the references of one text. Raises `TooLongError`."""
    parts: list[str] = []
    length = end = 0
    for match in _REFERENCE.finditer(text):
        value = "$" if match[1] == "$" else values.get(match[2], match[0])
        parts += [text[end : match.start()], value]
        length += match.start() - end + len(value)
        end = match.end()
        if length > TEXT_LIMIT_BYTES:
            break
    made = "".join(parts) + text[end:]
    if len(made.encode()) >= TEXT_LIMIT_BYTES:
        raise TooLongError(f"grows beyond {TEXT_LIMIT_BYTES} bytes")
    return made


def all_known(text: str, values: Mapping[str, str]) -> bool:
    """Tell whether every reference of a text has a value."""
    names = [match[2] for match in _REFERENCE.finditer(text) if match[1] != "$"]
    return all(name in values for name in names)


def environment(
    variables: Sequence[EnvVar],
    *,
    given: Mapping[str, str] = EMPTY,
    behind: Mapping[str, str] = EMPTY,
    resolve: Callable[[EnvSource], str | None] = lambda source: None,
) -> dict[str, str]:
    """Compute the variables in order; each may refer to those before it. The last of a name wins.

    `given` are there before the first, `behind` wherever no other has the name. `resolve`
    finds the value of a source; None leaves the variable out. Raises `TooLongError`,
    which names the variable, and what `resolve` raises.
    """
    values: dict[str, str] = {}
    known = ChainMap(values, dict(behind))
    total = 0
    for name, value in (*behind.items(), *given.items()):
        total = _added(total, name, value)
    values.update(given)
    for variable in variables:
        found: str | None
        try:
            found = expand(variable.value, known) if variable.source is None else resolve(variable.source)
        except TooLongError as error:
            raise TooLongError(f"the variable {variable.name!r} {error}") from error
        if found is not None:
            total = _added(total, variable.name, found)
            values[variable.name] = found
    return dict(known)


def _added(total: int, name: str, value: str) -> int:
    """Add a variable's bytes to those before it. Raises `TooLongError`."""
    size = len(name) + len(value.encode()) + 2
    if size > TEXT_LIMIT_BYTES:
        raise TooLongError(f"the variable {name!r} grows beyond {TEXT_LIMIT_BYTES} bytes")
    if total + size > TOTAL_LIMIT_BYTES:
        raise TooLongError(f"with the variable {name!r} all of them exceed {TOTAL_LIMIT_BYTES} bytes")
    return total + size


def check(variables: Sequence[EnvVar], words: Sequence[str]) -> None:
    """See that a container's environment and words fit. Raises `TooLongError`."""
    values = environment(variables)
    total = sum(len(name) + len(value.encode()) + 2 for name, value in values.items())
    for number, word in enumerate(words):
        try:
            total += len(expand(word, values).encode()) + 1
        except TooLongError as error:
            raise TooLongError(f"word {number + 1} of command and args {error}") from error
        if total > TOTAL_LIMIT_BYTES:
            raise TooLongError(f"variables, command and args exceed {TOTAL_LIMIT_BYTES} bytes")
