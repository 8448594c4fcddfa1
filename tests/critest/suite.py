"""The server alone, the suite against it, and what its report says."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.critest import benchmark, build
from tests.lab.dockerd import PrivateEngine

# What the host has not: critest skips some of it by itself, but not all.
_SKIP = ("SELinux", "AppArmor", "NRI")
_PASSED, _FAILED, _SKIPPED = "passed", "failed", "skipped"
_START_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one run."""

    passed: int
    skipped: tuple[str, ...]
    failures: Mapping[str, str]

    @property
    def ran(self) -> int:
        """How many specs were tried."""
        return self.passed + len(self.failures)


@contextlib.contextmanager
def serving(engine: PrivateEngine, folder: Path, output: Path) -> Iterator[Path]:
    """Run `services.kubelet.cri` for a block; yields its socket."""
    socket = folder / "cri.sock"
    words = [sys.executable, "-m", "services.kubelet.cri", "--socket", str(socket)]
    words += ["--state-directory", str(folder / "state"), "--docker-host", engine.host]
    words += ["--node-name", "critest", "--pod-cidr", "10.213.0.0/22"]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{build.ROOT}:{build.ROOT}/gen",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "",
    }
    with (output / "cri.log").open("ab") as log:
        process = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not socket.exists():
            assert process.poll() is None, f"the server ended: see {output / 'cri.log'}"
            assert time.monotonic() < deadline, "the server does not serve"
            time.sleep(0.1)
        yield socket
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def run_all(engine: PrivateEngine, socket: Path, options: argparse.Namespace, output: Path) -> int:
    """Run as often as asked for; returns 0 when each run was good enough."""
    if options.benchmark:
        return benchmark.run(
            engine.host, output, lambda folder, words: _run(socket, options, folder, words).returncode
        )
    least = 0 if options.focus else options.least
    first = options.seed or random.randrange(1, 1 << 30)  # an order, no secret
    good = True
    for number in range(options.runs):
        folder = output / f"run-{number + 1}"
        folder.mkdir(parents=True, exist_ok=True)
        begin = time.monotonic()
        done = _run(socket, options, folder, _words(options, folder, first + number))
        report = folder / "report.json"
        if not report.exists():
            print(f"critest made no report: see {folder / 'critest.log'}")
            return 1
        result = parse(json.loads(report.read_text()))
        good &= result.passed >= least and (least > 0 or done.returncode == 0)
        _tell(result, number + 1, first + number, time.monotonic() - begin)
    return 0 if good else 1


def _words(options: argparse.Namespace, folder: Path, seed: int) -> list[str]:
    words = [f"-ginkgo.seed={seed}", f"-ginkgo.json-report={folder / 'report.json'}", "-ginkgo.no-color"]
    words += [f"-ginkgo.skip={skip}" for skip in (*_SKIP, options.skip) if skip]
    if options.focus:
        words.append(f"-ginkgo.focus={options.focus}")
    if options.websocket:
        words += ["-websocket-exec", "-websocket-attach", "-websocket-portforward"]
    if options.parallel > 1:
        words.append(f"-parallel={options.parallel}")
    return words


def _run(
    socket: Path, options: argparse.Namespace, folder: Path, words: list[str]
) -> subprocess.CompletedProcess[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    command = [str(build.PEERS / "critest"), f"-runtime-endpoint=unix://{socket}", *words, "-test.timeout=0"]
    environment = {**os.environ, "PATH": f"{build.PEERS}:{os.environ['PATH']}"}
    with (folder / "critest.log").open("wb") as log:
        return subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
        )


def parse(report: list[dict[str, Any]]) -> Result:
    """Read ginkgo's report."""
    specs = [s for suite in report for s in suite["SpecReports"] or () if s["LeafNodeType"] == "It"]
    states = Counter(_state(spec) for spec in specs)
    return Result(
        states[_PASSED],
        tuple(sorted(_name(s) for s in specs if _state(s) == _SKIPPED and _why(s))),
        {_name(s): _why(s) for s in specs if _state(s) == _FAILED},
    )


def _state(spec: Mapping[str, Any]) -> str:
    state = spec["State"]
    return _SKIPPED if state in ("skipped", "pending") else _PASSED if state == _PASSED else _FAILED


def _name(spec: Mapping[str, Any]) -> str:
    parts = [*(spec["ContainerHierarchyTexts"] or ()), spec["LeafNodeText"]]
    return " ".join(part.removeprefix("[k8s.io] ") for part in parts)


def _why(spec: Mapping[str, Any]) -> str:
    message = str((spec.get("Failure") or {}).get("Message", ""))
    return " ".join(message.split())[:600]


def _tell(result: Result, number: int, seed: int, seconds: float) -> None:
    print(
        f"run {number}: {result.passed} of {result.ran} passed, "
        f"{len(result.skipped)} skipped themselves, {seconds:.0f} s, seed {seed}",
        flush=True,
    )
    for name in result.skipped:
        print(f"  skipped: {name}")
    for name, why in result.failures.items():
        print(f"  FAILED: {name}\n    {why}", flush=True)
