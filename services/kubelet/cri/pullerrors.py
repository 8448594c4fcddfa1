"""Why a pull failed, in words that say what to do. Pure.

The engine has one status (500, or 404) and many sentences, its own and the registry's;
the sentences are those of the Docker Engine from 20.10 on. What a pod shows as its
reason (ErrImagePull) the kubelet makes of any of these.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from services.common.errors import Code
from services.kubelet.cri.errors import CriError
from services.kubelet.cri.reference import Reference


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of failure: `pattern` is looked for in the engine's words, `what` is ours."""

    pattern: re.Pattern[str]
    code: Code
    reason: str
    what: str


def _fault(pattern: str, code: Code, reason: str, what: str) -> Fault:
    return Fault(re.compile(pattern, re.IGNORECASE), code, reason, what)


# The first that fits counts: a registry's status is more than the network's words around it.
FAULTS = (
    _fault(
        r"toomanyrequests|too many requests|\b429\b|rate limit",
        Code.RESOURCE_EXHAUSTED,
        "REGISTRY_RATE_LIMITED",
        "the registry takes no more pulls for now; wait, or pull with credentials",
    ),
    _fault(
        r"no matching manifest|does not match the specified platform|cannot be used on this platform",
        Code.FAILED_PRECONDITION,
        "IMAGE_PLATFORM_MISSING",
        "the image is not made for this machine",
    ),
    _fault(
        r"verification failed|unexpected digest|digest mismatch|invalid checksum|did not match the digest",
        Code.DATA_LOSS,
        "IMAGE_CORRUPT",
        "what the registry sent is not what its digest says",
    ),
    _fault(
        r"no space left on device|disk quota exceeded",
        Code.RESOURCE_EXHAUSTED,
        "DISK_FULL",
        "the engine's disk is full",
    ),
    _fault(
        r"x509|tls:|certificate|gave HTTP response to HTTPS",
        Code.FAILED_PRECONDITION,
        "REGISTRY_TLS_FAILED",
        "the registry's TLS is not trusted; install its certificate authority at the engine",
    ),
    _fault(
        r"unauthorized|no basic auth credentials|authentication required|incorrect username or password"
        r"|\b401\b",
        Code.UNAUTHENTICATED,
        "IMAGE_UNAUTHORIZED",
        "the registry wants other credentials",
    ),
    _fault(
        r"pull access denied|access denied|denied:|forbidden|\b403\b",
        Code.PERMISSION_DENIED,
        "IMAGE_ACCESS_DENIED",
        "the registry has no such image, or shows it to others alone",
    ),
    _fault(
        r"manifest unknown|manifest for .* not found|name unknown|repository .* not found"
        r"|blob unknown|unknown blob",
        Code.NOT_FOUND,
        "IMAGE_NOT_FOUND",
        "the registry has no such image",
    ),
    _fault(
        r"HTTP status: 5\d\d|internal server error|bad gateway|service unavailable|gateway time-?out",
        Code.UNAVAILABLE,
        "REGISTRY_FAILED",
        "the registry fails",
    ),
    _fault(
        r"no such host|dial tcp|lookup |connection refused|connection reset|network is unreachable"
        r"|no route to host|i/o timeout|\bEOF\b|Client\.Timeout|context deadline exceeded",
        Code.UNAVAILABLE,
        "REGISTRY_UNREACHABLE",
        "the registry cannot be reached",
    ),
)
UNKNOWN = Fault(re.compile(""), Code.UNKNOWN, "IMAGE_PULL_FAILED", "the engine could not pull it")


def classify(message: str) -> Fault:
    """Return the kind of a failure by the engine's words."""
    return next((fault for fault in FAULTS if fault.pattern.search(message)), UNKNOWN)


def error(image: str, reference: Reference, message: str) -> CriError:
    """Say why an image could not be pulled; `message` is the engine's, without secrets."""
    fault = classify(message)
    return CriError(
        f"Failed to pull image {image!r}: {fault.what} ({message.strip()})",
        code=fault.code,
        reason=fault.reason,
        metadata={"image": image, "registry": reference.host},
    )


def stalled(image: str, reference: Reference, seconds: float) -> CriError:
    """Say that nothing came for too long."""
    return CriError(
        f"Failed to pull image {image!r}: no progress for {seconds:g} s",
        code=Code.DEADLINE_EXCEEDED,
        reason="IMAGE_PULL_STALLED",
        metadata={"image": image, "registry": reference.host},
    )


def too_long(image: str, reference: Reference, seconds: float) -> CriError:
    """Say that the whole pull took too long."""
    return CriError(
        f"Failed to pull image {image!r}: it took longer than {seconds:g} s",
        code=Code.DEADLINE_EXCEEDED,
        reason="IMAGE_PULL_TIMEOUT",
        metadata={"image": image, "registry": reference.host},
    )
