"""Carry out what `plan_pod` decided: one call to the runtime for each action."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import assert_never

from opentelemetry import trace

from services.common import failpoints, telemetry, telemetry_names
from services.common.errors import Code, TripodError
from services.kubelet.core import env, last_words, plan, render, volumes
from services.kubelet.core.begin import here
from services.kubelet.core.brought import ImageSource
from services.kubelet.core.dns import NodeDns, pod_dns
from services.kubelet.core.hostname import (
    Names,
    NameTooLongError,
    host_hosts_text,
    hosts_text,
    kernel_name,
    names,
)
from services.kubelet.core.images import tag_is_latest
from services.kubelet.core.model import Container, ContainerId, Pod, PullPolicy, SandboxId
from services.kubelet.core.observed import ObservedPod, ObservedSandbox, RuntimeState
from services.kubelet.core.plan import Action, PullImage
from services.kubelet.core.resolve import MissingError, needs_address
from services.kubelet.core.resources import kernel_resources
from services.kubelet.core.security import ProfileType, Rights, rights, root_fault
from services.kubelet.core.status import Waiting
from services.kubelet.errors import KubeletError, TargetGoneError
from services.kubelet.loops.hooks import Hooks
from services.kubelet.loops.podvolumes import PodVolumes
from services.kubelet.loops.pulling import Puller
from services.kubelet.loops.stopping import Stopper
from services.kubelet.ports import (
    ContainerConfig,
    EventSink,
    LastWords,
    PodFiles,
    PodSource,
    ProbeTarget,
    Runtime,
    SandboxConfig,
)

_VOLUMES = failpoints.step("pod.volumes")
_SANDBOX_CREATE = failpoints.step("pod.sandbox.create")
_SANDBOX_STOP = failpoints.step("pod.sandbox.stop")
_SANDBOX_REMOVE = failpoints.step("pod.sandbox.remove")
_HOSTS = failpoints.step("pod.hosts")
_CREATE = failpoints.step("pod.container.create")
_START = failpoints.step("pod.container.start")
_REMOVE = failpoints.step("pod.container.remove")
_FILES = failpoints.step("pod.files.remove")
_LOGS = failpoints.step("pod.logs.remove")
# Starts that run at a time; in their order, so that the first pod of many is not the last to be ready.
_STARTS = 10
_LOOK_SECONDS = 0.03
# Something that a container names is not there, or cannot be used.
CONFIG_ERROR = "CreateContainerConfigError"


async def _own_name(runtime_class: str) -> str:
    return runtime_class


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What the node gives to its pods."""

    state_directory: Path
    memory_bytes: int
    # Where pods on the host's network are.
    address: str = "127.0.0.1"
    dns: NodeDns = field(default=NodeDns())
    # Says which handler of the runtime a class names; standalone, the one of its own name.
    handler_of: Callable[[str], Awaitable[str]] = _own_name


@dataclass(slots=True)
class Outcome:
    """What came of a plan: who failed and why, who started, whether the pod is gone.

    `observed` is the pod as it is now, where the plan only made things and all of them
    were seen; else None, and the pod must be looked at.
    """

    observed: ObservedPod | None
    failures: dict[str, Waiting] = field(default_factory=dict)
    started: set[str] = field(default_factory=set)
    finalized: bool = False
    acted: bool = False


@dataclass(slots=True)
class _Box:
    """The sandbox that containers start in; `seen` once it was looked at."""

    id: SandboxId
    attempt: int
    seen: ObservedSandbox | None = None


