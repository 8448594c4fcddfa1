"""The control plane of a test, and the proxy that does harm before it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.lab.apifaults import (
    ApiFaults,
    Asked,
    api_faults,
    expired,
    resumed,
    too_many,
    watches,
)
from tests.lab.kubernetes import ControlPlane, client_context, control_plane, needs_kubernetes
from tests.lab.network import lab_network
from tests.lab.node import network_namespace
from tests.waiting import until

pytestmark = [
    pytest.mark.process,
    needs_kubernetes,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(180),
]
MAPS = "/api/v1/namespaces/default/configmaps"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane() -> AsyncIterator[ControlPlane]:
    """Run all components on loopback."""
    async with control_plane(controllers=True, scheduler=True) as made:
        yield made


async def test_versions_are_those_of_the_release(plane: ControlPlane) -> None:
    """Clients choose what they do by the server's version."""
    told = json.loads((await plane.kubectl("version", "-o", "json")).out)

    assert told["serverVersion"]["gitVersion"] == told["clientVersion"]["gitVersion"]
    assert (told["serverVersion"]["major"], told["serverVersion"]["minor"]) == ("1", "37")


async def test_a_node_may_make_its_own_node_and_no_other(plane: ControlPlane) -> None:
    """The Node authorizer and NodeRestriction are on: a kubelet's certificate is good for its own node."""
    mine = plane.node("a").kubeconfig
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}}
    other = {**node, "metadata": {"name": "b"}}

    made = await plane.kubectl("create", "-f", "-", data=json.dumps(node).encode(), kubeconfig=mine)
    refused = await plane.kubectl(
        "create", "-f", "-", data=json.dumps(other).encode(), kubeconfig=mine, check=False
    )

    assert "node/a created" in made.out
    assert "is not allowed to modify node" in refused.err
    await plane.kubectl("delete", "node", "a")


async def test_controllers_and_scheduler_work(plane: ControlPlane) -> None:
    """A Deployment becomes a pod; without a node it cannot be scheduled, and is told so."""
    await plane.kubectl("create", "deployment", "web", "--image=web:1")

    await plane.kubectl(
        "wait", "pod", "-l", "app=web", "--for=create", "--for=condition=PodScheduled=False", "--timeout=30s"
    )
    await plane.kubectl("delete", "deployment", "web")


async def test_an_ended_component_starts_again_with_what_it_had(plane: ControlPlane) -> None:
    """etcd keeps its data over the ends of both."""
    await plane.create(MAPS, {"metadata": {"name": "kept"}})

    await plane.end("kube-apiserver")
    await plane.end("etcd")
    await plane.start("etcd")
    await plane.start("kube-apiserver")

    assert (await plane.get(f"{MAPS}/kept"))["metadata"]["name"] == "kept"


async def test_old_versions_are_gone_after_a_compaction(plane: ControlPlane) -> None:
    """410, once the API server's own memory is emptied, too."""
    old = (await plane.create(MAPS, {"metadata": {"name": "old"}}))["metadata"]["resourceVersion"]
    await plane.create(MAPS, {"metadata": {"name": "new"}})
    await plane.end("kube-apiserver")
    await plane.compact()
    await plane.start("kube-apiserver")

    answer = await plane.request("GET", MAPS, query={"resourceVersion": old, "resourceVersionMatch": "Exact"})

    assert answer.status == 410


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2")
async def test_namespaces_reach_the_control_plane_over_a_network_of_the_tests() -> None:
    """Nodes live in network namespaces, and find the API server at this host's address on their switch."""
    async with lab_network() as network, network_namespace() as netns:
        await network.join(netns)
        async with control_plane(address=network.host) as made:
            words = ["nsenter", f"--net=/run/netns/{netns}", "curl", "-sk", f"{made.url}/readyz"]
            process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
            out, _ = await process.communicate()

    assert out == b"ok"


@asynccontextmanager
async def faults_of(plane: ControlPlane) -> AsyncIterator[tuple[ApiFaults, aiohttp.ClientSession]]:
    """Run the proxy, and a client of it."""
    context: ssl.SSLContext = client_context(plane.layout)
    async with (
        api_faults(plane, plane.admin) as faults,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as http,
    ):
        yield faults, http


async def events(http: aiohttp.ClientSession, url: str, into: list[dict[str, Any]]) -> None:
    """Watch until the stream ends, and keep what comes."""
    async with http.get(url, headers={"Accept": "application/json"}) as answer:
        async for line in answer.content:
            into.append(json.loads(line))


