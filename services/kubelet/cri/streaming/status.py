"""How a command's end is told to its client. Pure.

Version 4 of the protocol and later carry a status document (apimachinery `metav1.Status`), earlier ones only
the words of a failure.

Source: kubernetes/apimachinery pkg/util/remotecommand/constants.go; kubelet pkg/cri/streaming/remotecommand.
"""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """A command that ended with `exit_code`, or one that could not be run, for which `failure` says why."""

    exit_code: int = 0
    failure: str = ""


def document(outcome: Outcome) -> bytes:
    """Render the status document."""
    if outcome.failure:
        status: dict[str, object] = {
            "metadata": {},
            "status": "Failure",
            "message": outcome.failure,
            "reason": "InternalError",
            "code": 500,
        }
    elif outcome.exit_code:
        status = {
            "metadata": {},
            "status": "Failure",
            "message": text(outcome),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": str(outcome.exit_code)}]},
        }
    else:
        status = {"metadata": {}, "status": "Success"}
    return json.dumps(status, separators=(",", ":")).encode()


def text(outcome: Outcome) -> str:
    """Say in words what went wrong; "" when nothing did."""
    if outcome.failure or not outcome.exit_code:
        return outcome.failure
    return f"command terminated with non-zero exit code: {outcome.exit_code}"
