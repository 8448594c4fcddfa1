"""What a pull has done so far, by the lines that the engine tells. Pure.

Source: the stream of `POST /images/create`: each line has a layer's short id, a phase,
and while it is at work how many bytes of how many. The engine tells a few lines a
second at most, so that a small layer may show no byte at all before it is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_QUEUED = frozenset({"Pulling fs layer", "Waiting"})
_DONE = {"Already exists": "exists", "Download complete": "downloaded", "Pull complete": "pulled"}


@dataclass(slots=True)
class _Layer:
    phase: str = ""
    current: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class LayerStep:
    """A layer is there already (`exists`), was `downloaded`, or was unpacked (`pulled`)."""

    layer: str
    step: str
    size_bytes: int


class PullProgress:
    """Folds lines."""

    def __init__(self) -> None:
        self._layers: dict[str, _Layer] = {}

    def fold(self, line: Mapping[str, Any]) -> tuple[bool, LayerStep | None]:
        """Take a line; tell whether the pull moved, and which layer took a step.

        Counting down to another try moves nothing.
        """
        name, phase = str(line.get("id", "")), str(line.get("status", ""))
        detail = line.get("progressDetail") or {}
        if phase.startswith("Retrying"):
            return False, None
        if not name or phase.startswith("Pulling from"):
            return True, None
        layer = self._layers.setdefault(name, _Layer())
        current = int(detail.get("current") or 0)
        moved = (phase, current) != (layer.phase, layer.current)
        changed = phase != layer.phase
        layer.phase, layer.current = phase, current
        self._measure(layer, phase, current, int(detail.get("total") or 0))
        step = _DONE.get(phase) if changed else None
        return moved, LayerStep(name, step, layer.size) if step else None

    @staticmethod
    def _measure(layer: _Layer, phase: str, current: int, total: int) -> None:
        if phase == "Downloading":
            layer.size = max(layer.size, current)
        elif phase == "Extracting":  # Its total is what was downloaded.
            layer.size = max(layer.size, total)

    @property
    def bytes_pulled(self) -> int:
        """Bytes that came over the network, as far as the engine told."""
        return sum(layer.size for layer in self._layers.values())

    @property
    def layers_pulled(self) -> int:
        """Layers that came over the network and are unpacked."""
        return sum(layer.phase == "Pull complete" for layer in self._layers.values())

    @property
    def queued(self) -> bool:
        """Whether this pull waits for others: the engine downloads a few layers at a time."""
        phases = [layer.phase for layer in self._layers.values()]
        return any(phase in _QUEUED for phase in phases) and all(
            phase in _QUEUED or phase in _DONE for phase in phases
        )
