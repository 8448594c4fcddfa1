"""Hear what containers said at their end, once for each."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from services.common.clock import Clock
from services.kubelet.core.model import ContainerId, Pod, PodUid
from services.kubelet.core.observed import ObservedContainer, ObservedPod, RuntimeState
from services.kubelet.ports import LastWords

# A runtime may still write the log of a container that has just ended.
_SETTLED = timedelta(seconds=5)


class Hearing:
    """Adds the last words of ended containers to what is seen of pods."""

    def __init__(self, words: LastWords, clock: Clock) -> None:
        self._words = words
        self._clock = clock
        self._heard: dict[PodUid, dict[ContainerId, str]] = {}

    async def hear(self, pod: Pod, observed: ObservedPod) -> ObservedPod:
        """Return the pod with each ended container's last words behind what the runtime says of it."""
        if not any(c.state is RuntimeState.EXITED for c in observed.containers):
            return observed
        there = {c.id for c in observed.containers}
        known = self._heard.setdefault(pod.uid, {})
        for key in known.keys() - there:
            del known[key]
        return replace(
            observed, containers=tuple([await self._with_words(pod, c) for c in observed.containers])
        )

    async def _with_words(self, pod: Pod, container: ObservedContainer) -> ObservedContainer:
        if container.state is not RuntimeState.EXITED:
            return container
        said = await self._said(pod, container)
        message = ": ".join(part for part in (container.message, said) if part)
        return replace(container, message=message)

    async def _said(self, pod: Pod, container: ObservedContainer) -> str:
        known = self._heard[pod.uid]
        if container.id in known:
            return known[container.id]
        spec = next((c for c in pod.spec.every if c.name == container.name), None)
        said = await self._words.read(pod, spec, container) if spec is not None else ""
        ended = container.finished_at
        if ended is None or self._clock.now() - ended > _SETTLED:
            known[container.id] = said
        return said

    def forget(self, uid: PodUid) -> None:
        """Forget a pod."""
        self._heard.pop(uid, None)
