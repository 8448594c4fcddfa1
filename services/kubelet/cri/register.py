"""Which containers at the engine are ours.

Never decided by labels alone: an image may bring any label, and a person may copy
them. A container is ours when its id is in our register, one file for each id, which
says where its cgroups lie unless that is the engine's own place.
A kill between the engine's answer and that file leaves one that the register does
not know; it is taken in by its mark, an HMAC with a key of this node over its name
and its record, which no image can carry. Names are unique at the engine.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.kubelet.cri import naming
from services.kubelet.cri.naming import MARK_LABEL, Record

_KEY_BYTES = 32


class Register:
    """The ids of our containers, in `directory`. `open` first; belongs to one event loop."""

    def __init__(self, directory: Path, owner: str) -> None:
        self._directory = directory / "register"
        self._key_file = directory / "register.key"
        self._owner = owner
        self._key = b""
        self._ids: dict[str, str] = {}

    def open(self) -> None:
        """Read the register and the key; make both where there are none. Raises `OSError`."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._ids = {path.name: _parent(path) for path in self._directory.iterdir()}
        try:
            self._key = self._key_file.read_bytes()
        except FileNotFoundError:
            self._key = b""
        if len(self._key) != _KEY_BYTES:
            self._key = secrets.token_bytes(_KEY_BYTES)
            fresh = self._key_file.with_suffix(".new")
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(self._key)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._key_file)

    def ids(self) -> frozenset[str]:
        """Return the ids that are registered now."""
        return frozenset(self._ids)

    def cgroup_parent(self, container_id: str) -> str:
        """Return where the cgroups of a registered container lie; empty for the engine's own place."""
        return self._ids.get(container_id, "")

    def add(self, container_id: str, cgroup_parent: str = "") -> None:
        """Take an id in. May be repeated."""
        if container_id not in self._ids:
            path = self._directory / container_id
            path.touch(mode=0o600)
            if cgroup_parent:
                path.write_text(cgroup_parent)
            self._ids[container_id] = cgroup_parent

    def remove(self, container_id: str) -> None:
        """Forget an id. May be repeated."""
        (self._directory / container_id).unlink(missing_ok=True)
        self._ids.pop(container_id, None)

    def labels(self, record: Record, pod: Record, name: str, digest: str) -> dict[str, str]:
        """Return the engine's labels for a container that will have this name."""
        made = naming.labels(record, self._owner, pod)
        return {**made, naming.DIGEST_LABEL: digest, MARK_LABEL: self._mark(made[naming.RECORD_LABEL], name)}

    def recognise(self, container_id: str, labels: Mapping[str, str], name: str) -> Record | None:
        """Return the record of a container of ours; None for any other."""
        record = naming.decode(labels, self._owner)
        if record is None or container_id in self._ids:
            return record
        wanted = self._mark(labels.get(naming.RECORD_LABEL, ""), name)
        return record if hmac.compare_digest(wanted, labels.get(MARK_LABEL, "")) else None

    def claims(self, labels: Mapping[str, str]) -> bool:
        """Tell whether labels say that a container is this node's, be it true or not."""
        return labels.get(naming.OWNER_LABEL) == self._owner

    def _mark(self, encoded_record: str, name: str) -> str:
        return hmac.new(self._key, f"{name}\0{encoded_record}".encode(), hashlib.sha256).hexdigest()


def _parent(path: Path) -> str:
    """Read what an id's file says; a kill may have kept it empty, and then no more is known."""
    try:
        return path.read_text() if path.stat().st_size else ""
    except (OSError, ValueError):
        return ""


def digest(config: Mapping[str, Any]) -> str:
    """Return a digest of a configuration: the same for the same request, whenever it comes."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:32]