class Actor:
    """Acts for all pods; keeps nothing between plans."""

    def __init__(
        self,
        runtime: Runtime,
        source: PodSource,
        files: PodFiles,
        events: EventSink,
        facts: NodeFacts,
        restriction: Callable[[], str] = lambda: "",
        *,
        stopper: Stopper,
        hooks: Hooks,
        words: LastWords,
        volumes: PodVolumes,
        puller: Puller,
    ) -> None:
        self._runtime = runtime
        self._source = source
        self._files = files
        self._events = events
        self._facts = facts
        self._restriction = restriction
        self._stopper = stopper
        self._hooks = hooks
        self._words = words
        self._volumes = volumes
        self._puller = puller
        self._starts = asyncio.Semaphore(_STARTS)

    async def apply(
        self, pod: Pod, observed: ObservedPod, actions: Sequence[Action], begun: Callable[[Action], None]
    ) -> Outcome:
        """Carry a plan out in order; `begun` is told each step as it begins.

        A container that fails is skipped; a sandbox that fails raises.
        """
        outcome = Outcome(observed)
        images: dict[str, bool] = {}
        newest = observed.sandbox()
        box = _Box(newest.id, newest.attempt, newest) if newest else None
        stops = [action for action in actions if isinstance(action, plan.StopContainer)]
        if stops:
            outcome.acted, outcome.observed = True, None
            begun(stops[0])
            await self._stopper.stop(pod, observed, stops)
        for action in actions:
            if not isinstance(action, plan.StopContainer):
                begun(action)
            match action:
                case plan.StopContainer() | plan.WaitUntil():
                    continue
                case plan.CreateSandbox():
                    outcome.acted = True
                    box, images = await self._make_sandbox(pod, action, actions)
                case plan.PullImage():
                    await self._guarded(pod, action.container, outcome, self._pull(pod, action, images))
                case plan.StartContainer():
                    if action.container not in outcome.failures and box is not None:
                        outcome.acted = True
                        starting = self._start(pod, box, action, outcome, observed)
                        async with self._starts:
                            await self._guarded(pod, action.container, outcome, starting)
                case plan.RunPostStart():
                    outcome.acted = True
                    self._begin_hook(pod, box, action.container, action.id)
                case _:
                    outcome.acted, outcome.observed = True, None
                    await self._undo(pod, action, outcome)
        if box is not None and box.seen is None:
            outcome.observed = None
        return outcome

    async def _undo(self, pod: Pod, action: Action, outcome: Outcome) -> None:
        """Carry out what takes something away."""
        match action:
            case plan.RemoveContainer():
                async with _REMOVE:
                    await self._runtime.remove_container(action.id)
                await _REMOVE.recorded()
            case plan.StopSandbox():
                with telemetry.span(telemetry_names.SANDBOX_STOP, attributes={"reason": action.reason}):
                    async with _SANDBOX_STOP:
                        await self._runtime.stop_sandbox(action.id)
                await _SANDBOX_STOP.recorded()
            case plan.RemoveSandbox():
                async with _SANDBOX_REMOVE:
                    await self._runtime.remove_sandbox(action.id)
                await _SANDBOX_REMOVE.recorded()
            case plan.Finalize():
                await self._finalize(pod)
                outcome.finalized = True
            case plan.CreateSandbox() | plan.PullImage() | plan.StartContainer() | plan.RunPostStart():
                raise AssertionError("`apply` does what makes something")
            case plan.StopContainer() | plan.WaitUntil():
                raise AssertionError("`apply` has done or skipped these")
            case _:
                assert_never(action)

    async def _guarded(self, pod: Pod, container: str, outcome: Outcome, work: object) -> None:
        try:
            await work  # type: ignore[misc]  # a coroutine made in the line above
        except _StartError as error:
            outcome.failures[container] = Waiting(error.reason, error.message)
        else:
            if container not in outcome.failures:
                outcome.started.add(container)

    async def _make_sandbox(
        self, pod: Pod, action: plan.CreateSandbox, actions: Sequence[Action]
    ) -> tuple[_Box, dict[str, bool]]:
        """Make the sandbox, and meanwhile look which of the plan's images are there."""
        images = dict.fromkeys(a.image for a in actions if isinstance(a, plan.PullImage))
        over = asyncio.Event()

        async def make() -> SandboxId:
            try:
                return await self._create_sandbox(pod, action)
            finally:
                over.set()

        async def look() -> list[bool | None]:
            # A moment later, so that the engine works on the sandbox while we look.
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await over.wait()
            return await asyncio.gather(*(self._look_for(image) for image in images))

        # A look that hangs must not hold one of the places of those that start.
        made, present = await asyncio.gather(make(), look())
        known = zip(images, present, strict=True)
        return _Box(made, action.attempt), {image: there for image, there in known if there is not None}

    async def _look_for(self, image: str) -> bool | None:
        """Tell whether an image is there; None when that cannot be told now."""
        try:
            with telemetry.span(telemetry_names.IMAGE_CHECK, attributes={"container.image.name": image}):
                return await self._runtime.image_present(image)
        except TripodError:
            return None

    async def _create_sandbox(self, pod: Pod, action: plan.CreateSandbox) -> SandboxId:
        with telemetry.span(telemetry_names.VOLUME_MOUNT):
            async with _VOLUMES:
                await self._make_volumes(pod)
        await _VOLUMES.recorded()
        if action.attempt:
            self._events.emit(pod, "SandboxChanged", f"Making a new sandbox: {action.reason}")
        try:
            config = self._sandbox_config(pod, action.attempt, render.portable(pod))
            if pod.spec.runtime_class_name:
                handler = await self._facts.handler_of(pod.spec.runtime_class_name)
                config = replace(config, runtime_handler=handler)
            for reason, message in config.dns.warnings:
                self._events.emit(pod, reason, message, warning=True)
            async with self._starts:
                with telemetry.span(telemetry_names.SANDBOX_CREATE, attributes={"reason": action.reason}):
                    async with _SANDBOX_CREATE:
                        made = await self._runtime.create_sandbox(config)
                    await _SANDBOX_CREATE.recorded()
                    return made
        except TripodError as error:
            self._events.emit(pod, "FailedCreatePodSandBox", error.message, warning=True)
            raise

    async def _make_volumes(self, pod: Pod) -> None:
        """Make all that a pod mounts. Raises what is missing, once it was told."""
        await self._files.prepare(pod)
        try:
            await self._volumes.make(pod)
        except TripodError as error:
            self._events.emit(pod, "FailedMount", error.message, warning=True)
            raise

    async def _pull(self, pod: Pod, action: plan.PullImage, known: dict[str, bool]) -> None:
        present = known.get(action.image)
        if present is None:
            with telemetry.span(
                telemetry_names.IMAGE_CHECK, attributes={"container.image.name": action.image}
            ):
                present = await self._runtime.image_present(action.image)
        if action.policy is PullPolicy.NEVER and not present:
            message = f"Image {action.image!r} is not there, and imagePullPolicy is Never"
            self._events.emit(pod, "ErrImageNeverPull", message, container=action.container, warning=True)
            raise _StartError("ErrImageNeverPull", message)
        if present and action.policy is not PullPolicy.ALWAYS:
            what = f"Container image {action.image!r} already present on machine"
            self._events.emit(pod, "Pulled", what, container=action.container)
            return
        self._events.emit(pod, "Pulling", f"Pulling image {action.image!r}", container=action.container)
        try:
            with telemetry.span(
                telemetry_names.IMAGE_PULL, attributes={"container.image.name": action.image}
            ):
                await self._puller.pull(pod, action.image)
        except TripodError as error:
            message = error.message + (_local_image_advice(action.image) if present else "")
            self._events.emit(pod, "Failed", message, container=action.container, warning=True)
            raise _StartError("ErrImagePull", message) from error
        self._events.emit(pod, "Pulled", f"Pulled image {action.image!r}", container=action.container)

    def _begin_hook(self, pod: Pod, box: _Box | None, container: str, container_id: ContainerId) -> None:
        """Begin the postStart hook of a container that runs, if it has one."""
        spec = next(c for c in pod.spec.every if c.name == container)
        addresses = box.seen.addresses if box is not None and box.seen is not None else ()
        if spec.lifecycle.post_start is not None:
            target = ProbeTarget(pod, spec, container_id, addresses[0] if addresses else "127.0.0.1")
            self._hooks.begin(spec.lifecycle.post_start, target)

    async def _start(
        self,
        pod: Pod,
        box: _Box,
        action: plan.StartContainer,
        outcome: Outcome,
        observed: ObservedPod,
    ) -> None:
        spec = next(c for c in pod.spec.every if c.name == action.container)
        attributes: dict[str, str | int] = {
            "k8s.container.name": spec.name,
            "k8s.container.restart_count": action.attempt,
        }
        try:
            with telemetry.span(telemetry_names.CONTAINER_START, attributes=attributes):
                await self._make_volumes(pod)
                await self._pull_volumes(pod, spec)
                await self._words.prepare(pod, spec, action.attempt)
                given = await self._rights(pod, spec)
                config = await self._container_config(pod, spec, action.attempt, box, rights=given)
                config = replace(config, target=_target(spec, observed))
                container_id, seen = await asyncio.gather(
                    self._create(box.id, config), self._look_at(pod, box)
                )
                if box.seen is None:
                    box.seen = seen
                    outcome.observed = outcome.observed and outcome.observed.with_sandbox(seen)
                await self._write_hosts(pod, seen)
                self._events.emit(pod, "Created", f"Created container {spec.name}", container=spec.name)
                self._tell_restriction(pod, config)
                trace.get_current_span().set_attribute("container.id", container_id)
                async with _START:
                    await self._runtime.start_container(container_id)
        except TripodError as error:
            outcome.observed = None
            self._events.emit(pod, "Failed", error.message, container=spec.name, warning=True)
            raise _StartError("RunContainerError", error.message) from error
        self._events.emit(pod, "Started", f"Started container {spec.name}", container=spec.name)
        await _START.recorded()
        self._begin_hook(pod, box, spec.name, container_id)
        await self._see(box.id, container_id, outcome)

    def _tell_restriction(self, pod: Pod, config: ContainerConfig) -> None:
        """Say that a container did not get what this host cannot give."""
        lacks = config.resources.oom_score_adj < 0 or config.rights.privileged
        why = self._restriction() if lacks else ""
        if why:
            self._events.emit(pod, "PrivilegesRestricted", why, container=config.container.name, warning=True)

    async def _create(self, box: SandboxId, config: ContainerConfig) -> ContainerId:
        async with _CREATE:
            made = await self._runtime.create_container(box, config)
        await _CREATE.recorded()
        return made

    async def _look_at(self, pod: Pod, box: _Box) -> ObservedSandbox:
        seen = box.seen or await self._runtime.sandbox(box.id)
        return seen.on_host(self._facts.address) if pod.spec.namespaces.network else seen

    async def _see(self, box: SandboxId, container_id: ContainerId, outcome: Outcome) -> None:
        """Look at the container that was started, if a look at it alone is enough."""
        if outcome.observed is None:
            return
        try:
            with telemetry.span(telemetry_names.POD_OBSERVE):
                seen = await self._runtime.container(container_id)
        except TripodError:
            outcome.observed = None
        else:
            outcome.observed = outcome.observed.with_container(replace(seen, sandbox_id=box))

    async def _write_hosts(self, pod: Pod, sandbox: ObservedSandbox) -> None:
        """Write what containers see as /etc/hosts, before they run; the file is there since `prepare`."""
        aliases = pod.spec.naming.host_aliases
        if pod.spec.namespaces.network:
            text = host_hosts_text(await self._files.node_hosts(), aliases)
        else:
            text = hosts_text(self._names(pod), sandbox.addresses, aliases)
        async with _HOSTS:
            await self._files.write_hosts(pod, text)
        await _HOSTS.recorded()

    def _sandbox_config(self, pod: Pod, attempt: int, manifest: str = "") -> SandboxConfig:
        try:
            hostname = kernel_name(self._names(pod), pod.spec.naming)
        except NameTooLongError as error:
            raise KubeletError(
                str(error), code=Code.FAILED_PRECONDITION, reason="HOSTNAME_TOO_LONG"
            ) from error
        network = pod.spec.namespaces.network
        resolver = pod_dns(
            pod.spec.dns,
            self._facts.dns,
            namespace=pod.namespace,
            host_network=network,
            pod=f"{pod.namespace}/{pod.name}",
        )
        return SandboxConfig(
            pod=pod,
            attempt=attempt,
            hostname="" if network else hostname,
            log_directory=str(volumes.log_directory(self._facts.state_directory, pod)),
            manifest=manifest,
            dns=resolver,
        )

    def _names(self, pod: Pod) -> Names:
        spec = pod.spec
        return names(pod.name, pod.namespace, spec.hostname, spec.naming, self._facts.dns.cluster_domain)

    async def _rights(self, pod: Pod, spec: Container) -> Rights:
        """Return what a container may do. Raises `_StartError` for one that must not be root and would be."""
        given = rights(pod.spec.security, spec.security)
        if given.seccomp.type is ProfileType.LOCALHOST:
            path = volumes.seccomp_profile(self._facts.state_directory, given.seccomp.localhost)
            given = replace(given, seccomp=replace(given.seccomp, localhost=str(path)))
        image_user = await self._runtime.image_user(spec.image) if given.needs_image_user else ""
        who = f"{pod.name}_{pod.namespace}({pod.uid})"
        fault = root_fault(given, image_user=image_user, pod=who, container=spec.name)
        if fault:
            self._events.emit(pod, "Failed", f"Error: {fault}", container=spec.name, warning=True)
            raise _StartError(CONFIG_ERROR, fault)
        return replace(given, user=image_user or "0") if given.needs_image_user else given

    async def _pull_volumes(self, pod: Pod, spec: Container) -> None:
        """Make sure that the images are there that a container mounts."""
        sources = {volume.name: volume.source for volume in pod.spec.volumes}
        for source in (sources[mount.name] for mount in spec.volume_mounts):
            if isinstance(source, ImageSource):
                wanted = (spec.name, source.reference, PullPolicy(source.pull_policy))
                await self._pull(pod, PullImage(*wanted, "a volume is made of it"), {})

    async def _container_config(
        self, pod: Pod, spec: Container, attempt: int, box: _Box, *, rights: Rights
    ) -> ContainerConfig:
        """Say what a container is made from. Raises `_StartError` where what it names is not there."""
        addresses: tuple[str, ...] = ()
        if needs_address(spec):
            addresses = (await self._look_at(pod, box)).addresses or (self._facts.address,)
        try:
            values = (await self._volumes.environment(pod, spec, addresses)).values
            command = tuple(env.expand(word, values) for word in spec.command)
            args = tuple(env.expand(word, values) for word in spec.args)
            mounts = await self._volumes.mounts(pod, spec, values)
        except (MissingError, env.TooLongError, TripodError) as error:
            message = error.message if isinstance(error, TripodError) else str(error)
            self._events.emit(pod, "Failed", f"Error: {message}", container=spec.name, warning=True)
            raise _StartError(CONFIG_ERROR, message) from error
        return ContainerConfig(
            pod=pod,
            sandbox=self._sandbox_config(pod, box.attempt),
            container=spec,
            attempt=attempt,
            command=command,
            args=args,
            environment=values,
            mounts=(*mounts, *last_words.mount(self._facts.state_directory, pod, spec, attempt)),
            resources=kernel_resources(pod, spec, self._facts.memory_bytes),
            log_path=volumes.log_path(spec.name, attempt),
            rights=rights,
        )

    async def _finalize(self, pod: Pod) -> None:
        async with _FILES:
            await self._files.remove(pod.uid)
        await _FILES.recorded()
        async with _LOGS:
            await self._files.remove_logs(pod)
        await _LOGS.recorded()
        await self._source.finalize(pod.uid)


class _StartError(Exception):
    """A container's image or start failed."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def _target(spec: Container, observed: ObservedPod) -> ContainerId | None:
    """Return the container whose processes an ephemeral one is to see. Raises `TripodError`."""
    if not spec.target:
        return None
    seen = here(observed, spec.target)
    if seen is None or seen.state is not RuntimeState.RUNNING:
        raise TargetGoneError(spec.target)
    return seen.id


def _local_image_advice(image: str) -> str:
    why = "its tag is latest" if tag_is_latest(image) else "imagePullPolicy is Always"
    return (
        f". The image is there locally, but is pulled because {why}: "
        "give it another tag, or set imagePullPolicy: IfNotPresent"
    )
