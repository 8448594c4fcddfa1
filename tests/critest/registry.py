"""A registry on loopback with the stand-in images, kept in `.peers` from run to run."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.critest import images
from tests.critest.images import Missing
from tests.lab.dockerd import PrivateEngine

# Of loopback, so nobody else is asked, and the port that an insecure registry is asked at.
ADDRESS = "127.0.83.1"
_PATH = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DEBIAN = "debian.tar"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Registry:
    """Debian's docker-registry, on `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def fetch(folder: Path) -> None:
        """Get what must be downloaded, once. Raises `Missing`."""
        folder.mkdir(parents=True, exist_ok=True)
        images.make_debian(folder / _DEBIAN)

    def start(self) -> None:
        """Serve. Raises `Missing`."""
        program = shutil.which("docker-registry")
        if program is None:
            raise Missing("docker-registry is missing: install Debian's package of that name")
        self._folder.mkdir(parents=True, exist_ok=True)
        settings = self._folder / "registry.yml"
        settings.write_text(
            f"version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\n"
            f"storage: {{filesystem: {{rootdirectory: {self._folder}/data}}, delete: {{enabled: true}}}}\n"
            f"http: {{addr: '{ADDRESS}:80'}}\n"
        )
        with (self._folder / "registry.log").open("ab") as output:
            self._process = subprocess.Popen(
                [program, "serve", str(settings)], stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        deadline = time.monotonic() + 30
        while not self._answers():
            assert time.monotonic() < deadline, "the registry does not answer"
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{ADDRESS}/v2/", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)

    def fill(self, engine: PrivateEngine) -> None:
        """Push every stand-in through an engine that knows us by the registries' names; done once."""
        stamp = self._folder / "filled"
        wanted = hashlib.sha256(Path(images.__file__).read_bytes()).hexdigest()
        if stamp.exists() and stamp.read_text() == wanted:
            return
        print("Filling the local registry ...", flush=True)
        base = images.busybox_base(self._folder / _DEBIAN, self._folder)
        applets = images.applets(self._folder)
        for image in images.busybox_images(self._folder):
            _push(engine, images.archive(image, base, applets), image.names, image.changes)
        self._fill_nginx(engine)
        stamp.write_text(wanted)

    def _fill_nginx(self, engine: PrivateEngine) -> None:
        base = "lab/nginx:1"
        engine.docker("import", "--change", _PATH, str(self._folder / _DEBIAN), base, timeout=300)
        architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())
        names = {
            f"{images.E2E}/nginx:1.14-2": images.nginx_files(host_network=False),
            f"{images.STAGING}/hostnet-nginx-{architecture}:latest": images.nginx_files(host_network=True),
        }
        for name, files in names.items():
            made = engine.output("create", "--network", "none", base, "true")
            engine.docker("cp", "-", f"{made}:/", data=files)
            engine.docker("commit", "--change", 'CMD ["nginx","-g","daemon off;"]', made, name)
            engine.docker("rm", made)
            engine.docker("push", "-q", name, timeout=300)
            engine.docker("rmi", "-f", name)
        engine.docker("rmi", "-f", base)


def _push(engine: PrivateEngine, archive: bytes, names: tuple[str, ...], changes: tuple[str, ...]) -> None:
    words = ["import"]
    for change in (_PATH, *changes):
        words += ["--change", change]
    engine.docker(*words, "-", names[0], data=archive, timeout=300)
    for name in names:
        engine.docker("tag", names[0], name)
        engine.docker("push", "-q", name, timeout=300)
    engine.docker("rmi", "-f", *dict.fromkeys(names))
