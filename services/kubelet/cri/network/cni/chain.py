"""Run the plugins of a network one after another, each on the result of the one before.

Source: CNI specification 1.1.0, section 3: ADD and CHECK in order, DEL in reverse; STATUS and GC ask each.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from services.kubelet.cri.network.cni import errors, invoke, request, result
from services.kubelet.cri.network.cni.conf import Network, Plugin
from services.kubelet.cri.network.cni.invoke import Outcome, OutputTooLongError
from services.kubelet.cri.network.cni.records import Attachment, Lock
from services.kubelet.cri.network.cni.result import INCOMPATIBLE, ResultError
from services.kubelet.cri.network.errors import NetworkError


class Chain:
    """Runs plugins from `folders`. Every method raises `NetworkError` for the first plugin that fails."""

    def __init__(self, folders: Sequence[Path], *, limit_seconds: float, look_seconds: float) -> None:
        self._folders = tuple(folders)
        self._limit_seconds = limit_seconds
        self._look_seconds = look_seconds

    def missing(self, network: Network) -> NetworkError | None:
        """Say which plugin is not installed; None when all are."""
        for plugin in network.plugins:
            if invoke.find(plugin.kind, self._folders) is None:
                return errors.plugin_missing(plugin.kind, network.source, self._folders)
        return None

    async def add(self, attachment: Attachment, lock: Lock) -> Mapping[str, Any]:
        """Join a sandbox to its network; returns the last plugin's result."""
        network, previous = attachment.network, None
        for plugin in network.plugins:
            made = request.configuration(network, plugin, values=attachment.values, previous=previous)
            outcome = await self._call("ADD", network, plugin, made, attachment, lock, attachment.netns.path)
            try:
                previous = result.parse(outcome.output, network.version)
            except ResultError as err:
                raise errors.result_unreadable(plugin.kind, "ADD", network.source, str(err)) from err
        assert previous is not None, "a network has a plugin"
        return previous

    async def delete(self, attachment: Attachment, lock: Lock, netns: str) -> None:
        """Take a sandbox off its network. `netns` is empty once the namespace is gone. May be repeated.

        One that fails keeps the others from nothing: what they hold is given back, and the error told then.
        """
        network = attachment.network
        previous = attachment.result if network.remembers else None
        failed: list[NetworkError] = []
        for plugin in reversed(network.plugins):
            made = request.configuration(network, plugin, values=attachment.values, previous=previous)
            try:
                await self._call("DEL", network, plugin, made, attachment, lock, netns)
            except NetworkError as err:
                if not _never_served(attachment, err):
                    failed.append(err)
        if failed:
            raise failed[0]

    async def check(self, attachment: Attachment, lock: Lock) -> None:
        """See that a sandbox is on its network as it was put there."""
        network = attachment.network
        for plugin in network.plugins:
            made = request.configuration(
                network, plugin, values=attachment.values, previous=attachment.result
            )
            await self._call("CHECK", network, plugin, made, attachment, lock, attachment.netns.path)

    async def status(self, network: Network) -> None:
        """See that the plugins can take sandboxes."""
        for plugin in network.plugins:
            await self._call("STATUS", network, plugin, request.configuration(network, plugin))

    async def collect(self, network: Network, valid: Sequence[str]) -> None:
        """Have the plugins drop what they hold for any sandbox but the valid ones."""
        for plugin in network.plugins:
            await self._call("GC", network, plugin, request.configuration(network, plugin, valid=valid))

    async def _call(
        self,
        command: str,
        network: Network,
        plugin: Plugin,
        configuration: Mapping[str, Any],
        attachment: Attachment | None = None,
        lock: Lock | None = None,
        netns: str = "",
    ) -> Outcome:
        program = invoke.find(plugin.kind, self._folders)
        if program is None:
            raise errors.plugin_missing(plugin.kind, network.source, self._folders)
        environment = request.environment(
            command,
            self._folders,
            sandbox_id=attachment.sandbox_id if attachment else "",
            netns=netns,
            extra=attachment.arguments if attachment else "",
        )
        limit = self._look_seconds if command in ("CHECK", "STATUS") else self._limit_seconds
        try:
            async with asyncio.timeout(limit):
                outcome = await invoke.run(
                    program,
                    json.dumps(configuration).encode(),
                    environment,
                    lease=lock.descriptor if lock else None,
                    started=lock.started if lock else None,
                )
        except TimeoutError as err:
            raise errors.plugin_slow(plugin.kind, command, network.source, limit) from err
        except OutputTooLongError as err:
            why = f"it printed more than {invoke.OUTPUT_LIMIT_BYTES} bytes"
            raise errors.result_unreadable(plugin.kind, command, network.source, why) from err
        except OSError as err:
            failure = result.Failure(f"cannot be started: {err.strerror}")
            raise errors.plugin_failed(plugin.kind, command, network.source, failure) from err
        if outcome.code != 0:
            failure = result.failure(outcome.output, outcome.complaint, outcome.code)
            raise errors.plugin_failed(plugin.kind, command, network.source, failure)
        return outcome


def _never_served(attachment: Attachment, error: NetworkError) -> bool:
    """Tell whether a plugin refuses the version that ADD, which has failed, was in: then it did nothing."""
    return attachment.result is None and error.metadata.get("cni_code") == str(INCOMPATIBLE)
