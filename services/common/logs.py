"""Log lines: JSON for machines, colours on a terminal, with the trace on each line.

A message is constant, in the past tense and without a full stop; values are fields.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

from opentelemetry import trace

from services.common.lean import without

# structlog takes rich where it is installed, for tracebacks on a terminal: 4 MB.
with without("rich", "better_exceptions"):
    import structlog

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure(service: str, *, level: str = "info", fmt: str = "auto") -> None:
    """Send log lines to standard output.

    `level` is debug, info, warning or error; `fmt` is json, console, or auto
    (console on a terminal). Raises `ValueError` for any other.
    """
    if level not in _LEVELS:
        raise ValueError(f"log level {level!r}: use one of {', '.join(_LEVELS)}")
    if fmt not in ("auto", "json", "console"):
        raise ValueError(f"log format {fmt!r}: use auto, json or console")
    pretty = fmt == "console" or (fmt == "auto" and sys.stdout.isatty())
    renderer: Any = structlog.dev.ConsoleRenderer() if pretty else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            _add_service(service),
            add_trace,
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stdout),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(name)s %(levelname)s %(message)s")


def _add_service(service: str) -> structlog.typing.Processor:
    def add(_: Any, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        line.setdefault("service", service)
        return line

    return add


def add_trace(_: Any, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put the current span's ids on the line."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        line["trace_id"] = f"{context.trace_id:032x}"
        line["span_id"] = f"{context.span_id:016x}"
    return line


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return a logger whose lines carry `module=name`."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(module=name)
    return logger
