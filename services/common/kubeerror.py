"""What a Kubernetes API server says when it does not do what was asked, and when it says nothing.

Source: `meta/v1` `Status` and `StatusReason`. `reason` is the server's own in UPPER_SNAKE:
`NOT_FOUND`, `ALREADY_EXISTS`, `CONFLICT`, `EXPIRED`, `TOO_MANY_REQUESTS` and so on; `API_UNREACHABLE`
and `API_STREAM_CUT` are ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from services.common.errors import Code, TripodError

UNREACHABLE = "API_UNREACHABLE"
STREAM_CUT = "API_STREAM_CUT"
_TOLD_CHARACTERS = 1000
_CODES = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    405: Code.UNIMPLEMENTED,
    409: Code.ABORTED,
    410: Code.OUT_OF_RANGE,
    413: Code.INVALID_ARGUMENT,
    422: Code.INVALID_ARGUMENT,
    429: Code.RESOURCE_EXHAUSTED,
    500: Code.INTERNAL,
    504: Code.DEADLINE_EXCEEDED,
}
_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class KubeApiError(TripodError):
    """A call to the API server failed.

    `status` is the HTTP status, 0 when there was no answer. `sent` tells whether the server may
    have heard the request all the same.
    """

    def __init__(
        self,
        message: str,
        *,
        code: Code,
        reason: str,
        status: int = 0,
        sent: bool = True,
        retry_after_seconds: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            message, code=code, reason=reason, metadata=metadata, retry_after_seconds=retry_after_seconds
        )
        self.status = status
        self.sent = sent

    @property
    def absent(self) -> bool:
        """Whether there is no such object."""
        return self.status == 404

    @property
    def expired(self) -> bool:
        """Whether the revision asked for is gone: list again."""
        return self.status == 410

    @property
    def replaced(self) -> bool:
        """Whether another object has the name by now: a UID that was demanded is not its own."""
        return self.status == 409 or (self.status == 422 and "metadata.uid" in self.message)

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed later without anybody's doing."""
        return self.status == 0 or self.status == 429 or self.status >= 500


def of_status(
    value: Any, *, http_status: int, what: str, retry_after_seconds: float | None = None
) -> KubeApiError:
    """Make an error of a `Status` object, or of an answer that holds none."""
    body: Mapping[str, Any] = value if isinstance(value, dict) and value.get("kind") == "Status" else {}
    given = body.get("code")
    status = given if isinstance(given, int) and given else http_status
    kube_reason = str(body.get("reason") or "")
    reason = _WORD.sub("_", kube_reason).upper() if kube_reason else f"HTTP_{status}"
    details = body.get("details") or {}
    if retry_after_seconds is None and isinstance(details, dict) and details.get("retryAfterSeconds"):
        retry_after_seconds = float(details["retryAfterSeconds"])
    text = str(body.get("message") or f"HTTP status {status}")[:_TOLD_CHARACTERS]
    return KubeApiError(
        f"{what}: {text}",
        code=Code.ALREADY_EXISTS if reason == "ALREADY_EXISTS" else _code(status),
        reason=reason[:63],
        status=status,
        retry_after_seconds=retry_after_seconds,
        metadata={"status": str(status), "request": what},
    )


def unreachable(what: str, why: str, *, sent: bool, reason: str = UNREACHABLE) -> KubeApiError:
    """Make the error of a server that gave no answer."""
    return KubeApiError(
        f"{what}: {why}", code=Code.UNAVAILABLE, reason=reason, sent=sent, metadata={"request": what}
    )


def _code(status: int) -> Code:
    known = _CODES.get(status)
    return known if known is not None else Code.UNAVAILABLE if status >= 500 else Code.UNKNOWN
