"""A Docker Engine of a test's own: started, killed, stopped in its tracks, and gone at the end.

It has its own data, state, socket, containerd and bridge, and touches no firewall, so nothing
of the host's engine is disturbed. (Without a bridge it would remove the host's docker0.)
Containers of a killed engine run on under their shims; `close` ends them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

START_SECONDS = 60.0
# A static program, so an image needs nothing else: /bin/busybox with `sh` and its like as links.
TEST_IMAGE = "tripod-test:1"
_APPLETS = (
    *("sh", "sleep", "echo", "cat", "true", "false", "yes", "nc", "httpd", "wget", "id", "dd", "head"),
    *("tr", "printf", "rm", "ls", "mkdir", "sync", "df", "tar", "env", "hostname", "stty", "grep", "kill"),
    "stat",
)


class EngineUnavailable(Exception):  # noqa: N818  # why a test is skipped
    """An engine of one's own cannot be had here; says how to get it."""


class PrivateEngine:
    """One engine in `folder`, whose path must be short: sockets lie in it.

    `netns` names the network namespace that is the host's to its containers; "" is the test's own.
    """

    def __init__(
        self,
        folder: Path,
        *,
        live_restore: bool = True,
        data_root: Path | None = None,
        settings: Mapping[str, object] | None = None,
        netns: str = "",
    ) -> None:
        self._netns = netns
        self.folder = folder
        self.socket = folder / "d.sock"
        self.host = f"unix://{self.socket}"
        self.log = folder / "dockerd.log"
        self._data = data_root or folder / "data"
        self._settings = {"live-restore": live_restore, **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None
        number = time.monotonic_ns() // 1000 % 10_000
        self._bridge = f"tde{number}"
        self._address = f"10.{208 + number // 256}.{number % 256}.1/24"

    @property
    def pid(self) -> int:
        """The process id of dockerd; 0 when it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    def start(self) -> None:
        """Start dockerd and wait until it answers. Raises `EngineUnavailable`, `AssertionError`."""
        program = shutil.which("dockerd") or "/usr/sbin/dockerd"
        if os.geteuid() != 0 or not Path(program).exists():
            raise EngineUnavailable("needs root and dockerd: run `make up` as root on Debian")
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = self.folder / "daemon.json"
        settings.write_text(json.dumps(self._settings))
        words = [program, "--config-file", str(settings), "--host", self.host]
        words += ["--data-root", str(self._data), "--exec-root", str(self.folder / "exec")]
        words += ["--pidfile", str(self.folder / "d.pid"), "--bridge", self._bridge, "--iptables=false"]
        words += ["--ip-forward=false", "--ip-masq=false", "--userland-proxy=false"]
        words = [*(["nsenter", f"--net=/run/netns/{self._netns}", "--"] if self._netns else []), *words]
        (self.folder / "d.pid").unlink(missing_ok=True)
        self._make_bridge()
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self._until(self.answers, "the engine answers")

    def _make_bridge(self) -> None:
        if self._ip("link", "show", "dev", self._bridge, check=False) == 0:
            return
        for words in (
            ["add", self._bridge, "type", "bridge"],
            ["set", self._bridge, "up"],
        ):
            self._ip("link", *words)
        self._ip("addr", "add", self._address, "dev", self._bridge)

    def _ip(self, *words: str, check: bool = True) -> int:
        place = ["-n", self._netns] if self._netns else []
        return subprocess.run(["ip", *place, *words], check=check, capture_output=True).returncode

    def answers(self) -> bool:
        """Tell whether it answers."""
        if self._process is None or self._process.poll() is not None:
            raise AssertionError(f"dockerd ended: {self.log.read_text()[-2000:]}")
        return self.docker("version", check=False, timeout=5).returncode == 0

    def docker(
        self, *words: str, check: bool = True, timeout: float = 60, data: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the `docker` program against it."""
        environment = {**os.environ, "DOCKER_HOST": self.host}
        command = ["docker", *words]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, timeout=timeout, input=data, check=False
            )
        except subprocess.TimeoutExpired:
            done = subprocess.CompletedProcess(command, 124, b"", b"it took too long")
        assert not check or done.returncode == 0, f"{command}: {done.stderr.decode(errors='replace')}"
        return done

    def output(self, *words: str) -> str:
        """Run the `docker` program; return what it prints."""
        return self.docker(*words).stdout.decode().strip()

    def kill(self) -> None:
        """SIGKILL dockerd. Its containerd dies with it; the containers run on under their shims."""
        assert self._process is not None
        containerd = self._containerd()
        self._process.kill()
        self._process.wait()
        # A new dockerd would take the dying one for a live one, and wait for it in vain.
        self._until(lambda: not containerd or not Path(f"/proc/{containerd}").exists(), "containerd is gone")

    def terminate(self, limit_seconds: float = 60.0) -> None:
        """SIGTERM dockerd and wait. Containers live on with live-restore alone."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(limit_seconds)

    def freeze(self) -> None:
        """SIGSTOP: it accepts connections and never answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def add_image(self, name: str = TEST_IMAGE, *changes: str) -> str:
        """Make an image of busybox alone; `changes` are Dockerfile instructions. Returns its name."""
        import_image(name, changes, environment={"DOCKER_HOST": self.host})
        return name

    def close(self) -> None:
        """End every container and the engine, and remove its files. May be repeated."""
        if self._process is None:
            return
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                self.thaw()
        else:
            with contextlib.suppress(AssertionError):
                self.start()
        if self.pid:
            found = self.docker("ps", "-aq", check=False).stdout.split()
            if found:
                self.docker("rm", "-fv", *(item.decode() for item in found), check=False, timeout=120)
            self.terminate()
        self._end_containerd()
        self._process = None
        self._ip("link", "delete", self._bridge, check=False)
        for _ in range(50):
            _unmount_below(self.folder)
            shutil.rmtree(self.folder, ignore_errors=True)
            if not self.folder.exists():
                return
            time.sleep(0.1)

    def _end_containerd(self) -> None:
        """End the containerd that dockerd started, which a killed dockerd leaves behind."""
        pid = self._containerd()
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _containerd(self) -> int:
        """Return the process id of our containerd; 0 when it does not run."""
        try:
            pid = int((self.folder / "exec/containerd/containerd.pid").read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return 0
        return pid if str(self.folder).encode() in words else 0

    def _until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not holds():
            assert time.monotonic() < deadline, f"not within {START_SECONDS:g} s: {what}"
            time.sleep(0.1)


def _unmount_below(folder: Path) -> None:
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "-l", mount], capture_output=True, check=False)


