"""What the CRI server says when it cannot do what was asked."""

from __future__ import annotations

from services.common.errors import Code, TripodError


class CriError(TripodError):
    """A call to the CRI server failed."""


class EngineUnreachableError(CriError):
    """The Docker Engine does not answer."""

    def __init__(self, host: str, why: str) -> None:
        super().__init__(
            f"The Docker Engine at {host} does not answer: {why}",
            code=Code.UNAVAILABLE,
            reason="ENGINE_UNREACHABLE",
            metadata={"docker_host": host},
        )


class EngineTimeoutError(CriError):
    """The Docker Engine did not answer in time."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(
            f"The Docker Engine took longer than {seconds:g} s for {what}",
            code=Code.DEADLINE_EXCEEDED,
            reason="ENGINE_TIMEOUT",
            metadata={"call": what},
        )


class EngineRefusedError(CriError):
    """The Docker Engine refused a call. `status` is its HTTP status."""

    def __init__(self, what: str, status: int, why: str) -> None:
        super().__init__(
            why, code=_code(status), reason=_reason(status), metadata={"call": what, "status": str(status)}
        )
        self.status = status


class ListIncompleteError(CriError):
    """The engine left out of a list what it has. Nothing may be decided by such a list."""

    def __init__(self, container_id: str) -> None:
        super().__init__(
            f"The Docker Engine's list leaves out container {container_id[:12]}, which is there",
            code=Code.UNAVAILABLE,
            reason="ENGINE_LIST_INCOMPLETE",
            metadata={"container_id": container_id},
        )


class SandboxNotFoundError(CriError):
    """There is no such sandbox of ours."""

    def __init__(self, sandbox_id: str) -> None:
        super().__init__(
            f"Pod sandbox {sandbox_id!r} does not exist",
            code=Code.NOT_FOUND,
            reason="SANDBOX_NOT_FOUND",
            metadata={"pod_sandbox_id": sandbox_id},
        )


class ContainerNotFoundError(CriError):
    """There is no such container of ours."""

    def __init__(self, container_id: str) -> None:
        super().__init__(
            f"Container {container_id!r} does not exist",
            code=Code.NOT_FOUND,
            reason="CONTAINER_NOT_FOUND",
            metadata={"container_id": container_id},
        )


def not_ready(sandbox_id: str) -> CriError:
    """Say that a sandbox does not run, or not wholly."""
    return CriError(
        f"Pod sandbox {sandbox_id} is not ready", code=Code.FAILED_PRECONDITION, reason="SANDBOX_NOT_READY"
    )


def invalid(field: str, what: str) -> CriError:
    """Say which field of a request cannot be used, and why."""
    return CriError(
        f"{field}: {what}", code=Code.INVALID_ARGUMENT, reason="REQUEST_INVALID", metadata={"field": field}
    )


def unsupported(field: str, why: str) -> CriError:
    """Say which field of a request this engine or this host has no means for."""
    return CriError(
        f"{field}: {why}", code=Code.FAILED_PRECONDITION, reason="UNSUPPORTED", metadata={"field": field}
    )


def _code(status: int) -> Code:
    known = {400: Code.INVALID_ARGUMENT, 404: Code.NOT_FOUND, 409: Code.FAILED_PRECONDITION}
    return known.get(status, Code.UNKNOWN)


def _reason(status: int) -> str:
    known = {400: "ENGINE_BAD_REQUEST", 404: "ENGINE_NOT_FOUND", 409: "ENGINE_CONFLICT"}
    return known.get(status, "ENGINE_FAILED")
