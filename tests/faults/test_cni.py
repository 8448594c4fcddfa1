"""CNI plugins that hang, fail, lie and die, and the CRI server killed at every step of an attachment."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from services.kubelet.cri.network import netns
from services.kubelet.cri.network.cni.cni import CniNetwork
from services.kubelet.cri.network.errors import NetworkError
from tests.kubelet.cri.network import netlab
from tests.lab import cni
from tests.lab.cni import FakePlugin
from tests.waiting import until

pytestmark = [pytest.mark.netns, pytest.mark.asyncio, pytest.mark.fault("F62")]

FAKE = {"type": "fake"}
HANG = "sleep 1000\n"
STEPS = ("record", "keep", "add", "delete", "release", "forget")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[None]:
    """A node of the test's own."""
    if os.geteuid() != 0:
        pytest.skip("needs root; run the tests with sudo")
    with netlab.host():
        try:
            yield
        finally:
            cni.let_go(tmp_path)


@pytest.fixture
def fake(tmp_path: Path, node: None) -> FakePlugin:
    """The plugin that does what a test says, configured."""
    cni.write_conf(tmp_path / "net.d", FAKE)
    return FakePlugin(tmp_path)


@pytest_asyncio.fixture
async def wired(node: None, tmp_path: Path) -> tuple[str, str, str, str]:
    """A network of real plugins that has had a sandbox; returns the node as that left it."""
    cni.needs_plugins()
    cni.write_conf(tmp_path / "net.d", *cni.bridge_plugins(tmp_path / "leases"))
    async with running(tmp_path) as network:
        with netlab.sandbox() as one:
            await network.attach("warm", one, hostname="warm")
            await network.detach("warm")
    return netlab.snapshot()


@asynccontextmanager
async def running(folder: Path, *, seconds: float = 20) -> AsyncIterator[CniNetwork]:
    """A started network that leaves everything in place when it stops."""
    network = CniNetwork(cni.config(folder, folder / "fake", seconds=seconds))
    await network.start()
    try:
        yield network
    finally:
        await network.stop()


def held(folder: Path) -> list[str]:
    """List all that a network holds on the host: records, locks, kept namespaces."""
    config = cni.config(folder)
    found = [*(config.directory / "attachments").glob("*"), *(config.directory / "busy").glob("*")]
    return sorted(path.name for path in (*found, *cni.kept(config)))


@pytest.mark.parametrize(
    ("script", "reason", "said"),
    [
        pytest.param("kill -9 $$\n", "CNI_PLUGIN_FAILED", "was killed by signal 9", id="killed"),
        pytest.param("echo why >&2; exit 3\n", "CNI_PLUGIN_FAILED", "ended with 3: why", id="fails-in-words"),
        pytest.param("exit 7\n", "CNI_PLUGIN_FAILED", "ended with 7", id="fails-mute"),
        pytest.param("echo '<html>'; exit 0\n", "CNI_RESULT_UNREADABLE", "no JSON: <html>", id="garbage"),
        pytest.param("exit 0\n", "CNI_RESULT_UNREADABLE", "no JSON", id="prints-nothing"),
        pytest.param(
            "head -c 3000000 /dev/zero; exit 0\n", "CNI_RESULT_UNREADABLE", "printed more", id="flood"
        ),
        pytest.param("echo '{}'; exit 0\n", "CNI_NO_ADDRESS", "no address", id="no-address"),
    ],
)
async def test_a_plugin_that_does_ill_is_told_in_clear_words_and_undone(
    fake: FakePlugin, tmp_path: Path, script: str, reason: str, said: str
) -> None:
    """DEL follows the ADD, nothing stays, and the next try does well."""
    fake.does("ADD", script)
    async with running(tmp_path) as network:
        with netlab.sandbox() as one:
            with pytest.raises(NetworkError) as refused:
                await network.attach("one", one, hostname="one")
            commands, left = [call.command for call in fake.calls()], held(tmp_path)
            fake.recovers("ADD")
            made = await network.attach("one", one, hostname="one")
            await network.detach("one")

    assert refused.value.reason == reason
    assert said in refused.value.message
    assert commands == ["ADD", "DEL"]
    assert left == []
    assert made == ("10.231.9.77",)
    assert held(tmp_path) == []


async def test_a_plugin_that_asks_to_try_again_says_when(fake: FakePlugin, tmp_path: Path) -> None:
    """Code 11 is a state that passes."""
    fake.fails("ADD", 11, "busy")
    async with running(tmp_path) as network:
        with netlab.sandbox() as one, pytest.raises(NetworkError) as refused:
            await network.attach("one", one, hostname="one")

    assert refused.value.message.endswith("failed at ADD: busy; the details")
    assert refused.value.retry_after_seconds is not None
    assert held(tmp_path) == []


