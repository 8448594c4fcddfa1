"""`make cluster-up [NODES=n]`: a Kubernetes control plane, this machine as a node of it, and n more nodes.

The control plane comes from the official images, or from the binaries of `make peers` where these cannot be
had. More nodes live in network namespaces, each with an engine of its own. Every step looks first, and does
only what is missing.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

from tools import images, up
from tools.cluster.component import Component, ComponentError, api_ready, get_json
from tools.cluster.layout import COMPONENTS, Layout, load, prepare, prepare_node, save
from tools.steps import ROOT, STATE, Report, StepError, doing, main_wrapper, run, succeeds

FOLDER = STATE / "cluster"
JOIN = STATE / "join"
FILES = ("-f", "docker-compose.yml", "-f", "docker-compose.cluster.yml")
READY_SECONDS = 120


def main() -> int:
    """Bring all of it up."""
    count = node_count()
    if os.geteuid() != 0:
        raise StepError("A control plane and its nodes need root", "Try again as root.")
    report = Report()
    compose = up.prepare(report)
    FOLDER.mkdir(mode=0o700, parents=True, exist_ok=True)
    layout = load(FOLDER)
    if layout is not None and count and not (FOLDER / "nodes.pid").exists():
        raise StepError("The cluster was made without more nodes", "Run `make cluster-down` first.")
    layout = layout or save(Layout(FOLDER, _address(count)))
    prepare(layout)
    jaeger = images.ensure_jaeger(report)
    environment = {**up.compose_environment(jaeger=jaeger), "TRIPOD_CLUSTER_ADDRESS": layout.address}
    _control_plane(layout, report, compose, environment)
    _this_machine(layout, report, compose, environment)
    for number in range(1, count + 1):
        name = f"node-{number}"
        _wait(partial(_unready, layout, name), f"{name} is ready")
        report.done(f"Node {name} has joined, in a network namespace with an engine of its own")
    kubectl = "" if shutil.which("kubectl") else f"export PATH=$PATH:{ROOT}/.peers\n  "
    print(f"\nThe cluster is up. Next:\n  {kubectl}export KUBECONFIG={layout.admin}\n  kubectl get nodes")
    return 0


def node_count() -> int:
    """Return how many nodes are wanted besides this machine. Raises `StepError`."""
    text = os.environ.get("NODES") or "0"
    if not text.isdigit() or int(text) > 20:
        raise StepError(f"NODES={text} is not a number from 0 to 20")
    return int(text)


def _address(count: int) -> str:
    """Return where the API server is found: on the switch of the nodes in namespaces, if there are such."""
    if not count:
        return _own_address()
    place = FOLDER / "network"
    place.unlink(missing_ok=True)
    words = [sys.executable, "-m", "tests.lab.nodes", str(FOLDER), str(count)]
    with (FOLDER / "nodes.log").open("ab") as log:
        keeper = subprocess.Popen(
            words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    (FOLDER / "nodes.pid").write_text(str(keeper.pid))

    def unknown() -> str:
        if keeper.poll() is not None:
            raise StepError(f"The nodes ended: see {FOLDER}/nodes.log")
        return "" if place.exists() and place.read_text() else "it is not there yet"

    _wait(unknown, "there is a switch for the nodes")
    return place.read_text()


def _own_address() -> str:
    """Return the address of this machine's default route; that of the engine's bridge where there is none."""
    for target in ("192.0.2.1", "172.17.0.1"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((target, 9))  # Sends nothing: it asks for the route.
            except OSError:
                continue
            return str(probe.getsockname()[0])
    raise StepError("This machine has no address but loopback")


def _control_plane(layout: Layout, report: Report, compose: list[str], environment: dict[str, str]) -> None:
    if _images_here(compose, environment):
        profiles = ",".join(filter(None, ("control-plane", environment.get("COMPOSE_PROFILES", "jaeger"))))
        run(
            [*compose, *FILES, "up", "-d", "--no-build", *COMPONENTS],
            environment={**environment, "COMPOSE_PROFILES": profiles},
            timeout=300,
        )
        how = "from its images"
    else:
        run([sys.executable, "-m", "tests.peers.build", "--for-tests"], quiet=False, timeout=7200)
        components = [Component(layout, name) for name in COMPONENTS]
        for component in components:
            if not component.program.exists():
                raise StepError(f"Neither image nor binary of {component.name} can be had", "Run: make peers")
        for component in components[:2]:
            component.start()
        with doing("Starting the control plane"):
            _wait(lambda: _checked(components, api_ready(layout)), "the API server is ready")
        for component in components[2:]:
            component.start()
        how = "from binaries of `make peers`"
    with doing("Waiting for the API server"):
        _wait(lambda: api_ready(layout), "the API server is ready")
    report.done(f"Control plane at {layout.url}, {how}")


def _images_here(compose: list[str], environment: dict[str, str]) -> bool:
    """Tell whether the official images are here, or could be pulled."""
    said = run([*compose, *FILES, "config"], environment={**environment, "COMPOSE_PROFILES": "control-plane"})
    wanted = re.findall(r"image: (registry\.k8s\.io/\S+)", said)
    # The smallest first: where no registry answers, it tells so soonest.
    wanted.sort(key=lambda image: "scheduler" not in image)
    return all(images.present(image) or succeeds(["docker", "pull", image], timeout=600) for image in wanted)


def _checked(components: list[Component], why: str) -> str:
    try:
        for component in components:
            component.check()
    except ComponentError as error:
        raise StepError(str(error)) from error
    return why


def _this_machine(layout: Layout, report: Report, compose: list[str], environment: dict[str, str]) -> None:
    name = environment["TRIPOD_NODE_NAME"]
    if not (JOIN / "kubelet.conf").exists():
        prepare_node(layout, name, layout.address)
        shutil.copytree(layout.folder / "nodes" / name, JOIN, dirs_exist_ok=True)
    with doing("Starting the services"):
        run(
            [*compose, *FILES, "up", "-d", "--no-build", *up.PORTS],
            environment={**environment, "TRIPOD_NODE_IP": layout.address},
            timeout=300,
        )
        try:
            up.wait_until_healthy()
            _wait(lambda: _unready(layout, name), f"node {name} is ready")
        except StepError as error:
            raise StepError(f"{error}\n{_last_words(compose)}".rstrip(), error.advice) from error
    report.done(f"Node {name} has joined: this machine, by its composed services")


def _last_words(compose: list[str]) -> str:
    """Return why the kubelet ended when it ended last; empty when it goes on."""
    said = run([*compose, *FILES, "logs", "--no-color", "--tail", "5", "kubelet"], timeout=30)
    found = re.findall(r'"error": "((?:[^"\\]|\\.)*)".*"event": "Ended with an error"', said)
    return f"  kubelet: {found[-1]}" if found else ""


def _unready(layout: Layout, name: str) -> str:
    """Return why a node is not Ready; empty when it is."""
    status, found = get_json(layout, f"/api/v1/nodes/{name}")
    if status != 200:
        return f"the API server answers {status} for it"
    conditions = found.get("status", {}).get("conditions", [])
    ready = [each for each in conditions if each["type"] == "Ready"]
    if not ready:
        return "it has told nothing yet"
    return "" if ready[0]["status"] == "True" else str(ready[0].get("message", ""))


def _wait(fault: Callable[[], str], what: str) -> None:
    """Wait until `fault()` is empty. Raises `StepError` with what it says at last."""
    deadline = time.monotonic() + READY_SECONDS
    while why := fault():
        if time.monotonic() > deadline:
            raise StepError(f"Not within {READY_SECONDS} s: {what}: {why}", f"Look into {FOLDER}/*.log.")
        time.sleep(0.2)


if __name__ == "__main__":
    main_wrapper(main)
