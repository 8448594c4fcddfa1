"""Instants at which a test may break a service: killed, failed, delayed, hung.

A step of work has three instants: `before` its effect, `after` the effect and
before anything is recorded of it, and `recorded`. Each has a name such as
`sandbox.create.before`. Off, an instant costs one look at a module's variable.

Grammar, after FreeBSD's fail(9): `name=term->term;name=term`, a term being
`[COUNT*]ACTION[(ARGUMENT)]`. A term with a count holds for that many passes, one
without for ever; after the last term nothing happens. `*` names every instant that is not named otherwise.

- `off`: nothing.
- `error(MESSAGE)`: fail, as an unavailable part does.
- `drop_reply`: the same under its own reason; at `after` the work was done and its caller never learns.
- `delay(MILLISECONDS)`, `hang`: wait so long, or for ever.
- `kill`: SIGKILL ourselves.
- `term`: SIGTERM ourselves and go on; `term(hang)` stays there for ever.
- `log(FILE)`: append the instant's name to a file, and go on.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType

from services.common.errors import Code, TripodError

POSITIONS = ("before", "after", "recorded")
ACTIONS = ("off", "error", "drop_reply", "delay", "hang", "kill", "term", "log")
_TERM = re.compile(r"(?:(?P<count>[0-9]+)\*)?(?P<action>[a-z_]+)(?:\((?P<argument>[^()]*)\))?")
_EVER = 1 << 62
_steps: dict[str, Step] = {}
_armed: dict[str, _Point] = {}


class FailpointError(TripodError):
    """A failpoint made this step fail."""

    def __init__(self, name: str, reason: str, message: str) -> None:
        super().__init__(message, code=Code.UNAVAILABLE, reason=reason, metadata={"failpoint": name})


class FailpointSyntaxError(TripodError):
    """The failpoints that were asked for cannot be read, or are not allowed."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code=Code.INVALID_ARGUMENT, reason="FAILPOINTS_INVALID")


@dataclass(slots=True)
class _Term:
    """What to do for the next `count` passes."""

    count: int
    action: str
    argument: str


@dataclass(slots=True)
class _Point:
    """One armed instant: what is left of its terms."""

    terms: list[_Term]
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self) -> _Term | None:
        """Take the term of this pass; None once all have held for as many passes as they say."""
        with self.lock:
            if not self.terms:
                return None
            term = self.terms[0]
            term.count -= 1
            if term.count <= 0:
                self.terms.pop(0)
            return term


def arm(text: str, *, allowed: bool) -> None:
    """Arm what `text` asks for, in place of what was armed. Raises `FailpointSyntaxError`.

    Refused unless `allowed`: nobody breaks a node by an environment variable left behind.
    """
    points = {name: _Point(terms) for name, terms in _parse(text)}
    if points and not allowed:
        raise FailpointSyntaxError(
            "Failpoints break this service on purpose; set allow_failpoints to arm them, or unset failpoints"
        )
    unknown = sorted(points.keys() - set(instants()) - {"*"})
    if unknown:
        raise FailpointSyntaxError(f"No such failpoint: {', '.join(unknown)}")
    _armed.clear()
    _armed.update(points)


def _parse(text: str) -> Iterator[tuple[str, list[_Term]]]:
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        name, separator, terms = entry.partition("=")
        if not separator:
            raise FailpointSyntaxError(f"{entry!r} is not of the form name=action")
        yield name.strip(), [_term(entry, word.strip()) for word in terms.split("->")]


def _term(entry: str, word: str) -> _Term:
    found = _TERM.fullmatch(word)
    if found is None or found["action"] not in ACTIONS:
        raise FailpointSyntaxError(f"{entry!r}: {word!r} is none of {', '.join(ACTIONS)}, with COUNT* before")
    argument = found["argument"] or ""
    if found["action"] == "delay" and not argument.isdigit():
        raise FailpointSyntaxError(f"{entry!r}: delay needs milliseconds, such as delay(200)")
    return _Term(int(found["count"] or _EVER), found["action"], argument)


def instants() -> list[str]:
    """Return the names of all instants of the steps that this process has."""
    return [f"{name}.{position}" for name in sorted(_steps) for position in POSITIONS]


class Step:
    """One step of work. `async with` (or `with`, in a thread) around its effect; then `recorded`.

    The instant `after` is passed only when the effect did not raise.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        _steps[name] = self

    async def __aenter__(self) -> None:
        if _armed:
            await _pass(f"{self.name}.before")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _armed and kind is None:
            await _pass(f"{self.name}.after")

    def __enter__(self) -> None:
        if _armed:
            _pass_in_thread(f"{self.name}.before")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _armed and kind is None:
            _pass_in_thread(f"{self.name}.after")

    async def recorded(self) -> None:
        """Say that the step's result is known to whoever asks."""
        if _armed:
            await _pass(f"{self.name}.recorded")

    def recorded_in_thread(self) -> None:
        """Say the same where nothing can be awaited."""
        if _armed:
            _pass_in_thread(f"{self.name}.recorded")


def step(name: str) -> Step:
    """Declare a step. Its name is lower case, with dots, and is declared once."""
    if name in _steps:
        raise ValueError(f"the step {name} is declared twice")
    return Step(name)


async def _pass(name: str) -> None:
    term = _now(name)
    if term is None:
        return
    if term.action == "delay":
        await asyncio.sleep(int(term.argument) / 1000)
    else:
        _do(name, term)
        if _hangs(term):
            await asyncio.Event().wait()


def _pass_in_thread(name: str) -> None:
    term = _now(name)
    if term is None:
        return
    if term.action == "delay":
        time.sleep(int(term.argument) / 1000)
    else:
        _do(name, term)
        if _hangs(term):
            threading.Event().wait()


def _hangs(term: _Term) -> bool:
    return term.action == "hang" or (term.action == "term" and term.argument == "hang")


def _now(name: str) -> _Term | None:
    point = _armed.get(name) or _armed.get("*")
    return point.next() if point else None


def _do(name: str, term: _Term) -> None:
    match term.action:
        case "error":
            raise FailpointError(name, "FAILPOINT", term.argument or f"Failed at {name} on purpose")
        case "drop_reply":
            raise FailpointError(name, "REPLY_DROPPED", f"Dropped the reply at {name} on purpose")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "term":
            os.kill(os.getpid(), signal.SIGTERM)
        case "log":
            with open(term.argument, "a", encoding="utf-8") as file:  # noqa: PTH123  # appends one line whole
                file.write(f"{name}\n")