async def test_a_plugin_that_hangs_is_ended_and_undone(fake: FakePlugin, tmp_path: Path) -> None:
    """In its time, with what it has started; others are served meanwhile."""
    fake.does("ADD", 'case "$CNI_CONTAINERID" in one) sleep 1000;; esac\n')
    async with running(tmp_path, seconds=3) as network:
        with netlab.sandbox() as one, netlab.sandbox() as two:
            async with asyncio.TaskGroup() as group:
                hung = group.create_task(_refusal(network, "one", one))
                await until(lambda: bool(fake.calls("ADD")), 30)
                served = await network.attach("two", two, hostname="two")
                finished = hung.done()
            await network.detach("two")

    assert hung.result().reason == "CNI_TIMEOUT"
    assert served == ("10.231.9.77",)
    assert not finished
    assert all(cni.has_ended(call.pid) for call in fake.calls())
    assert [call.command for call in fake.calls() if call.environment["CNI_CONTAINERID"] == "one"] == [
        "ADD",
        "DEL",
    ]
    assert held(tmp_path) == []


async def _refusal(network: CniNetwork, sandbox_id: str, pid: int) -> NetworkError:
    with pytest.raises(NetworkError) as refused:
        await network.attach(sandbox_id, pid, hostname="")
    return refused.value


async def test_an_attach_that_is_given_up_on_ends_its_plugin(fake: FakePlugin, tmp_path: Path) -> None:
    """The duty stays on record, and a detach does it."""
    fake.does("ADD", HANG)
    async with running(tmp_path) as network:
        with netlab.sandbox() as one:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(network.attach("one", one, hostname="one"))
                await until(lambda: bool(fake.calls("ADD")), 30)
                task.cancel()
            attached = await network.list_attached()
            await network.detach("one")

    assert cni.has_ended(fake.calls("ADD")[0].pid)
    assert attached == {"one"}
    assert [call.command for call in fake.calls()] == ["ADD", "DEL"]
    assert held(tmp_path) == []


async def test_a_failing_del_is_tried_again_until_it_does_well(fake: FakePlugin, tmp_path: Path) -> None:
    """By whoever asks, and by the upkeep, for each sandbox alone; the record stays so long."""
    fake.does("DEL", 'case "$CNI_CONTAINERID" in one) exit 5;; esac\n')
    async with running(tmp_path) as network:
        with netlab.sandbox() as one, netlab.sandbox() as two:
            await network.attach("one", one, hostname="one")
            await network.attach("two", two, hostname="two")
            with pytest.raises(NetworkError) as refused:
                await network.detach("one")
        first = await network.collect([])
        leases, _ = await network.ledger()
    async with running(tmp_path) as network:
        fake.recovers("DEL")
        second = await network.collect([])

    assert "failed at DEL: ended with 5" in refused.value.message
    assert (first, second) == (("two",), ("one",))
    assert leases == {"one": "10.231.9.77"}
    assert held(tmp_path) == []


async def test_cleanup_forgets_also_what_cannot_be_undone(fake: FakePlugin, tmp_path: Path) -> None:
    """Whoever removes the node wants it gone; the failure is told, and every DEL was tried."""
    fake.does("DEL", "exit 5\n")
    async with running(tmp_path) as network:
        with netlab.sandbox() as one, netlab.sandbox() as two:
            await network.attach("one", one, hostname="one")
            await network.attach("two", two, hostname="two")
    with pytest.raises(NetworkError, match="failed at DEL"):
        await network.cleanup()
    left = held(tmp_path)
    await network.cleanup()

    assert left == []
    assert len(fake.calls("DEL")) == 2


_SERVER = """
import asyncio, sys
from pathlib import Path
from services.common import failpoints
from services.kubelet.cri.network.cni.cni import CniNetwork
from services.kubelet.cri.network.cni.config import CniConfig

folder, pid, points, ending = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]

async def main():
    network = CniNetwork(
        CniConfig(
            state_directory=folder / "state",
            conf_folder=folder / "net.d",
            bin_folders=(folder / "fake", Path("/usr/lib/cni")),
            netns_folder=folder / "netns",
        )
    )
    await network.start()
    failpoints.arm(points, allowed=True)
    await network.attach("one", pid, hostname="one")
    if ending == "detach":
        await network.detach("one")
    await network.stop()

asyncio.run(main())
"""


def serve(folder: Path, pid: int, points: str, ending: str) -> list[str]:
    """Return the command of a server of its own that attaches one sandbox."""
    return [sys.executable, "-c", _SERVER, str(folder), str(pid), points, ending]


