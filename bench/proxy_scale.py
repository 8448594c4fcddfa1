"""The proxy's rules for 10,000 services with 5 endpoints each, in a network namespace of its own.

Bars: from services and pods in memory to rules in the kernel within 1.5 s, and in at
most 5 times the processor time of the bare load of the same bytes, which is the floor; one more change of
one service within 50 ms at the median; a restart that finds all as it was within 2 s.

The peer is `nft -f` of the same elements. Rounds of all take turns; the best of each counts.
Needs root, and `nft` for the peer.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Iterable
from dataclasses import replace

from bench.report import Bar, Result, Row, percentile
from services.common.lean import collection_put_off
from services.proxy.adapters import nfmessages
from services.proxy.adapters.nfsocket import NetlinkSocket
from services.proxy.adapters.nftables import NftablesKernel, beginning
from services.proxy.core import ruleset
from services.proxy.core.compose import Composer
from services.proxy.core.model import Pod, Service, ServicePort
from services.proxy.core.parts import Surroundings, part
from services.proxy.core.planner import Planner
from services.proxy.core.ruleset import Ruleset

SERVICES, ENDPOINTS, ROUNDS, CHANGES = 10_000, 5, 3, 200
COLD_SECONDS, COLD_TIMES_FLOOR, CHANGE_MILLISECONDS, RESTART_SECONDS = 1.5, 5.0, 50.0, 2.0
TABLE = "tripod-bench"
_AROUND = Surroundings()


def services() -> list[Service]:
    """Make the services."""
    port = ServicePort(80, 8080)
    return [
        Service(
            f"s{i}", "default", f"web-{i}", f"10.200.{i // 250}.{i % 250 + 1}", (port,), {"app": f"web-{i}"}
        )
        for i in range(SERVICES)
    ]


def pods() -> list[Pod]:
    """Make the pods, in the order in which they might come: one of each service after another."""
    return [
        Pod(
            f"p{i}-{n}",
            "default",
            f"web-{i}-{n}",
            {"app": f"web-{i}", "tier": "front"},
            f"10.{n + 1}.{i // 250}.{i % 250 + 1}",
            ready=True,
            serving=True,
        )
        for n in range(ENDPOINTS)
        for i in range(SERVICES)
    ]


class Proxy:
    """What the proxy does with services and pods, without its watches."""

    def __init__(self) -> None:
        self.plan, self.composer, self.kernel = Planner(), Composer(), NftablesKernel(TABLE)

    def decide(self) -> None:
        """Decide anew for what changed."""
        with collection_put_off():
            for uid, decision in self.plan.decide().items():
                self.composer.put(uid, None if decision is None else part(decision, _AROUND))

    async def cold(self, told: Iterable[Service], ready: Iterable[Pod]) -> None:
        """Go from nothing to rules in the kernel."""
        for service in told:
            self.plan.put_service(service.uid, service)
        for pod in ready:
            self.plan.put_pod(pod.uid, pod)
        self.decide()
        self.composer.settle()
        await self.kernel.rewrite(self.composer.rules)

    async def change(self, pod: Pod) -> None:
        """Bring one change of a pod into the kernel."""
        self.plan.put_pod(pod.uid, pod)
        self.decide()
        await self.kernel.change(ruleset.difference(*self.composer.take()))

    async def find(self) -> None:
        """Read the kernel and compare, as after a restart."""
        if await self.kernel.read() != self.composer.rules:
            raise RuntimeError("the kernel has other rules than were written")


def _nft(rules: Ruleset) -> str:
    """Write the elements as nft reads them, into the maps of a table of their own."""
    key = "ipv4_addr . inet_proto . inet_service"
    slot = "ip daddr . meta l4proto . tcp dport . numgen random mod 65536"
    lines = [
        *(f"{verb} table ip {TABLE}-nft" for verb in ("add", "delete", "add")),
        f"add map ip {TABLE}-nft endpoints {{ typeof {slot} : ip daddr . tcp dport; }}",
        f"add map ip {TABLE}-nft service-ips {{ type {key} : verdict; }}",
    ]
    lines += [f"add chain ip {TABLE}-nft lb-{count}" for count in rules.chains]
    slots = (f"{a} . {p} . {n} . {i:#x} : {t} . {tp}" for (a, p, n, i), (t, tp) in rules.endpoints.items())
    places = (f"{a} . {p} . {n} : goto lb-{count}" for (a, p, n), count in rules.services.items())
    for name, elements in (("endpoints", slots), ("service-ips", places)):
        lines.append(f"add element ip {TABLE}-nft {name} {{ {', '.join(elements)} }}")
    return "\n".join(lines) + "\n"


def _load_by_nft(rules: Ruleset) -> float:
    text = _nft(rules)
    begin = time.perf_counter()
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True, capture_output=True)
    taken = time.perf_counter() - begin
    subprocess.run(["nft", "delete", "table", "ip", f"{TABLE}-nft"], check=True, capture_output=True)
    return taken


async def _time(act: Awaitable[None]) -> float:
    begin = time.perf_counter()
    await act
    return time.perf_counter() - begin


def _listener() -> socket.socket:
    """Join the group that the proxy's monitor joins: with it, the kernel tells of each element."""
    heard = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    heard.bind((0, 0))
    heard.setsockopt(270, 1, 7)
    return heard


