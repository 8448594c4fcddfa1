"""Stand-ins for the images that the suite asks for, made from Debian packages, as tar archives.

No image is fetched: busybox and the web server come out of one small Debian. Each image is one layer. The
static busybox will not do: its shell runs applets itself, whatever is masked.
Left out on purpose: the image that the suite names by a digest, since that digest belongs to other bytes.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

E2E = "registry.k8s.io/e2e-test-images"
STAGING = "gcr.io/k8s-staging-cri-tools"
HOSTS = ("registry.k8s.io", "gcr.io", "k8s.gcr.io")
_LIBRARIES = ("libc.so.6", "libresolv.so.2")
_FOLDERS = (
    "bin",
    "etc",
    "tmp",
    "root",
    "home",
    "proc",
    "sys",
    "dev",
    "var",
    "var/www",
    "var/run",
    "mnt",
    "lib",
    "lib64",
)
_PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n"
    "www-data:x:33:33:www-data:/var/www:/bin/false\n"
)
_GROUP = "root:x:0:\nnogroup:x:65534:\nwww-data:x:33:\nusers:x:100:\n"
# Debian's busybox lacks these two; the suite looks for a segment's id and for a process by its name.
_IPCS = "#!/bin/sh\ncat /proc/sysvipc/shm\n"
_PGREP = """#!/bin/sh
for p in /proc/[0-9]*; do
  n=${p#/proc/}
  [ "$n" = $$ ] || { grep -q -- "$1" < $p/comm && echo $n; }
done 2>/dev/null
true
"""
_HTTPD = "#!/bin/sh\necho httpd -D FOREGROUND\nmkdir -p /www\necho It works > /www/index.html\n"
_HTTPD += "exec /bin/httpd -f -p 80 -h /www\n"
# Prints the effective uid.
_NO_NEW_PRIVILEGES = """#include <stdio.h>
#include <unistd.h>
int main(void) { printf("Effective uid: %d\\n", geteuid()); return 0; }
"""
_PAUSE = '["sh","-c","trap exit TERM INT; while :; do sleep 2147483647 & wait; done"]'


class Missing(Exception):  # noqa: N818  # why nothing runs
    """A program of the host is missing; says how to get it."""


@dataclass(frozen=True, slots=True)
class Image:
    """One image: its names, its files beside busybox's, and what a Dockerfile would say."""

    names: tuple[str, ...]
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    changes: tuple[str, ...] = ('CMD ["sh"]',)
    setuid: tuple[str, ...] = ()


def busybox_images(folder: Path) -> list[Image]:
    """List the images that are busybox with a few files; `folder` is for what must be compiled."""
    single = {f"test-image-{n}": "latest" for n in ("1", "2", "3", "latest")}
    single |= {"test-image-tag": "test"}
    made = [Image((f"{E2E}/busybox:1.29-2",))]
    made += [Image((f"{STAGING}/{name}:{tag}",), {name: name}) for name, tag in single.items()]
    made += [Image((f"{STAGING}/test-image-tag:{tag}",), {tag: tag}) for tag in ("latest", "all")]
    made.append(Image(tuple(f"{STAGING}/test-image-tags:{n}" for n in (1, 2, 3)), {"tags": "tags"}))
    users = {
        "uid": "1002",
        "username": "www-data",
        "uid-group": "1003:users",
        "username-group": "www-data:100",
    }
    made += [
        Image((f"{STAGING}/test-image-user-{name}:latest",), {"user": name}, ('CMD ["sh"]', f"USER {user}"))
        for name, user in users.items()
    ]
    made.append(_predefined_group())
    made.append(
        Image((f"{E2E}/httpd:2.4.39-4",), {"usr/local/bin/serve": _HTTPD}, ('CMD ["/usr/local/bin/serve"]',))
    )
    made.append(
        Image(
            (f"{E2E}/nonewprivs:1.3",), {"nnp": _compiled(folder)}, ('ENTRYPOINT ["/nnp"]',), setuid=("nnp",)
        )
    )
    made += [
        Image(
            tuple(f"{registry}/pause:{version}" for registry in ("registry.k8s.io", "k8s.gcr.io")),
            {"pause": version},
            (f"CMD {_PAUSE}",),
        )
        for version in ("3.9", "3.10", "3.10.1")
    ]
    return made


def _predefined_group() -> Image:
    passwd = f"{_PASSWD}default-user:x:1000:1000::/home:/bin/sh\n"
    group = f"{_GROUP}default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n"
    return Image(
        (f"{STAGING}/test-image-predefined-group:latest",),
        {"etc/passwd": passwd, "etc/group": group},
        ('CMD ["sh"]', "USER 1000"),
    )


def busybox_base(debian: Path, folder: Path) -> dict[str, bytes]:
    """Take busybox and what it is linked with out of a Debian, as files; `folder` is for a copy."""
    found: dict[str, bytes] = {}
    with tarfile.open(debian) as tar:
        for member in tar:
            name = Path(member.name).name
            if member.isfile() and (name in _LIBRARIES or name.startswith("ld-linux") or name == "busybox"):
                file = tar.extractfile(member)
                assert file is not None, "it is a file"
                found.setdefault(name, file.read())
    program = folder / "busybox"
    program.write_bytes(found.pop("busybox"))
    program.chmod(0o755)
    loader = next(name for name in found if name.startswith("ld-linux"))
    made = {f"lib/{name}": data for name, data in found.items()}
    return {**made, f"lib64/{loader}": found[loader], "bin/busybox": program.read_bytes()}


def archive(image: Image, base: Mapping[str, bytes], applets: Sequence[str]) -> bytes:
    """Pack busybox with an image's own files."""
    files: dict[str, str | bytes] = {
        **base,
        "bin/ipcs": _IPCS,
        "bin/pgrep": _PGREP,
        "etc/passwd": _PASSWD,
        "etc/group": _GROUP,
        **image.files,
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for folder in _FOLDERS:
            _add(tar, tarfile.TarInfo(folder), 0o1777 if folder == "tmp" else 0o755, tarfile.DIRTYPE)
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            mode = 0o4755 if name in image.setuid else 0o644 if name.startswith("etc/") else 0o755
            _add(tar, tarfile.TarInfo(name), mode, tarfile.REGTYPE, data)
        for applet in sorted({*applets} - {"busybox", "ipcs", "pgrep"}):
            # No symbolic links: what masks one applet must not mask all.
            link = tarfile.TarInfo(f"bin/{applet}")
            link.linkname = "bin/busybox"
            _add(tar, link, 0o755, tarfile.LNKTYPE)
    return buffer.getvalue()


def applets(folder: Path) -> list[str]:
    """List what the busybox that `busybox_base` copied can be called as."""
    words = [str(folder / "busybox"), "--list"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()


def _add(tar: tarfile.TarFile, info: tarfile.TarInfo, mode: int, kind: bytes, data: bytes = b"") -> None:
    info.mode, info.type, info.size = mode, kind, len(data)
    tar.addfile(info, io.BytesIO(data))


def _compiled(folder: Path) -> bytes:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise Missing("a C compiler is missing: install Debian's gcc and libc6-dev")
    source, program = folder / "nnp.c", folder / "nnp"
    source.write_text(_NO_NEW_PRIVILEGES)
    subprocess.run([compiler, "-static", "-O1", "-o", str(program), str(source)], check=True)
    return program.read_bytes()


def make_debian(cache: Path) -> None:
    """Pack a Debian with nginx and busybox as a tar archive, unless it is there. Raises `Missing`."""
    if cache.exists():
        return
    if shutil.which("mmdebstrap") is None:
        raise Missing("mmdebstrap is missing: install Debian's package of that name")
    print("Making a small Debian from its packages ...", flush=True)
    fresh = cache.with_suffix(".new")
    words = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=nginx-light,busybox", "--format=tar"]
    if subprocess.run([*words, "bookworm", str(fresh)], check=False).returncode != 0:
        raise Missing("mmdebstrap failed: it needs a Debian mirror, the first time")
    fresh.replace(cache)


def nginx_files(*, host_network: bool) -> bytes:
    """Return, as a tar archive, what a web server has otherwise than Debian's: the site, and a quiet grep.

    The one on the host's network has a port of its own. The suite greps in what is no text.
    """
    port = 12003 if host_network else 80
    site = f"server {{ listen {port} default_server; root /var/www/html; index index.nginx-debian.html; }}\n"
    files = {
        "etc/nginx/sites-enabled/default": (site, 0o644),
        "usr/local/bin/grep": ('#!/bin/sh\nexec /bin/grep -a "$@"\n', 0o755),
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, (text, mode) in files.items():
            _add(tar, tarfile.TarInfo(name), mode, tarfile.REGTYPE, text.encode())
    return buffer.getvalue()
