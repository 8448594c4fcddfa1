"""What the proxy's inside needs from the outside."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.proxy.core.conntrack import Flow, StaleFlows
from services.proxy.core.health import PortHealth
from services.proxy.core.model import Decision, Endpoint, Pod, Service
from services.proxy.core.parts import Surroundings
from services.proxy.core.routes import FoundRoute
from services.proxy.core.ruleset import Change, Damage, Ruleset


@dataclass(frozen=True, slots=True)
class ServiceChanged:
    """A service came or changed; None means that it went."""

    uid: str
    service: Service | None


@dataclass(frozen=True, slots=True)
class PodChanged:
    """A pod came or changed, by the work of `traceparent`; None means that it went."""

    uid: str
    pod: Pod | None
    traceparent: str


@dataclass(frozen=True, slots=True)
class StartedOver:
    """A stream begins with a new snapshot: what it told before may be gone."""


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """A stream has told everything."""


class Plan(Protocol):
    """What is known, and what is decided of it."""

    @property
    def decisions(self) -> Mapping[str, Decision]:
        """Return the decisions by the service's UID, as of the last `decide`."""
        ...

    def decide(self) -> Mapping[str, Decision | None]:
        """Decide anew for what was touched; returns what came out differently, None for a gone service."""
        ...

    def surroundings(self, addresses: Sequence[str]) -> Surroundings:
        """Return what rules need to know of a node with these addresses."""
        ...


class Kernel(Protocol):
    """The packet rules of this host. Every call is one transaction, or changes nothing."""

    async def read(self) -> Ruleset | Damage:
        """Return our rules as the kernel has them, or why there are none to be read."""
        ...

    async def change(self, change: Change) -> None:
        """Change our rules. Raises `KernelRefusedError`."""
        ...

    async def rewrite(self, wanted: Ruleset) -> None:
        """Replace all our rules. Raises `KernelRefusedError`."""
        ...

    async def remove(self) -> None:
        """Remove all our rules. May be repeated."""
        ...


class RuleMonitor(Protocol):
    """Tells when somebody else changes our rules."""

    def foreign_changes(self) -> AsyncIterator[None]:
        """Yield whenever our rules may have been changed; once at the beginning."""
        ...


class Flows(Protocol):
    """The kernel's tracked flows."""

    async def delete(self, flows: Sequence[StaleFlows]) -> None:
        """Forget flows. Those that are not there are no error."""
        ...

    async def udp(self) -> Sequence[Flow]:
        """List the tracked UDP flows."""
        ...


class Routes(Protocol):
    """The host's IPv4 routes. Changes ours alone."""

    async def list(self) -> Sequence[FoundRoute]:
        """Return the routes of the main table. Raises `KernelRefusedError`."""
        ...

    async def put(self, network: str, gateway: str, *, replace: bool) -> None:
        """Add a route of ours, or lead one of ours elsewhere. Raises `KernelRefusedError`."""
        ...

    async def remove(self, network: str, gateway: str) -> None:
        """Remove a route of ours. One that is gone is no error."""
        ...

    async def reach(self, address: str) -> str:
        """Say why an address is not on a link of this host; empty when it is."""
        ...

    def changes(self) -> AsyncIterator[None]:
        """Yield whenever routes, addresses or links may have changed; once at the beginning."""
        ...


class LocalPorts(Protocol):
    """Node ports on 127.0.0.1."""

    async def serve(self, wanted: Mapping[tuple[str, int], Sequence[Endpoint]]) -> None:
        """Listen on exactly these (protocol, port), each leading to its endpoints."""
        ...

    def fault(self, protocol: str, port: int) -> str:
        """Return why a port is not served; empty when it is."""
        ...


class HealthPorts(Protocol):
    """The health check ports of services."""

    async def serve(self, wanted: Mapping[int, PortHealth]) -> None:
        """Listen on exactly these ports."""
        ...


NodeAddresses = Callable[[], Sequence[str]]
