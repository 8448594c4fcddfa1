"""A netlink socket that carries out transactions and lists what the kernel has."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence

from services.proxy.adapters import nfmessages
from services.proxy.adapters.nfmessages import Message, as_text, attributes
from services.proxy.errors import KernelRefusedError

_NETLINK_NETFILTER = 12
_SOL_NETLINK = 270
_SHORT_ACKNOWLEDGE, _EXTENDED_ACKNOWLEDGE = 10, 11  # NETLINK_CAP_ACK, NETLINK_EXT_ACK
_SEND_BUFFER_FORCE, _RECEIVE_BUFFER_FORCE = 32, 33  # SO_SNDBUFFORCE, SO_RCVBUFFORCE
_RECEIVE_BYTES = 1 << 18
_QUEUE_BYTES = 4 << 20
_ERROR_HEAD = struct.Struct("=iIHHII")
_WHY, _OFFSET_OF_WHY = 1, _ERROR_HEAD.size  # NLMSGERR_ATTR_MSG
_MULTIPLE = 0x2  # NLM_F_MULTI
_DEADLINE = struct.pack("=qq", 30, 0)
_KINDS = {
    0: "table",
    2: "table",
    3: "chain",
    5: "chain",
    6: "rule",
    8: "rule",
    9: "set",
    12: "element",
    14: "element",
}


class InterruptedDumpError(Exception):
    """The rules changed while they were listed: list again."""


class NetlinkSocket:
    """Belongs to one thread. The kernel answers before a call returns, so nothing is awaited."""

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, _NETLINK_NETFILTER)
        # Not settimeout: Python would wait out a deadline even for a call that must not wait.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _DEADLINE)
        self._socket.setsockopt(_SOL_NETLINK, _SHORT_ACKNOWLEDGE, 1)
        self._socket.setsockopt(_SOL_NETLINK, _EXTENDED_ACKNOWLEDGE, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _RECEIVE_BUFFER_FORCE, _QUEUE_BYTES)
        self._socket.bind((0, 0))
        self._send_bytes = 0
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def transact(self, messages: Sequence[bytes]) -> None:
        """Carry out all messages or none. Raises `KernelRefusedError`, which names the first one refused."""
        if messages:
            self.send_batch(nfmessages.batch(messages), messages)

    def send_batch(self, data: bytes, messages: Sequence[bytes] = ()) -> None:
        """Carry out an encoded batch; `messages` are those within, to name one that is refused."""
        self._make_room(len(data))
        self._socket.sendall(data)
        answers = [
            answer for answer in self._answers() if answer.kind == nfmessages.ERROR and not answer.subsystem
        ]
        if not answers:
            raise KernelRefusedError("the kernel did not acknowledge the transaction")
        for answer in answers:
            code, *_ = _ERROR_HEAD.unpack_from(answer.body)
            if code:
                raise KernelRefusedError(_complaint(answer, messages))

    def _make_room(self, size: int) -> None:
        """A transaction is one datagram, whatever its size."""
        if size > self._send_bytes:
            self._send_bytes = max(2 * size, 1 << 20)
            self._socket.setsockopt(socket.SOL_SOCKET, _SEND_BUFFER_FORCE, self._send_bytes)

    def _answers(self) -> Iterator[Message]:
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            yield from nfmessages.messages(data)

    def ask(self, request: bytes) -> list[Message]:
        """Send a request and return the answers; none when what it names does not exist.

        Raises `InterruptedDumpError` when the answer is not of one moment.
        """
        return list(self.each(request))

    def each(self, request: bytes) -> Iterator[Message]:
        """Do as `ask`, and yield the answers as they come; the next request waits for their end."""
        self._sequence += 1
        self._socket.sendall(nfmessages.numbered(request, self._sequence))
        while True:
            for answer in nfmessages.messages(self._socket.recv(_RECEIVE_BYTES)):
                if answer.sequence != self._sequence:
                    continue
                if answer.flags & nfmessages.INTERRUPTED:
                    raise InterruptedDumpError
                if answer.subsystem:
                    yield answer
                    if not answer.flags & _MULTIPLE:
                        return
                    continue
                code = _code(answer)
                if code not in (0, -errno.ENOENT):
                    raise KernelRefusedError(_complaint(answer, [request]))
                return


def _code(answer: Message) -> int:
    """Return the error of an answer of the kernel's own kind; the end of a list has one, too."""
    return int(struct.unpack_from("=i", answer.body)[0]) if len(answer.body) >= 4 else 0


def _complaint(answer: Message, messages: Sequence[bytes]) -> str:
    """Say what was refused and why, in the kernel's words where it has any."""
    name = errno.errorcode.get(-_code(answer), str(_code(answer)))
    why = as_text(attributes(answer.body[_OFFSET_OF_WHY:]).get(_WHY, b"")) or os.strerror(-_code(answer))
    index = min(answer.sequence, len(messages)) - 1
    refused = next(nfmessages.messages(messages[index]), None) if messages else None
    if refused is None:
        return f"{name}: {why}"
    inner = attributes(refused.body)
    of = as_text(inner.get(2) or inner.get(3) or inner.get(1) or b"")
    return f"{name} for {_KINDS.get(refused.kind, 'message')} of {of}: {why}"
