"""Backends and a client in one network namespace: what a service's users notice.

`python -m tests.matrix.client VIP PORT UDP_PORT BACKEND...` serves on each backend's
address, then asks the virtual address for ever: one connection that stays, a fresh
one every few milliseconds, and datagrams from one port. It says `ready` once the
first answers came, and at the end of its standard input prints what it counted.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import socketserver
import sys
import threading
import time

PORT = 7000
_PAUSE_SECONDS = 0.01
_PATIENCE_SECONDS = 3.0


class Echo(socketserver.StreamRequestHandler):
    """Answers each line with itself."""

    def handle(self) -> None:
        """Serve one connection."""
        with contextlib.suppress(ConnectionError):
            for line in self.rfile:
                self.wfile.write(line)


class Server(socketserver.ThreadingTCPServer):
    """One backend."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


def serve_udp(address: str) -> None:
    """Answer datagrams."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as served:
        served.bind((address, PORT))
        while True:
            data, peer = served.recvfrom(100)
            served.sendto(data, peer)


def exchange(connection: socket.socket, text: bytes) -> bool:
    """Send a line and read it back."""
    connection.sendall(text)
    received = b""
    while not received.endswith(b"\n"):
        data = connection.recv(100)
        if not data:
            return False
        received += data
    return received == text


class Client:
    """Asks and counts."""

    def __init__(self, vip: str, port: int, udp_port: int) -> None:
        self._place = (vip, port)
        self._udp_place = (vip, udp_port)
        self.counts = {"asked": 0, "failed": 0, "broken": 0, "datagrams": 0, "lost": 0}
        self.errors: list[str] = []
        self._kept = self._connect()
        self._datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._datagrams.settimeout(0.5)
        self._datagrams.connect(self._udp_place)

    def _connect(self) -> socket.socket:
        made = socket.create_connection(self._place, timeout=_PATIENCE_SECONDS)
        made.settimeout(_PATIENCE_SECONDS)
        return made

    def step(self) -> None:
        """Ask once in each way."""
        self._count("broken", lambda: exchange(self._kept, b"kept\n"))
        self.counts["asked"] += 1
        self._count("failed", self._fresh)
        self.counts["datagrams"] += 1
        self._count("lost", self._datagram)

    def _fresh(self) -> bool:
        with self._connect() as made:
            return exchange(made, b"fresh\n")

    def _datagram(self) -> bool:
        self._datagrams.send(b"datagram")
        return self._datagrams.recv(100) == b"datagram"

    def _count(self, name: str, act: object) -> None:
        try:
            if act():  # type: ignore[operator]  # a function without arguments
                return
            error = "ended"
        except OSError as caught:
            error = f"{type(caught).__name__}: {caught}"
        self.counts[name] += 1
        self.errors.append(f"{name} at {time.monotonic():.2f}: {error}")


def main() -> None:
    """Serve, ask, tell."""
    vip, port, udp_port, *backends = sys.argv[1:]
    for address in backends:
        server = Server((address, PORT), Echo)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        threading.Thread(target=serve_udp, args=(address,), daemon=True).start()
    client = Client(vip, int(port), int(udp_port))
    client.step()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not select.select([sys.stdin], [], [], _PAUSE_SECONDS)[0]:
        client.step()
    sys.stdout.write(json.dumps({**client.counts, "errors": client.errors[:5]}) + "\n")


if __name__ == "__main__":
    main()
