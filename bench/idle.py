"""What the node costs while nothing happens: three services, ten running pods, two services with endpoints.

The services run as they are shipped, with files, ports, chains and a table of their own in a network
namespace, on an engine of their own. The floor in the same run: three bare Python processes, each of which
serves gRPC to nobody. RSS counts what processes share once for each; PSS splits it between them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tripod.kubelet.v1 import object_service_pb2 as object_pb
from tripod.kubelet.v1 import object_service_pb2_grpc as object_grpc
from tripod.kubelet.v1 import pod_service_pb2 as pod_pb
from tripod.kubelet.v1 import pod_service_pb2_grpc as pod_grpc

from bench import rest
from bench.report import Bar, Result, Row, table
from services.common.errors import RemoteError
from services.common.grpcclient import call, open_channel
from tests.lab.dockerd import TEST_IMAGE, PrivateEngine, private_engine
from tests.matrix.process import Service, until

PODS = 10
SERVICES = ("kubelet", "proxy", "cadvisor")
SETTLE_SECONDS = 15.0
SECONDS = 60.0
# What one core gives in a second, and what the three may take.
CPU_BAR_CORES = 0.03
RSS_BAR_MIB = 220.0
_TICKS = os.sysconf("SC_CLK_TCK")
_FLOOR = """
import asyncio, grpc, grpc.aio

async def main():
    server = grpc.aio.server()
    server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()

asyncio.run(main())
"""


@dataclass(frozen=True, slots=True)
class Use:
    """What one process took: memory in MiB at the end, CPU in cores over the time."""

    rss_mib: float
    pss_mib: float
    cores: float


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured, by process."""

    seconds: float
    services: dict[str, Use]
    floor: dict[str, Use]


def cpu_ticks(pid: int) -> int:
    """Return the CPU time of a process and of its ended children, in clock ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15])


def memory_mib(pid: int) -> tuple[float, float]:
    """Return RSS and PSS of a process."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        found[name] = int(rest.split()[0]) / 1024
    return found["Rss"], found["Pss"]


async def watch(pids: dict[str, int], seconds: float) -> tuple[float, dict[str, Use]]:
    """Measure processes over some time."""
    loop = asyncio.get_running_loop()
    before, begin = {name: cpu_ticks(pid) for name, pid in pids.items()}, loop.time()
    await asyncio.sleep(seconds)
    took = loop.time() - begin
    used = {name: (cpu_ticks(pid) - before[name]) / _TICKS / took for name, pid in pids.items()}
    return took, {name: Use(*memory_mib(pid), used[name]) for name, pid in pids.items()}


def objects() -> str:
    """Write ten pods with a readiness probe each, and two services over them."""
    pods = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"idle-{number}", "labels": {"half": str(number % 2)}},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [
                    {
                        "name": "web",
                        "image": TEST_IMAGE,
                        "imagePullPolicy": "Never",
                        "command": ["httpd", "-f", "-p", "8080", "-h", "/etc"],
                        "ports": [{"containerPort": 8080}],
                        "readinessProbe": {"httpGet": {"path": "/passwd", "port": 8080}, "periodSeconds": 10},
                    }
                ],
            },
        }
        for number in range(PODS)
    ]
    services = [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": f"half-{half}"},
            "spec": {"selector": {"half": half}, "ports": [{"port": 80, "targetPort": 8080}]},
        }
        for half in ("0", "1")
    ]
    return "\n---\n".join(map(json.dumps, [*pods, *services]))


@contextmanager
def namespace() -> Iterator[str]:
    """Make a network namespace for a block."""
    name = f"ti{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def environment(folder: Path, engine: PrivateEngine) -> dict[str, str]:
    """Return settings under which nothing of another node is touched."""
    return {
        "TRIPOD_NODE_NAME": "idle",
        "TRIPOD_STATE_DIRECTORY": str(folder / "state"),
        "TRIPOD_RUN_DIRECTORY": str(folder / "run"),
        "TRIPOD_DOCKER_HOST": engine.host,
        "TRIPOD_BRIDGE": "tidle0",
        "TRIPOD_CHAIN_PREFIX": "TIDLE",
        "TRIPOD_VETH_PREFIX": "ti",
        "TRIPOD_TABLE": "tripod-idle",
        "TRIPOD_POD_CIDR": "10.233.0.0/24",
        "TRIPOD_SERVICE_CIDR": "10.234.0.0/24",
    }


