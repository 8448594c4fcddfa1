"""What pods bring in is made before they start, kept up to date, and written no oftener than it changes."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.common.errors import TripodError
from services.kubelet.core import plan
from services.kubelet.core.brought import (
    DownwardFile,
    DownwardFiles,
    FieldRef,
    ImageSource,
    KeyRef,
    ObjectFiles,
    Origin,
    Projected,
    TokenFile,
)
from services.kubelet.core.model import (
    ConfigMap,
    EnvVar,
    HostPath,
    ObjectKey,
    Pod,
    Secret,
    Volume,
    VolumeMount,
)
from services.kubelet.core.observed import ObservedPod
from services.kubelet.core.pull_secrets import Credential
from services.kubelet.loops.actions import NodeFacts, Outcome
from services.kubelet.loops.podvolumes import PodVolumes
from services.kubelet.loops.pulling import Puller
from services.kubelet.ports import Token, TokenRequest
from tests.builders import a_container, a_pod
from tests.fakes.actor import an_actor
from tests.fakes.clock import FakeClock
from tests.fakes.files import FakeFiles
from tests.fakes.runtime import FakeRuntime
from tests.fakes.volumes import FakeObjects, FakeVolumeFiles, what_pods_bring

pytestmark = pytest.mark.asyncio
SETTINGS = ConfigMap("u1", "default", "settings", data={"mode": "fast"})
CLOCK = FakeClock()
KEY = Secret("u2", "default", "key", data={"password": b"hunter2"})
MAP_VOLUME = Volume("config", Projected("configMap", (ObjectFiles(Origin.CONFIG_MAP, "settings"),)))
TOKEN = TokenFile("token", "me", 3600)
TOKEN_VOLUME = Volume("token", Projected("projected", (TOKEN,)))


class Events:
    """Keeps what is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def emit(
        self, pod: Pod, reason: str, message: str, *, container: str = "", warning: bool = False
    ) -> None:
        """Keep an event."""
        self.told.append((reason, message))


class Runtime(FakeRuntime):
    """Keeps what containers are made from."""

    def __init__(self) -> None:
        super().__init__(present=["app:1"], pullable=["data:1"])


def bring(objects: FakeObjects, clock: FakeClock | None = None) -> tuple[PodVolumes, FakeVolumeFiles, Events]:
    """Make volumes on fakes."""
    files, events = FakeVolumeFiles(), Events()
    volumes, _ = what_pods_bring(FakeRuntime(), events, objects, files, clock)
    return volumes, files, events


def a_token(issued: float, expires: float) -> str:
    """Write a token that ends."""
    body = json.dumps({"iat": issued, "exp": expires, "aud": ["me"]}).encode()
    return f"e30.{base64.urlsafe_b64encode(body).decode().rstrip('=')}.sig"


async def test_files_are_written_once_and_again_when_the_object_changes() -> None:
    """A pass that finds nothing new writes nothing."""
    objects, pod = FakeObjects(SETTINGS), a_pod(volumes=(MAP_VOLUME,))
    volumes, files, _ = bring(objects)
    await volumes.make(pod)
    await volumes.refresh(pod)
    once = files.writes
    objects.put(replace(SETTINGS, data={"mode": "slow"}))
    await volumes.refresh(pod)

    assert once == 1
    assert files.writes == 2
    assert files.files[pod.uid, "config"]["mode"].data == b"slow"


async def test_a_missing_object_keeps_a_pod_from_starting_and_not_from_running() -> None:
    """Before the first time it raises; later the files stay, and the pod is told."""
    objects, pod = FakeObjects(), a_pod(volumes=(MAP_VOLUME,))
    volumes, files, events = bring(objects)
    with pytest.raises(TripodError) as missing:
        await volumes.make(pod)
    objects.put(SETTINGS)
    await volumes.make(pod)
    objects.drop(SETTINGS.key)
    await volumes.refresh(pod)
    await volumes.make(pod)

    why = 'MountVolume.SetUp failed for volume "config" : configmap "settings" not found'
    assert missing.value.message == why
    assert events.told == [("FailedMount", why)] * 2
    assert files.files[pod.uid, "config"]["mode"].data == b"fast"


