"""Hear of every change of nftables rules, ours and others', at once. Implements `RuleMonitor`.

The kernel multicasts each transaction: a message for each object with its table's
name, then one that ends the transaction and names the thread that made it. Our own
are told from others' by that name, since process ids differ between namespaces.

Source: linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from services.common.logs import get_logger
from services.proxy.adapters.nfmessages import NEW_GENERATION, NFTABLES, as_text, attributes, messages

log = get_logger(__name__)
_NETLINK_NETFILTER = 12
_SOL_NETLINK = 270
_ADD_MEMBERSHIP = 1
_GROUP_NFTABLES = 7
_PROCESS_NAME = 3  # NFTA_GEN_PROC_NAME
_TABLE_NAME = 1  # NFTA_TABLE_NAME, NFTA_RULE_TABLE, NFTA_SET_TABLE, ...: the first attribute of each
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Transaction:
    """One transaction: the tables that it touched, and the name of the thread that made it."""

    tables: frozenset[str]
    made_by: str


class Transactions:
    """Puts messages together to transactions. No I/O."""

    def __init__(self) -> None:
        self._tables: set[str] = set()

    def feed(self, data: bytes) -> Iterator[Transaction]:
        """Yield each transaction that ends in `data`, one datagram. Torn messages are passed over."""
        for message in messages(data):
            if message.subsystem != NFTABLES:
                continue
            found = attributes(message.body)
            if message.kind == NEW_GENERATION:
                yield Transaction(frozenset(self._tables), as_text(found.get(_PROCESS_NAME, b"")))
                self._tables.clear()
            else:
                self._tables.add(as_text(found.get(_TABLE_NAME, b"")))


class NftablesMonitor:
    """Listens in the process's network namespace."""

    def __init__(self, table: str, own_name: str) -> None:
        self._table = table
        self._own_name = own_name

    async def foreign_changes(self) -> AsyncIterator[None]:
        """Yield whenever somebody else has changed our table, or may have: when messages were lost."""
        loop = asyncio.get_running_loop()
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
        ) as heard:
            heard.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            heard.bind((0, 0))
            heard.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_NFTABLES)
            heard.setblocking(False)
            transactions = Transactions()
            # What happened before we listened is unknown.
            yield None
            while True:
                try:
                    data = await loop.sock_recv(heard, _BUFFER_BYTES)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    transactions = Transactions()
                    yield None
                    continue
                for transaction in transactions.feed(data):
                    if self._table in transaction.tables and transaction.made_by != self._own_name:
                        log.info("Noticed a foreign change of our rules", made_by=transaction.made_by)
                        yield None
