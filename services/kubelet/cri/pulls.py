"""Pull images: one pull at a time for each name and identity, watched for its progress."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from services.common import telemetry
from services.common.logs import get_logger
from services.kubelet.cri import pullerrors
from services.kubelet.cri.credentials import Credentials
from services.kubelet.cri.errors import CriError, EngineRefusedError
from services.kubelet.cri.jointwork import JointWork
from services.kubelet.cri.pullprogress import LayerStep, PullProgress
from services.kubelet.cri.reference import Reference

log = get_logger(__name__)


class PullStream(Protocol):
    """Tells the lines of a pull; closing it ends the pull."""

    def pull(self, repository: str, tag: str, registry_auth: str) -> AsyncGenerator[dict[str, Any], None]:
        """Pull a tag or a digest of a repository. Raises `EngineRefusedError`, `EngineUnreachableError`."""
        ...


@dataclass(slots=True)
class PullCounts:
    """What was pulled since the start."""

    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    layers: int = 0
    bytes: int = 0

    def gauges(self) -> dict[str, float]:
        """Return them by the names of the metrics page."""
        pulls = "tripod_cri_image_pulls_total"
        return {
            "tripod_cri_image_pulls_running": self.running,
            f'{pulls}{{outcome="succeeded"}}': self.succeeded,
            f'{pulls}{{outcome="failed"}}': self.failed,
            f'{pulls}{{outcome="cancelled"}}': self.cancelled,
            "tripod_cri_image_pulled_layers_total": self.layers,
            "tripod_cri_image_pulled_bytes_total": self.bytes,
        }


@dataclass(eq=False, slots=True)
class _Pull:
    """A running pull: its progress, and the time by which it must have moved."""

    deadline: asyncio.Timeout
    progress: PullProgress = field(default_factory=PullProgress)


class Puller:
    """Pulls. `stall_seconds` without progress, or `limit_seconds` in all, fail a pull."""

    def __init__(self, streams: PullStream, *, stall_seconds: float, limit_seconds: float) -> None:
        self._streams = streams
        self._stall = stall_seconds
        self._limit = limit_seconds
        self._running: set[_Pull] = set()
        self._work: JointWork[None] = JointWork()
        self.counts = PullCounts()

    def bind(self, group: asyncio.TaskGroup) -> None:
        """Say in which group pulls run."""
        self._work.bind(group)

    async def pull(self, image: str, reference: Reference, credentials: Credentials | None) -> None:
        """Pull, or wait for the same pull by the same identity. Ends with the last who waits.

        `image` is the name that the caller uses. Raises `CriError` as `pullerrors` has it.
        """
        await self._work.join((reference, credentials), lambda: self._counted(image, reference, credentials))

    async def _counted(self, image: str, reference: Reference, credentials: Credentials | None) -> None:
        self.counts.running += 1
        try:
            await self._spanned(image, reference, credentials)
            self.counts.succeeded += 1
        except asyncio.CancelledError:
            self.counts.cancelled += 1
            log.info("Cancelled the pull of an image that nobody waits for", image=image)
            raise
        except CriError:
            self.counts.failed += 1
            raise
        finally:
            self.counts.running -= 1

    async def _spanned(self, image: str, reference: Reference, credentials: Credentials | None) -> None:
        attributes = {"container.image.name": image, "tripod.registry": reference.host}
        with telemetry.span("docker images.pull", kind=SpanKind.CLIENT, attributes=attributes) as span:
            try:
                await self._timed(image, reference, credentials, span)
            except CriError as error:
                span.set_status(Status(StatusCode.ERROR, f"{error.reason}: {error.message}"))
                raise

    async def _timed(
        self, image: str, reference: Reference, credentials: Credentials | None, span: Span
    ) -> None:
        whole, stall = asyncio.timeout(self._limit), asyncio.timeout(self._stall)
        pull = _Pull(stall)
        self._running.add(pull)
        try:
            async with whole, stall:
                await self._read(pull, reference, credentials, span)
        except TimeoutError as error:
            if stall.expired():
                raise pullerrors.stalled(image, reference, self._stall) from error
            raise pullerrors.too_long(image, reference, self._limit) from error
        except EngineRefusedError as error:
            words = credentials.scrub(error.message) if credentials else error.message
            raise pullerrors.error(image, reference, words) from None  # Its words may have a secret.
        finally:
            self._running.discard(pull)
            self.counts.bytes += pull.progress.bytes_pulled
            self.counts.layers += pull.progress.layers_pulled
            span.set_attribute("tripod.image.bytes_pulled", pull.progress.bytes_pulled)
            span.set_attribute("tripod.image.layers_pulled", pull.progress.layers_pulled)

    async def _read(
        self, pull: _Pull, reference: Reference, credentials: Credentials | None, span: Span
    ) -> None:
        auth = credentials.header(reference.host) if credentials else ""
        tag = reference.digest or reference.tag
        async with aclosing(self._streams.pull(reference.repository, tag, auth)) as lines:
            async for line in lines:
                if "error" in line:
                    raise EngineRefusedError("images.pull", 500, str(line["error"]))
                moved, step = pull.progress.fold(line)
                if moved:
                    self._moved(pull)
                if step is not None:
                    _tell(span, step)

    def _moved(self, pull: _Pull) -> None:
        """Give this pull its time anew, and those that wait for it in the engine's queue."""
        by = asyncio.get_running_loop().time() + self._stall
        for other in self._running:
            if (other is pull or other.progress.queued) and not other.deadline.expired():
                other.deadline.reschedule(by)


def _tell(span: Span, step: LayerStep) -> None:
    span.add_event(
        "image.layer",
        {"tripod.image.layer": step.layer, "tripod.image.step": step.step, "tripod.bytes": step.size_bytes},
    )
