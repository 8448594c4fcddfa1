"""Read what a plugin printed: a result, or an error. No I/O.

Source: CNI specification 1.1.0, section 5, and 0.4.0 for the results before 1.0.0, whose addresses name their
family.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import Any, Final

# "Incompatible CNI version"; "Try again later".
INCOMPATIBLE: Final = 1
TRY_AGAIN: Final = 11
_TEXT_LIMIT: Final = 2048

Json = Mapping[str, Any]


class ResultError(ValueError):
    """A plugin printed what is no result."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that a plugin told; `code` 0 when it told none in the form of the specification."""

    message: str
    code: int = 0


def parse(output: bytes, version: str) -> dict[str, Any]:
    """Read a result as one of `version`. Raises `ResultError`."""
    try:
        result = json.loads(output)
    except (ValueError, RecursionError) as err:
        raise ResultError(f"its output is no JSON: {_shown(output)}") from err
    if not isinstance(result, dict):
        raise ResultError(f"its output is no object: {_shown(output)}")
    _see(result)
    return as_version(result, version)


def failure(output: bytes, complaint: bytes, exit_code: int) -> Failure:
    """Read the error that a plugin told; where there is none, what else it wrote, and how it ended."""
    try:
        told = json.loads(output)
        code, text, details = int(told["code"]), str(told["msg"]), str(told.get("details") or "")
        return Failure("; ".join(part for part in (text, details) if part)[:_TEXT_LIMIT], code)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    ended = f"was killed by signal {-exit_code}" if exit_code < 0 else f"ended with {exit_code}"
    said = _shown(complaint or output) if complaint or output else ""
    return Failure(f"{ended}: {said}" if said else ended)


def addresses(result: Json) -> tuple[str, ...]:
    """Return the addresses of the sandbox, without their lengths; those of the host's interfaces are not."""
    interfaces = result.get("interfaces") or []
    return tuple(
        str(ip_interface(ip["address"]).ip)
        for ip in result.get("ips") or []
        if _inside(ip.get("interface"), interfaces)
    )


def as_version(result: Json, version: str) -> dict[str, Any]:
    """Give a result the form of another version; a plugin may not know the one that it was asked in."""
    made = {**result, "cniVersion": version}
    if result.get("ips"):
        made["ips"] = [_address(ip, named=version.startswith("0.")) for ip in result["ips"]]
    return made


def _address(ip: Json, *, named: bool) -> dict[str, Any]:
    made = {key: value for key, value in ip.items() if key != "version"}
    return {"version": str(ip_interface(ip["address"]).version), **made} if named else made


def _inside(index: Any, interfaces: Any) -> bool:
    """Tell whether an address is the sandbox's: one that names no interface is."""
    return index is None or bool(interfaces[index].get("sandbox"))


def _see(result: Json) -> None:
    """See that what is read of a result can be read."""
    interfaces, ips = result.get("interfaces") or [], result.get("ips") or []
    if not _objects(interfaces) or not _objects(ips):
        raise ResultError("interfaces and ips must be lists of objects")
    for ip in ips:
        index = ip.get("interface")
        if index is not None and (type(index) is not int or not 0 <= index < len(interfaces)):
            raise ResultError(f"the address {ip.get('address')!r} is of no interface: {index!r}")
        try:
            ip_interface(str(ip["address"]))
        except (KeyError, ValueError) as err:
            raise ResultError(f"{ip.get('address')!r} is no address") from err


def _objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _shown(output: bytes) -> str:
    return output.decode(errors="backslashreplace").strip()[-_TEXT_LIMIT:]
