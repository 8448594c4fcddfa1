"""Judge the kernel."""

from __future__ import annotations

from collections.abc import Iterator

from cli.doctor.core.engine import numbers
from cli.doctor.facts import KernelFacts
from cli.doctor.finding import Finding, broken, ok, unseen, warn

# nftables maps with concatenated keys need 5.6; pidfd and openat2, which the services use, as well.
LEAST_KERNEL = (5, 6)
_NEEDED = ("cpu", "memory", "pids")
_LEAST_INSTANCES, _LEAST_WATCHES = 128, 8192


def judge(facts: KernelFacts) -> Iterator[Finding]:
    """Say what the kernel lacks."""
    if numbers(facts.release)[:2] < LEAST_KERNEL:
        yield broken(
            f"Kernel {facts.release} is older than 5.6",
            "The service proxy's nftables maps need it.",
            "Install a newer kernel and boot it.",
        )
    else:
        yield ok(f"Kernel {facts.release}")
    yield from _cgroups(facts)
    if facts.nf_tables is False:
        yield broken(
            "The kernel has no nf_tables",
            "The service proxy cannot write its rules: service addresses lead nowhere.",
            "modprobe nf_tables, or a kernel with CONFIG_NF_TABLES.",
        )
    elif facts.nf_tables is None:
        yield unseen("nf_tables", "asking the kernel needs CAP_NET_ADMIN")
    else:
        yield ok("nf_tables is there")
    if facts.overlay:
        yield ok("Overlay file systems are there")
    else:
        yield warn(
            "The kernel lists no overlay file system",
            "The engine then copies whole layers.",
            "modprobe overlay",
        )
    yield from _inotify(facts)


def _cgroups(facts: KernelFacts) -> Iterator[Finding]:
    names = {"v1": "cgroup v1", "hybrid": "cgroup v1 (hybrid)", "v2": "cgroup v2"}
    if facts.cgroups not in names:
        yield broken(
            "No cgroup file system is mounted",
            "No container starts, and nothing can be measured.",
            "mount -t cgroup2 none /sys/fs/cgroup, or boot with systemd.",
        )
        return
    missing = [name for name in _NEEDED if name not in facts.controllers]
    if missing:
        yield warn(
            f"{names[facts.cgroups]} without {', '.join(missing)}",
            "Limits of that kind do not hold, and their use is not measured.",
            "Boot with cgroup_enable=memory, or enable the controllers in cgroup.subtree_control.",
        )
    else:
        yield ok(f"{names[facts.cgroups]} with {', '.join(_NEEDED)}")


def _inotify(facts: KernelFacts) -> Iterator[Finding]:
    instances, watches = facts.inotify_instances, facts.inotify_watches
    if instances is None or watches is None:
        yield unseen("inotify limits", "/proc/sys/fs/inotify cannot be read", "")
    elif instances < _LEAST_INSTANCES or watches < _LEAST_WATCHES:
        yield warn(
            f"inotify allows {instances} instances and {watches} watches",
            "Watching the manifest directory may fail; it is then read every 20 s only.",
            "sysctl -w fs.inotify.max_user_instances=512 fs.inotify.max_user_watches=65536",
        )
    else:
        yield ok(f"inotify allows {instances} instances, {watches} watches")
