"""A small image registry: serves images that a test builds, and fails as a test wants.

It listens on 127.0.0.1, which every engine takes for an insecure registry, so that none
needs a setting. Source: the OCI distribution specification, and the Docker v2 manifests
(schema 2) that every engine understands.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import socket
import struct
import tarfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_TOKEN = "stub-token"
_CHUNK = 4096
# What a layer has at a path: bytes of a file, None for a folder, or the target of a link.
Layer = Mapping[str, bytes | str | None]


def layer(content: Layer) -> bytes:
    """Pack a layer; a name `.wh.NAME` hides NAME, `.wh..wh..opq` all of its folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, what in content.items():
            info = tarfile.TarInfo(path)
            if what is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            elif isinstance(what, str):
                info.type, info.linkname = tarfile.SYMTYPE, what
            else:
                info.size, info.mode = len(what), 0o755
            tar.addfile(info, io.BytesIO(what) if isinstance(what, bytes) else None)
    return buffer.getvalue()


@dataclass
class Faults:
    """How the registry misbehaves; nothing is set at first."""

    basic: tuple[str, str] | None = None
    bearer: tuple[str, str] | None = None
    # A status for manifests or blobs, and the code and the words of its body.
    manifest_status: int = 0
    blob_status: int = 0
    code: str = "UNKNOWN"
    words: str = "it fails on purpose"
    # Wrong bytes under a blob's digest.
    corrupt: bool = False
    # The first answers with a blob are cut at 90 %, by a reset.
    resets: int = 0
    # Blobs stop half-way until the gate opens.
    gate: threading.Event | None = None
    # Pause between 4 KiB of a blob.
    drip_seconds: float = 0.0


@dataclass(frozen=True)
class Seen:
    """A request that came."""

    method: str
    path: str
    authorization: str