async def test_labels_flow_into_files() -> None:
    """When the pod's own labels change."""
    volume = Volume(
        "self",
        Projected("downwardAPI", (DownwardFiles((DownwardFile("labels", FieldRef("metadata.labels")),)),)),
    )
    pod = a_pod(volumes=(volume,), labels={"a": "1"})
    volumes, files, _ = bring(FakeObjects())
    await volumes.make(pod)
    await volumes.refresh(replace(pod, labels={"a": "2"}))

    assert files.files[pod.uid, "self"]["labels"].data == b'a="2"'


async def test_a_token_is_asked_for_once_and_again_when_it_is_due() -> None:
    """Bound to the pod, for the audience and time that the pod wants."""
    objects, pod = FakeObjects(), a_pod(volumes=(TOKEN_VOLUME,), service_account_name="robot")
    volumes, files, _ = bring(objects)
    now = CLOCK.now().timestamp()
    objects.token_text = a_token(now, now + 3600)
    await volumes.make(pod)
    due = await volumes.refresh(pod)
    asked = len(objects.tokens)
    objects.token_text = a_token(now - 3000, now + 600)
    volumes.forget(pod.uid)
    files.files.clear()
    await volumes.make(pod)
    await volumes.refresh(pod)

    assert asked == 1
    assert due is not None
    assert 2870 <= due <= 2880
    assert len(objects.tokens) == 3
    request = objects.tokens[0]
    assert (request.service_account, request.audience, request.expiration_seconds) == ("robot", "me", 3600)
    assert request.pod is pod


async def test_a_restart_keeps_the_token_that_is_there() -> None:
    """It lies in the volume; only one that is due, or for somebody else, is asked for anew."""
    objects, pod = FakeObjects(), a_pod(volumes=(TOKEN_VOLUME,))
    volumes, files, events = bring(objects)
    now = CLOCK.now().timestamp()
    objects.token_text = a_token(now, now + 3600)
    await volumes.make(pod)
    after, _ = what_pods_bring(FakeRuntime(), events, objects, files)
    await after.make(pod)
    other = replace(TOKEN, audience="you")
    elsewhere = a_pod(volumes=(Volume("token", Projected("projected", (other,))),))
    await after.make(elsewhere)

    assert files.writes == 1
    assert [request.audience for request in objects.tokens] == ["me", "you"]


async def test_a_token_that_cannot_be_renewed_is_kept_while_it_is_good() -> None:
    """One that has ended is a fault that is told."""
    objects, pod, clock = FakeObjects(), a_pod(volumes=(TOKEN_VOLUME,)), FakeClock()
    volumes, files, events = bring(objects, clock)
    now = CLOCK.now().timestamp()
    objects.token_text = a_token(now - 3000, now + 600)
    await volumes.make(pod)
    objects.down = "the API is away"
    await volumes.refresh(pod)

    assert events.told == []
    await clock.advance(601)
    await volumes.refresh(pod)
    assert events.told[-1][1].endswith("failed to fetch token: the API is away")
    assert files.files[pod.uid, "token"]["token"].data.decode() == objects.token_text


async def started(pod: Pod, objects: FakeObjects) -> tuple[Runtime, Events, Outcome, FakeVolumeFiles]:
    """Start a pod's one container on a fresh node."""
    runtime, events, files = Runtime(), Events(), FakeVolumeFiles()
    source: Any = None
    facts = NodeFacts(Path("/state"), 1 << 30)
    actor = an_actor(runtime, source, FakeFiles(), events, facts, objects=objects, volumes=files)
    steps = (plan.CreateSandbox(0, "new"), plan.StartContainer("app", 0, "new"))
    outcome = await actor.apply(pod, ObservedPod(pod.uid), steps, lambda action: None)
    return runtime, events, outcome, files


