"""What cAdvisor says when it cannot do what was asked."""

from __future__ import annotations

from services.common.errors import Code, TripodError


class CadvisorError(TripodError):
    """A call to cAdvisor failed."""


class NoSampleError(CadvisorError):
    """Nothing has been sampled yet."""

    def __init__(self) -> None:
        super().__init__(
            "Nothing has been sampled yet",
            code=Code.UNAVAILABLE,
            reason="NO_SAMPLE_YET",
            retry_after_seconds=1.0,
        )


class NoCgroupsError(CadvisorError):
    """No cgroup tree was found."""

    def __init__(self, root: str) -> None:
        super().__init__(
            f"No cgroup tree is mounted under {root}",
            code=Code.FAILED_PRECONDITION,
            reason="NO_CGROUPS",
            metadata={"root": root},
        )


class ReaderClosedError(CadvisorError):
    """The service ends; what is looked for now interests nobody."""

    def __init__(self) -> None:
        super().__init__("The reader of cgroups is closed", code=Code.CANCELLED, reason="READER_CLOSED")
