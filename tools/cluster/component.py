"""One program of a control plane as a process that outlives whoever started it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tools.cluster.layout import Layout, command
from tools.steps import ROOT

PEERS = ROOT / ".peers"
END_SECONDS = 20.0


class ComponentError(Exception):
    """A component ended, or did not do what it is there for; carries the end of its log."""


class Component:
    """A component of a layout."""

    def __init__(self, layout: Layout, name: str) -> None:
        self.name = name
        self.log = layout.folder / f"{name}.log"
        self._folder = layout.folder
        self._pid_file = layout.folder / f"{name}.pid"
        program, *words = command(layout, name)
        self.program = PEERS / program
        self._words = [str(self.program), *words]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id; 0 when it does not run. Whoever took the number since is not taken for it."""
        if self._process is not None:
            return self._process.pid if self._process.poll() is None else 0
        try:
            pid = int(self._pid_file.read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return 0
        return pid if str(self._folder).encode() in words and self.name.encode() in words else 0

    def start(self) -> None:
        """Start it where it does not run."""
        if self.pid:
            return
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self._pid_file.write_text(str(self._process.pid))

    def check(self) -> None:
        """Raise `ComponentError` when it ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            raise ComponentError(f"{self.name} ended with {self._process.returncode}: {self.tail()}")

    def tail(self) -> str:
        """Return the end of its log."""
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace")[-1500:]
        return ""

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it and wait until it is gone; by SIGKILL when it takes too long. May be repeated."""
        pid = self.pid
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)
            self._await_end(pid)
        self._process = None
        self._pid_file.unlink(missing_ok=True)

    def _await_end(self, pid: int) -> None:
        deadline = time.monotonic() + END_SECONDS
        while self.pid == pid:
            if time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)


def api_ready(layout: Layout) -> str:
    """Return why the API server is not ready; empty when it is."""
    status, said = _ask(layout, "/readyz")
    return "" if status == 200 else said or f"it answers {status}"


def get_json(layout: Layout, path: str) -> tuple[int, Any]:
    """Return the status and the object that the API server answers; 0 when it does not answer."""
    status, said = _ask(layout, path)
    return status, json.loads(said) if status == 200 else said


def _ask(layout: Layout, path: str) -> tuple[int, str]:
    context = ssl.create_default_context(cafile=layout.pki / "ca.crt")
    client = layout.pki / "apiserver-kubelet-client"
    context.load_cert_chain(f"{client}.crt", f"{client}.key")
    try:
        with urllib.request.urlopen(layout.url + path, timeout=5, context=context) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace").strip()
    except (OSError, ValueError) as error:
        return 0, str(error)
