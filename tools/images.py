"""Base image, wheels and the images of the services; each is made anew only when its sources changed."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from tools.engine import build_environment
from tools.steps import ROOT, Report, StepError, doing, install, run, succeeds

REGISTRY_BASE = "python:3.11-slim-bookworm"
SERVICES = ("kubelet", "proxy", "cadvisor")
DEMO_IMAGE = "tripod-demo:1"
SOURCE_LABEL = "io.tripod.source"
_SOURCES = (
    "Dockerfile",
    ".dockerignore",
    "requirements.txt",
    "requirements-build.txt",
    "deploy",
    "services",
    "cli",
    "protos",
    "tools/gen_protos.py",
    "examples/web",
    "LICENSE",
    "NOTICE",
)
_REGISTRY_SECONDS = 3.0


def packages() -> list[str]:
    """Return the Debian packages of the base."""
    return (ROOT / "deploy/packages.txt").read_text().split()


def base_name() -> str:
    """Name the base that is made from Debian packages, after what is in it."""
    digest = hashlib.sha256(" ".join(packages()).encode()).hexdigest()[:12]
    return f"tripod-base:bookworm-{digest}"


def present(image: str) -> bool:
    """Tell whether the engine has an image."""
    return succeeds(["docker", "image", "inspect", image])


def registry_answers() -> bool:
    """Tell whether Docker Hub can be reached within three seconds."""
    try:
        urllib.request.urlopen("https://registry-1.docker.io/v2/", timeout=_REGISTRY_SECONDS)
    except urllib.error.HTTPError as error:
        return error.code == 401  # What a registry says to a stranger.
    except (OSError, ValueError):
        return False
    return True


def choose_base(report: Report) -> str:
    """Choose the base: the user's, one that is here, a registry's, or one made from Debian packages."""
    chosen = os.environ.get("BASE_IMAGE")
    if chosen:
        report.done(f"Base image {chosen}, as BASE_IMAGE says")
        return chosen
    for image in (base_name(), REGISTRY_BASE):
        if present(image):
            report.done(f"Base image {image} is here")
            return image
    if registry_answers():
        try:
            with doing(f"Pulling {REGISTRY_BASE}"):
                run(["docker", "pull", REGISTRY_BASE], timeout=600)
        except StepError as error:
            print(f"  {error}")
        else:
            report.done(f"Base image {REGISTRY_BASE} from a registry")
            return REGISTRY_BASE
    _make_base(report)
    return base_name()


def _make_base(report: Report) -> None:
    if shutil.which("mmdebstrap") is None:
        install(["mmdebstrap"], report)
    words = [
        "mmdebstrap",
        "--variant=minbase",
        f"--include={','.join(packages())}",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--customize-hook=touch $1/etc/tripod-base",
        "--customize-hook=rm -rf $1/var/lib/apt/lists/* $1/var/cache/apt/*",
        "bookworm",
        "-",
    ]
    # Its sources come by standard input: those of the host where it is a bookworm itself.
    with doing("Making a base image from Debian packages (about a minute)"):
        _import(words, _apt_sources())
    report.done(f"Base image {base_name()} from Debian packages")


def _apt_sources() -> str:
    """Return the host's own apt sources where it is a bookworm, else Debian's with security."""
    if "bookworm" in _text(Path("/etc/os-release")):
        listed = _text(Path("/etc/apt/sources.list"))
        if any(line.startswith("deb ") for line in listed.splitlines()):
            return listed
    mirror, security = "http://deb.debian.org/debian", "http://deb.debian.org/debian-security"
    suites = ((mirror, "bookworm"), (mirror, "bookworm-updates"), (security, "bookworm-security"))
    return "".join(f"deb {place} {suite} main\n" for place, suite in suites)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _import(words: list[str], sources: str) -> None:
    change = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    with tempfile.NamedTemporaryFile("w", suffix=".list") as listed, tempfile.TemporaryFile() as said:
        listed.write(sources)
        listed.flush()
        maker = subprocess.Popen([*words, listed.name], stdout=subprocess.PIPE, stderr=said, cwd=ROOT)
        importer = subprocess.run(
            ["docker", "import", "--change", change, "--change", 'CMD ["python3"]', "-", base_name()],
            stdin=maker.stdout,
            capture_output=True,
            check=False,
        )
        if maker.stdout is not None:
            maker.stdout.close()
        made = maker.wait() == 0
        said.seek(0)
        words_said = said.read() + importer.stderr
    if not made or importer.returncode != 0:
        succeeds(["docker", "image", "rm", "-f", base_name()])
        tail = "\n".join(words_said.decode(errors="replace").strip().splitlines()[-15:])
        raise StepError(f"mmdebstrap could not make the base image\n{tail}")


def fetch_wheels(report: Report) -> None:
    """Fetch the wheels of the images on the host, whose certificates and proxies are set up."""
    folder = ROOT / "wheels"
    wanted = _digest([ROOT / "requirements.txt", ROOT / "requirements-build.txt"])
    mark = folder / ".fetched"
    if mark.exists() and mark.read_text() == wanted:
        report.done("Wheels are here")
        return
    for old in folder.glob("*.whl"):
        old.unlink()
    machine = platform.machine()
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(36, 16, -1)] + [
        f"manylinux2014_{machine}"
    ]
    words = [".venv/bin/python", "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    words += ["--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp"]
    words += [word for name in platforms for word in ("--platform", name)]
    words += ["--require-hashes", "-r", "requirements.txt", "-r", "requirements-build.txt", "-d", str(folder)]
    with doing("Fetching wheels"):
        run(words, timeout=600)
    mark.write_text(wanted)
    report.done(f"Fetched {len(list(folder.glob('*.whl')))} wheels")


def build(report: Report, base: str) -> None:
    """Build the images of the services and of the demo, unless their sources are the same."""
    wanted = _digest(_files(), base)
    targets = {f"tripod-{name}:latest": name for name in SERVICES} | {DEMO_IMAGE: "demo"}
    stale = {image: target for image, target in targets.items() if _label(image) != wanted}
    if not stale:
        report.done("Images are up to date")
        return
    with doing(f"Building {len(stale)} images"):
        for image, target in stale.items():
            run(
                ["docker", "build", "-q", "--build-arg", f"BASE_IMAGE={base}", "--target", target]
                + ["--label", f"{SOURCE_LABEL}={wanted}", "-t", image, "."],
                environment=build_environment(),
                timeout=1200,
            )
    report.done(f"Built {', '.join(sorted(stale))}")


def _label(image: str) -> str:
    try:
        form = '{{index .Config.Labels "' + SOURCE_LABEL + '"}}'
        return run(["docker", "image", "inspect", "--format", form, image])
    except StepError:
        return ""


def _files() -> list[Path]:
    found: list[Path] = []
    for name in _SOURCES:
        path = ROOT / name
        inside = path.rglob("*") if path.is_dir() else [path]
        found += [file for file in inside if file.is_file() and "__pycache__" not in file.parts]
    return sorted(found)


def _digest(files: Iterable[Path], *more: str) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    for text in more:
        digest.update(text.encode())
    return digest.hexdigest()[:24]


def jaeger_image() -> str:
    """Name Jaeger's image, as docker-compose.yml does."""
    return os.environ.get("JAEGER_IMAGE") or "jaegertracing/jaeger:2.11.0"


def ensure_jaeger(report: Report) -> bool:
    """Make sure that Jaeger's image is here; False, and one line that says so, when it cannot be had."""
    image = jaeger_image()
    if present(image):
        return True
    if registry_answers():
        try:
            with doing(f"Pulling {image}"):
                run(["docker", "pull", image], timeout=600)
        except StepError:
            pass
        else:
            return True
    report.skipped(f"Jaeger is off: its image {image} cannot be had here; `tripod trace` shows traces")
    return False
