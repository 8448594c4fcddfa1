"""Say what is done, step by step, and run programs.

Standard library alone: this runs before anything is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STATE = Path(os.environ.get("TRIPOD_STATE_DIRECTORY") or "/var/lib/tripod")
RUN = Path(os.environ.get("TRIPOD_RUN_DIRECTORY") or "/run/tripod")


class StepError(Exception):
    """A step that cannot be done; `advice` says what to do about it."""

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


@dataclass
class Report:
    """The tick list."""

    lines: list[str] = field(default_factory=list)

    def done(self, what: str) -> None:
        """Note a step that was done, or was done already."""
        self._say("✓", what)

    def skipped(self, what: str) -> None:
        """Note a step that was left out, and why."""
        self._say("–", what)

    def _say(self, mark: str, what: str) -> None:
        self.lines.append(f"{mark} {what}")
        print(f"{mark} {what}", flush=True)


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Announce work that takes a while."""
    print(f"  {what} ...", flush=True)
    begin = time.monotonic()
    yield
    if time.monotonic() - begin > 5:
        print(f"  ... took {time.monotonic() - begin:.0f} s", flush=True)


def run(
    words: Sequence[str],
    *,
    quiet: bool = True,
    environment: dict[str, str] | None = None,
    timeout: float | None = None,
    data: bytes | None = None,
) -> str:
    """Run a program; returns its output. Raises `StepError` with the end of what it said."""
    env = {**os.environ, **(environment or {})}
    try:
        done = subprocess.run(
            list(words),
            cwd=ROOT,
            env=env,
            input=data,
            stdout=subprocess.PIPE if quiet else None,
            stderr=subprocess.STDOUT if quiet else None,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise StepError(f"{words[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise StepError(f"{' '.join(words[:4])} took longer than {timeout:g} s") from error
    output = (done.stdout or b"").decode(errors="replace")
    if done.returncode != 0:
        tail = "\n".join(output.strip().splitlines()[-15:])
        raise StepError(f"{' '.join(words[:6])} failed ({done.returncode})\n{tail}".rstrip())
    return output.strip()


def succeeds(words: Sequence[str], *, timeout: float = 30) -> bool:
    """Tell whether a program runs and exits with 0."""
    try:
        run(words, timeout=timeout)
    except StepError:
        return False
    return True


def may_install() -> bool:
    """Tell whether we may install Debian packages: as root, on Debian or Ubuntu."""
    try:
        text = Path("/etc/os-release").read_text()
    except OSError:
        return False
    return (
        os.geteuid() == 0 and shutil.which("apt-get") is not None and ("debian" in text or "ubuntu" in text)
    )


def install(packages: Sequence[str], report: Report) -> None:
    """Install Debian packages, saying so. Raises `StepError` where that is not ours to do."""
    names = " ".join(packages)
    if not may_install():
        raise StepError(
            f"Missing: {names}", f"Install it (on Debian or Ubuntu: apt-get install {names}) and try again."
        )
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    with doing(f"Installing Debian packages: {names}"):
        run(["apt-get", "update"], timeout=300)
        run(
            ["apt-get", "install", "-y", "--no-install-recommends", *packages],
            environment=environment,
            timeout=900,
        )
    report.done(f"Installed {names}")


def main_wrapper(main: object) -> None:
    """Run a tool's main and turn `StepError` into a message and exit code 1."""
    try:
        code = main()  # type: ignore[operator]  # a function without arguments
    except StepError as error:
        print(f"✗ {error}", file=sys.stderr)
        if error.advice:
            print(f"  {error.advice}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code)
