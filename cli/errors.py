"""Exit codes, and errors that say what happened and what to do next."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of `tripod`; documented in the README."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_READY = 3
    NOT_FOUND = 4
    UNREACHABLE = 5
    INTERRUPTED = 130


class CliError(Exception):
    """Ends the command. `message` says what happened, `advice` what to do next."""

    def __init__(self, message: str, *, code: Exit = Exit.FAILED, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.advice = advice