async def test_a_container_gets_its_variables_and_mounts() -> None:
    """Words are expanded by values that come from elsewhere; what we write is read-only."""
    container = a_container(
        command=("run", "--key=$(PASSWORD)", "--at=$(IP)"),
        env=(
            EnvVar("PASSWORD", "", KeyRef(Origin.SECRET, "key", "password")),
            EnvVar("IP", "", FieldRef("status.podIP")),
        ),
        volume_mounts=(
            VolumeMount("config", "/etc/app"),
            VolumeMount("host", "/host", sub_path="of/$(PASSWORD)", sub_path_is_expression=True),
            VolumeMount("host", "/all", propagation="HostToContainer"),
            VolumeMount("image", "/data", sub_path="models"),
        ),
    )
    host = Volume("host", HostPath("/srv"))
    image = Volume("image", ImageSource("data:1", "Always"))
    pod = a_pod(container, volumes=(MAP_VOLUME, host, image))

    runtime, events, outcome, files = await started(pod, FakeObjects(SETTINGS, KEY))

    (made,) = runtime.made
    assert outcome.failures == {}
    assert made.command == ("run", "--key=hunter2", f"--at={made.environment['IP']}")
    assert made.environment["IP"]
    config, sub, whole, models, hosts, *_ = made.mounts
    assert (config.container_path, config.read_only) == ("/etc/app", True)
    assert sub.host_path == files.sub_paths["of/hunter2"]
    assert (whole.host_path, whole.propagation) == ("/srv", "HostToContainer")
    assert (models.image, models.image_sub_path, models.read_only) == ("data:1", "models", True)
    assert hosts.container_path == "/etc/hosts"
    assert "data:1" in runtime.present
    assert "hunter2" not in str(events.told)


@pytest.mark.parametrize(
    ("env", "mounts", "message"),
    [
        pytest.param(
            (EnvVar("A", "", KeyRef(Origin.SECRET, "none", "a")),), (), 'secret "none" not found', id="object"
        ),
        pytest.param(
            (EnvVar("A", "", KeyRef(Origin.SECRET, "key", "a")),),
            (),
            "couldn't find key a in Secret default/key",
            id="key",
        ),
        pytest.param(
            (EnvVar("P", "", KeyRef(Origin.SECRET, "key", "password")),),
            (VolumeMount("host", "/h", sub_path="$(P)/$(Q)", sub_path_is_expression=True),),
            'MountVolume.SetUp failed for volume "host" : '
            "subPathExpr '$(P)/$(Q)' names a variable that is not there",
            id="expression",
        ),
        pytest.param(
            (EnvVar("P", "../x"),),
            (VolumeMount("host", "/h", sub_path="$(P)", sub_path_is_expression=True),),
            "MountVolume.SetUp failed for volume \"host\" : subPathExpr '$(P)' must be without '..'",
            id="expression-that-leads-out",
        ),
    ],
)
async def test_what_is_missing_makes_a_container_wait(
    env: tuple[EnvVar, ...], mounts: tuple[VolumeMount, ...], message: str
) -> None:
    """With the reason of Kubernetes and what is missing, by name alone."""
    pod = a_pod(a_container(env=env, volume_mounts=mounts), volumes=(Volume("host", HostPath("/srv")),))

    runtime, events, outcome, _ = await started(pod, FakeObjects(KEY))

    assert runtime.made == []
    assert outcome.failures["app"].reason == "CreateContainerConfigError"
    assert outcome.failures["app"].message == message
    assert ("Failed", f"Error: {message}") in events.told
    assert "hunter2" not in message


async def test_pods_that_use_an_object_are_known() -> None:
    """By volumes and by variables, in their own namespace."""
    volumes, _, _ = bring(FakeObjects())
    variable = EnvVar("A", "", KeyRef(Origin.SECRET, "key", "password"))
    pod = a_pod(a_container(env=(variable,)), volumes=(MAP_VOLUME,))

    assert volumes.uses(pod, ObjectKey("ConfigMap", "default", "settings"))
    assert volumes.uses(pod, ObjectKey("Secret", "default", "key"))
    assert not volumes.uses(pod, ObjectKey("Secret", "default", "settings"))
    assert not volumes.uses(pod, ObjectKey("Secret", "shop", "key"))


