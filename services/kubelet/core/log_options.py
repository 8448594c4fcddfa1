"""What a reader of a container's log asked for. Pure.

`insecureSkipTLSVerifyBackend` and `container` are for the API server, which passes them on; here they mean
nothing.

Source: core/v1 `PodLogOptions` and its validation; kubernetes pkg/kubelet/server/server.go, with its older
`tail`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Final

_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")
_LARGEST: Final = (1 << 63) - 1
# A year has fewer.
_MOST_SECONDS: Final = 1 << 40


class LogStream(Enum):
    """Which of a container's outputs are wanted."""

    ALL = "All"
    STDOUT = "Stdout"
    STDERR = "Stderr"


class QueryError(ValueError):
    """A query that cannot be read."""


class OptionsError(ValueError):
    """Options that exclude each other, or are out of range."""


@dataclass(frozen=True, slots=True)
class LogOptions:
    """Which part of a log. `since_ns` are nanoseconds of Unix time; None wants all that there is."""

    follow: bool = False
    previous: bool = False
    timestamps: bool = False
    since_ns: int | None = None
    tail_lines: int | None = None
    limit_bytes: int | None = None
    stream: LogStream = LogStream.ALL


def parse(query: Mapping[str, Sequence[str]], now: datetime) -> LogOptions:
    """Read a query. Raises `QueryError`, and `OptionsError` for what can be read but not be."""
    tail = _first(query, "tail")
    tail_lines = _number(query, "tailLines") if not tail else None if tail == "all" else _parsed(tail)
    options = LogOptions(
        follow=_flag(query, "follow"),
        previous=_flag(query, "previous"),
        timestamps=_flag(query, "timestamps"),
        since_ns=_since(query, now),
        tail_lines=tail_lines,
        limit_bytes=_number(query, "limitBytes"),
        stream=_stream(_first(query, "stream")),
    )
    _check(options)
    return options


def _check(options: LogOptions) -> None:
    if options.tail_lines is not None and options.tail_lines < 0:
        raise OptionsError("tailLines")
    if options.limit_bytes is not None and options.limit_bytes < 1:
        raise OptionsError("limitBytes")
    if options.stream is not LogStream.ALL and options.tail_lines is not None:
        raise OptionsError("stream")


def _since(query: Mapping[str, Sequence[str]], now: datetime) -> int | None:
    seconds, text = _number(query, "sinceSeconds"), _first(query, "sinceTime")
    if seconds is not None and text:
        raise OptionsError("sinceTime")
    if seconds is not None:
        if seconds < 1:
            raise OptionsError("sinceSeconds")
        return nanoseconds(now) - min(seconds, _MOST_SECONDS) * 10**9
    if not text:
        return None
    found = time_ns(text)
    if found is None:
        raise QueryError("sinceTime")
    return found


def _stream(text: str) -> LogStream:
    try:
        return LogStream(text or "All")
    except ValueError:
        raise OptionsError("stream") from None


def _first(query: Mapping[str, Sequence[str]], name: str) -> str:
    values = query.get(name, ())
    return values[0] if values else ""


def _flag(query: Mapping[str, Sequence[str]], name: str) -> bool:
    """Read a boolean as the API's decoder does: what is there and not `false` or `0` is true."""
    values = query.get(name, ())
    return bool(values) and values[0].lower() not in ("false", "0")


def _number(query: Mapping[str, Sequence[str]], name: str) -> int | None:
    text = _first(query, name)
    return _parsed(text) if text else None


def _parsed(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d{1,19}", text, re.ASCII) or abs(int(text)) > _LARGEST:
        raise QueryError(text)
    return int(text)


def nanoseconds(moment: datetime) -> int:
    """Return a moment, which knows its zone, as nanoseconds of Unix time."""
    since = moment - datetime.fromisoformat("1970-01-01T00:00:00+00:00")
    return since // timedelta(microseconds=1) * 1000


def time_ns(text: str) -> int | None:
    """Read RFC 3339 with up to nine digits of a second; None for what is none."""
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    try:
        whole = datetime.fromisoformat(match[1] + match[3].replace("Z", "+00:00"))
    except ValueError:
        return None
    return nanoseconds(whole) + int((match[2] or "").ljust(9, "0"))


def stamp(text: str) -> str:
    """Write an entry's time with all nine digits of its second, as the original shows it."""
    match = _TIME.fullmatch(text)
    return text if match is None else f"{match[1]}.{(match[2] or '').ljust(9, '0')}{match[3]}"
