"""Programs that tests and benchmarks use on the host, from Debian packages: missing ones are installed."""

from __future__ import annotations

import ctypes.util
import shutil
import sys
from collections.abc import Iterator, Mapping

from tools.steps import Report, install, main_wrapper, may_install

# Program and package. `busybox` and `catatonit` are static: images are made from them.
PROGRAMS = {
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "busybox": "busybox-static",
    "catatonit": "catatonit",
    "conntrack": "conntrack",
    "faketime": "faketime",
    "ip": "iproute2",
    "iptables": "iptables",
    "mkfs.ext4": "e2fsprogs",
    "nft": "nftables",
    "strace": "strace",
}

# What the CRI validation suite needs beside; `--critest` asks for it.
CRITEST = {
    "docker-registry": "docker-registry",
    "gcc": "gcc",
    "ipcmk": "util-linux",
    "mmdebstrap": "mmdebstrap",
}


def missing(wanted: Mapping[str, str]) -> Iterator[str]:
    """Yield the packages of which nothing is here."""
    for program, package in wanted.items():
        if shutil.which(program) is None:
            yield package
    if ctypes.util.find_library("nftables") is None:
        yield "libnftables1"


def main() -> int:
    """Install what is missing where that is ours to do; elsewhere say it, and go on: tests skip."""
    report = Report()
    wanted = {**PROGRAMS, **(CRITEST if "--critest" in sys.argv else {})}
    packages = sorted(set(missing(wanted)))
    if not packages:
        return 0
    if may_install():
        install(packages, report)
        return 0
    report.skipped(f"Tests that need {', '.join(packages)} are skipped: install them to run all")
    return 0


if __name__ == "__main__":
    main_wrapper(main)
