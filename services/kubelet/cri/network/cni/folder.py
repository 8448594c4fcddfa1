"""Look at the folder of CNI configurations: which network it holds now.

Read at each use, not watched: a look costs some tens of microseconds, and nothing can be missed. A file is
read again when the folder's names, or a file's time, size or inode, have changed.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.common.logs import get_logger
from services.kubelet.cri.network.cni import conf, errors
from services.kubelet.cri.network.cni.conf import ConfError, Network
from services.kubelet.cri.network.errors import NetworkError

log = get_logger(__name__)
_SIZE_LIMIT_BYTES: Final = 1 << 20

_Signature = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Found:
    """What the folder holds: a network, or the reason why not; neither when it holds no configuration."""

    network: Network | None = None
    fault: NetworkError | None = None

    @property
    def present(self) -> bool:
        """Tell whether there is a configuration, be it usable or not."""
        return self.network is not None or self.fault is not None


class ConfFolder:
    """Knows the network of `path`, which need not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._signature: _Signature | None = None
        self._found = Found()

    def look(self) -> Found:
        """Return what the folder holds now."""
        try:
            signature = self._signed()
        except OSError as err:
            self._signature = None
            return Found(fault=errors.configuration_unusable(str(self.path), err.strerror or str(err)))
        if signature != self._signature:
            self._found = self._read(signature)
            self._signature = signature
            self._tell()
        return self._found

    def _signed(self) -> _Signature:
        try:
            names = sorted(name for name in os.listdir(self.path) if name.endswith(conf.SUFFIXES))  # noqa: PTH208  # names alone
        except (FileNotFoundError, NotADirectoryError):
            return ()
        return tuple(self._sign(name) for name in names)

    def _sign(self, name: str) -> tuple[str, int, int, int]:
        try:
            found = (self.path / name).stat()
        except FileNotFoundError:  # A link that leads nowhere, or removed right now.
            return name, 0, 0, 0
        return name, found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self, signature: _Signature) -> Found:
        name = conf.choose(entry[0] for entry in signature)
        if name is None:
            return Found()
        path = self.path / name
        try:
            return Found(conf.parse(str(path), _content(path)))
        except ConfError as err:
            return Found(fault=errors.configuration_unusable(str(path), str(err)))
        except OSError as err:
            return Found(fault=errors.configuration_unusable(str(path), err.strerror or str(err)))

    def _tell(self) -> None:
        network, fault = self._found.network, self._found.fault
        if network is not None:
            kinds = [plugin.kind for plugin in network.plugins]
            log.info("Read the CNI configuration", file=network.source, network=network.name, plugins=kinds)
        if fault is not None:
            log.warning("Could not read the CNI configuration", error=fault.message)


def _content(path: Path) -> bytes:
    # The opening of a FIFO would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ConfError("not a file")
        if found.st_size > _SIZE_LIMIT_BYTES:
            raise ConfError(f"larger than {_SIZE_LIMIT_BYTES} bytes")
        return file.read(_SIZE_LIMIT_BYTES)
