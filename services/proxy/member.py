"""What the proxy has besides when its node is a member of a cluster. Part of the composition root.

Apart from `app` because it speaks TLS, which a node that is alone does without.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path

from services.common import kubeconfig
from services.common.clock import Clock
from services.common.kubeapi import KubeApi
from services.common.reflector import Reflector
from services.proxy.adapters.cluster_objects import (
    NODES,
    SERVICES,
    SLICES,
    node_value,
    service_value,
    slice_value,
)
from services.proxy.adapters.kubelet_client import KubeletClient
from services.proxy.adapters.routes import KernelRoutes
from services.proxy.config import ProxyConfig
from services.proxy.core.cluster import ClusterPlan, Node
from services.proxy.loops import cluster_feed
from services.proxy.loops.cluster_feed import ClusterFeed
from services.proxy.loops.routes import RouteSync
from services.proxy.loops.sync import ServiceSync


class Member:
    """The watches of an API server, and the routes to other nodes' pods."""

    def __init__(
        self,
        config: ProxyConfig,
        node_name: str,
        plan: ClusterPlan,
        sync: ServiceSync,
        clock: Clock,
        programmed: Callable[[float], None],
    ) -> None:
        self._config = config
        self._node_name = node_name
        self._plan = plan
        self._sync = sync
        access = kubeconfig.load(config.kubeconfig)
        self._api = KubeApi(access, clock, agent="tripod-proxy")
        self.routes = RouteSync(
            KernelRoutes(),
            own_name=node_name,
            nodes=self._nodes,
            wanted=self._routes_wanted,
            clock=clock,
        )
        self._feed = ClusterFeed(plan, sync, clock, nodes_changed=self.routes.touched, programmed=programmed)
        self._services = Reflector(
            self._api, SERVICES, read=service_value, tell=self._feed.tell_services, clock=clock
        )
        self._slices = Reflector(
            self._api, SLICES, read=slice_value, tell=self._feed.tell_slices, clock=clock
        )
        self._known_nodes = Reflector(
            self._api, NODES, read=node_value, tell=self._feed.tell_nodes, clock=clock
        )

    def loops(self, client: KubeletClient) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """Return what is to run, by name."""
        return {
            "services": self._services.run,
            "slices": self._slices.run,
            "nodes": self._known_nodes.run,
            "traces": lambda: self._feed.follow_pods(client.pods()),
            "routes": self.routes.run,
            "routes-heard": self.routes.listen,
            "routes-again": self.routes.look_again,
        }

    async def tell_when_known(self) -> None:
        """Tell the sync of each selection once all of it is known; then return."""
        known = (self._services.synced, self._slices.synced, self._known_nodes.synced)
        for source, synced in zip(cluster_feed.SOURCES, known, strict=True):
            await synced.wait()
            self._sync.caught_up(source)
        self.routes.touched()

    def _nodes(self) -> Collection[Node] | None:
        return self._plan.nodes.values() if self._known_nodes.synced.is_set() else None

    def _routes_wanted(self) -> bool:
        setting = self._config.node_routes
        return setting == "on" or (setting == "auto" and not _configured(self._config.cni_conf_dir))

    @property
    def eligible(self) -> bool:
        """Whether load balancers should send to this node: it is known, and not about to go."""
        own = self._plan.nodes.get(self._node_name)
        return own is None or not own.leaving

    def faults(self) -> list[str]:
        """Say which watches fail; what was known stays in force."""
        found = (self._services.fault(), self._slices.fault(), self._known_nodes.fault())
        return [fault for fault in found if fault]

    async def close(self) -> None:
        """End the connections to the API server."""
        await self._api.close()


def _configured(folder: Path) -> bool:
    """Tell whether a folder has a CNI configuration, by its name alone."""
    try:
        return any(path.suffix in (".conf", ".conflist", ".json") for path in folder.iterdir())
    except OSError:
        return False
