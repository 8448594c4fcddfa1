"""Read the fields of one mapping, and gather every fault with its path. Pure.

The promise: a field is honoured or refused, never ignored. A name that Kubernetes
does not know is unknown; one that it knows and we do not is "not supported yet",
unless its value asks for what happens anyway.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from services.common.errors import FieldViolation
from services.kubelet.core import quantity

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
DNS_SUBDOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
PORT_NAME = re.compile(r"(?=.{1,15}$)(?=.*[a-z])[a-z0-9](-?[a-z0-9])*")
# Printable ASCII but `=`, as Kubernetes has it since 1.34.
ENV_NAME = re.compile(r"[ -<>-~]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TOLD_CHARACTERS = 1000
_LABEL_PART = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


class Faults:
    """Gathers the faults of an object, up to a limit: a hostile one has a hundred thousand."""

    LIMIT = 100

    def __init__(self) -> None:
        self.found: list[FieldViolation] = []

    def add(self, path: str, what: str) -> None:
        """Note one fault."""
        if len(self.found) == self.LIMIT:
            self.found.append(FieldViolation("and so on", f"only the first {self.LIMIT} faults are told"))
        elif len(self.found) < self.LIMIT:
            self.found.append(FieldViolation(_short(path), _short(what)))

    def unique(self, path: str, names: Sequence[str]) -> None:
        """Note each name that stands more than once; an empty one is none."""
        for name in sorted({name for name in names if name and names.count(name) > 1}):
            self.add(path, f"the name {name!r} stands twice")

    @property
    def full(self) -> bool:
        """Whether no more faults are noted."""
        return len(self.found) > self.LIMIT


class Fields:
    """The fields of one mapping at `path`.

    `known` are read by the caller. `later` names those that Kubernetes has and we do
    not support yet, each with the values that ask for nothing else than what happens.
    """

    def __init__(
        self,
        value: Any,
        path: str,
        faults: Faults,
        *,
        known: Sequence[str],
        later: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        self.path = path
        self.faults = faults
        self._value: dict[str, Any] = value if isinstance(value, dict) else {}
        if not isinstance(value, dict):
            faults.add(path, f"must be a mapping, not {_kind(value)}")
        self._refuse_others(known, later or {})

    def _refuse_others(self, known: Sequence[str], later: Mapping[str, Sequence[Any]]) -> None:
        for name, value in self._value.items():
            if name in known:
                continue
            if self.faults.full:
                return
            if name not in later:
                close = difflib.get_close_matches(name, [*known, *later], n=1, cutoff=0.7)
                self.fault(name, "unknown field" + (f", did you mean {close[0]}?" if close else ""))
            elif value is not None and value not in later[name]:
                self.fault(name, "not supported yet")

    def at(self, name: str) -> str:
        """Return the path of a field."""
        return f"{self.path}.{name}" if self.path else name

    def fault(self, name: str, what: str) -> None:
        """Note a fault of a field."""
        self.faults.add(self.at(name), what)

    def has(self, name: str) -> bool:
        """Tell whether a field is given; null means that it is not."""
        return self._value.get(name) is not None

    def raw(self, name: str) -> Any:
        """Return a field as it stands; None when it is not given."""
        return self._value.get(name)

    def text(
        self,
        name: str,
        default: str = "",
        *,
        required: bool = False,
        form: re.Pattern[str] | None = None,
        choices: Sequence[str] = (),
        what: str = "",
    ) -> str:
        """Read text; a number or a boolean is a fault, since YAML guesses those from text without quotes."""
        value = self._value.get(name)
        if value is None:
            if required:
                self.fault(name, "is required")
            return default
        if not isinstance(value, str):
            self.fault(name, f"must be text, not {_kind(value)}; put it in quotes")
            return default
        if required and not value:
            self.fault(name, "must not be empty")
        elif choices and value not in choices:
            self.fault(name, f"{value!r} is not one of {', '.join(c or 'an empty text' for c in choices)}")
        elif form is not None and value and not form.fullmatch(value):
            self.fault(name, f"{value!r} is not {what or 'of the right form'}")
        else:
            return value
        return default

    def whole(self, name: str, default: int, *, low: int, high: int, required: bool = False) -> int:
        """Read a whole number from `low` to `high`."""
        value = self._value.get(name)
        if value is None:
            if required:
                self.fault(name, "is required")
            return default
        if not isinstance(value, int) or isinstance(value, bool):
            self.fault(name, f"must be a whole number, not {_kind(value)}")
        elif not low <= value <= high:
            self.fault(name, f"{value} is not from {low} to {high}")
        else:
            return value
        return default

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Read a boolean."""
        value = self._value.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fault(name, f"must be true or false, not {_kind(value)}")
            return default
        return value

    def items(self, name: str, *, required: bool = False) -> list[tuple[Any, str]]:
        """Read a list: each item with its path."""
        value = self._value.get(name)
        if value is None or value == []:
            if required:
                self.fault(name, "needs one item at least")
            return []
        if not isinstance(value, list):
            self.fault(name, f"must be a list, not {_kind(value)}")
            return []
        return [(item, f"{self.at(name)}[{index}]") for index, item in enumerate(value)]

    def texts(self, name: str) -> tuple[str, ...]:
        """Read a list of texts."""
        found = []
        for item, path in self.items(name):
            if isinstance(item, str):
                found.append(item)
            else:
                self.faults.add(path, f"must be text, not {_kind(item)}; put it in quotes")
        return tuple(found)

    def mapping(self, name: str, *, values: Callable[[str], str | None] | None = None) -> dict[str, str]:
        """Read a mapping of label keys to text; `values` says what is wrong with a value."""
        value = self._value.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.fault(name, f"must be a mapping, not {_kind(value)}")
            return {}
        found: dict[str, str] = {}
        for key, item in value.items():
            path = f"{self.at(name)}[{key}]"
            wrong = label_key_fault(key) or (
                f"must be text, not {_kind(item)}; put it in quotes"
                if not isinstance(item, str)
                else values(item)
                if values
                else None
            )
            if wrong:
                self.faults.add(path, wrong)
            else:
                found[key] = item
        return found

    def amount(self, name: str) -> int | None:
        """Read a quantity of bytes; None where there is none."""
        value = self._value.get(name)
        if value is None:
            return None
        try:
            text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
            if not isinstance(text, str):
                raise quantity.QuantityError(f"must be a quantity, not {_kind(value)}")
            return quantity.whole(text)
        except quantity.QuantityError as error:
            self.fault(name, str(error))
            return None

    def amounts(self, name: str, readers: Mapping[str, Callable[[str], int]]) -> dict[str, int]:
        """Read a mapping of resource names to quantities, each by its reader."""
        value = self._value.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.fault(name, f"must be a mapping, not {_kind(value)}")
            return {}
        found: dict[str, int] = {}
        for key, item in value.items():
            path = f"{self.at(name)}.{key}"
            if key not in readers:
                self.faults.add(path, "not supported yet" if "-" in key or "/" in key else "unknown resource")
                continue
            try:
                text = str(item) if isinstance(item, int | float) and not isinstance(item, bool) else item
                if not isinstance(text, str):
                    raise quantity.QuantityError(f"must be a quantity, not {_kind(item)}")
                found[key] = readers[key](text)
            except quantity.QuantityError as error:
                self.faults.add(path, str(error))
        return found


