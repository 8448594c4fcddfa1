"""Hostile images: each runs as it would anywhere, or is refused with a clear word; nothing leaks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tripod.kubelet.v1 import pod_service_pb2 as pod_pb

from tests.lab.dockerd import TEST_IMAGE
from tests.lab.node import Node, Seen, node, pod

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]
REFUSED = ("RunContainerError", "CreateContainerError")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def home() -> AsyncIterator[Node]:
    """Run a node with a bystander."""
    async with node() as made:
        await made.apply(pod("bystander"))
        await made.ready("bystander")
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def guarded(home: Node) -> AsyncIterator[Node]:
    """See that the kubelet lives through it, and that nothing is left: no container, volume or file."""
    before: dict[str, Seen] = await home.snapshot()
    pid = home.service.pid
    yield home
    if "guest" in home.acknowledged:
        await home.delete("guest")
    await home.gone("guest")
    await home.clean()
    assert await home.docker("volume", "ls", "-q") == ""
    assert await home.snapshot() == before
    assert (home.service.pid, home.service.dead) == (pid, False)


async def _guest(made: Node, *changes: str, command: tuple[str, ...] = ("sleep", "1000000")) -> str:
    """Start a pod of an image with these changes; return "" when it runs, else why it was refused."""
    image = await asyncio.to_thread(made.engine.add_image, "guest:1", *changes)
    return await _guest_of(made, image, command)


async def _guest_of(made: Node, image: str, command: tuple[str, ...]) -> str:
    manifest = pod("guest", image=image)
    if not command:
        del manifest["spec"]["containers"][0]["command"]
    else:
        manifest["spec"]["containers"][0]["command"] = list(command)
    await made.apply(manifest)
    found: list[pod_pb.ContainerStatus] = []

    async def decided() -> bool:
        guest = (await made.pods()).get("guest")
        found[:] = guest.containers if guest else []
        return bool(found) and (found[0].ready or found[0].state.reason in REFUSED)

    await made.until(decided, "the guest runs or is refused")
    return "" if found[0].ready else found[0].state.message


async def _built(made: Node, monkeypatch: pytest.MonkeyPatch, *lines: str) -> str:
    """Build an image of what `docker import` cannot set. The engine's own builder needs no plug-in."""
    monkeypatch.setenv("DOCKER_BUILDKIT", "0")
    text = "\n".join([f"FROM {TEST_IMAGE}", *lines, ""]).encode()
    await made.docker("build", "-t", "guest:1", "-", data=text)
    return "guest:1"


async def _uid(made: Node) -> int:
    """Return as whom the guest's first process runs, as the kernel has it."""
    pid = await made.inspect(await made.container_id("guest"), "{{.State.Pid}}")
    with open(f"/proc/{pid}/status") as file:  # noqa: ASYNC230, PTH123  # the kernel answers at once
        line = next(line for line in file if line.startswith("Uid:"))
    return int(line.split()[1])


@pytest.mark.fault("S26")
@pytest.mark.parametrize(
    ("user", "uid"),
    [
        pytest.param("4294967296", None, id="one-more-than-there-are"),
        pytest.param("-1", None, id="negative"),
        pytest.param("1e0", None, id="exponent"),
        pytest.param("root\\n", None, id="line-feed"),
        pytest.param("99999999999999999999999", None, id="no-integer"),
        pytest.param("+0", 0, id="signed"),
        pytest.param("00", 0, id="zeros"),
        pytest.param('" 0"', None, id="blank"),
        pytest.param("0:0", 0, id="user-and-group"),
        pytest.param("65534", 65534, id="nobody"),
    ],
)
async def test_an_odd_user_is_the_one_that_it_names_or_nobody(
    guarded: Node, user: str, uid: int | None
) -> None:
    """No number wraps around to root: what names no user does not run."""
    refusal = await _guest(guarded, f"USER {user}")

    if uid is None:
        assert "user" in refusal or "uid" in refusal or "passwd" in refusal
    else:
        assert refusal == ""
        assert await _uid(guarded) == uid


