"""What the proxy says when it cannot do what was asked."""

from __future__ import annotations

from services.common.errors import Code, TripodError


class ProxyError(TripodError):
    """The proxy could not do something."""


class KernelRefusedError(ProxyError):
    """The kernel, or libnftables before it, refused a transaction; nothing of it was done."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"The kernel refused the rules: {why.strip()}", code=Code.UNAVAILABLE, reason="KERNEL_REFUSED"
        )


class LibraryMissingError(ProxyError):
    """libnftables is not installed."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"Cannot load libnftables.so.1: {why}; install Debian's package libnftables1",
            code=Code.FAILED_PRECONDITION,
            reason="LIBNFTABLES_MISSING",
        )
