"""The suite's own benchmarks, beside the same calls on the bare engine in the same run.

The suite measures the life of containers and of pod sandboxes, one after the other. What it made is looked up
at the engine while it runs; the same configurations are then created, started, stopped and removed by bare
calls of the engine's API, as often, before the suite's second half and after it.

Bars: a container's creation, start, stop and removal together, and a pod sandbox's start, each take at most
15 % more than the bare calls, at the median.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import docker

from bench.report import Bar, Result, Row, document, percentile, table

SAMPLES = 20
MOST_OVERHEAD = 15.0
_CONTAINER = ("CreateContainer", "StartContainer", "StopContainer", "RemoveContainer")
_STOP_SECONDS = 60


class Floor:
    """Bare calls for the same sandbox and the same container."""

    def __init__(self, host: str) -> None:
        self._api = docker.APIClient(base_url=host, version="auto", timeout=120)
        self._configs: dict[str, dict[str, Any]] = {}

    @contextlib.contextmanager
    def learning(self) -> Iterator[None]:
        """Look for a sandbox and a container that the suite made, in a thread, until both were seen."""
        over = threading.Event()

        def look() -> None:
            while len(self._configs) < 2 and not over.wait(0.05):
                for item in self._api.containers(filters={"label": "io.tripod.kind"}):
                    with contextlib.suppress(docker.errors.NotFound):
                        self._learn(self._api.inspect_container(item["Id"]))

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        assert len(self._configs) == 2, "the suite ran no sandbox with a container"

    def _learn(self, inspected: Mapping[str, Any]) -> None:
        config, host_config = dict(inspected["Config"]), dict(inspected["HostConfig"])
        kind = config["Labels"]["io.tripod.kind"]
        if host_config["NetworkMode"].startswith("container:"):
            config.pop("Hostname", None)
        for mount in host_config.get("Mounts") or []:
            mount["Source"] = "/dev/null"
        self._configs.setdefault(kind, {**config, "Labels": {}, "HostConfig": host_config})

    def measure(self, count: int) -> tuple[list[float], list[float]]:
        """Return milliseconds of containers' lives and of sandboxes' starts."""
        lives, starts = [], []
        for number in range(count):
            sandbox, took = self._started(f"bare-box-{number}", self._configs["podsandbox"])
            starts.append(took)
            wanted = dict(self._configs["container"])
            host_config = dict(wanted["HostConfig"])
            for key in ("NetworkMode", "IpcMode", "PidMode"):
                if str(host_config.get(key, "")).startswith("container:"):
                    host_config[key] = f"container:{sandbox}"
            container, life = self._started(f"bare-{number}", {**wanted, "HostConfig": host_config})
            life += _timed(lambda made=container: self._api.stop(made, timeout=_STOP_SECONDS))  # type: ignore[misc]
            life += _timed(lambda made=container: self._api.remove_container(made, v=True))  # type: ignore[misc]
            lives.append(life)
            self._api.remove_container(sandbox, force=True)
        return lives, starts

    def _started(self, name: str, config: dict[str, Any]) -> tuple[str, float]:
        begin = time.perf_counter()
        made = str(self._api.create_container_from_config(config, name)["Id"])
        self._api.start(made)
        return made, (time.perf_counter() - begin) * 1000

    def close(self) -> None:
        """End the connection."""
        self._api.close()


def _timed(act: Callable[[], object]) -> float:
    begin = time.perf_counter()
    act()
    return (time.perf_counter() - begin) * 1000


def parameters(folder: Path) -> Path:
    """Write what the suite is to measure; return the file."""
    made = folder / "parameters.yaml"
    names = ("containers", "pods")
    made.write_text("".join(f"{name}Number: {SAMPLES}\n{name}NumberParallel: 1\n" for name in names))
    return made


def run(host: str, output: Path, suite: Callable[[Path, list[str]], int]) -> int:
    """Run the suite's benchmarks twice with `suite`, and the bare calls in turn; 0 when the bars hold."""
    floor = Floor(host)
    lives: list[float] = []
    starts: list[float] = []
    operations: dict[str, list[float]] = {}
    try:
        for half in ("first", "second"):
            folder = output / half
            folder.mkdir(parents=True, exist_ok=True)
            words = ["-benchmark", f"-benchmarking-params-file={parameters(folder)}"]
            words += [f"-benchmarking-output-dir={folder}"]
            with floor.learning():
                code = suite(folder, words)
            if code != 0:
                print(f"The suite's benchmarks failed: see {folder / 'critest.log'}")
                return 1
            for name in ("container", "pod"):
                _collect(json.loads((folder / f"{name}_benchmark_data.json").read_text()), operations)
            bare_lives, bare_starts = floor.measure(SAMPLES)
            lives += bare_lives
            starts += bare_starts
    finally:
        floor.close()
    result = judged(operations, lives, starts)
    print(table("critest", result))
    (output / "benchmark.json").write_text(json.dumps(document("critest", result), indent=2) + "\n")
    return int(not result.held)


def _collect(data: Mapping[str, Any], operations: dict[str, list[float]]) -> None:
    for point in data["datapoints"]:
        for name, nanoseconds in zip(data["operationsNames"], point["operationsDurationsNs"], strict=True):
            operations.setdefault(name, []).append(nanoseconds / 1e6)


def judged(operations: Mapping[str, list[float]], lives: list[float], starts: list[float]) -> Result:
    """Compare at the median: milliseconds by operation, of bare containers' lives and sandboxes' starts."""
    ours = [sum(parts) for parts in zip(*(operations[name] for name in _CONTAINER), strict=True)]
    pods = operations["CreatePod"]
    rows = [Row(f"{name}, p50", percentile(values, 50), "ms") for name, values in operations.items()]
    bare_life, bare_start = percentile(lives, 50), percentile(starts, 50)
    rows.append(Row("container: create to remove, p50", percentile(ours, 50), "ms", "bare", bare_life))
    rows.append(Row("pod sandbox: run, p50", percentile(pods, 50), "ms", "bare", bare_start))
    bars = [
        Bar("container overhead, p50", 100 * (percentile(ours, 50) / bare_life - 1), MOST_OVERHEAD, "%"),
        Bar("pod sandbox overhead, p50", 100 * (percentile(pods, 50) / bare_start - 1), MOST_OVERHEAD, "%"),
    ]
    return Result(rows, bars, [f"{len(ours)} samples each, one at a time; a status is not counted"])
