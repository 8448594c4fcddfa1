"""Builds crictl, critest and ginkgo as Go modules into `.peers`, once: `python3 -m tests.critest.build`.

critest is the test binary of `sigs.k8s.io/cri-tools/cmd/critest`. The newest release is taken that the Go
toolchain here can build. Needs the standard library alone; `--update` looks for a newer release.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PEERS = ROOT / ".peers"
MODULE = "sigs.k8s.io/cri-tools"
_STAMP = PEERS / "cri-tools.version"
_PROGRAMS = ("crictl", "critest", "ginkgo")


def main() -> int:
    """Build what is missing."""
    if "--update" not in sys.argv and _STAMP.exists() and all((PEERS / name).exists() for name in _PROGRAMS):
        print(f"cri-tools {_STAMP.read_text().strip()} is built")
        return 0
    if shutil.which("go") is None:
        print("Go is not installed: see https://go.dev/dl")
        return 1
    found = _newest()
    if found is None:
        print(f"No release of {MODULE} can be built with {_go('version').strip()}: install a newer Go")
        return 1
    version, folder = found
    print(f"Building crictl and critest {version} ...", flush=True)
    PEERS.mkdir(exist_ok=True)
    flags = ["-trimpath", f"-ldflags=-s -w -X {MODULE}/pkg/version.Version={version}"]
    _go("build", *flags, "-o", str(PEERS / "crictl"), "./cmd/crictl", folder=folder)
    _go("test", "-c", *flags, "-o", str(PEERS / "critest"), "./cmd/critest", folder=folder)
    # Which critest runs itself by, in parallel.
    _go("build", *flags, "-o", str(PEERS / "ginkgo"), "github.com/onsi/ginkgo/v2/ginkgo", folder=folder)
    _STAMP.write_text(f"{version}\n")
    return 0


def _newest() -> tuple[str, Path] | None:
    """Return the newest release that builds here, and where its source lies."""
    toolchain = _numbers(_go("env", "GOVERSION"))
    listed = json.loads(_go("list", "-m", "-versions", "-json", f"{MODULE}@latest")).get("Versions", [])
    for version in reversed([version for version in listed if "-" not in version]):
        found = json.loads(_go("mod", "download", "-json", f"{MODULE}@{version}"))
        wanted = re.search(r"^go (\S+)$", Path(found["GoMod"]).read_text(), re.MULTILINE)
        if wanted is None or _numbers(wanted[1]) <= toolchain:
            return version, Path(found["Dir"])
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _go(*words: str, folder: Path | None = None) -> str:
    # Outside any module, so that ours, if there is one, has no say; a module's own folder cannot be written.
    done = subprocess.run(
        ["go", *words],
        cwd=folder or "/",
        env={**os.environ, "GOFLAGS": "-buildvcs=false"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"go {words[0]} failed")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