async def test_failures_for_what_was_missing_are_forgiven() -> None:
    """And no others."""
    memory = plan.failed(plan.Memory(), "app", 1.0, "CreateContainerConfigError", "x")
    memory = plan.failed(memory, "side", 1.0, "ErrImagePull", "x")

    assert set(plan.forgive(memory, "CreateContainerConfigError").failures) == {"side"}


def _registry(name: str, user: str) -> Secret:
    auths = {"private.test": {"username": user, "password": "p"}}
    data = {".dockerconfigjson": json.dumps({"auths": auths}).encode()}
    return Secret("u", "default", name, data, "kubernetes.io/dockerconfigjson")


async def test_every_matching_credential_is_tried_and_a_missing_secret_only_warns() -> None:
    """The pod's own secrets count; the account's where it has none."""
    runtime, events = FakeRuntime(pullable=["private.test/app:1"]), Events()
    runtime.private["private.test/app:1"] = Credential("second", "p")
    objects = FakeObjects(_registry("one", "first"), _registry("two", "second"))
    puller = Puller(runtime, objects, events, lambda pod: ("two",))
    await puller.pull(a_pod(image_pull_secrets=("none", "one", "two")), "private.test/app:1")
    tried = [credential.username for credential in runtime.asked_as if credential]
    await puller.pull(a_pod(), "private.test/app:1")
    with pytest.raises(TripodError):
        await puller.pull(a_pod(image_pull_secrets=("one",)), "private.test/app:1")

    assert tried[-1] == "second"
    assert set(tried) <= {"first", "second"}
    ((reason, message),) = events.told
    assert reason == "FailedToRetrieveImagePullSecret"
    assert "(none)" in message


@pytest.mark.parametrize("left", [600, -1])
async def test_a_token_that_cannot_be_renewed_is_asked_for_now_and_then(left: int) -> None:
    """Each pod has one: an API that is away must not be asked by all of them each second."""
    pod, clock = a_pod(volumes=(TOKEN_VOLUME,)), FakeClock()
    now = clock.now().timestamp()
    asked: list[float] = []

    class Away(FakeObjects):
        async def token(self, request: TokenRequest) -> Token:
            asked.append(clock.monotonic())
            return await super().token(request)

    objects = Away()
    volumes, _, _ = bring(objects, clock)
    objects.token_text = a_token(now - 3000, now + max(left, 60))
    await volumes.make(pod)
    objects.down = "the API is away"
    await clock.advance(max(left, 60) - left)
    asked.clear()

    due = await volumes.refresh(pod)
    await clock.advance(30)
    again = await volumes.refresh(pod)

    assert len(asked) == 1
    assert due == 60
    assert again == 30
    await clock.advance(31)
    await volumes.refresh(pod)
    assert len(asked) == 2


@pytest.mark.parametrize("left", [600, -1])
async def test_a_pod_comes_back_after_a_reboot_with_the_token_that_was_kept(left: int) -> None:
    """Tokens lie in memory, and nearly every pod of a cluster has one; its API may be away."""
    objects, pod, clock = FakeObjects(), a_pod(volumes=(TOKEN_VOLUME,)), FakeClock()
    volumes, files, events = bring(objects, clock)
    now = clock.now().timestamp()
    objects.down = "the API is away"
    with pytest.raises(TripodError):
        await volumes.make(pod)
    objects.kept = a_token(now - 3000, now + left)

    await volumes.make(pod)

    assert files.files[pod.uid, "token"]["token"].data.decode() == objects.kept
    told = [
        message for _, message in events.told if message.endswith("failed to fetch token: the API is away")
    ]
    assert len(told) == (0 if left > 0 else 1)