@dataclass
class Registry:
    """The server. `faults` may be changed at any time."""

    port: int = 0
    faults: Faults = field(default_factory=Faults)
    requests: list[Seen] = field(default_factory=list)
    _blobs: dict[str, bytes] = field(default_factory=dict)
    _manifests: dict[tuple[str, str], bytes] = field(default_factory=dict)

    @property
    def host(self) -> str:
        """The registry's name."""
        return f"127.0.0.1:{self.port}"

    def name(self, repository: str, tag: str = "") -> str:
        """Name an image of ours."""
        return f"{self.host}/{repository}" + (f":{tag}" if tag else "")

    def add(
        self, repository: str, *tags: str, layers: Sequence[Layer], config: Mapping[str, Any] | None = None
    ) -> str:
        """Add an image; returns the digest of its manifest."""
        packed = [layer(content) for content in layers]
        zipped = [gzip.compress(data, mtime=0) for data in packed]
        described = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["sh"], **(config or {})},
            "rootfs": {"type": "layers", "diff_ids": [_digest(data) for data in packed]},
            "history": [{"created_by": "test"} for _ in packed],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": self._blob(json.dumps(described).encode(), _CONFIG),
            "layers": [self._blob(data, _LAYER) for data in zipped],
        }
        body = json.dumps(manifest).encode()
        for reference in (*tags, _digest(body)):
            self._manifests[repository, reference] = body
        return _digest(body)

    def _blob(self, data: bytes, kind: str) -> dict[str, Any]:
        self._blobs[_digest(data)] = data
        return {"mediaType": kind, "size": len(data), "digest": _digest(data)}

    def blobs_asked(self) -> int:
        """Count the requests for blobs."""
        return sum("/blobs/" in seen.path for seen in self.requests)

    def manifest(self, repository: str, reference: str) -> bytes | None:
        """Return a manifest."""
        return self._manifests.get((repository, reference))

    def blob(self, digest: str) -> bytes | None:
        """Return a blob, another one of the same length when it is to be corrupt."""
        data = self._blobs.get(digest)
        return data[::-1] if data is not None and self.faults.corrupt and data[:2] == b"\x1f\x8b" else data


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    registry: Registry

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # as its base has it
        """Say nothing."""

    def do_HEAD(self) -> None:
        """Answer without the body."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer."""
        path = urlsplit(self.path).path
        authorization = self.headers.get("Authorization", "")
        self.registry.requests.append(Seen(self.command, path, authorization))
        if path == "/token":
            self._token(authorization)
        elif not self._allowed(authorization):
            self._challenge()
        elif path == "/v2/":
            self._answer(200, b"{}", "application/json")
        else:
            _, _, rest = path.partition("/v2/")
            repository, kind, reference = rest.rsplit("/", 2)
            (self._manifest if kind == "manifests" else self._blob)(repository, reference)

    def _allowed(self, authorization: str) -> bool:
        faults = self.registry.faults
        if faults.bearer is not None:
            return authorization == f"Bearer {_TOKEN}"
        return faults.basic is None or authorization == _basic(faults.basic)

    def _token(self, authorization: str) -> None:
        wanted = self.registry.faults.bearer
        if wanted is None or authorization != _basic(wanted):
            self._fail(401, "UNAUTHORIZED", self._repeated(authorization))
        else:
            self._answer(200, json.dumps({"token": _TOKEN}).encode(), "application/json")

    def _challenge(self) -> None:
        how = f'Bearer realm="http://{self.registry.host}/token",service="stub"'
        if self.registry.faults.bearer is None:
            how = 'Basic realm="stub"'
        words = self._repeated(self.headers.get("Authorization", ""))
        self._fail(401, "UNAUTHORIZED", words, {"WWW-Authenticate": how})

    @staticmethod
    def _repeated(authorization: str) -> str:
        """Repeat what was told, as a careless registry does."""
        kind, _, value = authorization.partition(" ")
        told = base64.b64decode(value).decode() if kind == "Basic" else ""
        return f"authentication required, not {told} ({authorization})"

    def _manifest(self, repository: str, reference: str) -> None:
        faults, body = self.registry.faults, self.registry.manifest(repository, reference)
        if faults.manifest_status:
            self._fail(faults.manifest_status, faults.code, faults.words)
        elif body is None:
            self._fail(404, "MANIFEST_UNKNOWN", "manifest unknown")
        else:
            self._answer(200, body, _MANIFEST, {"Docker-Content-Digest": _digest(body)})

    def _blob(self, repository: str, digest: str) -> None:
        faults, body = self.registry.faults, self.registry.blob(digest)
        if faults.blob_status:
            self._fail(faults.blob_status, faults.code, faults.words)
        elif body is None:
            self._fail(404, "BLOB_UNKNOWN", "blob unknown")
        else:
            self._send_blob(body)

    def _send_blob(self, body: bytes) -> None:
        faults = self.registry.faults
        start = int(self.headers.get("Range", "bytes=0-").partition("=")[2].partition("-")[0])
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(body) - start))
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        is_layer = body[:2] == b"\x1f\x8b" or faults.corrupt
        if faults.resets and is_layer:
            faults.resets -= 1
            self._write(body[start : len(body) * 9 // 10])
            self._reset()
        elif faults.gate is not None and is_layer:
            half = start + (len(body) - start) // 2
            self._write(body[start:half])
            faults.gate.wait(60)
            self._write(body[half:])
        else:
            self._write(body[start:])

    def _write(self, data: bytes) -> None:
        drip = self.registry.faults.drip_seconds
        pause = threading.Event()
        try:
            for start in range(0, len(data), _CHUNK if drip else max(1, len(data))):
                self.wfile.write(data[start : start + (_CHUNK if drip else len(data))])
                self.wfile.flush()
                pause.wait(drip)
        except OSError:
            self.close_connection = True

    def _reset(self) -> None:
        """Close the connection with a reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _fail(self, status: int, code: str, words: str, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps({"errors": [{"code": code, "message": words}]}).encode()
        self._answer(status, body, "application/json", headers)

    def _answer(self, status: int, body: bytes, kind: str, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _basic(pair: tuple[str, str]) -> str:
    return "Basic " + base64.b64encode(":".join(pair).encode()).decode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: an engine that goes away in the middle is part of the tests."""


@contextmanager
def registry() -> Iterator[Registry]:
    """Run a registry for a block."""
    made = Registry()
    handler = type("Handler", (_Handler,), {"registry": made})
    with _Server(("127.0.0.1", 0), handler) as server:
        made.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, name="registry", daemon=True)
        thread.start()
        try:
            yield made
        finally:
            if made.faults.gate is not None:
                made.faults.gate.set()
            server.shutdown()
            thread.join()
