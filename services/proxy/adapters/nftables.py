"""nftables through libnftables, in the process: the one file that writes packet rules.

A fork of `nft` costs 7 to 12 ms for each change, a call of the library 0.3 ms. The
library is not safe to use from two threads, so it has one of its own.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from services.proxy.core import ruleset
from services.proxy.core.ruleset import CHAIN_RULES, FRAME_RULES, Ruleset
from services.proxy.errors import KernelRefusedError, LibraryMissingError

T = TypeVar("T")
# Source: nftables/libnftables.h.
_PR_SET_NAME = 15
_OUTPUT_JSON = 1 << 4
_OUTPUT_NUMERIC = (1 << 7) | (1 << 8) | (1 << 9)


class _Library:
    """One context of libnftables."""

    def __init__(self) -> None:
        try:
            self._lib = ctypes.CDLL("libnftables.so.1")
        except OSError as error:
            raise LibraryMissingError(str(error)) from error
        self._lib.nft_ctx_new.restype = ctypes.c_void_p
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(self._lib, name).restype = ctypes.c_char_p
        self._context = ctypes.c_void_p(self._lib.nft_ctx_new(0))
        self._lib.nft_ctx_buffer_output(self._context)
        self._lib.nft_ctx_buffer_error(self._context)
        self._lib.nft_ctx_output_set_flags(self._context, _OUTPUT_JSON | _OUTPUT_NUMERIC)

    def run(self, commands: str) -> str:
        """Run commands as one transaction; returns the output. Raises `KernelRefusedError`."""
        code = self._lib.nft_run_cmd_from_buffer(self._context, commands.encode())
        output = self._lib.nft_ctx_get_output_buffer(self._context) or b""
        error = self._lib.nft_ctx_get_error_buffer(self._context) or b""
        if code != 0:
            raise KernelRefusedError(error.decode(errors="replace"))
        return str(output.decode())


def _name_thread(name: str) -> None:
    """Give the kernel's name to this thread, at most 15 bytes: it tells who made a transaction (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


class NftablesKernel:
    """Implements `Kernel` in one table of family `ip`."""

    def __init__(self, table: str, *, thread_name: str = "nftables") -> None:
        self._table = table
        self._thread = ThreadPoolExecutor(max_workers=1, initializer=_name_thread, initargs=(thread_name,))
        self._library: _Library | None = None

    async def _in_thread(self, act: Callable[[_Library], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._act, act)

    def _act(self, act: Callable[[_Library], T]) -> T:
        if self._library is None:
            self._library = _Library()
        return act(self._library)

    async def read(self) -> Ruleset | None:
        """Return our rules; None when the table is missing, or its frame was changed."""
        return await self._in_thread(self._read)

    def _read(self, library: _Library) -> Ruleset | None:
        if not any(_name(t) == ("ip", self._table) for t in _items(library.run("list tables ip"), "table")):
            return None
        return parse(library.run(f"list table ip {self._table}"))

    async def change(self, present: Ruleset, wanted: Ruleset) -> None:
        """Change our rules."""
        await self._run(ruleset.change(self._table, present, wanted))

    async def rewrite(self, wanted: Ruleset) -> None:
        """Replace all our rules in one transaction."""
        await self._run(ruleset.rewrite(self._table, wanted))

    async def remove(self) -> None:
        """Remove our table."""
        await self._run([f"add table ip {self._table}", f"delete table ip {self._table}"])

    async def _run(self, commands: Sequence[str]) -> None:
        if commands:
            text = "\n".join(commands) + "\n"
            await self._in_thread(lambda library: library.run(text))


def _items(output: str, kind: str) -> list[dict[str, Any]]:
    listed = json.loads(output)["nftables"] if output.strip() else []
    return [item[kind] for item in listed if kind in item]


def _name(table: dict[str, Any]) -> tuple[str, str]:
    return table["family"], table["name"]


def parse(output: str) -> Ruleset | None:
    """Read the library's JSON of our table; None when its chains are not as we make them."""
    rule_counts: dict[str, int] = {chain["name"]: 0 for chain in _items(output, "chain")}
    for rule in _items(output, "rule"):
        rule_counts[rule["chain"]] += 1
    elements = {m["name"]: m.get("elem", []) for kind in ("map", "set") for m in _items(output, kind)}
    try:
        found = _ruleset(elements)
    except (KeyError, TypeError, ValueError, IndexError):
        return None
    wanted = FRAME_RULES | {ruleset.chain_name(count): CHAIN_RULES for count in found.counts()}
    return found if rule_counts == wanted else None


def _ruleset(elements: dict[str, list[Any]]) -> Ruleset:
    services = {_place(key): _count(verdict) for key, verdict in elements["service-ips"]}
    endpoints = {}
    for key, target in elements["endpoints"]:
        address, protocol, port, index = _parts(key)
        endpoints[(address, _protocol(protocol), int(port), int(index))] = _target(target)
    return Ruleset(
        endpoints=endpoints,
        services=services,
        refused=frozenset(_place(key) for key in elements["refused"]),
        addresses=frozenset(_plain(elements["cluster-ips"])),
        hairpins=frozenset(_parts(key)[0] for key in elements["hairpins"]),
    )


def _plain(values: Iterable[Any]) -> Iterable[str]:
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"not an address: {value!r}")
        yield value


def _parts(key: Any) -> list[Any]:
    return list(key["concat"])


def _place(key: Any) -> tuple[str, str, int]:
    address, protocol, port = _parts(key)
    return address, _protocol(protocol), int(port)


def _target(value: Any) -> tuple[str, int]:
    address, port = _parts(value)
    return address, int(port)


def _protocol(value: Any) -> str:
    return {"6": "tcp", "17": "udp"}.get(str(value), str(value))


def _count(verdict: Any) -> int:
    return int(verdict["goto"]["target"].removeprefix("lb-"))
