"""Settings of a service: flag, then environment, then `--config` file, then default.

A service declares a frozen dataclass whose fields are made with `setting`. Every
fault of every source is reported at once; a key that nobody declared is a fault.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

from services.common.errors import Code, FieldViolation, TripodError

T = TypeVar("T")
_BOOLEANS = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}


class SettingsError(TripodError):
    """Settings that cannot be used; `violations` has them all."""

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        lines = "".join(f"\n  {v.field}: {v.description}" for v in violations)
        super().__init__(
            f"Unusable settings:{lines}",
            code=Code.INVALID_ARGUMENT,
            reason="SETTINGS_INVALID",
            violations=violations,
        )


class HelpRequested(Exception):  # noqa: N818  # not an error: the user asked for it
    """The text that `--help` or `--print-config` asked for."""


def setting(default: Any, *, help: str, secret: bool = False) -> Any:  # noqa: A002  # as argparse says
    """Declare a field: its default and what it means. A secret is printed as `***`."""
    return dataclasses.field(default=default, metadata={"help": help, "secret": secret})


def load(cls: type[T], *, argv: Sequence[str], environ: Mapping[str, str], prefix: str = "TRIPOD_") -> T:
    """Build the settings.

    `argv` is without the program's name. Raises `SettingsError`, or `HelpRequested`
    whose text the caller prints before it exits with 0.
    """
    reader = _Reader(cls, prefix)
    flags, special = reader.flags(argv)
    if "help" in special:
        raise HelpRequested(reader.help())
    layers = [reader.file(special["config"])] if "config" in special else []
    layers += [reader.environment(environ), flags]
    values = {name: value for layer in layers for name, value in layer.items()}
    if reader.faults:
        raise SettingsError(reader.faults)
    made = cls(**values)
    if "print-config" in special:
        raise HelpRequested(render(made))
    return made


def render(settings: Any) -> str:
    """Show settings as YAML, secrets hidden."""
    lines = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        shown = "***" if field.metadata.get("secret") and value else value
        lines[field.name] = (
            list(shown) if isinstance(shown, tuple) else str(shown) if isinstance(shown, Path) else shown
        )
    text: str = yaml.safe_dump(lines, sort_keys=False)
    return text


class _Reader:
    """Reads the sources for one class; gathers faults."""

    def __init__(self, cls: Any, prefix: str) -> None:
        self._types = get_type_hints(cls)
        self._fields = {field.name: field for field in dataclasses.fields(cls)}
        self._prefix = prefix
        self.faults: list[FieldViolation] = []

    def flags(self, argv: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
        """Read `--name value` and `--name=value`; `--flag` alone for a boolean."""
        values: dict[str, Any] = {}
        special: dict[str, str] = {}
        rest = list(argv)
        while rest:
            word = rest.pop(0)
            name, has_value, value = word.removeprefix("--").partition("=")
            key = name.replace("-", "_")
            if name in ("help", "print-config") or word == "-h":
                special["help" if word == "-h" else name] = ""
            elif not word.startswith("--") or (key not in self._fields and name != "config"):
                self._unknown(word.partition("=")[0], [f"--{f.replace('_', '-')}" for f in self._fields])
                if not has_value and rest and not rest[0].startswith("--"):
                    rest.pop(0)  # Its value; a second fault about it would only confuse.
            elif not has_value and self._types.get(key) is bool:
                values[key] = True
            elif not has_value and not rest:
                self._fault(f"--{name}", "needs a value")
            else:
                text = value if has_value else rest.pop(0)
                self._store(values, special, name, key, text)
        return values, special

    def _store(self, values: dict[str, Any], special: dict[str, str], name: str, key: str, text: str) -> None:
        if name == "config":
            special["config"] = text
        else:
            self._set(values, key, f"--{name}", text)

    def environment(self, environ: Mapping[str, str]) -> dict[str, Any]:
        """Read `<PREFIX><FIELD>`; other variables belong to others. An empty value means unset."""
        values: dict[str, Any] = {}
        for key in self._fields:
            name = f"{self._prefix}{key.upper()}"
            if environ.get(name):
                self._set(values, key, name, environ[name])
        return values

    def file(self, path: str) -> dict[str, Any]:
        """Read a YAML mapping of fields."""
        try:
            content = yaml.safe_load(Path(path).read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            self._fault(path, f"cannot be read: {error}")
            return {}
        if not isinstance(content, dict):
            self._fault(path, "must be a mapping of settings")
            return {}
        values: dict[str, Any] = {}
        for key, value in content.items():
            if key not in self._fields:
                self._unknown(f"{path}: {key}", list(self._fields))
            else:
                text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
                self._set(values, str(key), f"{path}: {key}", text)
        return values

    def _set(self, values: dict[str, Any], key: str, where: str, text: str) -> None:
        try:
            values[key] = _parser(self._types[key])(text)
        except ValueError as error:
            self._fault(where, str(error))

    def _unknown(self, where: str, known: list[str]) -> None:
        word = where.rsplit(": ", 1)[-1]
        close = difflib.get_close_matches(word, known, n=1)
        self._fault(where, "unknown setting" + (f", did you mean {close[0]}?" if close else ""))

    def _fault(self, where: str, what: str) -> None:
        self.faults.append(FieldViolation(where, what))

    def help(self) -> str:
        """List every setting with its default."""
        lines = ["Settings (flag, or environment variable, or key of the --config file):", ""]
        for name, field in self._fields.items():
            flag = f"--{name.replace('_', '-')}"
            lines.append(f"  {flag}  [{self._prefix}{name.upper()}]  default: {field.default}")
            lines.append(f"      {field.metadata.get('help', '')}")
        lines += [
            "",
            "  --config FILE   read settings from a YAML file",
            "  --print-config  show what is in force",
        ]
        return "\n".join(lines) + "\n"


def _parser(kind: Any) -> Callable[[str], Any]:
    if kind is bool:
        return _boolean
    if kind is int:
        return _integer
    if kind == tuple[str, ...]:
        return lambda text: tuple(part.strip() for part in text.split(",") if part.strip())
    parser: Callable[[str], Any] = kind
    return parser


def _boolean(text: str) -> bool:
    try:
        return _BOOLEANS[text.strip().lower()]
    except KeyError:
        raise ValueError(f"{text!r} is neither true nor false") from None


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None
