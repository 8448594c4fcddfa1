"""Read a CNI network configuration and see that it can be used. No I/O.

Source: CNI specification 1.1.0, section 1, and libcni for what it leaves open: a file of one plugin is a list
of one, the first file by name is the network, the highest of `cniVersions` that both sides know is spoken.

Left out: versions before 0.3.0, whose results have another form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

VERSIONS: Final = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
SUFFIXES: Final = (".conf", ".conflist", ".json")
# "must start with an alphanumeric character, optionally followed by any combination of one or more
# alphanumeric characters, underscore, dot (.) or hyphen (-)"
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_FLAGS: Final = ("disableCheck", "disableGC")
_PLUGIN_LIMIT: Final = 64

Json = Mapping[str, Any]


class ConfError(ValueError):
    """A configuration that cannot be used; the text lists every fault."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """One plugin of a network: its program's name and its configuration as written."""

    kind: str
    conf: Json

    @property
    def capabilities(self) -> frozenset[str]:
        """What the plugin wants to be told at run time."""
        return frozenset(name for name, wanted in self.conf.get("capabilities", {}).items() if wanted is True)


@dataclass(frozen=True, slots=True)
class Network:
    """A network: `source` names its file, `version` is the one to speak."""

    source: str
    name: str
    version: str
    plugins: tuple[Plugin, ...]
    disable_check: bool = False
    disable_gc: bool = False

    @property
    def checks(self) -> bool:
        """Tell whether CHECK may be asked for."""
        return not self.disable_check and _order(self.version) >= (0, 4, 0)

    @property
    def collects(self) -> bool:
        """Tell whether GC may be asked for."""
        return not self.disable_gc and _order(self.version) >= (1, 1, 0)

    @property
    def tells_status(self) -> bool:
        """Tell whether STATUS may be asked for."""
        return _order(self.version) >= (1, 1, 0)

    @property
    def remembers(self) -> bool:
        """Tell whether DEL is given the result of ADD."""
        return _order(self.version) >= (0, 4, 0)

    @property
    def capabilities(self) -> frozenset[str]:
        """What any plugin wants to be told at run time."""
        return frozenset[str]().union(*(plugin.capabilities for plugin in self.plugins))


def choose(names: Iterable[str]) -> str | None:
    """Return the file that holds the network: the first by name of those with a known ending."""
    return min((name for name in names if name.endswith(SUFFIXES) and not name.startswith(".")), default=None)


def parse(source: str, data: bytes) -> Network:
    """Read a file, be it a list of plugins or one plugin. Raises `ConfError` with every fault."""
    try:
        conf = json.loads(data)
    except (ValueError, RecursionError) as err:
        raise ConfError(f"not JSON: {err}") from err
    if not isinstance(conf, dict):
        raise ConfError("must be an object")
    plugins = conf.get("plugins", [conf])
    faults = [*_faults(conf), *_plugin_faults(plugins)]
    if faults:
        raise ConfError("; ".join(faults))
    return Network(
        source=source,
        name=conf["name"],
        version=_spoken(conf),
        plugins=tuple(Plugin(plugin["type"], plugin) for plugin in plugins),
        disable_check=conf.get("disableCheck") is True,
        disable_gc=conf.get("disableGC") is True,
    )


def render(network: Network) -> dict[str, Any]:
    """Write a network as a list that `parse` reads back."""
    return {
        "cniVersion": network.version,
        "name": network.name,
        "disableCheck": network.disable_check,
        "disableGC": network.disable_gc,
        "plugins": [dict(plugin.conf) for plugin in network.plugins],
    }


def valid_name(name: str) -> bool:
    """Tell whether a text may be a network's name or a container's id."""
    return _NAME.fullmatch(name) is not None


def _faults(conf: Json) -> Iterator[str]:
    name = conf.get("name")
    if not isinstance(name, str) or not valid_name(name):
        yield f"name: {name!r} must be letters, digits, '_', '.' or '-'"
    offered = list(_offered(conf))
    if not offered:
        yield "cniVersion: missing"
    elif not _known(offered):
        yield f"cniVersion: {', '.join(map(repr, offered))} is not among {', '.join(VERSIONS)}"
    for flag in _FLAGS:
        if not isinstance(conf.get(flag, False), bool):
            yield f"{flag}: must be true or false"


def _plugin_faults(plugins: Any) -> Iterator[str]:
    if not isinstance(plugins, list) or not plugins:
        yield "plugins: must be a list of at least one"
        return
    if len(plugins) > _PLUGIN_LIMIT:
        yield f"plugins: {len(plugins)} are more than {_PLUGIN_LIMIT}"
        return
    for number, plugin in enumerate(plugins):
        kind = plugin.get("type") if isinstance(plugin, dict) else None
        # It names a program in a folder: nothing else may be reached by it.
        if (
            not isinstance(kind, str)
            or not kind.isprintable()
            or not kind
            or "/" in kind
            or kind in (".", "..")
        ):
            yield f"plugins[{number}].type: {kind!r} must be the name of a program"
        elif not isinstance(plugin.get("capabilities", {}), dict):
            yield f"plugins[{number}].capabilities: must be an object"


def _offered(conf: Json) -> Iterator[Any]:
    if "cniVersion" in conf:
        yield conf["cniVersion"]
    more = conf.get("cniVersions", [])
    yield from more if isinstance(more, list) else [more]


def _known(offered: Collection[Any]) -> list[str]:
    return [version for version in offered if isinstance(version, str) and version in VERSIONS]


def _spoken(conf: Json) -> str:
    return max(_known(list(_offered(conf))), key=_order)


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
