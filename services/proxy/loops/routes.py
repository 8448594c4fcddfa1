"""Keep the routes to other nodes' pods as the nodes ask: look, decide, change, again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from services.common import failpoints
from services.common.clock import Clock
from services.common.errors import TripodError
from services.common.gauges import labelled
from services.common.logs import get_logger
from services.proxy.core import routes
from services.proxy.core.audit import Audited, audit_routes
from services.proxy.core.cluster import Node
from services.proxy.core.routes import FoundRoute, RoutePlan
from services.proxy.ports import Routes

log = get_logger(__name__)
_PAUSE_SECONDS = 0.2
_LOOK_SECONDS = 60.0
_RETRY_SECONDS = 2.0
_WRITE = failpoints.step("routes.write")
ROUTES = "kubeproxy_node_routes"
UNROUTED = "kubeproxy_node_unrouted"


class RouteSync:
    """`nodes` gives those that are known, None before all are; `wanted` whether routes are ours to keep."""

    def __init__(
        self,
        kernel: Routes,
        *,
        own_name: str,
        nodes: Callable[[], Collection[Node] | None],
        wanted: Callable[[], bool],
        clock: Clock,
    ) -> None:
        self._kernel = kernel
        self._own_name = own_name
        self._nodes = nodes
        self._wanted = wanted
        self._clock = clock
        self._dirty = asyncio.Event()
        self._faults: Mapping[str, str] = {}
        self._count = 0

    def gauges(self) -> dict[str, float]:
        """Return how many routes there are, and each node whose pods have none, with the reason."""
        without = [labelled(UNROUTED, ("node", "reason"), fault) for fault in self._faults.items()]
        return {ROUTES: self._count, **dict.fromkeys(without, 1.0)}

    def touched(self) -> None:
        """Note that nodes have changed."""
        self._dirty.set()

    async def listen(self) -> None:
        """Look again whenever somebody changes routes, addresses or links."""
        async for _ in self._kernel.changes():
            self._dirty.set()

    async def look_again(self) -> None:
        """Look again every minute, whatever happens."""
        while True:
            await self._clock.sleep(_LOOK_SECONDS)
            self._dirty.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                await self._sync()
            except TripodError as error:
                log.error("Could not write the routes", reason=error.reason, error=error.message)
                self._dirty.set()
                await self._clock.sleep(_RETRY_SECONDS)
            await self._clock.sleep(_PAUSE_SECONDS)

    async def _sync(self) -> None:
        nodes = self._asking()
        if nodes is None:
            return
        found, plan = await _look(self._kernel, nodes, self._own_name)
        self._tell(plan.faults)
        if plan.add or plan.replace or plan.remove:
            async with _WRITE:
                await self._write(plan)
            await _WRITE.recorded()
            log.info("Wrote routes", added=len(plan.add) + len(plan.replace), removed=len(plan.remove))
        self._count = len(routes.own(found)) + len(plan.add) - len(plan.remove)

    def _asking(self) -> Collection[Node] | None:
        """Return the nodes that routes are kept for; None before all are known."""
        return self._nodes() if self._wanted() else ()

    async def audit(self) -> Audited:
        """Compare the kernel's routes of ours with those that the nodes ask for."""
        nodes = self._asking()
        if nodes is None:
            return Audited(unavailable={"route": "the API server has not told all nodes yet"})
        return await audit(self._kernel, nodes, self._own_name)

    async def _write(self, plan: RoutePlan) -> None:
        """Write all that the kernel takes. Raises its first refusal, which keeps no other route away."""
        refusals = [
            *[await _refusal(self._kernel.remove(*route)) for route in plan.remove.items()],
            *[await _refusal(self._kernel.put(*route, replace=True)) for route in plan.replace.items()],
            *[await _refusal(self._kernel.put(*route, replace=False)) for route in plan.add.items()],
        ]
        for refusal in filter(None, refusals):
            raise refusal

    def _tell(self, faults: Mapping[str, str]) -> None:
        for name, fault in faults.items():
            if self._faults.get(name) != fault:
                log.warning("A node's pods have no route", node=name, why=fault)
        self._faults = faults


async def _look(
    kernel: Routes, nodes: Collection[Node], own_name: str
) -> tuple[Sequence[FoundRoute], RoutePlan]:
    found = await kernel.list()
    others = {node.address for node in nodes if node.address and node.name != own_name}
    reach = {address: await kernel.reach(address) for address in sorted(others)}
    return found, routes.plan(nodes, own_name, found, reach.__getitem__)


async def audit(kernel: Routes, nodes: Collection[Node], own_name: str) -> Audited:
    """Compare the kernel's routes of ours with those that `nodes` ask for."""
    try:
        found, plan = await _look(kernel, nodes, own_name)
    except TripodError as error:
        return Audited(unavailable={"route": error.message})
    return Audited(audit_routes(plan, found), {"route": len(routes.own(found))})


async def _refusal(change: Awaitable[None]) -> TripodError | None:
    try:
        await change
    except TripodError as error:
        return error
    return None


async def remove_all(kernel: Routes) -> None:
    """Remove every route of ours."""
    for route in await kernel.list():
        if route.ours:
            await kernel.remove(route.network, route.gateway)
