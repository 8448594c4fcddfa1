"""What a pod's worker knows that a restart must not forget, as text. Pure.

The runtime tells nearly all of a pod. It cannot tell when the pod was first seen, where it was, nor
what somebody removed there: without it a restart count would go back, and a pod that
had ended would run again. Nor can it tell that a startup probe has succeeded, which a
container need do but once.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from typing import Any

from services.kubelet.core.memory import HookState, Memory, Over
from services.kubelet.core.model import ContainerId
from services.kubelet.core.observed import ObservedContainer, RuntimeState

_VERSION = 1
_TIMES = ("started_at", "finished_at")
_KEPT = tuple(field.name for field in fields(ObservedContainer))


@dataclass(frozen=True, slots=True)
class PodRecord:
    """When the pod was first seen, the started containers of the latest look, those that vanished,
    those whose startup probe has succeeded, those whose postStart hook has, those that are stopped to be
    made anew, why the pod has failed, and the addresses that it had.
    """

    start_time: datetime | None = None
    seen: tuple[ObservedContainer, ...] = ()
    gone: tuple[ObservedContainer, ...] = ()
    begun: tuple[ContainerId, ...] = ()
    hooked: tuple[ContainerId, ...] = ()
    changed: tuple[ContainerId, ...] = ()
    over: Over | None = None
    addresses: tuple[str, ...] = ()


def record(memory: Memory, start_time: datetime | None) -> PodRecord:
    """Take what must be kept from a worker's memory."""
    return PodRecord(
        start_time,
        memory.seen,
        memory.gone,
        begun=tuple(sorted(memory.begun)),
        hooked=tuple(sorted(key for key, state in memory.hooks.items() if state is HookState.DONE)),
        changed=tuple(sorted(memory.changed)),
        over=memory.over,
        addresses=memory.addresses,
    )


def remembered(memory: Memory, kept: PodRecord) -> Memory:
    """Put back what a run before has kept."""
    return replace(
        memory,
        seen=kept.seen,
        gone=kept.gone,
        begun=frozenset(kept.begun),
        hooks=dict.fromkeys(kept.hooked, HookState.DONE),
        changed=frozenset(kept.changed),
        over=kept.over,
        addresses=kept.addresses,
    )


def encode(value: PodRecord) -> str:
    """Write a record."""
    return json.dumps(
        {
            "version": _VERSION,
            "start_time": value.start_time.isoformat() if value.start_time else None,
            "seen": [_plain(container) for container in value.seen],
            "gone": [_plain(container) for container in value.gone],
            "begun": list(value.begun),
            "hooked": list(value.hooked),
            "changed": list(value.changed),
            "over": asdict(value.over) if value.over else None,
            "addresses": list(value.addresses),
        }
    )


def _plain(container: ObservedContainer) -> dict[str, Any]:
    made = {name: getattr(container, name) for name in _KEPT}
    made["state"] = container.state.value
    return made | {name: made[name].isoformat() if made[name] else None for name in _TIMES}


def decode(text: str) -> PodRecord | None:
    """Read a record back; None for what is none, or is of another version."""
    try:
        values = json.loads(text)
        if values["version"] != _VERSION:
            return None
        start = values["start_time"]
        return PodRecord(
            datetime.fromisoformat(start) if start else None,
            tuple(_container(item) for item in values["seen"]),
            tuple(_container(item) for item in values["gone"]),
            begun=_ids(values.get("begun", [])),
            hooked=_ids(values.get("hooked", [])),
            changed=_ids(values.get("changed", [])),
            over=Over(**values["over"]) if values.get("over") else None,
            addresses=tuple(str(item) for item in values.get("addresses", [])),
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _ids(values: list[Any]) -> tuple[ContainerId, ...]:
    return tuple(ContainerId(str(item)) for item in values)


def _container(values: dict[str, Any]) -> ObservedContainer:
    times = {name: datetime.fromisoformat(values[name]) if values[name] else None for name in _TIMES}
    return ObservedContainer(**{**values, **times, "state": RuntimeState(values["state"])})