async def test_a_refusal_comes_the_times_that_were_asked_for(plane: ControlPlane) -> None:
    """429 says when to come again."""
    async with faults_of(plane) as (faults, http):
        faults.refuse(too_many(retry_after_seconds=7), times=1)

        async with http.get(f"{faults.url}{MAPS}") as first:
            told = first.status, first.headers["Retry-After"], (await first.json())["reason"]
        async with http.get(f"{faults.url}{MAPS}") as second:
            later = second.status

    assert told == (429, "7", "TooManyRequests")
    assert later == 200


async def test_a_resumed_watch_is_told_that_it_is_too_late(plane: ControlPlane) -> None:
    """Both ways that an API server has: 410, and 200 with an event of type ERROR."""
    seen: list[dict[str, Any]] = []
    async with faults_of(plane) as (faults, http):
        url = f"{faults.url}{MAPS}?watch=true&resourceVersion=5"
        faults.refuse(expired(), times=1, when=resumed)
        faults.fail_watches(expired(), times=1)

        async with http.get(url) as first:
            status = first.status
        await events(http, url, seen)

    assert status == 410
    assert [(event["type"], event["object"]["code"]) for event in seen] == [("ERROR", 410)]


@pytest.mark.parametrize("cleanly", [True, False])
async def test_a_watch_is_cut(plane: ControlPlane, cleanly: bool) -> None:
    """By a reset, or with a proper end."""
    seen: list[dict[str, Any]] = []
    async with faults_of(plane) as (faults, http):
        faults.cut_watches_seconds, faults.cut_cleanly = 0.3, cleanly
        broken = False
        try:
            await events(http, f"{faults.url}{MAPS}?watch=true", seen)
        except aiohttp.ClientError:
            broken = True

        assert faults.cut_count == 1
        assert broken is not cleanly
        assert faults.count(watches) == 1


async def test_events_are_sent_twice_and_in_the_wrong_order(plane: ControlPlane) -> None:
    """Neighbours change places when the second follows closely."""
    seen: list[dict[str, Any]] = []
    async with faults_of(plane) as (faults, http), asyncio.TaskGroup() as tasks:
        faults.duplicate = faults.reorder = True
        version = (await plane.get(MAPS))["metadata"]["resourceVersion"]
        url = f"{faults.url}{MAPS}?watch=true&resourceVersion={version}"
        task = tasks.create_task(events(http, url, seen))
        await until(lambda: faults.count(watches) == 1)
        await asyncio.gather(*(plane.create(MAPS, {"metadata": {"name": f"m{n}"}}) for n in range(4)))
        await until(lambda: len(seen) == 8)
        task.cancel()

    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in seen]
    assert versions[::2] == versions[1::2]
    assert versions != sorted(versions)
    assert faults.reordered_count >= 1


async def test_an_answer_is_lost_after_the_work(plane: ControlPlane) -> None:
    """The object is made, and the client does not know."""

    def creates(asked: Asked) -> bool:
        return asked.method == "POST"

    async with faults_of(plane) as (faults, http):
        faults.drop_answers(times=1, when=creates)

        with pytest.raises(aiohttp.ClientError):
            await http.post(f"{faults.url}{MAPS}", json={"metadata": {"name": "lost"}})

        assert (await plane.get(f"{MAPS}/lost"))["metadata"]["name"] == "lost"


async def test_the_proxy_goes_away_and_comes_back(plane: ControlPlane) -> None:
    """Streams break, connections are refused; then it is at the same address."""
    seen: list[dict[str, Any]] = []
    async with faults_of(plane) as (faults, http), asyncio.TaskGroup() as tasks:
        watch = tasks.create_task(_broken(events(http, f"{faults.url}{MAPS}?watch=true", seen)))
        await until(lambda: faults.count(watches) == 1 and bool(seen))

        await faults.away()
        assert await watch
        assert await _broken(events(http, f"{faults.url}{MAPS}", []))
        await faults.back()

        async with http.get(f"{faults.url}/readyz") as answer:
            assert await answer.text() == "ok"


async def _broken(asked: Any) -> bool:
    try:
        await asked
    except aiohttp.ClientError:
        return True
    return False


async def test_kubectl_works_through_the_proxy(plane: ControlPlane, tmp_path: Path) -> None:
    """A kubeconfig that leads to the proxy is taken by any client."""
    async with api_faults(plane, plane.admin) as faults:
        files = plane.kubeconfig("someone", url=faults.url)

        done = await plane.kubectl("get", "namespaces", kubeconfig=files)

    assert "kube-system" in done.out
