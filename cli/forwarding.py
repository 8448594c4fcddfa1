"""port-forward: connections to ports of this machine go to ports inside a pod, each as one call."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import grpc

from cli.errors import CliError, Exit
from cli.node import Node

_READ_BYTES = 32_768


def read_ports(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Read `LOCAL:REMOTE`, `PORT` for both, `:REMOTE` for any free one here. Raises `CliError`."""
    return [_pair(text) for text in texts]


def _pair(text: str) -> tuple[int, int]:
    local, colon, remote = text.partition(":")
    words = (local or "0", remote) if colon else (local, local)
    if (
        not all(word.isascii() and word.isdigit() and int(word) < 1 << 16 for word in words)
        or words[1] == "0"
    ):
        advice = "Write LOCAL:REMOTE, such as 8080:80."
        raise CliError(f"{text!r} is no pair of ports", code=Exit.USAGE, advice=advice)
    return int(words[0]), int(words[1])


def forward(node: Node, namespace: str, pod: str, ports: Sequence[tuple[int, int]]) -> None:
    """Listen on loopback and forward until interrupted."""
    with contextlib.ExitStack() as stack:
        for local, remote in ports:
            listener = stack.enter_context(_listen(local))
            number = listener.getsockname()[1]
            print(f"Forwarding from 127.0.0.1:{number} -> {remote}", flush=True)
            target = (node, namespace, pod, remote)
            threading.Thread(target=_accept, args=(listener, target), daemon=True).start()
        threading.Event().wait()


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise CliError(f"Cannot listen on 127.0.0.1:{port}: {error.strerror}") from error


def _accept(listener: socket.socket, target: tuple[Node, str, str, int]) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_carry, args=(connection, target), daemon=True).start()


def _carry(connection: socket.socket, target: tuple[Node, str, str, int]) -> None:
    node, namespace, pod, port = target
    with connection:
        try:
            requests = _requests(connection, namespace, pod, port)
            for answer in node.pods().PortForward(requests, metadata=node.metadata()):
                connection.sendall(answer.data)
        except grpc.RpcError as error:
            print(f"Connection to port {port}: {error.details()}", file=sys.stderr)
        except OSError:
            return


def _requests(connection: socket.socket, namespace: str, pod: str, port: int) -> Iterator[Any]:
    from tripod.kubelet.v1 import pod_service_pb2 as pb

    start = pb.PortForwardStart(namespace=namespace, pod_name=pod, port=port)
    yield pb.PortForwardRequest(start=start)
    with contextlib.suppress(OSError):
        while data := connection.recv(_READ_BYTES):
            yield pb.PortForwardRequest(data=data)
