"""What of a pod's spec may change while the pod lives. Pure.

Source: the API server's `ValidatePodUpdate` and `ValidatePodEphemeralContainersUpdate`:
images, a deadline that is set or comes nearer, and ephemeral containers that are added. A
manifest that names no ephemeral containers leaves those that are there. With another
image its pull policy may be another one, too: by default it follows from the tag.
"""

from __future__ import annotations

from dataclasses import replace

from services.kubelet.core.model import Container, PodSpec


def updated(before: PodSpec, after: PodSpec) -> PodSpec:
    """Return the spec that is wanted, with what it leaves as it is."""
    ephemeral = after.ephemeral_containers or before.ephemeral_containers
    return replace(after, ephemeral_containers=ephemeral)


def without_changes(before: PodSpec, after: PodSpec) -> PodSpec:
    """Take back from a new spec what may change: what differs from `before` still may not."""
    deadlines = before.active_deadline_seconds, after.active_deadline_seconds
    return replace(
        after,
        containers=_with_images(before.containers, after.containers),
        init_containers=_with_images(before.init_containers, after.init_containers),
        ephemeral_containers=_added_to(before.ephemeral_containers, after.ephemeral_containers),
        active_deadline_seconds=deadlines[0] if _is_nearer(*deadlines) else deadlines[1],
    )


def _with_images(before: tuple[Container, ...], after: tuple[Container, ...]) -> tuple[Container, ...]:
    known = {container.name: container for container in before}
    return tuple(_with_image(known.get(container.name), container) for container in after)


def _with_image(before: Container | None, after: Container) -> Container:
    if before is None or before.image == after.image:
        return after
    return replace(after, image=before.image, image_pull_policy=before.image_pull_policy)


def _added_to(before: tuple[Container, ...], after: tuple[Container, ...]) -> tuple[Container, ...]:
    return before if after[: len(before)] == before else after


def _is_nearer(before: int | None, after: int | None) -> bool:
    return after is not None and (before is None or after <= before)
