"""What the CRI server needs around it. `streaming/session.py` has the ports of exec."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

from services.kubelet.cri.network.details import PodDetails
from services.kubelet.cri.streaming.session import ForwardRequest, StreamRequest


class PodNetwork(Protocol):
    """Gives sandboxes their addresses. Every call may be repeated."""

    async def attach(
        self,
        sandbox_id: str,
        pid: int,
        *,
        hostname: str,
        confirm: Callable[[], Awaitable[bool]] | None = None,
        pod: PodDetails | None = None,
    ) -> tuple[str, ...]:
        """Wire the network namespace of process `pid`; returns its addresses.

        `confirm` is asked once the namespace is held: whether `pid` is the sandbox's still.
        A repeat need not say again whose sandbox it is.
        """
        ...

    async def detach(self, sandbox_id: str) -> None:
        """Take the addresses back. The namespace may have gone."""
        ...

    def addresses(self, sandbox_id: str) -> tuple[str, ...]:
        """Return the addresses of an attached sandbox."""
        ...

    def ready(self) -> str | None:
        """Return None when pods can be wired, else why not."""
        ...


class NetworkUpkeep(PodNetwork, Protocol):
    """A pod network that mends itself when it is asked to."""

    async def ensure(self) -> None:
        """Make the network whole. Raises nothing: `ready` tells."""
        ...

    async def collect(
        self, live_sandbox_ids: Collection[str], *, among: Collection[str] | None = None
    ) -> tuple[str, ...]:
        """Remove what belongs to no live sandbox; the list must be complete. None but `among` goes."""
        ...


class StreamingServer(Protocol):
    """Hands out URLs at which commands run once."""

    def exec_url(self, request: StreamRequest) -> str:
        """Return a URL that works once, within a minute."""
        ...

    def attach_url(self, request: StreamRequest) -> str:
        """Return a URL that attaches to a container, once, within a minute."""
        ...

    def forward_url(self, request: ForwardRequest) -> str:
        """Return a URL that forwards ports of a sandbox, once, within a minute."""
        ...
