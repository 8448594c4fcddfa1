"""Find the Docker Engine and compose; on a bare Debian, install and start them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

from tools.steps import STATE, Report, StepError, install, may_install, run, succeeds

START_SECONDS = 60
DAEMON_SETTINGS = Path("/etc/docker/daemon.json")


def host() -> str:
    """Name where the engine is looked for."""
    return os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"


def version() -> str:
    """Return the engine's version; empty when none answers."""
    try:
        return run(["docker", "version", "--format", "{{.Server.Version}}"], timeout=20)
    except StepError:
        return ""


def ensure_engine(report: Report) -> None:
    """Make sure that an engine answers."""
    found = version()
    if found:
        report.done(f"Engine {found} answers at {host()}")
        return
    if os.environ.get("DOCKER_HOST"):
        raise StepError(f"No engine answers at DOCKER_HOST={host()}", "Start it, or unset DOCKER_HOST.")
    if not may_install():
        raise StepError(
            f"No Docker Engine answers at {host()}",
            "Install and start one (https://docs.docker.com/engine/install/), and join its group.",
        )
    if shutil.which("dockerd") is None and not Path("/usr/sbin/dockerd").exists():
        install(["docker.io"], report)
    _start(report)


def _start(report: Report) -> None:
    if not DAEMON_SETTINGS.exists():
        # Containers live on while the engine restarts.
        DAEMON_SETTINGS.parent.mkdir(parents=True, exist_ok=True)
        DAEMON_SETTINGS.write_text(json.dumps({"live-restore": True}) + "\n")
    if Path("/run/systemd/system").is_dir():
        run(["systemctl", "enable", "--now", "docker"], timeout=120)
    elif not version():
        STATE.mkdir(parents=True, exist_ok=True)
        log = (STATE / "dockerd.log").open("ab")
        subprocess.Popen(
            [shutil.which("dockerd") or "/usr/sbin/dockerd"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            close_fds=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while not version():
        if time.monotonic() > deadline:
            raise StepError("The engine did not start", f"Look into {STATE}/dockerd.log.")
        time.sleep(0.5)
    report.done(f"Started the engine {version()} (no systemd: it logs to {STATE}/dockerd.log)")


def compose() -> list[str]:
    """Return the words that run compose; empty when there is none."""
    if succeeds(["docker", "compose", "version"]):
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else []


def ensure_compose(report: Report) -> list[str]:
    """Make sure that compose is there."""
    words = compose()
    if not words:
        install(["docker-compose"], report)
        words = compose()
    if not words:
        raise StepError("docker-compose was installed and is not found")
    return words


def build_environment() -> dict[str, str]:
    """Choose the builder: BuildKit where the CLI has it, else the engine's own."""
    return {} if succeeds(["docker", "buildx", "version"]) else {"DOCKER_BUILDKIT": "0"}


def socket_directory() -> str:
    """Return the folder of the engine's socket, which the services mount."""
    address = host()
    if not address.startswith("unix://"):
        raise StepError(
            f"DOCKER_HOST={address} is not a unix socket", "Tripod runs beside its engine: use its socket."
        )
    path = Path(address.removeprefix("unix://"))
    if path.name != "docker.sock":
        raise StepError(f"The engine's socket {path} is not called docker.sock")
    return str(path.parent)
