"""Builds a control plane and kubectl as Go modules into `.peers`, once.

`python3 -m tests.peers.kubernetes.build [NAME ...]` builds what go.mod beside this file names, or those
programs of it alone. Each program has a stamp of its version beside it, and one whose stamp is right is left
alone, without asking Go for anything. Needs the standard library alone.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent.parent.parent / ".peers"
KUBERNETES = "k8s.io/kubernetes"
ETCD = "go.etcd.io/etcd/server/v3"
# What is needed first comes first: each program makes the next one cheaper.
PACKAGES = {
    "etcd": ETCD,
    "kube-apiserver": f"{KUBERNETES}/cmd/kube-apiserver",
    "kubectl": f"{KUBERNETES}/cmd/kubectl",
    "kube-controller-manager": f"{KUBERNETES}/cmd/kube-controller-manager",
    "kube-scheduler": f"{KUBERNETES}/cmd/kube-scheduler",
}


def main(names: list[str]) -> int:
    """Build what is missing of the programs named, or of all."""
    unknown = [name for name in names if name not in PACKAGES]
    if unknown:
        print(f"{unknown[0]} is none of {', '.join(PACKAGES)}")
        return 2
    missing = [name for name in names or PACKAGES if not is_built(name)]
    if not missing:
        print(f"Kubernetes {version(KUBERNETES)} and etcd {version(ETCD)} are built")
        return 0
    if shutil.which("go") is None:
        print("Go is not installed: see https://go.dev/dl")
        return 1
    return 0 if all(_build(name) for name in missing) else 1


def is_built(name: str) -> bool:
    """Tell whether the program is there in the version that go.mod names."""
    stamp = PEERS / f"{name}.version"
    return (PEERS / name).exists() and stamp.exists() and stamp.read_text().strip() == _version_of(name)


def version(module: str) -> str:
    """Return the version of a module that go.mod requires."""
    found = re.search(
        rf"^(?:require)?\s+{re.escape(module)} (v\S+)", (HERE / "go.mod").read_text(), re.MULTILINE
    )
    if found is None:
        raise LookupError(f"go.mod does not require {module}")
    return found[1]


def environment() -> dict[str, str]:
    """Return what a build sees: static, so that a program also runs in a container that has nothing else."""
    return {**os.environ, "GOFLAGS": "-buildvcs=false", "CGO_ENABLED": "0"}


def _version_of(name: str) -> str:
    return version(ETCD if name == "etcd" else KUBERNETES)


def _build(name: str) -> bool:
    print(f"Building {name} {_version_of(name)} ...", flush=True)
    started = time.monotonic()
    PEERS.mkdir(exist_ok=True)
    target = PEERS / name
    # Under another name until it is whole: whoever links to the folder meanwhile sees a whole program.
    unfinished = PEERS / f".{name}.unfinished"
    command = ["go", "build", "-p", "2", "-trimpath", f"-ldflags={_link_flags()}", "-o", str(unfinished)]
    if subprocess.run([*command, PACKAGES[name]], cwd=HERE, env=environment(), check=False).returncode != 0:
        return False
    unfinished.replace(target)
    (PEERS / f"{name}.version").write_text(f"{_version_of(name)}\n")
    print(f"  took {time.monotonic() - started:.0f} s", flush=True)
    return True


def _link_flags() -> str:
    """Leave out symbols, and say the version that the release's own builds say."""
    release = version(KUBERNETES)
    major, minor = release.removeprefix("v").split(".")[:2]
    values = {"gitVersion": release, "gitMajor": major, "gitMinor": minor, "gitTreeState": "archive"}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    said = [f"-X {package}.{name}={value}" for package in packages for name, value in values.items()]
    return " ".join(["-s -w", *said])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
