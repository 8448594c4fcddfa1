"""What the proxy says when it cannot do what was asked."""

from __future__ import annotations

from services.common.errors import Code, TripodError


class ProxyError(TripodError):
    """The proxy could not do something."""


class KernelRefusedError(ProxyError):
    """The kernel refused a transaction, and did nothing of it; or it could not be asked."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"The kernel refused the rules: {why.strip()}", code=Code.UNAVAILABLE, reason="KERNEL_REFUSED"
        )
