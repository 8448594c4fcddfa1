"""Runs the CRI validation suite: `python -m tests.critest`, as root. `make critest` builds what it needs.

All of it lives in namespaces of its own: processes, network, mounts, IPC. The registries' names are in a
hosts file that nobody else sees, ports and firewall rules are not the host's, and nothing outlives the run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.critest import build, suite
from tests.critest.images import HOSTS, Missing
from tests.critest.registry import ADDRESS, Registry
from tests.lab.dockerd import EngineUnavailable, PrivateEngine

_INSIDE = "TRIPOD_CRITEST_INSIDE"


def parse(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="critest", description="The CRI validation suite on our server.")
    parser.add_argument("--least", type=int, default=103, help="fail when fewer specs pass (default 103)")
    parser.add_argument("--focus", default="", help="run specs that match this alone; then --least is 0")
    parser.add_argument("--skip", default="", help="leave out specs that match this, too")
    parser.add_argument("--websocket", action="store_true", help="stream over WebSocket, not SPDY")
    parser.add_argument("--parallel", type=int, default=1, help="run so many specs at once")
    parser.add_argument("--runs", type=int, default=1, help="run so often, each time in another order")
    parser.add_argument("--seed", type=int, default=0, help="the first run's order; 0 takes the time")
    parser.add_argument("--benchmark", action="store_true", help="run the suite's benchmarks instead")
    parser.add_argument("--output", type=Path, default=None, help="folder for reports and logs; kept")
    return parser.parse_args(words)


def enter(words: list[str]) -> None:
    """Start again in namespaces of our own, beneath a first process that reaps what others leave."""
    reaper = shutil.which("catatonit") or shutil.which("tini")
    command = [sys.executable, "-m", "tests.critest", *words]
    flags = ["--mount", "--propagation", "private", "--net", "--ipc", "--pid", "--fork"]
    flags += ["--kill-child", "--mount-proc"]
    first = [reaper, "--"] if reaper else []
    os.environ[_INSIDE] = "1"
    os.execvp("unshare", ["unshare", *flags, *first, *command])  # fixed words


def prepare(folder: Path) -> None:
    """Take loopback up and let the registries' names mean the local one."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    hosts = folder / "hosts"
    hosts.write_text(f"{Path('/etc/hosts').read_text()}\n{ADDRESS} {' '.join(HOSTS)}\n")
    subprocess.run(["mount", "--bind", str(hosts), "/etc/hosts"], check=True)


def main(words: list[str]) -> int:
    """Run; returns 0 when enough specs passed."""
    options = parse(words)
    if os.geteuid() != 0:
        print("The suite needs root: run `make critest` as root")
        return 1
    if not (build.PEERS / "critest").exists():
        print("critest is not built: run `make peers`")
        return 1
    if _INSIDE not in os.environ:
        # The last that needs the host's network.
        try:
            Registry.fetch(build.PEERS / "registry")
        except Missing as error:
            print(error)
            return 1
        enter(words)
    # Told to end, clean up first, as for Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="critest-", dir="/tmp"))  # sockets need a short path
    output = options.output or folder / "output"
    output.mkdir(parents=True, exist_ok=True)
    registry = Registry(build.PEERS / "registry")
    engine = PrivateEngine(folder / "e", settings={"insecure-registries": list(HOSTS)})
    try:
        prepare(folder)
        registry.start()
        engine.start()
        registry.fill(engine)
        with suite.serving(engine, folder, output) as server:
            return suite.run_all(engine, server, options, output)
    except (Missing, EngineUnavailable) as error:
        print(error)
        return 1
    finally:
        if engine.log.exists():
            shutil.copy(engine.log, output / "dockerd.log")
        engine.close()
        registry.stop()
        if output.is_relative_to(folder):
            keep = Path(tempfile.gettempdir()) / "critest-output"
            shutil.rmtree(keep, ignore_errors=True)
            shutil.move(str(output), keep)
            print(f"Logs and reports: {keep}")
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
