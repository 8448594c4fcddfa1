"""Errors that cross a service's edge, with the google.rpc codes. Knows nothing of gRPC.

Source: google/rpc/code.proto and AIP-193. The server fills the `domain` of an
error's `ErrorInfo` with the proto package that it serves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum


class Code(IntEnum):
    """The canonical codes of google.rpc."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One fault of a request: where, and what."""

    field: str
    description: str


class TripodError(Exception):
    """Something that a caller can act upon.

    `reason` is UPPER_SNAKE, at most 63 characters, and never changes its meaning:
    clients branch on it. `metadata` holds every value that the message mentions.
    """

    def __init__(
        self,
        message: str,
        *,
        code: Code,
        reason: str,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after_seconds = retry_after_seconds


class RemoteError(TripodError):
    """A peer answered with an error, or could not be reached (`UNAVAILABLE`)."""
