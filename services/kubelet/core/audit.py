"""The leak ledger: compare what the host holds with what the pods account for. Pure.

Everything on the host that carries our mark belongs to one pod of the store, or it
leaked; everything that a running pod needs is there, or it is missing. A finding may
be a step under way: only what two looks agree upon is real.
Source: docs/reliability.md, "The ledger".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from services.kubelet.core.model import Pod, PodUid
from services.kubelet.core.status import PodStatus, StatePhase


class Problem(Enum):
    """How something differs."""

    LEAKED = "leaked"
    MISSING = "missing"
    DOUBLED = "doubled"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference."""

    category: str
    id: str
    problem: Problem
    pod_uid: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What our CRI server holds, as rows (see its ledger)."""

    containers: Sequence[Mapping[str, str]] = ()
    sandboxes: Sequence[Mapping[str, str]] = ()
    leases: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[str] = ()
    foreign: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Disk:
    """What lies in the state directory: names of pod folders, log folders; mounts below the pods' root."""

    pod_folders: Collection[str] = ()
    log_folders: Collection[str] = ()
    mounts: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Audit:
    """The result: differences, and how many of each category were looked at."""

    findings: tuple[Finding, ...]
    counts: Mapping[str, int]


def audit(pods: Sequence[Pod], statuses: Mapping[str, PodStatus], held: Holdings | None, disk: Disk) -> Audit:
    """Compare. Without `held` (a runtime that does not tell) only the disk is looked at."""
    uids = {pod.uid for pod in pods}
    findings = list(_folders(pods, disk))
    counts = {
        "pod-directory": len(disk.pod_folders),
        "log-directory": len(disk.log_folders),
        "mount": len(disk.mounts),
    }
    if held is not None:
        findings += _containers(uids, held)
        findings += _expected(statuses, held)
        findings += _network(held)
        findings += _files(held)
        findings += [
            Finding(
                "container", name, Problem.FOREIGN, message="It carries this node's labels and is not ours"
            )
            for name in held.foreign
        ]
        counts |= {
            "container": len(held.containers),
            "sandbox": len(held.sandboxes),
            "address": len(held.leases),
            "link": len(held.links),
            "file": len(held.files),
        }
    findings.sort(key=lambda f: (f.category, f.id, f.problem.value))
    return Audit(tuple(findings), counts)


def _folders(pods: Sequence[Pod], disk: Disk) -> Iterator[Finding]:
    uids = {str(pod.uid) for pod in pods}
    for name in disk.pod_folders:
        if name not in uids:
            yield Finding("pod-directory", name, Problem.LEAKED, name, "No pod has this UID")
    logs = {f"{pod.namespace}_{pod.name}_{pod.uid}" for pod in pods}
    for name in disk.log_folders:
        if name not in logs:
            yield Finding("log-directory", name, Problem.LEAKED, name.rsplit("_", 1)[-1], "Its pod is gone")
    for path in disk.mounts:
        uid = path.partition("/pods/")[2].partition("/")[0]
        if uid not in uids:
            yield Finding("mount", path, Problem.LEAKED, uid, "Its pod is gone")


def _containers(uids: Collection[PodUid], held: Holdings) -> Iterator[Finding]:
    sandboxes = {row["id"] for row in held.sandboxes}
    for category, rows in (("sandbox", held.sandboxes), ("container", held.containers)):
        for row in rows:
            if row["uid"] not in uids:
                yield Finding(category, row["id"], Problem.LEAKED, row["uid"], "No pod has this UID")
    for row in held.containers:
        # One that has ended is kept for its log, as long as its pod is there.
        if row["sandbox_id"] not in sandboxes and _lives(row):
            yield Finding("container", row["id"], Problem.LEAKED, row["uid"], "Its sandbox is gone")
    yield from _doubled(held)


def _doubled(held: Holdings) -> Iterator[Finding]:
    live = Counter((row["uid"], row["name"]) for row in held.containers if _lives(row))
    for (uid, name), count in live.items():
        if count > 1:
            yield Finding("container", name, Problem.DOUBLED, uid, f"{count} live containers of one name")
    boxes = Counter(row["uid"] for row in held.sandboxes if _lives(row))
    for uid, count in boxes.items():
        if count > 1:
            yield Finding("sandbox", uid, Problem.DOUBLED, uid, f"{count} live sandboxes of one pod")


def _lives(row: Mapping[str, str]) -> bool:
    return row["state"].lower() in ("running", "paused", "restarting", "container_running")


def _expected(statuses: Mapping[str, PodStatus], held: Holdings) -> Iterator[Finding]:
    present = {row["id"] for row in held.containers}
    for uid, status in statuses.items():
        for container in status.every:
            runs = container.state.phase is StatePhase.RUNNING
            if runs and container.container_id not in present:
                what = f"{container.name} is told to run, and the runtime does not have it"
                yield Finding("container", container.container_id, Problem.MISSING, uid, what)


def _network(held: Holdings) -> Iterator[Finding]:
    boxes = {row["id"]: row for row in held.sandboxes}
    for sandbox_id, address in held.leases.items():
        if sandbox_id not in boxes:
            yield Finding(
                "address", address, Problem.LEAKED, message=f"Its sandbox {sandbox_id[:12]} is gone"
            )
    for address, count in Counter(held.leases.values()).items():
        if count > 1:
            yield Finding("address", address, Problem.DOUBLED, message=f"{count} sandboxes have it")
    for name, sandbox_id in held.links.items():
        if sandbox_id not in held.leases:
            yield Finding("link", name, Problem.LEAKED, message="No sandbox with an address has it")
    linked = set(held.links.values())
    for row in boxes.values():
        if row["state"] != "running" or row["network"] != "pod":
            continue
        if row["id"] not in held.leases:
            yield Finding("address", row["id"], Problem.MISSING, row["uid"], f"Sandbox of {row['pod']}")
        elif row["id"] not in linked:
            yield Finding("link", row["id"], Problem.MISSING, row["uid"], f"Sandbox of {row['pod']}")


def _files(held: Holdings) -> Iterator[Finding]:
    known = {row["id"] for row in (*held.sandboxes, *held.containers)}
    for name in held.files:
        if name.partition("/")[2] not in known:
            yield Finding("file", name, Problem.LEAKED, message="What it belongs to is gone")
