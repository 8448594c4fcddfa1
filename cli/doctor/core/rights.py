"""Judge what this user and the engine may do."""

from __future__ import annotations

from collections.abc import Iterator

from cli.doctor.facts import RightsFacts
from cli.doctor.finding import Finding, ok, unseen, warn


def judge(facts: RightsFacts) -> Iterator[Finding]:
    """Say who may use the node, and which promises the machine cannot keep."""
    if facts.root:
        yield ok("Running as root")
    elif facts.reaches_engine:
        yield ok(f"User {facts.user} may use the engine, and so the node")
    elif not facts.engine_group:
        yield unseen(f"Whether {facts.user} may use the engine", f"there is no {facts.engine_socket}", "")
    elif facts.in_group:
        yield warn(
            f"User {facts.user} was added to group {facts.engine_group} after it logged in",
            "The right comes with the next login.",
            f"newgrp {facts.engine_group}, or log in anew",
        )
    else:
        yield warn(
            f"User {facts.user} is not in group {facts.engine_group}",
            "Commands that change the node are refused, and much cannot be looked at.",
            f"usermod -aG {facts.engine_group} {facts.user}, then log in anew (the group is root's equal)",
        )
    if facts.resource_capability is None:
        yield unseen("Capabilities of the engine", "/proc hides them")
    elif facts.resource_capability:
        yield ok("CAP_SYS_RESOURCE is in the engine's bounding set")
    else:
        yield warn(
            "CAP_SYS_RESOURCE is not in the engine's bounding set",
            "Negative oom_score_adj values are clamped to 0, and `privileged` falls back "
            "to all capabilities that there are.",
            "Nothing where the machine is itself confined; else start dockerd with that capability.",
        )
