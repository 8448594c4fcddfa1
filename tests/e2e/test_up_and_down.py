"""The node comes from one command, and leaves nothing behind but its state."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, Node

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


POD = b"""
apiVersion: v1
kind: Pod
metadata: {name: e2e-down}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: server, image: "tripod-demo:1"}]
"""


def composes() -> list[list[str]]:
    """Return each compose that is here."""
    found = [["docker-compose"]] if shutil.which("docker-compose") else []
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    return found + ([["docker", "compose"]] if plugin.returncode == 0 else [])


@pytest.mark.parametrize("words", composes(), ids=" ".join)
def test_the_compose_file_is_accepted(words: list[str]) -> None:
    """By every compose that is here."""
    done = subprocess.run([*words, "config", "-q"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_a_second_up_changes_nothing(node: Node) -> None:
    """The same processes run on."""
    before = {service: node.pid(service) for service in ("kubelet", "proxy", "cadvisor")}

    said = node.up()

    assert {service: node.pid(service) for service in before} == before
    assert "Images are up to date" in said


def host_state() -> dict[str, str]:
    """Return links, mounts, chains and tables of this host, without counters."""

    def run(*words: str) -> str:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    links = sorted(line.split(": ")[1].split("@")[0] for line in run("ip", "-o", "link").splitlines())
    chains = sorted(line for line in run("iptables-save").splitlines() if line.startswith(("-A", ":")))
    return {
        "links": "\n".join(link for link in links if not link.startswith("veth")),
        "mounts": "\n".join(sorted(line.split()[4] for line in _mounts() if "/docker/" not in line)),
        "chains": "\n".join(line.split(" [")[0] for line in chains),
        "tables": run("nft", "list", "tables"),
        "cgroups": "\n".join(
            sorted(str(path) for path in Path("/sys/fs/cgroup").glob("*/*/") if path.is_dir())
        ),
        "owned": run("docker", "ps", "-aq", "--filter", "label=io.tripod.node"),
    }


def _mounts() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


def test_down_leaves_the_host_as_it_was(node: Node) -> None:
    """Down, up, a pod, down: the host is the same after each down."""
    node.make("down")
    before = host_state()
    node.up()
    node.tripod("apply", "-f", "-", data=POD)
    node.tripod("wait", "pod/e2e-down", "--timeout", "60s")
    during = host_state()
    node.make("down")
    after = host_state()
    node.up()

    assert after == before
    assert "tripod0" in during["links"]
    assert "TRIPOD" not in after["chains"]
    assert "tripod" not in after["tables"]
    assert after["owned"] == ""
    # The state was kept: the pod comes again.
    node.tripod("wait", "pod/e2e-down", "--timeout", "60s")
    node.tripod("delete", "pod/e2e-down")