async def _measure() -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {
        name: [] for name in ("cold", "cpu", "floor", "floor cpu", "nft", "find", "rewrite")
    }
    told, ready, proxy = services(), pods(), Proxy()
    netlink, heard = NetlinkSocket(), _listener()
    for _ in range(ROUNDS):
        await proxy.kernel.remove()
        proxy = Proxy()
        await proxy.kernel.remove()
        gc.collect()
        begin, cpu = time.perf_counter(), time.process_time()
        await proxy.cold(told, ready)
        taken["cold"].append(time.perf_counter() - begin)
        taken["cpu"].append(time.process_time() - cpu)
        taken["find"].append(await _time(proxy.find()))
        taken["rewrite"].append(await _time(proxy.kernel.rewrite(proxy.composer.rules)))
        encoded = [nfmessages.batch(messages) for messages in beginning(TABLE, proxy.composer.rules)]
        await proxy.kernel.remove()
        begin, cpu = time.perf_counter(), time.process_time()
        for one in encoded:
            netlink.send_batch(one)
        taken["floor"].append(time.perf_counter() - begin)
        taken["floor cpu"].append(time.process_time() - cpu)
        if shutil.which("nft"):
            taken["nft"].append(_load_by_nft(proxy.composer.rules))
    netlink.close()
    heard.close()
    return taken | await _change(proxy, ready)


async def _change(proxy: Proxy, ready: list[Pod]) -> dict[str, list[float]]:
    """Replace a pod's address, which keeps the count; and take a pod away, which changes it."""
    taken: dict[str, list[float]] = {"replace": [], "count": []}
    for i in range(CHANGES):
        pod = ready[i * 211]
        for name, after in (
            ("replace", replace(pod, address=f"10.9.{i // 250}.{i % 250 + 1}")),
            ("count", replace(pod, ready=False, serving=False)),
        ):
            begin = time.perf_counter()
            await proxy.change(after)
            taken[name].append((time.perf_counter() - begin) * 1000)
    await proxy.find()
    return taken


def run() -> Result:
    """Measure in a process that has a network namespace of its own."""
    command = ["unshare", "-n", sys.executable, "-m", "bench.proxy_scale"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the measurement failed: {done.stderr.strip()}")
    taken: dict[str, list[float]] = json.loads(done.stdout)
    best = {name: min(values, default=math.nan) for name, values in taken.items()}
    floor, nft = best["floor"], best["nft"]
    peer = None if math.isnan(nft) else nft
    replace_p50, count_p50 = percentile(taken["replace"], 50), percentile(taken["count"], 50)
    return Result(
        rows=[
            Row("cold: decide, encode, commit", best["cold"], "s", "bare load", floor),
            Row("the same, against nft", best["cold"], "s", "nft -f", peer),
            Row("cold: processor time", best["cpu"], "s", "bare load", best["floor cpu"]),
            Row("rewrite of all in one transaction", best["rewrite"], "s", "bare load", floor),
            Row("restart: read all and compare", best["find"], "s", "bare load", floor),
            Row("one pod's address, p50", replace_p50, "ms"),
            Row("one pod's address, p99", percentile(taken["replace"], 99), "ms"),
            Row("one service's count, p50", count_p50, "ms"),
            Row("one service's count, p99", percentile(taken["count"], 99), "ms"),
        ],
        bars=[
            Bar("cold start", best["cold"], COLD_SECONDS, "s"),
            Bar(
                "its processor time over the bare load's",
                best["cpu"] / best["floor cpu"],
                COLD_TIMES_FLOOR,
                "times",
            ),
            Bar("one change, p50", max(replace_p50, count_p50), CHANGE_MILLISECONDS, "ms"),
            Bar("restart", best["find"], RESTART_SECONDS, "s"),
        ],
        notes=[
            f"{SERVICES:,} services x {ENDPOINTS} endpoints, best of {ROUNDS}",
            f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}",
        ],
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(_measure())))
