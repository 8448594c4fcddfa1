"""What pods bring in from the API."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from services.common.clock import SystemClock
from services.common.errors import Code, TripodError
from services.common.kubeaccess import Access
from services.common.kubeapi import KubeApi
from services.kubelet.adapters import cluster_objects
from services.kubelet.adapters.cluster_objects import SERVICES_KEPT, ClusterObjects
from services.kubelet.core.model import ObjectKey
from services.kubelet.ports import TokenRequest
from tests.builders import a_pod
from tests.fakes.clock import FakeClock
from tests.kubelet.cluster_world import FakeMemory, World, a_world, an_api_pod

pytestmark = pytest.mark.asyncio
KEY = ObjectKey("ConfigMap", "default", "settings")


def a_user_of(kind: str, name: str) -> dict[str, Any]:
    """Write a pod that names an object."""
    return an_api_pod("web", "u", spec={"containers": [{"name": "a", "envFrom": [{kind: {"name": name}}]}]})


@asynccontextmanager
async def objects(
    *bodies: dict[str, Any],
) -> AsyncIterator[tuple[World, ClusterObjects, list[dict[str, Any]]]]:
    """Run the objects of pods for a block; the list of pods may be changed."""
    async with a_world() as world:
        pods = list(bodies)
        made = ClusterObjects(world.api, world.memory, world.clock, bodies=lambda: pods, authority="PEM")
        async with world.running(made.run):
            yield world, made, pods


def put(world: World, value: str, kind: str = "configmaps") -> None:
    """Write an object at the API."""
    meta = {"name": "settings", "namespace": "default"}
    world.server.put(kind, {"metadata": meta, "data": {"key": value}})


async def test_an_object_that_pods_name_is_watched_by_its_name() -> None:
    """A node may not see what no pod of it names; reading it again asks nobody."""
    async with objects(a_user_of("configMapRef", "settings")) as (world, made, _):
        put(world, "1")
        found = await made.config_map("default", "settings")
        asked = world.server.count("", "configmaps")
        again = await made.config_map("default", "settings")

        assert found is not None
        assert found.data == {"key": "1"}
        assert found == again
        assert world.server.count("", "configmaps") == asked
        queries = [s.query["fieldSelector"] for s in world.server.seen if s.resource == "configmaps"]
        assert set(queries) == {"metadata.name=settings"}


async def test_a_change_is_told() -> None:
    """Volumes are written anew."""
    async with objects(a_user_of("configMapRef", "settings")) as (world, made, _):
        put(world, "1")
        await made.config_map("default", "settings")
        changes = made.object_changes()
        next_change = asyncio.ensure_future(anext(changes))  # noqa: TID251  # awaited below
        await asyncio.sleep(0.01)

        put(world, "2")

        assert await next_change == KEY
        assert (await made.config_map("default", "settings")).data == {"key": "2"}  # type: ignore[union-attr]
        await changes.aclose()  # type: ignore[attr-defined]  # a generator


async def test_what_nobody_names_any_more_is_left_and_forgotten() -> None:
    """A Secret stays on the disk no longer than a pod of the node names it."""
    async with objects(a_user_of("configMapRef", "settings")) as (world, made, pods):
        put(world, "1")
        await made.config_map("default", "settings")
        await world.quiet(lambda: KEY in world.memory.objects)

        pods.clear()
        made.look()
        await world.quiet(lambda: KEY not in world.memory.objects and world.server.stream_count == 1)


async def test_an_absent_object_is_none_and_an_error_is_an_error() -> None:
    """What cannot be read is never taken for what is not there."""
    async with objects() as (world, made, _):
        assert await made.secret("default", "absent") is None

        world.server.refuse(403, verb="get")
        with pytest.raises(TripodError) as caught:
            await made.secret("default", "forbidden")
        assert caught.value.code is Code.PERMISSION_DENIED


@pytest.mark.process
async def test_without_the_api_what_was_kept_is_used() -> None:
    """A pod that ran before starts again with what it had."""
    async with a_world() as world:
        body = {"metadata": {"name": "settings", "namespace": "default"}, "data": {"key": "kept"}}
        pods = [a_user_of("configMapRef", "settings")]
        made = ClusterObjects(world.api, world.memory, world.clock, bodies=lambda: pods, authority="")
        made.remember({KEY: body}, services_kept=False)
        await world.server.stop()
        async with world.running(made.run):
            await asyncio.sleep(0.01)

            found = await made.config_map("default", "settings")

            assert found is not None
            assert found.data == {"key": "kept"}


@pytest.mark.process
async def test_services_are_kept_for_times_without_the_api() -> None:
    """A pod that comes back without its control plane has the variables that it had."""
    spec = {"clusterIP": "10.0.0.7", "ports": [{"name": "web", "port": 80}]}
    async with objects() as (world, made, _):
        world.server.put("services", {"metadata": {"name": "shop", "namespace": "default"}, "spec": spec})
        key = ObjectKey("Service", "default", "shop")
        await world.quiet(lambda: key in world.memory.objects)
        told = await made.services("default")

        kept = ClusterObjects(world.api, world.memory, world.clock, bodies=list, authority="")
        kept.remember(world.memory.objects, services_kept=SERVICES_KEPT in world.memory.facts)

        found = await kept.services("default")
        assert [(s.name, s.cluster_ip) for s in found] == [("shop", "10.0.0.7")]
        assert [s.ports for s in found] == [s.ports for s in told]
        assert await kept.services("other") == []


async def test_what_was_deleted_meanwhile_is_not_used() -> None:
    """What is kept is for times without the API alone."""
    async with a_world() as world:
        pods = [a_user_of("configMapRef", "settings")]
        made = ClusterObjects(world.api, world.memory, world.clock, bodies=lambda: pods, authority="")
        body = {"metadata": {"name": "settings", "namespace": "default"}, "data": {}}
        world.memory.objects[KEY] = body
        made.remember({KEY: body}, services_kept=False)
        async with world.running(made.run):
            await asyncio.sleep(0.01)

            assert await made.config_map("default", "settings") is None
            await world.quiet(lambda: KEY not in world.memory.objects)


async def test_secrets_are_bytes_and_do_not_show() -> None:
    """A value in a traceback must not tell."""
    async with objects() as (world, made, _):
        put(world, base64.b64encode(b"s3cret").decode(), "secrets")

        found = await made.secret("default", "settings")

        assert found is not None
        assert found.data == {"key": b"s3cret"}
        assert "s3cret" not in repr(found)


async def test_a_token_is_bound_to_its_pod() -> None:
    """It ends with the pod."""
    async with objects() as (world, made, _):
        token = await made.token(TokenRequest(a_pod(), "default", "vault", 600))

        assert token.text == "token-of-default"
        spec = next(s.body for s in world.server.seen if s.resource == "serviceaccounts/token")["spec"]
        assert spec["audiences"] == ["vault"]
        assert spec["boundObjectRef"] == {"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": "uid-1"}


async def test_services_are_read_for_their_variables() -> None:
    """Address and ports; a headless one has no address."""
    async with objects() as (world, made, _):
        port = {"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}
        spec = {"clusterIP": "10.0.0.1", "ports": [port], "sessionAffinity": "None", "ipFamilies": ["IPv4"]}
        world.server.put("services", {"metadata": {"name": "web", "namespace": "default"}, "spec": spec})
        bare = {"metadata": {"name": "bare", "namespace": "default"}, "spec": {"clusterIP": "None"}}
        world.server.put("services", bare)

        await world.quiet(lambda: made.known_service_count == 2)
        found = {service.name: service for service in await made.services("default")}

        assert (found["web"].cluster_ip, found["web"].ports[0].port) == ("10.0.0.1", 80)
        assert found["bare"].cluster_ip == ""


async def test_nothing_is_kept_of_objects_that_nobody_names_any_more() -> None:
    """However many come and go."""
    async with objects(a_user_of("configMapRef", "settings")) as (world, made, pods):
        put(world, "1")
        await made.config_map("default", "settings")
        await world.until(lambda: KEY in made._changes.snapshot().values())

        pods.clear()
        made.look()

        await world.until(lambda: not made._changes.snapshot())


async def test_objects_are_followed_on_after_the_loop_was_restarted() -> None:
    """Whoever supervises it starts it again when it raised."""
    async with a_world() as world:
        put(world, "1")
        made = ClusterObjects(
            world.api,
            world.memory,
            world.clock,
            bodies=lambda: [a_user_of("configMapRef", "settings")],
            authority="PEM",
        )
        async with world.running(made.run):
            await made.config_map("default", "settings")
        put(world, "2")

        async with world.running(made.run):
            await world.until(lambda: world.memory.objects.get(KEY, {}).get("data") == {"key": "2"})
            found = await made.config_map("default", "settings")

        assert found is not None
        assert found.data == {"key": "2"}


async def test_tokens_are_kept_for_a_start_without_the_api_as_long_as_their_pod_is_there() -> None:
    """A reboot takes those of volumes, which lie in memory."""
    request = TokenRequest(a_pod(uid="u"), "default", "vault", 600)
    async with objects(an_api_pod("web", "u")) as (world, made, pods):
        token = await made.token(request)
        await world.until(lambda: world.memory.objects)
        again = ClusterObjects(world.api, world.memory, world.clock, bodies=lambda: pods, authority="PEM")
        again.remember(dict(world.memory.objects), services_kept=False)

        assert await again.kept_token(request) == ""
        world.server.refuse(500, times=1000)
        with pytest.raises(TripodError):
            await again.config_map("default", "other")
        assert await again.kept_token(request) == token.text
        assert await again.kept_token(TokenRequest(a_pod(uid="v"), "default", "vault", 600)) == ""

        async with world.running(again.run):
            await world.clock.advance(1)
            assert world.memory.objects
            pods.clear()
            again.look()
            await world.until(lambda: not world.memory.objects)


async def test_a_pod_does_not_wait_long_for_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker does nothing else meanwhile, and a host that is gone says nothing at all."""
    monkeypatch.setattr(cluster_objects, "_WAIT_SECONDS", 0.2)

    server = socket.create_server(("127.0.0.1", 0))
    api = KubeApi(Access(f"http://127.0.0.1:{server.getsockname()[1]}"), SystemClock(), agent="test/1")
    made = ClusterObjects(api, FakeMemory(), FakeClock(), bodies=list, authority="PEM")
    try:
        async with asyncio.timeout(5):
            with pytest.raises(TripodError):
                await made.token(TokenRequest(a_pod(), "default", "", 600))
    finally:
        await api.close()
        server.close()
