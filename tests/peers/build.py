"""Builds the peers that tests hold us against into `.peers`: `python3 -m tests.peers.build [--for-tests]`.

All of them are Go modules. With `--for-tests` those that `make test` uses are built where a Go toolchain and
the modules are in reach; elsewhere it says in one line how to get them, and ends well: tests that need them
are skipped. Needs the standard library alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from tests.critest import build as cri_tools
from tests.peers.kubernetes import build as kubernetes

HERE = kubernetes.HERE.parent
PEERS = kubernetes.PEERS
_GRPCURL = "github.com/fullstorydev/grpcurl/cmd/grpcurl@latest"


def main(words: list[str]) -> int:
    """Build what is missing."""
    for_tests = words == ["--for-tests"]
    if words and not for_tests:
        print("--for-tests is the only option")
        return 2
    if why := _out_of_reach():
        print(f"Tests with Kubernetes are skipped: {why}, then run `make peers`")
        return 0 if for_tests else 1
    PEERS.mkdir(exist_ok=True)
    steps = [lambda: kubernetes.main([]), _streampeer]
    if not for_tests:
        steps += [_grpcurl, cri_tools.main]
    code = next((code for step in steps if (code := step())), 0)
    if code and for_tests:
        print(f"Tests with Kubernetes are skipped: a build ended with {code}; `make peers` tells why")
        return 0
    return code


def _out_of_reach() -> str:
    """Return what must be done first; empty when all is built, or can be."""
    if all(kubernetes.is_built(name) for name in kubernetes.PACKAGES) and (PEERS / "streampeer").exists():
        return ""
    if shutil.which("go") is None:
        return "install Go, see https://go.dev/dl"
    # Where the toolchain is too old, or no module can be had, this fails, too.
    asked = ["go", "list", "-f", "{{.Version}}", "-m", kubernetes.KUBERNETES, kubernetes.ETCD]
    fetched = ["go", "mod", "download", kubernetes.KUBERNETES, kubernetes.ETCD]
    for command in (asked, fetched):
        done = subprocess.run(command, cwd=kubernetes.HERE, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return f"let Go have its modules ({(done.stderr.strip().splitlines() or ['it failed'])[-1]})"
    return ""


def _streampeer() -> int:
    """Build Kubernetes' own client; the Go toolchain knows what is fresh."""
    if shutil.which("go") is None:
        return 0
    command = ["go", "build", "-p", "2", "-trimpath", "-o", str(PEERS / "streampeer"), "."]
    return subprocess.run(
        command, cwd=HERE / "streampeer", env=kubernetes.environment(), check=False
    ).returncode


def _grpcurl() -> int:
    if (PEERS / "grpcurl").exists():
        return 0
    environment = {**os.environ, "GOBIN": str(PEERS)}
    return subprocess.run(["go", "install", _GRPCURL], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
