"""Who asks the kubelet for what, in the words of authorization. Pure.

Rules: the verb follows from the HTTP method; the resource is the node's, with a subresource that follows from
the path. Where there is a finer subresource it is asked first, and `proxy` next. A path that runs or reaches
something inside a pod asks for `create` whatever the method: a WebSocket begins with a GET, and `get` of
`nodes/proxy` is given away to read.

Source: kubernetes pkg/kubelet/server/auth.go; KEP-2862. The rule for `create` is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

_VERBS: Final = {"POST": "create", "GET": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_ACTING: Final = ("/exec", "/attach", "/portForward", "/run")
_FINE: Final = {
    "/pods": "pods",
    "/runningpods": "pods",
    "/healthz": "healthz",
    "/configz": "configz",
    "/statusz": "statusz",
}
_OWN: Final = {"/stats": "stats", "/metrics": "metrics", "/logs": "log", "/checkpoint": "checkpoint"}


@dataclass(frozen=True, slots=True)
class User:
    """Who asks, as a certificate or a token review says."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Access:
    """What is asked: a verb on a subresource of a node."""

    verb: str
    subresource: str
    node: str


def accesses(method: str, path: str, node: str) -> tuple[Access, ...]:
    """Return what a request asks for; each by itself is enough to be let in."""
    verb = "create" if any(_below(path, acting) for acting in _ACTING) else _VERBS.get(method, "")
    return tuple(Access(verb, subresource, node) for subresource in _subresources(path))


def _subresources(path: str) -> tuple[str, ...]:
    own = next((name for prefix, name in _OWN.items() if _below(path, prefix)), "proxy")
    fine = next((name for prefix, name in _FINE.items() if _below(path, prefix)), None)
    return (fine, own) if fine else (own,)


def _below(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}/")


def plain(target: str) -> bool:
    """Tell whether a request's target means one path to everyone: authorization and routing must agree.

    Names of the API need no escapes, so a path that has one, or steps up, is none of ours.
    """
    path = target.partition("?")[0]
    parts = path.split("/")[1:]
    return (
        path.startswith("/")
        and "%" not in path
        and not any(p in (".", "..") for p in parts)
        and ("" not in parts[:-1])
    )


def forbidden(user: User, asked: tuple[Access, ...]) -> str:
    """Say that a user may not, in the original's words."""
    names = " ".join(access.subresource for access in asked)
    return f"Forbidden (user={user.name}, verb={asked[0].verb}, resource=nodes, subresource(s)=[{names}])\n"


def undecided(user: User, access: Access) -> str:
    """Say that nobody could tell whether a user may, in the original's words."""
    return (
        f"Authorization error (user={user.name}, verb={access.verb}, resource=nodes, "
        f"subresource={access.subresource})"
    )
