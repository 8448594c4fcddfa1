"""By whose rules a manifest is read. Pure.

Standalone, nobody else looks at a manifest: a field that only a control plane could honour is refused. In a
cluster its API server has checked what the node is sent, and such fields are honoured by others.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rules:
    """`cluster` says that a scheduler, controllers and an API server stand behind the manifest."""

    cluster: bool = False


STANDALONE = Rules()
CLUSTER = Rules(cluster=True)