@pytest.mark.parametrize("instant", ["before", "after", "recorded"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_server_killed_at_any_step_leaves_nothing_once_the_sandbox_is_gone(
    wired: tuple[str, str, str, str], tmp_path: Path, step: str, instant: str
) -> None:
    """With the real plugins: address, rules, links and namespace are given back by the next one."""
    with netlab.sandbox() as one:
        await _be_killed(tmp_path, one, step, instant)
    async with running(tmp_path) as network:
        await network.collect([])

    assert cni.leased(tmp_path / "leases") == []
    assert held(tmp_path) == []
    assert netlab.snapshot() == wired


@pytest.mark.parametrize("step", STEPS)
async def test_an_attach_after_a_kill_completes(
    wired: tuple[str, str, str, str], tmp_path: Path, step: str
) -> None:
    """What was begun is undone first: one address is taken, not two."""
    with netlab.sandbox() as one:
        await _be_killed(tmp_path, one, step, "after")
        async with running(tmp_path) as network:
            (address,) = await network.attach("one", one, hostname="one")
            reached = netlab.pings(None, address)
            taken = cni.leased(tmp_path / "leases")
            await network.detach("one")

    assert reached
    assert taken == [address]
    assert netlab.snapshot() == wired


async def _be_killed(folder: Path, pid: int, step: str, instant: str) -> None:
    ending = "attach" if step in STEPS[:3] else "detach"
    command = serve(folder, pid, f"network.cni.{step}.{instant}=kill", ending)
    victim = await asyncio.to_thread(subprocess.run, command, timeout=60, stdout=subprocess.DEVNULL)
    assert victim.returncode == -signal.SIGKILL


async def test_a_plugin_that_outlives_its_server_is_ended_before_its_work_is_undone(
    fake: FakePlugin, tmp_path: Path
) -> None:
    """Else its ADD would end after our DEL, and what it made would be nobody's."""
    fake.does("ADD", HANG)
    with netlab.sandbox() as one:
        command = serve(tmp_path, one, "", "attach")
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:  # noqa: ASYNC220  # killed below
            await until(lambda: bool(fake.calls("ADD")), 30)
            server.kill()
        orphan = fake.calls("ADD")[0].pid
        lived_on = not cni.has_ended(orphan)
        fake.does("DEL", f"grep -q '^State:.[RSD]' /proc/{orphan}/status && touch {tmp_path}/both\n")
        async with running(tmp_path) as network:
            await network.collect([])

    assert lived_on
    await until(lambda: cni.has_ended(orphan), 30)
    assert [call.command for call in fake.calls()] == ["ADD", "DEL"]
    assert not (tmp_path / "both").exists()
    assert held(tmp_path) == []


async def test_a_namespace_that_no_record_has_is_let_go(fake: FakePlugin, tmp_path: Path) -> None:
    """A record that was lost leaves a mount, which would hold the namespace for ever; a foreign one stays."""
    async with running(tmp_path) as network:
        with netlab.sandbox() as one:
            await network.attach("one", one, hostname="one")
            with netns.open_netns("two", one) as open_one:
                netns.keep(open_one, tmp_path / "netns" / "cni-of-another-runtime")
        (record,) = (cni.config(tmp_path).directory / "attachments").glob("*.json")
        record.write_bytes(b"\0" * 100)
    async with running(tmp_path) as network:
        _, links = await network.ledger()
        await network.collect([])
        left = [path.name for path in cni.kept(cni.config(tmp_path))]

    assert list(links.values()) == [""]
    assert left == ["cni-of-another-runtime"]


async def test_a_full_disk_refuses_the_attach_before_anything_is_done(
    fake: FakePlugin, tmp_path: Path
) -> None:
    """An ADD whose DEL nobody would remember is not begun."""
    async with running(tmp_path) as network:
        (cni.config(tmp_path).directory / "attachments" / "one.json.new").mkdir()
        with netlab.sandbox() as one, pytest.raises(NetworkError, match="Is a directory"):
            await network.attach("one", one, hostname="one")
        attached = await network.list_attached()

    assert attached == frozenset()
    assert fake.calls() == []
    assert cni.kept(cni.config(tmp_path)) == []


async def test_fifty_attachments_leave_no_file_open(fake: FakePlugin, tmp_path: Path) -> None:
    """Good ones, failing ones, garbled ones: descriptors are as before."""
    async with running(tmp_path) as network:
        with netlab.sandbox() as one:
            await network.attach("one", one, hostname="one")
            await network.detach("one")
            before = _open_files()
            for number in range(50):
                fake.does("ADD", ("exit 1\n", "echo x; exit 0\n", "")[number % 3])
                if number % 3 == 2:
                    await network.attach("one", one, hostname="one")
                    await network.detach("one")
                else:
                    await _refusal(network, "one", one)
            after = _open_files()

    assert after == before
    assert held(tmp_path) == []


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
