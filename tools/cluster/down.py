"""`make cluster-down`: end the cluster of `make cluster-up`, remove its nodes' pods and all that it knew."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

from tools import down, engine
from tools.cluster.component import Component
from tools.cluster.layout import COMPONENTS, load
from tools.cluster.up import FILES, FOLDER, JOIN
from tools.steps import STATE, Report, StepError, doing, main_wrapper, run
from tools.up import compose_environment

_END_SECONDS = 120


def main() -> int:
    """Take all of it down. May be repeated."""
    report = Report()
    _end_nodes(report)
    compose = engine.compose()
    if engine.version() and compose:
        environment = {**compose_environment(jaeger=True), "COMPOSE_PROFILES": "jaeger,control-plane"}
        with doing("Stopping the services"):
            run([*compose, *FILES, "down", "--remove-orphans"], environment=environment, timeout=120)
    layout = load(FOLDER)
    if layout is not None:
        for name in reversed(COMPONENTS):
            Component(layout, name).end()
        report.done("Ended the control plane")
    code = down.main()
    for folder in (FOLDER, JOIN):
        shutil.rmtree(folder, ignore_errors=True)
    for path in STATE.glob("cluster.db*"):
        path.unlink()
    report.done(f"Removed {FOLDER}, {JOIN} and what this machine knew of the cluster")
    return code


def _end_nodes(report: Report) -> None:
    """End the nodes in network namespaces: their keeper removes them. Raises `StepError`."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((FOLDER / "nodes.pid").read_text())
        if not _keeps(pid):
            return
        os.kill(pid, signal.SIGTERM)
        with doing("Removing the nodes in network namespaces"):
            deadline = time.monotonic() + _END_SECONDS
            while _keeps(pid):
                if time.monotonic() > deadline:
                    raise StepError(
                        f"The nodes' keeper, process {pid}, does not end", f"See {FOLDER}/nodes.log."
                    )
                time.sleep(0.2)
        report.done("Removed the nodes in network namespaces")


def _keeps(pid: int) -> bool:
    """Tell whether a process is our keeper of nodes."""
    try:
        return b"tests.lab.nodes" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


if __name__ == "__main__":
    main_wrapper(main)
