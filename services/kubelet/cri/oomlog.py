"""Whether the kernel killed a container for want of memory, by the kernel's own log.

The engine learns of that from a watch that its shim sets up just after a start, and which a container that
dies at once, or on a busy host, can outrun: then the engine tells of an exit with 137 and no more. The kernel
writes each kill down before the process is gone, with the cgroup, whose name has the container's id with
every driver.

Source: `Documentation/ABI/testing/dev-kmsg`; `dump_oom_summary` in the kernel's mm/oom_kill.c.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

_KILLED: Final = 137
_RECORD_BYTES: Final = 8192
_RECORDS: Final = 100_000
_KEPT: Final = 10_000
_LINE: Final = re.compile(r"oom-kill:.*\btask_memcg=[^,]*?([0-9a-f]{64})")


class OomLog:
    """Looks containers up in the kernel's log, each once. Without access to the log it knows of none."""

    def __init__(self, path: Path = Path("/dev/kmsg")) -> None:
        self._path = path
        self._seen: dict[str, bool] = {}

    def doubtful(self, inspected: Mapping[str, Any]) -> bool:
        """Tell whether the engine may have missed that a container was out of memory."""
        state = inspected["State"]
        limited = bool((inspected.get("HostConfig") or {}).get("Memory"))
        ended = state["Status"] == "exited" and state["ExitCode"] == _KILLED
        return ended and limited and not state.get("OOMKilled")

    def killed(self, container_id: str) -> bool:
        """Tell whether the log says so. Blocks for milliseconds."""
        if container_id not in self._seen:
            if len(self._seen) >= _KEPT:
                self._seen.clear()
            self._seen[container_id] = container_id in killed_ids(_records(self._path))
        return self._seen[container_id]


def killed_ids(records: Iterator[str]) -> Collection[str]:
    """Return the ids of containers of which a process was killed for want of memory."""
    return {found[1] for record in records if (found := _LINE.search(record)) is not None}


def _records(path: Path) -> Iterator[str]:
    """Read what the log holds now; each read gives one record."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            for _ in range(_RECORDS):
                try:
                    record = os.read(descriptor, _RECORD_BYTES)
                except OSError as error:
                    if error.errno == errno.EPIPE:  # It was overwritten meanwhile; the next one is there.
                        continue
                    raise  # EAGAIN: that was all.
                if not record:
                    return
                yield record.decode(errors="replace")
        finally:
            os.close(descriptor)