def _short(text: str) -> str:
    """Cut a text that a manifest made long; what it says at its end counts most."""
    return text if len(text) <= _TOLD_CHARACTERS else f"{text[:400]} ... {text[-400:]}"


def path_fault(value: str) -> str | None:
    """Say what is wrong with a path inside a container or on the host; None when nothing is."""
    if not value.startswith("/"):
        return "must be absolute"
    if ".." in value.split("/"):
        return "must be without '..'"
    return control_fault(value)


def control_fault(value: str) -> str | None:
    """Say that a text holds a control character, such as the end of a line; None when it holds none."""
    return "must be without control characters" if _CONTROL.search(value) else None


def label_key_fault(key: str) -> str | None:
    """Say what is wrong with a label's key; None when nothing is."""
    prefix, slash, name = key.rpartition("/")
    if slash and not DNS_SUBDOMAIN.fullmatch(prefix):
        return f"the prefix {prefix!r} is not a DNS subdomain"
    if not _LABEL_PART.fullmatch(name):
        return (
            "the name must be 1 to 63 letters, digits, '-', '_' or '.', with a letter or digit at both ends"
        )
    return None


def label_value_fault(value: str) -> str | None:
    """Say what is wrong with a label's value; None when nothing is."""
    if value and not _LABEL_PART.fullmatch(value):
        return f"{value!r} must be 0 to 63 letters, digits, '-', '_' or '.', letters or digits at both ends"
    return None


def _kind(value: Any) -> str:
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "a mapping",
    }
    return names.get(type(value), "null" if value is None else type(value).__name__)
