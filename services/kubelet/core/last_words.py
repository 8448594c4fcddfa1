"""What a container said at its end: where it writes it, and how much of it is told. Pure.

Source: the kubelet's `container/runtime.go`: 4096 bytes of a container's file, of its
end if it is longer; 12 KiB of all containers of a pod; of a log in its place the last
2048 bytes, 80 lines at most.
"""

from __future__ import annotations

from pathlib import Path

from services.kubelet.core.logs import parse
from services.kubelet.core.model import Container, MessagePolicy, Pod, PodUid
from services.kubelet.core.volumes import Mount, pod_directory

MESSAGE_BYTES = 4096
POD_BYTES = 12 << 10
LOG_BYTES = 2048
LOG_LINES = 80


def folder(state: Path, uid: PodUid, container: str) -> Path:
    """Return the folder of a container's messages, one file for each attempt."""
    return pod_directory(state, uid) / "containers" / container


def message_file(state: Path, uid: PodUid, container: str, attempt: int) -> Path:
    """Return the file that an attempt writes its message to."""
    return folder(state, uid, container) / str(attempt)


def mount(state: Path, pod: Pod, container: Container, attempt: int) -> tuple[Mount, ...]:
    """Return the mount of an attempt's file; none where a volume of the pod lies in its place."""
    place = container.termination_message_path
    if any(wanted.mount_path == place for wanted in container.volume_mounts):
        return ()
    return (Mount(str(message_file(state, pod.uid, container.name, attempt)), place),)


def limit_bytes(pod: Pod) -> int:
    """Return how much of each container's message is told."""
    return min(MESSAGE_BYTES, POD_BYTES // max(1, len(pod.spec.every)))


def from_log(block: bytes) -> bytes:
    """Return the last words in the end of a CRI log; a first line that is cut is left out."""
    entries = [entry for entry in map(parse, block.split(b"\n")) if entry is not None]
    text = b"".join(entry.line + (b"" if entry.partial else b"\n") for entry in entries)
    lines = text.splitlines(keepends=True)[-LOG_LINES:]
    return b"".join(lines)[-LOG_BYTES:]


def falls_back(container: Container, exit_code: int) -> bool:
    """Tell whether the log speaks for a container that wrote no message."""
    policy = container.termination_message_policy
    return policy is MessagePolicy.FALLBACK_TO_LOGS_ON_ERROR and exit_code != 0


def text(data: bytes, limit: int) -> str:
    """Write a message for people: the first bytes up to the limit, whatever they are."""
    return data[:limit].decode(errors="replace").replace("\x00", "\ufffd")
