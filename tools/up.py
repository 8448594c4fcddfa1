"""`make up`: a node from one command. Every step looks first and does only what is missing."""

from __future__ import annotations

import os
import socket
import time
import urllib.error
import urllib.request

from tools import engine, images
from tools.steps import Report, StepError, doing, main_wrapper, run, succeeds

PORTS = {"kubelet": 10255, "proxy": 10249, "cadvisor": 4194}
HEALTHY_SECONDS = 120
_LIGHT_SWITCH = {"COMPOSE_PROFILES": "", "OTEL_EXPORTER_OTLP_ENDPOINT": ""}


def fault(port: int) -> str:
    """Return why a service is not healthy; empty when it is."""
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=3)
    except urllib.error.HTTPError as error:
        return error.read().decode(errors="replace").strip()
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def wait_until_healthy() -> None:
    """Wait for the three services. Raises `StepError` with what each says."""
    deadline = time.monotonic() + HEALTHY_SECONDS
    while True:
        faults = {name: why for name, port in PORTS.items() if (why := fault(port))}
        if not faults:
            return
        if time.monotonic() > deadline:
            said = "\n".join(f"  {name}: {why}" for name, why in faults.items())
            raise StepError(f"Not healthy after {HEALTHY_SECONDS} s:\n{said}", "See `docker-compose logs`.")
        time.sleep(0.5)


def compose_environment(*, jaeger: bool) -> dict[str, str]:
    """Return what compose must see besides its files."""
    made = {"TRIPOD_ENGINE_DIRECTORY": engine.socket_directory()}
    made["TRIPOD_NODE_NAME"] = os.environ.get("TRIPOD_NODE_NAME") or socket.gethostname().lower()
    return made if jaeger else made | _LIGHT_SWITCH


def prepare(report: Report) -> list[str]:
    """Make sure of the engine and of the services' images; return the words that run compose."""
    engine.ensure_engine(report)
    compose = engine.ensure_compose(report)
    base = images.choose_base(report)
    images.fetch_wheels(report)
    images.build(report, base)
    succeeds(["modprobe", "br_netfilter"])
    return compose


def main() -> int:
    """Bring the node up."""
    report = Report()
    compose = prepare(report)
    jaeger = images.ensure_jaeger(report)
    with doing("Starting the services"):
        run([*compose, "up", "-d", "--no-build"], environment=compose_environment(jaeger=jaeger), timeout=300)
        wait_until_healthy()
    report.done("Services are healthy: kubelet, proxy, cadvisor")
    report.done("Tracing: " + ("http://localhost:16686 (Jaeger), " if jaeger else "") + "./tripod trace")
    print("\nThe node is up. Next: make demo")
    return 0


if __name__ == "__main__":
    main_wrapper(main)