def busybox_files() -> bytes:
    """Return a tar archive of the host's static busybox with its links. Raises `EngineUnavailable`."""
    program = shutil.which("busybox")
    if program is None:
        raise EngineUnavailable("needs Debian's busybox-static: run `python3 -m tools.programs`")
    folder = Path(f"/tmp/tripod-image-{os.getpid()}-{time.monotonic_ns()}")
    (folder / "bin").mkdir(parents=True)
    try:
        for directory in ("tmp", "etc", "var", "proc", "sys", "dev"):
            (folder / directory).mkdir()
        shutil.copy(program, folder / "bin/busybox")
        for applet in _APPLETS:
            (folder / "bin" / applet).symlink_to("busybox")
        (folder / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:::/bin/sh\n")
        (folder / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
        return subprocess.run(["tar", "-C", str(folder), "-c", "."], capture_output=True, check=True).stdout
    finally:
        shutil.rmtree(folder)


def import_image(
    name: str, changes: tuple[str, ...] = (), *, environment: dict[str, str] | None = None
) -> None:
    """Make an image of the host's static busybox at an engine. Raises `EngineUnavailable`."""
    tar = busybox_files()
    words = ["docker", "import"]
    for change in ("ENV PATH=/bin", *changes):
        words += ["--change", change]
    done = subprocess.run(
        [*words, "-", name],
        input=tar,
        capture_output=True,
        env={**os.environ, **(environment or {})},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")


@contextlib.contextmanager
def private_engine(
    *,
    live_restore: bool = True,
    data_root: Path | None = None,
    settings: Mapping[str, object] | None = None,
    netns: str = "",
) -> Iterator[PrivateEngine]:
    """Run an engine with the test image for a block."""
    folder = Path(f"/tmp/tde-{os.getpid()}-{time.monotonic_ns() % 10**9}")
    made = PrivateEngine(
        folder, live_restore=live_restore, data_root=data_root, settings=settings, netns=netns
    )
    try:
        made.start()
        made.add_image()
        yield made
    finally:
        made.close()
