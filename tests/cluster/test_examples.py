"""The same YAML has the same result on a node of its own and in a cluster: every example."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import pytest
import pytest_asyncio
import yaml
from tripod.kubelet.v1 import object_service_pb2 as object_pb
from tripod.kubelet.v1 import object_service_pb2_grpc as object_grpc

from services.common.grpcclient import call
from tests.cluster.objects import marks
from tests.lab.cluster import Cluster, until
from tests.lab.dockerd import PrivateEngine
from tests.lab.node import Node, node
from tools.steps import ROOT

pytestmark = marks
IMAGE = "tripod-demo:1"
# What a pod can tell of itself, and what must not differ: the rest has addresses and identities in it.
_ENVIRONMENT = ("GREETING", "PASSWORD", "MEMORY_MIB", "PORT", "HOSTNAME")
_FILES = "/etc/app/* /run/key/password /etc/pod/labels"
_ASKS = f"""
import glob, os
files = [path for pattern in {_FILES!r}.split() for path in sorted(glob.glob(pattern))]
print([os.environ.get(name) for name in {_ENVIRONMENT}], os.getuid(), os.getgroups())
print([(path, open(path).read(), oct(os.stat(path).st_mode)) for path in files])
"""


def examples() -> list[dict[str, Any]]:
    """Read every example, but pods on the host's network: the engines of these nodes have this host's."""
    files = sorted((ROOT / "examples").rglob("*.yaml"))
    found = [each for path in files for each in yaml.safe_load_all(path.read_text()) if each]
    return [each for each in found if not each.get("spec", {}).get("hostNetwork")]


def pods() -> list[str]:
    """Name the examples' pods."""
    return [found["metadata"]["name"] for found in examples() if found["kind"] == "Pod"]


def result(pod: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a status says that does not depend on where the pod is."""
    status = pod.get("status", {})
    conditions = {each["type"]: each["status"] for each in status.get("conditions", [])}
    kinds = ("initContainerStatuses", "containerStatuses")
    return {
        "phase": status.get("phase"),
        "qos": status.get("qosClass"),
        "conditions": {name: conditions.get(name) for name in ("Initialized", "ContainersReady", "Ready")},
        "containers": [_container(each) for kind in kinds for each in status.get(kind) or ()],
    }


def _container(status: Mapping[str, Any]) -> tuple[Any, ...]:
    (state, details), *_ = status["state"].items()
    return (
        status["name"],
        status["ready"],
        status.get("started"),
        status["restartCount"],
        state,
        details.get("exitCode", 0),
        details.get("reason", ""),
    )


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def both(made: Cluster) -> AsyncIterator[tuple[Node, Cluster]]:
    """Apply every example to a node of its own and to the cluster."""
    saved = await asyncio.to_thread(
        subprocess.run, ["docker", "save", IMAGE], capture_output=True, check=False
    )
    if saved.returncode != 0:
        pytest.skip(f"{IMAGE} is not here: run `make up`")
    async with node() as alone:
        for engine in (alone.engine, *(each.engine for each in made.nodes.values())):
            await asyncio.to_thread(engine.docker, "load", data=saved.stdout, timeout=120)
        await alone.apply(*examples())
        # What a pod names comes first; kubectl applies in the order that it is given.
        await made.apply(*sorted(examples(), key=lambda found: str(found["kind"] == "Pod")))
        yield alone, made
        await made.delete(*(f"{found['kind']}/{found['metadata']['name']}" for found in examples()))


async def of_alone(alone: Node) -> dict[str, Any]:
    """Return the results of a node of its own."""
    stub = object_grpc.ObjectServiceStub(alone.channel)
    request = object_pb.ListObjectsRequest(kind="Pod")
    answer = await alone.ask(lambda: call(stub.ListObjects, request, deadline_seconds=5))
    return _results(json.loads(found) for found in answer.objects)


def _results(found: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    named = {each["metadata"]["name"]: result(each) for each in found}
    return {name: named.get(name) for name in pods()}


async def test_statuses_are_the_same(both: tuple[Node, Cluster]) -> None:
    """Phase, class, conditions, and each container's state, reason, exit code and restarts."""
    alone, made = both
    last: list[dict[str, Any]] = [{}, {}]

    async def same() -> bool:
        last[:] = [await of_alone(alone), _results(await made.pods())]
        states = [found[4] for each in last[0].values() if each for found in each["containers"]]
        return last[0] == last[1] and bool(states) and "waiting" not in states

    try:
        await until(same, "both have the same result", 120)
    except AssertionError:
        assert last[0] == last[1]
        raise

    assert [found["phase"] for found in last[0].values()] == ["Running"] * len(pods())


@pytest.mark.parametrize("name", pods())
async def test_what_a_pod_was_given_is_the_same(both: tuple[Node, Cluster], name: str) -> None:
    """Variables, files and their modes, user and groups."""
    alone, made = both
    place = (await made.pod(name))["spec"]["nodeName"]

    told = [
        await asyncio.to_thread(_ask, engine, name) for engine in (alone.engine, made.nodes[place].engine)
    ]

    assert told[0] == told[1]


def _ask(engine: PrivateEngine, name: str) -> str:
    labels = (f"io.kubernetes.pod.name={name}", "io.tripod.kind=container")
    words = [word for label in labels for word in ("--filter", f"label={label}")]
    container = engine.output("ps", "-q", *words).split()[0]
    return engine.output("exec", container, "python3", "-c", _ASKS)