@pytest.mark.fault("S27")
@pytest.mark.parametrize("place", ["/data", "/etc"])
async def test_a_volume_of_an_image_goes_with_its_container(guarded: Node, place: str) -> None:
    """Also the one of an instance that ended; the pod's own hosts file stays over it."""
    assert await _guest(guarded, f"VOLUME {place}") == ""
    hosts = await guarded.docker("exec", await guarded.container_id("guest"), "cat", "/etc/hosts")
    await guarded.docker("stop", "--time", "0", await guarded.container_id("guest"))
    await guarded.ready("guest", restarts=1)

    assert "Kubernetes-managed hosts file" in hosts
    assert len((await guarded.docker("volume", "ls", "-q")).split()) == 2


@pytest.mark.fault("S27")
@pytest.mark.fault("S28")
@pytest.mark.parametrize(
    "change", ["VOLUME /proc", "VOLUME /sys/fs", "WORKDIR /proc/self/fd/7", "WORKDIR /proc/self/cwd/../fd/8"]
)
async def test_what_reaches_for_the_kernel_is_refused(guarded: Node, change: str) -> None:
    """Before a container is made."""
    refusal = await _guest(guarded, change)

    assert "Image guest:1 is refused" in refusal
    assert await guarded.docker("ps", "-aq", "--filter", "ancestor=guest:1") == ""


@pytest.mark.fault("S31")
async def test_a_health_check_of_an_image_does_not_run(guarded: Node) -> None:
    """The pod's probes are the only ones."""
    assert await _guest(guarded, "HEALTHCHECK --interval=1s CMD false") == ""

    container = await guarded.container_id("guest")
    assert await guarded.inspect(container, "{{json .Config.Healthcheck.Test}}") == '["NONE"]'
    assert await guarded.inspect(container, "{{if .State.Health}}checked{{end}}") == ""


@pytest.mark.fault("S31")
async def test_an_image_without_a_program_is_refused(guarded: Node) -> None:
    """When the pod names none either."""
    refusal = await _guest(guarded, command=())

    assert "No command specified" in refusal


@pytest.mark.fault("S25")
async def test_labels_of_an_image_never_replace_ours(guarded: Node) -> None:
    """With line feeds, and with the names that we go by."""
    changes = [
        'LABEL odd="a\\nb"',
        "LABEL io.kubernetes.pod.uid=someone io.tripod.kind=podsandbox",
        f"LABEL io.tripod.record={json.dumps(json.dumps({'kind': 'podsandbox', 'name': 'x'}))}",
    ]
    assert await _guest(guarded, *changes) == ""

    uid = (await guarded.pods())["guest"].uid
    form = '{{index .Config.Labels "io.kubernetes.pod.uid"}} {{index .Config.Labels "io.tripod.kind"}}'
    assert await guarded.inspect(await guarded.container_id("guest"), form) == f"{uid} container"
    await guarded.clean()


@pytest.mark.fault("S31")
@pytest.mark.parametrize("signal", ["SIGCONT", "SIGRTMIN+3", "64"])
async def test_a_container_ends_whatever_stop_signal_it_asks_for(
    guarded: Node, signal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its grace, by force."""
    image = await _built(guarded, monkeypatch, f"STOPSIGNAL {signal}")
    assert await _guest_of(guarded, image, ("sleep", "1000000")) == ""
    container = await guarded.container_id("guest")

    await guarded.delete("guest")
    await guarded.gone("guest")

    assert await guarded.inspect(container, "{{.Id}}") == ""


@pytest.mark.fault("S31")
async def test_many_exposed_ports_open_none(guarded: Node) -> None:
    """They are words."""
    ports = " ".join(str(number) for number in range(1000, 3000))

    assert await _guest(guarded, f"EXPOSE {ports}") == ""

    listed = await guarded.docker("ps", "--filter", "ancestor=guest:1", "--format", "{{.Ports}}")
    assert "->" not in listed
