"""Names of images, and when they are pulled unless somebody says it. Pure."""

from __future__ import annotations

import re

IMAGE = re.compile(r"\S{1,1024}")


def tag_is_latest(image: str) -> bool:
    """Tell whether an image's tag is `latest`, written or implied."""
    last = image.rsplit("/", 1)[-1]
    return "@" not in last and (last.endswith(":latest") or ":" not in last)


def default_policy(image: str) -> str:
    """Return the policy of Kubernetes: Always for the tag latest, else IfNotPresent."""
    return "Always" if tag_is_latest(image) else "IfNotPresent"