async def ready(channel: Any) -> None:
    """Apply the objects and wait until every pod is ready."""
    applying = object_grpc.ObjectServiceStub(channel).ApplyObjects
    listing = pod_grpc.PodServiceStub(channel).ListPods
    request = object_pb.ApplyObjectsRequest(manifest=objects().encode())

    async def applied() -> bool:
        try:
            await call(applying, request, deadline_seconds=10)
        except RemoteError:
            return False
        return True

    async def all_ready() -> bool:
        answer = await call(listing, pod_pb.ListPodsRequest(namespace="default"), deadline_seconds=10)
        return len(answer.pods) == PODS and all(pod.ready for pod in answer.pods)

    await until(applied, "the kubelet takes the objects", 60.0)
    await until(all_ready, f"{PODS} pods are ready", 180.0)


async def floor(stack: AsyncExitStack) -> dict[str, int]:
    """Start three bare processes that serve nothing."""
    pids = {}
    for number in range(len(SERVICES)):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _FLOOR, stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL
        )
        stack.push_async_callback(process.wait)
        stack.callback(process.kill)
        assert process.stdout is not None, "it was asked for"
        await process.stdout.readline()
        pids[f"bare {number + 1}"] = process.pid
    return pids


async def measure(folder: Path, engine: PrivateEngine, netns: str, seconds: float) -> Found:
    """Run the node, let it settle, and measure it beside the floor."""
    inside = ("nsenter", f"--net=/run/netns/{netns}")
    settings = environment(folder, engine)
    async with AsyncExitStack() as stack:
        made = {}
        for name in SERVICES:
            made[name] = Service(name, folder, settings, prefix=() if name == "cadvisor" else inside)
            stack.push_async_callback(made[name].kill)
            await made[name].start()
        channel = open_channel(f"unix://{folder}/run/kubelet.sock")
        stack.push_async_callback(channel.close, None)
        await ready(channel)
        bare = await floor(stack)
        await asyncio.sleep(SETTLE_SECONDS)
        pids = {name: service.pid for name, service in made.items()}
        took, found = await watch({**pids, **bare}, seconds)
    return Found(took, {name: found[name] for name in pids}, {name: found[name] for name in bare})


def run(seconds: float = SECONDS) -> Result:
    """Make everything, measure, and take everything away."""
    folder = Path(tempfile.mkdtemp(prefix="tidle"))
    try:
        with private_engine() as engine, namespace() as netns:
            found = asyncio.run(measure(folder, engine, netns, seconds))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _result(found, rest.rested())


def _result(found: Found, rested: Row) -> Result:
    ours, bare = total(found.services), total(found.floor)
    each = total({"": next(iter(found.floor.values()))})
    rows = [Row("RSS, all three", ours.rss_mib, "MiB", "three bare", bare.rss_mib)]
    rows += [Row("PSS, all three", ours.pss_mib, "MiB", "three bare", bare.pss_mib)]
    rows += [Row("CPU, all three", ours.cores, "cores", "three bare", bare.cores or None)]
    for name, use in found.services.items():
        rows += [
            Row(f"RSS, {name}", use.rss_mib, "MiB", "one bare", each.rss_mib),
            Row(f"CPU, {name}", use.cores, "cores"),
        ]
    return Result(
        rows=[*rows, rested],
        bars=[
            Bar("RSS, all three", ours.rss_mib, RSS_BAR_MIB, "MiB"),
            Bar("CPU, all three", ours.cores, CPU_BAR_CORES, "cores"),
        ],
        notes=[
            f"{PODS} pods with a readiness probe each, 2 services, over {found.seconds:.0f} s",
            f"the machine's load average was {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; "
            "cAdvisor samples every container of the machine",
            "RSS counts shared pages once for each process, PSS shares them out",
        ],
    )


def total(uses: Mapping[str, Use]) -> Use:
    """Add up."""
    every = list(uses.values())
    return Use(sum(u.rss_mib for u in every), sum(u.pss_mib for u in every), sum(u.cores for u in every))


def main() -> int:
    """Run with another time than the usual one."""
    parser = argparse.ArgumentParser(prog="python -m bench.idle", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long to measure")
    result = run(parser.parse_args().seconds)
    print(table("idle", result))
    return int(not result.held)


if __name__ == "__main__":
    sys.exit(main())
