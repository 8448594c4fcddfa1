"""Run the kill matrix: `python -m tests.matrix [kubelet lifecycle proxy ...] [--sample N] [--jobs N]`.

Prints each instant, the number of all, and exits 1 when an invariant did not hold
anywhere, or fewer than `--least` instants were killed at.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from services.common import logs
from tests.matrix.cadvisor import CadvisorMatrix
from tests.matrix.cri import CriMatrix
from tests.matrix.engine import EngineMatrix
from tests.matrix.kubelet import KubeletMatrix
from tests.matrix.lifecycle import LifecycleMatrix
from tests.matrix.process import MANNERS, Service
from tests.matrix.proxy import ProxyMatrix
from tests.matrix.proxy_cluster import ClusterProxyMatrix
from tests.matrix.runner import Matrix, Result, run

DEFAULT = ["kubelet", "lifecycle", "proxy", "proxy-cluster", "cadvisor"]


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("services", nargs="*", default=DEFAULT)
    parser.add_argument("--sample", type=int, default=0, help="only so many instants of each service")
    parser.add_argument("--only", default="", help="only instants with this in their name")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    parser.add_argument("--least", type=int, default=0, help="fail when fewer instants were killed at")
    parser.add_argument("--json", default="", help="write the result to a file")
    parser.add_argument("--signal", default="KILL", choices=sorted(MANNERS), help="how a life ends")
    options = parser.parse_args()
    Service.manner = MANNERS[options.signal]
    logs.configure("matrix", level="error")
    folder = Path(tempfile.mkdtemp(prefix="matrix-"))
    kinds: dict[str, Callable[[Path], Matrix]] = {
        "kubelet": KubeletMatrix,
        "lifecycle": LifecycleMatrix,
        "proxy": ProxyMatrix,
        "proxy-cluster": ClusterProxyMatrix,
        "cadvisor": CadvisorMatrix,
        "engine": EngineMatrix,
        "cri": CriMatrix,
    }
    results: dict[str, Result] = {}
    begin = time.monotonic()
    try:
        for name in options.services:
            matrix = kinds[name](folder / name)
            print(f"{name}: killed at each instant of its story", flush=True)
            running = run(matrix, sample=options.sample, jobs=options.jobs, only=options.only)
            results[name] = asyncio.run(running)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _report(results, time.monotonic() - begin, options.least, options.json)


def _report(results: dict[str, Result], seconds: float, least: int, path: str) -> int:
    killed = sum(result.killed for result in results.values())
    failures = [failure for result in results.values() for failure in result.failures]
    for name, result in results.items():
        unreached = f", {len(result.unreached)} not passed" if result.unreached else ""
        print(f"{name}: {result.killed} instants, {len(result.failures)} failures{unreached}")
    print(f"{killed} instants killed at, {len(failures)} failures, {seconds:.0f} s")
    for failure in failures:
        print(f"✗ {failure}")
    if path:
        values = {"instants": killed, "failures": failures, "seconds": round(seconds, 1)}
        Path(path).write_text(json.dumps(values, indent=2) + "\n")
    if killed < least:
        print(f"✗ Fewer than {least} instants")
    return int(bool(failures) or killed < least)


if __name__ == "__main__":
    sys.exit(main())
