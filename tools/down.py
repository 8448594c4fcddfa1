"""`make down`: remove every pod, rule and bridge of ours, then the services.

`--all` removes the state and our images, too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path

from tools import engine, images
from tools.steps import ROOT, RUN, STATE, Report, doing, main_wrapper, run, succeeds
from tools.up import compose_environment

# Those that docker-compose.yml gives it.
_KUBELET_CAPABILITIES = ("NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE")


def main() -> int:
    """Take the node down. Works while services are broken, and may be repeated."""
    report = Report()
    if not engine.version():
        report.skipped(f"No engine answers at {engine.host()}: nothing runs")
    else:
        _remove_node(report)
    if "--all" in sys.argv:
        _remove_all(report)
    else:
        report.done(f"Kept {STATE}: objects, token and logs (`make clean` removes it)")
    return 0


def _remove_node(report: Report) -> None:
    compose = engine.compose()
    environment = compose_environment(jaeger=True)
    if compose:
        with doing("Stopping the services"):
            run([*compose, "stop"], environment=environment, timeout=120)
    if images.present("tripod-kubelet:latest"):
        with doing("Removing pods and the pod network"):
            said = _in_image(
                "kubelet",
                ["--pid", "host"]
                + [word for name in _KUBELET_CAPABILITIES for word in ("--cap-add", name)]
                + ["-v", "/proc/sys/net:/host/proc/sys/net", "-e", "TRIPOD_PROC_SYS=/host/proc/sys"],
                environment,
            )
        report.done(said)
    if images.present("tripod-proxy:latest"):
        report.done(_in_image("proxy", ["--cap-add", "NET_ADMIN"], environment))
    if compose:
        run([*compose, "down", "--remove-orphans"], environment=environment, timeout=120)
    report.done("Removed the services")
    if os.geteuid() == 0:
        shutil.rmtree(RUN, ignore_errors=True)
        _remove_empty_cgroups()


def _remove_empty_cgroups() -> None:
    """Remove the engine's cgroup where it holds nothing; the engine makes it again when it needs it."""
    root = Path("/sys/fs/cgroup")
    if run(["docker", "ps", "-aq"]):
        return
    for path in [*root.glob("docker"), *root.glob("*/docker")]:
        with contextlib.suppress(OSError):  # In use after all, or not ours to remove.
            path.rmdir()


def _in_image(service: str, options: list[str], environment: dict[str, str]) -> str:
    """Run a service's clean-up in a container of its own; returns its last line."""
    words = ["docker", "run", "--rm", "--network", "host", "--user", "0"]
    words += ["--security-opt", "apparmor:unconfined"]
    words += ["-v", f"{environment['TRIPOD_ENGINE_DIRECTORY']}:/host/run", "-v", f"{STATE}:{STATE}"]
    words += ["-e", "TRIPOD_DOCKER_HOST=unix:///host/run/docker.sock"]
    words += [
        "-e",
        f"TRIPOD_NODE_NAME={environment['TRIPOD_NODE_NAME']}",
        "-e",
        f"TRIPOD_STATE_DIRECTORY={STATE}",
    ]
    words += [*options, f"tripod-{service}:latest", "python3", "-m", f"services.{service}", "--cleanup"]
    return run(words, timeout=300).splitlines()[-1]


def _remove_all(report: Report) -> None:
    if os.geteuid() == 0:
        for name in ("kubelet.db", "kubelet.db-wal", "kubelet.db-shm", "node-token"):
            (STATE / name).unlink(missing_ok=True)
        for path in STATE.glob("cluster.db*"):
            path.unlink()
        for name in ("cri", "pods", "pod-logs", "manifests"):
            shutil.rmtree(STATE / name, ignore_errors=True)
        report.done(f"Removed the state in {STATE}")
    else:
        report.skipped(f"Left {STATE}: only root may remove it")
    names = [f"tripod-{name}:latest" for name in images.SERVICES]
    for image in [*names, images.DEMO_IMAGE, "tripod-pause:1", images.base_name()]:
        succeeds(["docker", "image", "rm", "-f", image], timeout=120)
    report.done("Removed our images")
    for path in (ROOT / "wheels").glob("*.whl"):
        path.unlink()
    (ROOT / "wheels/.fetched").unlink(missing_ok=True)
    link = ROOT / "tripod"
    link.unlink(missing_ok=True)


if __name__ == "__main__":
    main_wrapper(main)
