"""What a peer is told when it breaks SPDY, and how its end is told to us. The numbers are the draft's."""

from __future__ import annotations

from enum import IntEnum


class ResetStatus(IntEnum):
    """Why a stream is reset (SPDY/3.1, 2.6.3)."""

    PROTOCOL_ERROR = 1
    INVALID_STREAM = 2
    REFUSED_STREAM = 3
    CANCEL = 5
    INTERNAL_ERROR = 6
    FLOW_CONTROL_ERROR = 7
    STREAM_ALREADY_CLOSED = 9


class GoAwayStatus(IntEnum):
    """Why a connection ends (SPDY/3.1, 2.6.6)."""

    OK = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


class PeerGoneError(Exception):
    """The peer has closed its side, or broke the protocol."""


class SpdyError(ValueError):
    """Bytes after which the connection cannot go on."""
