"""Judge the Docker Engine."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cli.doctor.facts import EngineFacts
from cli.doctor.finding import Finding, broken, ok, size, unseen, warn

LEAST_API = (1, 41)
_LOW_SHARE, _NO_SHARE = 0.10, 0.01
# Since when runc keeps containers in: CVE-2024-21626, and the three of November 2025
# (CVE-2025-31133, CVE-2025-52565, CVE-2025-52881), by release line.
_RUNC_LINES: dict[tuple[int, ...], tuple[int, ...]] = {(1, 2): (1, 2, 8), (1, 3): (1, 3, 3)}
_GOOD_DRIVERS = ("overlay2", "overlayfs", "fuse-overlayfs", "btrfs", "zfs")
_DAEMON = "/etc/docker/daemon.json"
_RESTART = "systemctl restart docker"


def judge(facts: EngineFacts) -> Iterator[Finding]:
    """Say how the engine is."""
    if facts.denied:
        fix = "usermod -aG docker $USER, then log in anew; or run as root."
        yield unseen(f"Engine at {facts.address}", "this user may not ask it", fix)
        return
    if facts.error:
        yield broken(
            f"No Docker Engine answers at {facts.address}: {facts.error}",
            "Pods are containers of the engine: without it none starts.",
            "systemctl start docker, or `make up` on a bare Debian; TRIPOD_DOCKER_HOST names another.",
        )
        return
    yield from _versions(facts)
    yield from _behaviour(facts)
    yield from _room(facts)
    yield from _registries(facts)
    yield _skew(facts)


def _versions(facts: EngineFacts) -> Iterator[Finding]:
    api = numbers(facts.api_version)
    if api < LEAST_API:
        yield broken(
            f"Engine {facts.version} speaks API {facts.api_version or 'unknown'}",
            "Tripod needs API 1.41 (Engine 20.10) or newer.",
            "Upgrade the engine: https://docs.docker.com/engine/install/",
        )
    else:
        yield ok(f"Engine {facts.version} answers, API {facts.api_version}")
    runc = numbers(facts.runc_version)[:3]
    if not runc:
        return
    least = _RUNC_LINES.get(runc[:2], (1, 2, 8))
    if runc < least:
        yield warn(
            f"runc {facts.runc_version} is older than {'.'.join(map(str, least))}",
            "Until then containers could reach the host (CVE-2024-21626, CVE-2025-31133 and more); "
            "a distribution may have mended its own build.",
            "apt-get install --only-upgrade runc, or your distribution's way.",
        )
    else:
        yield ok(f"runc {facts.runc_version}")


def _behaviour(facts: EngineFacts) -> Iterator[Finding]:
    if facts.live_restore:
        yield ok("live-restore is on: containers outlive a restart of the engine")
    else:
        yield warn(
            "live-restore is off",
            "A restart of the engine ends every container; the pods then start anew.",
            f'Set "live-restore": true in {_DAEMON}, then systemctl reload docker.',
        )
    if facts.storage_driver in _GOOD_DRIVERS:
        yield ok(f"Storage driver {facts.storage_driver}")
    else:
        yield warn(
            f"Storage driver {facts.storage_driver or 'unknown'}",
            "It copies whole layers for each container: slow starts and a full disk.",
            f'Set "storage-driver": "overlay2" in {_DAEMON}, then {_RESTART} (images are pulled anew).',
        )
    if facts.cgroup_version == "2" and facts.cgroup_driver == "cgroupfs":
        yield warn(
            "cgroup driver cgroupfs on cgroup v2",
            "systemd and the engine then both manage the tree, and limits may be lost.",
            f'Set "exec-opts": ["native.cgroupdriver=systemd"] in {_DAEMON}, then {_RESTART}.',
        )
    elif facts.cgroup_driver == "none":
        yield broken(
            "The engine manages no cgroups (rootless without delegation)",
            "Limits do not hold and statistics are empty.",
            "Use cgroup v2 with delegation, or an engine that runs as root.",
        )
    else:
        yield ok(f"cgroup driver {facts.cgroup_driver}, cgroup v{facts.cgroup_version or '1'}")
    if facts.default_runtime and facts.default_runtime not in facts.runtimes:
        known = ", ".join(facts.runtimes) or "none"
        yield broken(
            f"The default runtime {facts.default_runtime!r} is not among {known}",
            "No container starts.",
            f'Correct "default-runtime" in {_DAEMON}, then {_RESTART}.',
        )
    elif facts.default_runtime:
        yield ok(f"Default runtime {facts.default_runtime}")
    for warning in facts.warnings:
        yield warn(f"The engine warns: {warning.removeprefix('WARNING: ')}", "A limit may not hold.", "")


def _room(facts: EngineFacts) -> Iterator[Finding]:
    space, place = facts.root_space, facts.root_directory or "the engine's root"
    if space is None:
        yield unseen(f"Free disk at {place}", "it cannot be read from here")
        return
    what = f"{size(space.free_bytes)} free ({space.share:.0%}) at {place}"
    why = "Images cannot be pulled and containers cannot write on a full disk."
    fix = "docker system prune (removes stopped containers and unused images)"
    if space.share < _NO_SHARE:
        yield broken(what, why, fix)
    elif space.share < _LOW_SHARE:
        yield warn(what, why, fix)
    else:
        yield ok(what)


def _registries(facts: EngineFacts) -> Iterator[Finding]:
    if facts.insecure_registries:
        yield warn(
            f"Insecure registries: {', '.join(facts.insecure_registries)}",
            "Images from there can be replaced on the way.",
            f'Give the registry a certificate, and remove it from "insecure-registries" in {_DAEMON}.',
        )
    if facts.mirrors:
        yield ok(f"Registry mirrors: {', '.join(facts.mirrors)}")


def _skew(facts: EngineFacts) -> Finding:
    seconds = abs(facts.skew_seconds)
    if seconds <= 2:
        return ok("The engine's clock is ours")
    return warn(
        f"The engine's clock differs from ours by {seconds:.0f} s",
        "Times of logs, restarts and probes cannot be compared.",
        "Synchronise both clocks (chrony or systemd-timesyncd).",
    )


def numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: `1.1.5+ds1` is (1, 1, 5); () when there are none."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return tuple(int(part) for part in match.group(1).split(".")) if match else ()
