"""What was seen of a host and its node. Values only; None means that it could not be seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """Where to look; the services' own settings have the same names and values."""

    docker_host: str = "unix:///var/run/docker.sock"
    run_directory: Path = Path("/run/tripod")
    state_directory: Path = Path("/var/lib/tripod")
    pod_cidr: str = "10.201.0.0/24"
    service_cidr: str = "10.202.0.0/16"
    bridge: str = "tripod0"
    chain_prefix: str = "TRIPOD"

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Settings:
        """Read them as the services do, from `TRIPOD_...`; the engine from `DOCKER_HOST`, too."""
        base = cls()
        engine = environ.get("TRIPOD_DOCKER_HOST") or environ.get("DOCKER_HOST")
        return cls(
            docker_host=engine or base.docker_host,
            run_directory=Path(environ.get("TRIPOD_RUN_DIRECTORY") or base.run_directory),
            state_directory=Path(environ.get("TRIPOD_STATE_DIRECTORY") or base.state_directory),
            pod_cidr=_set(environ.get("TRIPOD_POD_CIDR")) or base.pod_cidr,
            service_cidr=environ.get("TRIPOD_SERVICE_CIDR") or base.service_cidr,
            bridge=environ.get("TRIPOD_BRIDGE") or base.bridge,
            chain_prefix=environ.get("TRIPOD_CHAIN_PREFIX") or base.chain_prefix,
        )


def _set(value: str | None) -> str:
    """Return a setting that says something itself."""
    return "" if value in (None, "auto") else str(value)


@dataclass(frozen=True, slots=True)
class Space:
    """Room in a file system, in bytes."""

    free_bytes: int
    total_bytes: int

    @property
    def share(self) -> float:
        """The free share, 0 to 1."""
        return self.free_bytes / self.total_bytes if self.total_bytes else 0.0


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """The Docker Engine. With `error` nothing else is known; `denied` means that this user may not ask."""

    address: str
    error: str = ""
    denied: bool = False
    version: str = ""
    api_version: str = ""
    runc_version: str = ""
    live_restore: bool = True
    storage_driver: str = ""
    cgroup_driver: str = ""
    cgroup_version: str = ""
    runtimes: tuple[str, ...] = ()
    default_runtime: str = ""
    root_directory: str = ""
    root_space: Space | None = None
    skew_seconds: float = 0.0
    insecure_registries: tuple[str, ...] = ()
    mirrors: tuple[str, ...] = ()
    proxies: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """The kernel and what it offers."""

    release: str
    cgroups: str = ""
    controllers: frozenset[str] = frozenset()
    overlay: bool = True
    inotify_instances: int | None = None
    inotify_watches: int | None = None
    nf_tables: bool | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """One IPv4 route of the main table."""

    destination: str
    device: str


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """Switches, rules and routes. `forward` are the rules of FORWARD as `iptables -S` prints them."""

    settings: Settings
    ip_forward: bool | None = None
    bridge_netfilter: bool | None = None
    route_localnet: tuple[str, ...] = ()
    iptables: bool = True
    forward: tuple[str, ...] | None = None
    conntrack_count: int | None = None
    conntrack_limit: int | None = None
    routes: tuple[Route, ...] = ()
    bridge_exists: bool = False


@dataclass(frozen=True, slots=True)
class PortFacts:
    """One port of ours: who listens. `owner` is a process and its id; None where /proc hides it."""

    port: int
    purpose: str
    used: bool = False
    owner: str | None = None
    ours: bool = False


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A file or folder: its mode's permission bits, and the names of owner and group."""

    path: str
    mode: int
    owner: str
    group: str


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """One service: `error` says why it does not answer; the version is empty where it tells none."""

    name: str
    socket: FileFacts | None = None
    answers: bool = False
    denied: bool = False
    error: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """The node. `conditions` are (type, holds, message); `lock_owner` is who claims the state."""

    settings: Settings
    version: str = ""
    services: tuple[ServiceFacts, ...] = ()
    engine_group: str = ""
    conditions: tuple[tuple[str, bool, str], ...] = ()
    refused_manifests: Mapping[str, str] | None = None
    state: FileFacts | None = None
    state_space: Space | None = None
    state_propagation: str = ""
    token: FileFacts | None = None
    lock_owner: int | None = None
    lock_owner_alive: bool = False


@dataclass(frozen=True, slots=True)
class ClockFacts:
    """The clock. `synchronised` is None where nobody tells; `step_seconds` is the wall clock's jump."""

    year: int
    synchronised: bool | None = None
    source: str = ""
    error_seconds: float | None = None
    step_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class RightsFacts:
    """What this user may do, and what the engine may."""

    user: str = ""
    root: bool = False
    engine_socket: str = ""
    engine_group: str = ""
    in_group: bool = False
    reaches_engine: bool = False
    resource_capability: bool | None = None


@dataclass(frozen=True, slots=True)
class SurroundingFacts:
    """Proxies of this environment and of the engine, and compose."""

    settings: Settings
    proxies: Mapping[str, str] = field(default_factory=dict)
    engine_proxies: Mapping[str, str] | None = None
    compose: str = ""
