"""Bytes to documents: YAML or JSON, read strictly. Pure.

Refused, each with its place: more than 4 MiB, duplicate keys, aliases that expand
beyond bounds, nesting beyond 64, keys that are no text, tags, text with NUL. YAML is
read as 1.1, as Kubernetes does, so `yes` is true; a field that wants text says so.

Bounds are checked on the stream of events, before anything is built of it: libyaml's
composer recurses in C, and a deep manifest would end the process. Numbers of base 60
(`1:30`) stay text, as in Kubernetes; a long one would take hours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

LIMIT_BYTES = 4 << 20
DEPTH_LIMIT = 64
NODE_LIMIT = 200_000
DOCUMENT_LIMIT = 1000
_NUMBER_LIMIT = 64
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Document:
    """One document and its place among others, from 0."""

    index: int
    value: Any


class DocumentError(ValueError):
    """Bytes that are no manifest; says where and why."""


class _StrictLoader(_SafeLoader):  # type: ignore[misc]  # chosen at run time: with or without libyaml
    """Refuses duplicate keys, and counts what aliases expand to."""


def _mapping(loader: Any, node: Any) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key_node, value_node in node.value:
        where = f"line {key_node.start_mark.line + 1}"
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise DocumentError(f"{where}: the key {key!r} is not text; put it in quotes")
        if key in made:
            raise DocumentError(f"{where}: the key {key!r} stands twice")
        made[key] = loader.construct_object(value_node, deep=True)
    return made


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _number(construct: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def constructed(loader: Any, node: Any) -> Any:
        if ":" in node.value:
            return node.value
        if len(node.value) > _NUMBER_LIMIT:
            raise DocumentError(f"line {node.start_mark.line + 1}: a number of {len(node.value)} digits")
        return construct(loader, node)

    return constructed


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _number(_SafeLoader.construct_yaml_int))
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _number(_SafeLoader.construct_yaml_float))
# Times stay text, as in JSON.
_StrictLoader.add_constructor(
    "tag:yaml.org,2002:timestamp", lambda loader, node: loader.construct_scalar(node)
)


def read(data: bytes) -> list[Document]:
    """Read every document that is not empty; items of a `List` count as documents. Raises `DocumentError`."""
    if len(data) > LIMIT_BYTES:
        raise DocumentError(f"the manifest has {len(data)} bytes; at most {LIMIT_BYTES} are read")
    try:
        _scan(data)
        values = [value for value in _load(data) if value is not None]
    except DocumentError:
        raise
    except yaml.YAMLError as error:
        raise DocumentError(_place(error)) from error
    except ValueError as error:
        # Such as a date or a number that Python cannot hold.
        raise DocumentError(str(error)) from error
    flat = [item for value in values for item in _items(value)]
    if len(flat) > DOCUMENT_LIMIT:
        raise DocumentError(f"{len(flat)} objects; at most {DOCUMENT_LIMIT} are read at once")
    return [Document(index, value) for index, value in enumerate(flat)]


def _scan(data: bytes) -> None:
    """Go through the events once, building nothing."""
    depth = seen = documents = 0
    for event in yaml.parse(data, Loader=_SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent) and not _plain(event.value):
            raise DocumentError(f"line {line}: text with a NUL or half a character")
        seen += isinstance(event, yaml.NodeEvent)
        if depth > DEPTH_LIMIT:
            raise DocumentError(f"line {line}: nested deeper than {DEPTH_LIMIT}")
        if seen > NODE_LIMIT:
            raise DocumentError(f"line {line}: more than {NODE_LIMIT} values")
        if documents > DOCUMENT_LIMIT:
            raise DocumentError(f"line {line}: more than {DOCUMENT_LIMIT} documents")


def _plain(text: str) -> bool:
    """Tell whether a text can be written to a file and passed to a program."""
    return "\0" not in text and (text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text))


def _load(data: bytes) -> Iterator[Any]:
    loader = _StrictLoader(data)
    try:
        while loader.check_node():
            node = loader.get_node()
            _measure(node)
            yield loader.construct_document(node)
    finally:
        loader.dispose()


def _measure(root: Any) -> None:
    """Count the nodes as if every alias were written out; a bomb ends here, before it is built."""
    seen = 0
    stack = [(root, 1)]
    while stack:
        node, depth = stack.pop()
        seen += 1
        if depth > DEPTH_LIMIT:
            raise DocumentError(f"line {node.start_mark.line + 1}: nested deeper than {DEPTH_LIMIT}")
        if seen > NODE_LIMIT:
            raise DocumentError(f"more than {NODE_LIMIT} values; aliases count each time they are used")
        if isinstance(node, yaml.MappingNode):
            stack += [(part, depth + 1) for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            stack += [(part, depth + 1) for part in node.value]


def _items(value: Any) -> list[Any]:
    if isinstance(value, dict) and value.get("kind") == "List" and isinstance(value.get("items"), list):
        return list(value["items"])
    return [value]


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else str(problem)
