"""Pod networks by CNI plugins as the CRI server sees them.

Intent, effect, record. `attach` first writes the record (the intent: the namespace's path follows from the
sandbox's id), then keeps the namespace, then runs ADD, then adds the result to the record. `detach` runs DEL,
lets the namespace go and removes the record. Each may stop anywhere and be called again; what nobody calls
for again is found by `collect`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Final

from services.common import failpoints
from services.common.errors import TripodError
from services.common.logs import get_logger
from services.common.owners import LockTakenError, take_lock
from services.kubelet.cri.network import errors as network_errors
from services.kubelet.cri.network import netns
from services.kubelet.cri.network.cni import errors, request, result
from services.kubelet.cri.network.cni.chain import Chain
from services.kubelet.cri.network.cni.conf import Network
from services.kubelet.cri.network.cni.config import CniConfig
from services.kubelet.cri.network.cni.folder import ConfFolder
from services.kubelet.cri.network.cni.gate import Gate
from services.kubelet.cri.network.cni.records import Attachment, Lock, Records
from services.kubelet.cri.network.details import PodDetails

log = get_logger(__name__)
_RECORD = failpoints.step("network.cni.record")
_KEEP = failpoints.step("network.cni.keep")
_ADD = failpoints.step("network.cni.add")
_DELETE = failpoints.step("network.cni.delete")
_RELEASE = failpoints.step("network.cni.release")
_FORGET = failpoints.step("network.cni.forget")

_AT_ONCE: Final = 16
# Looks by `collect` between two GC where nothing was removed: ten minutes.
_GC_EVERY: Final = 60
_NAME_BYTES: Final = 10

Confirm = Callable[[], Awaitable[bool]]


class CniNetwork:
    """Joins sandboxes to the network that the configuration folder holds. Implements `PodNetwork`.

    `start` before anything else; then `ensure` and `collect` every few seconds. `stop` leaves everything in
    place for the next run; `cleanup` takes every sandbox off its network.
    """

    def __init__(self, config: CniConfig) -> None:
        self._config = config
        self._folder = ConfFolder(config.conf_folder)
        self._records = Records(config.directory)
        self._chain = Chain(
            config.bin_folders,
            limit_seconds=config.operation_timeout_seconds,
            look_seconds=config.look_timeout_seconds,
        )
        self._gate = Gate(_AT_ONCE)
        self._lock: int | None = None
        self._status: tuple[Network, str | None] | None = None
        self._ailing: dict[str, str] = {}
        self._checked: list[str] = []
        self._looks_until_gc = 0

    async def start(self) -> None:
        """Take the state directory and read the records.

        Raises `NetworkError` NETWORK_STATE_IN_USE when another process runs on the directory, `OSError`.
        """
        directory = self._config.directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._lock is None:
            try:
                self._lock = take_lock(directory / "lock")
            except LockTakenError as err:
                raise network_errors.in_use(str(directory), err.owner) from err
        self._records.open()

    async def stop(self) -> None:
        """Give the state directory back; pods keep their network."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def configured(self) -> bool:
        """Tell whether there is a configuration now, be it usable or not."""
        return self._folder.look().present

    def ready(self) -> str | None:
        """Return None when pods can be joined, else why not, for people. STATUS is that of `ensure`."""
        found = self._folder.look()
        if found.fault is not None:
            return found.fault.message
        if found.network is None:
            return errors.not_configured(str(self._folder.path)).message
        missing = self._chain.missing(found.network)
        if missing is not None:
            return missing.message
        if not found.network.tells_status:
            return None
        if self._status is None or self._status[0] != found.network:
            return f"The CNI plugins of {found.network.source} have not told their status yet"
        return self._status[1]

    def warnings(self) -> tuple[str, ...]:
        """Return what CHECK says of attached sandboxes, and DEL of those that are gone."""
        return tuple(self._ailing.values())

    async def attach(
        self,
        sandbox_id: str,
        pid: int,
        *,
        hostname: str,
        confirm: Confirm | None = None,
        pod: PodDetails | None = None,
    ) -> tuple[str, ...]:
        """Join the network namespace of process `pid` to the network and return its addresses.

        May be repeated, after a kill at any point as well; one that was cut short is undone first. What a
        failure leaves is undone here, or by `collect` where that fails too. Raises `NetworkError`.
        """
        async with self._work(sandbox_id) as lock:
            with netns.open_netns(sandbox_id, pid) as held:
                if confirm is not None and not await confirm():
                    raise network_errors.netns_gone(sandbox_id, pid)
                place = netns.identify(held, pid, self._path(sandbox_id))
                before = self._records.find(sandbox_id)
                if before is not None and before.result is not None and _is_whole(before, place):
                    return result.addresses(before.result)
                wanted = self._wanted(sandbox_id, place, pod, before)
                if before is not None:
                    await self._undo(before, lock)
                async with _RECORD:
                    await self._records.save(wanted)
                await _RECORD.recorded()
                try:
                    async with _KEEP:
                        netns.keep(held, Path(place.path))
                    await _KEEP.recorded()
                    await asyncio.to_thread(netns.raise_loopback, held)
                    return await self._add(wanted, lock)
                except (TripodError, OSError):
                    await self._undo_quietly(wanted, lock)
                    raise

    async def detach(self, sandbox_id: str) -> None:
        """Take a sandbox off the network that it was put on. The namespace may have gone; may be repeated.

        Raises `NetworkError`; the record then stays, and with it the duty.
        """
        async with self._work(sandbox_id) as lock:
            held = self._records.find(sandbox_id)
            if held is not None:
                await self._undo(held, lock)

    def holds(self, sandbox_id: str) -> bool:
        """Tell whether a sandbox has a record, half-made ones included."""
        return self._records.find(sandbox_id) is not None

    def addresses(self, sandbox_id: str) -> tuple[str, ...]:
        """Return the addresses of a sandbox whose attach has ended well; () for any other."""
        held = self._records.find(sandbox_id)
        return result.addresses(held.result) if held is not None and held.result is not None else ()

    async def list_attached(self) -> frozenset[str]:
        """List the ids of all sandboxes with a record, half-made ones included."""
        return frozenset(held.sandbox_id for held in self._records.all())

    async def ledger(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the addresses (sandbox id to address) and the kept namespaces (path to sandbox id).

        One without an address as yet is told by the name of its network.
        """
        records = self._records.all()
        leases = {
            held.sandbox_id: next(iter(self.addresses(held.sandbox_id)), f"cni:{held.sandbox_id}")
            for held in records
        }
        owners = {held.netns.path: held.sandbox_id for held in records}
        kept = map(str, self._config.netns_folder.glob(f"{_prefix(self._config)}*"))
        # One that no record has is a leak: its owner is nobody.
        return leases, {path: owners.get(path, "") for path in {*owners, *kept}}

    async def severed(self) -> tuple[str, ...]:
        """List attached sandboxes whose link somebody has deleted; `attach` gives a new one."""
        return tuple(held.sandbox_id for held in self._records.all() if held.result and _is_severed(held))

    async def collect(
        self, live_sandbox_ids: Collection[str], *, among: Collection[str] | None = None
    ) -> tuple[str, ...]:
        """Take those off their networks that are not live; returns their ids. One that fails is tried again.

        The caller's list must be complete. What was attached after the list was asked for is safe when
        `among` says who was before. The plugins are then told by GC who is left.
        """
        held = await self.list_attached()
        gone = sorted((held if among is None else held.intersection(among)).difference(live_sandbox_ids))
        removed = await asyncio.gather(*(self._remove(sandbox_id) for sandbox_id in gone))
        self._release_strays()
        if gone or self._looks_until_gc <= 0:
            await self._collect_plugins()
        self._looks_until_gc -= 1
        return tuple(sandbox_id for sandbox_id, done in zip(gone, removed, strict=True) if done)

    async def ensure(self) -> None:
        """Ask the plugins for their status, and look at one attached sandbox. Raises nothing: see `ready`."""
        network = self._folder.look().network
        if network is not None and network.tells_status:
            self._status = (network, await _fault_of(self._chain.status(network)))
        await self._check_next()

    async def cleanup(self) -> None:
        """Take every sandbox off its network and let every namespace go. May be called instead of `start`.

        Raises the error of the first whose plugins fail; all are forgotten nevertheless.
        """
        await self.start()
        try:
            failed = [await self._force(held) for held in self._records.all()]
            self._release_strays()
        finally:
            await self.stop()
        for error in filter(None, failed):
            raise error

    async def _force(self, held: Attachment) -> TripodError | None:
        """Take one off its network, and forget it even when its plugins fail."""
        error = await _error_of(self.detach(held.sandbox_id))
        self._records.remove(held.sandbox_id)
        return error

    @asynccontextmanager
    async def _work(self, sandbox_id: str) -> AsyncIterator[Lock]:
        limit = self._config.operation_timeout_seconds
        async with self._gate.shared():
            try:
                async with self._records.hold(sandbox_id, limit_seconds=limit) as lock:
                    yield lock
            except OSError as err:
                raise network_errors.kernel_refused("change a CNI attachment", str(err)) from err

    def _wanted(
        self, sandbox_id: str, place: netns.Netns, pod: PodDetails | None, before: Attachment | None
    ) -> Attachment:
        found = self._folder.look()
        if found.fault is not None:
            raise found.fault
        network = found.network or (before.network if before is not None else None)
        if network is None:
            raise errors.not_configured(str(self._folder.path))
        missing = self._chain.missing(network)
        if missing is not None:
            # Nothing is begun that cannot be undone.
            raise missing
        if pod is None and before is not None:
            return Attachment(sandbox_id, place, network, before.arguments, before.values)
        try:
            arguments = request.arguments(pod or PodDetails(), sandbox_id)
            values = request.capabilities(pod or PodDetails(), network.capabilities)
        except ValueError as err:
            raise errors.request_unusable(str(err)) from err
        return Attachment(sandbox_id, place, network, arguments, values)

    async def _add(self, wanted: Attachment, lock: Lock) -> tuple[str, ...]:
        async with _ADD:
            made = await self._chain.add(wanted, lock)
            addresses = result.addresses(made)
            if not addresses:
                raise errors.no_address(wanted.network.source)
            await self._records.save(replace(wanted, result=made))
        await _ADD.recorded()
        return addresses

    async def _undo(self, held: Attachment, lock: Lock) -> None:
        path = held.netns.path if netns.usable(held.netns) else ""
        async with _DELETE:
            await self._chain.delete(held, lock, path)
        await _DELETE.recorded()
        async with _RELEASE:
            netns.release(Path(held.netns.path))
        await _RELEASE.recorded()
        async with _FORGET:
            self._records.remove(held.sandbox_id)
            self._ailing.pop(held.sandbox_id, None)
        await _FORGET.recorded()

    async def _undo_quietly(self, held: Attachment, lock: Lock) -> None:
        try:
            await self._undo(held, lock)
        except (TripodError, OSError) as err:
            log.warning("Left a failed CNI attachment", pod_sandbox_id=held.sandbox_id, error=str(err))

    async def _remove(self, sandbox_id: str) -> bool:
        error = await _error_of(self.detach(sandbox_id))
        if error is not None:
            told = f"Sandbox {sandbox_id}: {error.message}"
            # Tried every few seconds, and told once.
            if self._ailing.get(sandbox_id) != told:
                log.warning("Could not end a CNI attachment", pod_sandbox_id=sandbox_id, error=error.message)
            self._ailing[sandbox_id] = told
            return False
        log.info("Ended the CNI attachment of a sandbox that is gone", pod_sandbox_id=sandbox_id)
        return True

    def _release_strays(self) -> None:
        """Let namespaces go that no record has: all are recorded before they are kept."""
        known = {held.netns.path for held in self._records.all()}
        for path in self._config.netns_folder.glob(f"{_prefix(self._config)}*"):
            if str(path) not in known:
                try:
                    netns.release(path)
                except OSError as err:
                    log.warning("Could not let a network namespace go", path=str(path), error=str(err))

    async def _collect_plugins(self) -> None:
        """Tell the plugins who is left. "GC must not run beside ADD and DEL": it is alone."""
        network = self._folder.look().network
        self._looks_until_gc = _GC_EVERY
        if network is None or not network.collects:
            return
        async with self._gate.alone():
            valid = [held.sandbox_id for held in self._records.all() if held.network.name == network.name]
            fault = await _fault_of(self._chain.collect(network, sorted(valid)))
        if fault is not None:
            log.warning("Could not collect the garbage of CNI plugins", file=network.source, error=fault)

    async def _check_next(self) -> None:
        """Ask for CHECK of one attachment, each in its turn."""
        able = {
            held.sandbox_id for held in self._records.all() if held.network.checks and held.result is not None
        }
        self._checked = [name for name in self._checked if name in able]
        if self._checked and len(self._checked) == len(able):
            self._checked = []
        name = min(able.difference(self._checked), default=None)
        if name is None:
            return
        self._checked.append(name)
        fault = await _fault_of(self._check(name))
        if fault is not None and name not in self._ailing:
            log.warning("Found a sandbox whose network is not whole", pod_sandbox_id=name, error=fault)
        self._ailing.pop(name, None)
        if fault is not None and self.holds(name):
            self._ailing[name] = f"Sandbox {name}: {fault}"

    async def _check(self, sandbox_id: str) -> None:
        async with self._work(sandbox_id) as lock:
            held = self._records.find(sandbox_id)
            # One whose namespace is gone is not ailing: it has ended, and is taken off in time.
            if held is not None and held.result is not None and netns.usable(held.netns):
                await self._chain.check(held, lock)

    def _path(self, sandbox_id: str) -> Path:
        digest = blake2b(sandbox_id.encode(), digest_size=_NAME_BYTES).hexdigest()
        return self._config.netns_folder / f"{_prefix(self._config)}{digest}"


def _prefix(config: CniConfig) -> str:
    """Return what the names of kept namespaces begin with: two servers on a host have two."""
    return f"tripod-{blake2b(bytes(config.directory), digest_size=4).hexdigest()}-"


def _is_whole(held: Attachment, place: netns.Netns) -> bool:
    """Tell whether an attachment is that of a namespace as it is now, link and all."""
    return held.netns == place and netns.has_link(place, request.INTERFACE) and netns.usable(place)


def _is_severed(held: Attachment) -> bool:
    try:
        return netns.lives(held.netns) and not netns.has_link(held.netns, request.INTERFACE)
    except OSError:
        return False


async def _error_of(work: Awaitable[None]) -> TripodError | None:
    try:
        await work
    except TripodError as err:
        return err
    return None


async def _fault_of(work: Awaitable[None]) -> str | None:
    error = await _error_of(work)
    return None if error is None else error.message
