"""A containerd of a test's own, in a network namespace, with the CRI that it comes with.

Its files lie below one folder, its bridge in the namespace, so nothing of the host's is
disturbed. The pause image is Debian's catatonit, the test's image is busybox, as on the
private Docker Engine.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.lab.dockerd import TEST_IMAGE, EngineUnavailable, busybox_files

START_SECONDS = 30.0
PAUSE_IMAGE = "tripod-pause:1"
# The kubelet's part of the containerd namespace.
_NAMESPACE = "k8s.io"
_CONFIG = """
version = 2
root = "{folder}/root"
state = "{folder}/run"
[grpc]
  address = "{folder}/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/library/{pause}"
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/net.d"
"""
_NETWORK = {
    "cniVersion": "1.0.0",
    "name": "peer",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "peer0",
            "isGateway": True,
            "hairpinMode": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.204.0.0/24"}]]},
        }
    ],
}


class PrivateContainerd:
    """One containerd in `folder`, whose path must be short: sockets lie in it."""

    def __init__(self, folder: Path, netns: str) -> None:
        self.folder = folder
        self.endpoint = f"unix://{folder}/c.sock"
        self.log = folder / "containerd.log"
        self._netns = netns
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers. Raises `EngineUnavailable`, `AssertionError`."""
        if os.geteuid() != 0 or shutil.which("containerd") is None or shutil.which("ctr") is None:
            raise EngineUnavailable("needs root and containerd: run `make up` as root on Debian")
        if not Path("/usr/lib/cni/bridge").exists():
            raise EngineUnavailable("needs Debian's containernetworking-plugins: `python3 -m tools.programs`")
        (self.folder / "net.d").mkdir(parents=True, exist_ok=True)
        # host-local keeps its leases below /var otherwise, where the host's own would be.
        _NETWORK["plugins"][0]["ipam"]["dataDir"] = str(self.folder / "leases")  # type: ignore[index]
        (self.folder / "net.d/10-peer.conflist").write_text(json.dumps(_NETWORK))
        config = self.folder / "config.toml"
        config.write_text(_CONFIG.format(folder=self.folder, pause=PAUSE_IMAGE))
        words = ["nsenter", f"--net=/run/netns/{self._netns}", "--", "containerd", "--config", str(config)]
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while self.ctr("version", check=False).returncode != 0:
            assert self._process.poll() is None, f"containerd ended: {self.log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, "containerd does not answer"
            time.sleep(0.1)

    def ctr(self, *words: str, check: bool = True, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run the `ctr` program against it."""
        command = ["ctr", "--address", f"{self.folder}/c.sock", "--namespace", _NAMESPACE, *words]
        done = subprocess.run(command, capture_output=True, input=data, timeout=60, check=False)
        assert not check or done.returncode == 0, f"{command}: {done.stderr.decode(errors='replace')}"
        return done

    def add_images(self) -> None:
        """Import the test's image and the pause image. Raises `EngineUnavailable`."""
        program = shutil.which("catatonit")
        if program is None:
            raise EngineUnavailable("needs Debian's catatonit: run `python3 -m tools.programs`")
        pause = io.BytesIO()
        with tarfile.open(fileobj=pause, mode="w") as tar:
            tar.add(program, "catatonit")
        self._import(TEST_IMAGE, busybox_files(), {"Env": ["PATH=/bin"]})
        self._import(PAUSE_IMAGE, pause.getvalue(), {"Entrypoint": ["/catatonit", "-P"]})

    def _import(self, name: str, layer: bytes, config: dict[str, object]) -> None:
        archive = docker_archive(f"docker.io/library/{name}", layer, config)
        self.ctr("images", "import", "--digests", "-", data=archive)

    def close(self) -> None:
        """End every container and containerd, and remove its files. May be repeated."""
        if self._process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            found = self.ctr("tasks", "list", "-q", check=False).stdout.decode().split()
            for name in found:
                self.ctr("tasks", "kill", "--signal", "SIGKILL", name, check=False)
            for name in found:
                self.ctr("tasks", "delete", "--force", name, check=False)
            for name in self.ctr("containers", "list", "-q", check=False).stdout.decode().split():
                self.ctr("containers", "delete", name, check=False)
        self._process.terminate()
        self._process.wait(30)
        self._process = None
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in sorted((m for m in mounts if m.startswith(f"{self.folder}/")), reverse=True):
            subprocess.run(["umount", "-l", mount], capture_output=True, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def docker_archive(name: str, layer: bytes, config: dict[str, object]) -> bytes:
    """Return an image of one layer as `docker save` writes it."""
    digest = hashlib.sha256(layer).hexdigest()
    image = json.dumps(
        {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, "amd64"),
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
            "history": [{"created_by": "a test"}],
        }
    ).encode()
    of_image = f"{hashlib.sha256(image).hexdigest()}.json"
    manifest = json.dumps([{"Config": of_image, "RepoTags": [name], "Layers": [f"{digest}/layer.tar"]}])
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for path, data in (
            (of_image, image),
            (f"{digest}/layer.tar", layer),
            ("manifest.json", manifest.encode()),
        ):
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return made.getvalue()


@contextlib.contextmanager
def private_containerd(netns: str) -> Iterator[PrivateContainerd]:
    """Run a containerd with the test's images for a block."""
    made = PrivateContainerd(Path(f"/tmp/tcd-{os.getpid()}-{time.monotonic_ns() % 10**9}"), netns)
    try:
        made.start()
        made.add_images()
        yield made
    finally:
        made.close()
