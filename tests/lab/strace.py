"""Break one system call of a program at its Nth time, with strace."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

AVAILABLE = shutil.which("strace") is not None


@dataclass(frozen=True, slots=True)
class Broken:
    """How a run ended. `hit` tells whether the call came often enough to be broken."""

    code: int
    output: str
    hit: bool


def run_broken(
    module: str, arguments: Sequence[str], *, call: str, how: str, when: str, files: Sequence[Path], log: Path
) -> Broken:
    """Run a Python module; the `when`th `call` on one of `files` is broken, such as by `error=EIO`."""
    paths = [word for file in files for word in ("-P", str(file))]
    # With a filter in the kernel, strace 6.1 injects errors but no signals.
    fast = ("--seccomp-bpf",) if how.startswith("error") else ()
    done = subprocess.run(
        [
            *("strace", "-f", *fast, "-o", str(log), *paths),
            *("-e", f"trace={call}", "-e", f"inject={call}:{how}:when={when}"),
            *(sys.executable, "-m", module, *arguments),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    text = log.read_text(errors="replace")
    return Broken(done.returncode, done.stdout, "INJECTED" in text or "killed by SIGKILL" in text)
