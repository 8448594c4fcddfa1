"""The files and the programs of CNI, without a network."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from services.kubelet.cri.network import netns
from services.kubelet.cri.network.cni import conf, invoke, records
from services.kubelet.cri.network.cni.config import CniConfig
from services.kubelet.cri.network.cni.folder import ConfFolder
from services.kubelet.cri.network.cni.gate import Gate
from services.kubelet.cri.network.cni.invoke import OutputTooLongError
from services.kubelet.cri.network.cni.records import Attachment, Records
from services.kubelet.cri.network.errors import NetworkError
from services.kubelet.cri.network.netns import Netns
from tests.lab import cni
from tests.waiting import until

LIMIT_SECONDS = 20


def an_attachment(sandbox_id: str = "s1") -> Attachment:
    """Build a record whose ADD has not ended."""
    value = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "fake"}]}
    network = conf.parse("/etc/cni/net.d/a.conflist", json.dumps(value).encode())
    return Attachment(
        sandbox_id, Netns("/run/netns/x", 7, 8, 9), network, "IgnoreUnknown=1", {"dns": {"servers": ["a"]}}
    )


def a_program(folder: Path, script: str) -> Path:
    """Write a shell script as a plugin."""
    path = folder / "plugin"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_the_folder_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """Absent, there, changed, broken, gone: each is seen at the next look."""
    folder = ConfFolder(tmp_path / "net.d")
    absent = folder.look()
    path = cni.write_conf(tmp_path / "net.d", {"type": "fake"})
    first = folder.look()
    cni.write_conf(tmp_path / "net.d", {"type": "fake"}, name="other")
    second = folder.look()
    path.write_text("{")
    broken = folder.look()
    path.unlink()
    gone = folder.look()

    assert not absent.present
    assert [found.network and found.network.name for found in (absent, first, second, broken, gone)] == [
        None, "ttnet", "other", None, None
    ]  # fmt: skip
    assert [found.present for found in (absent, first, broken, gone)] == [False, True, True, False]
    assert str(path) in str(broken.fault)


def test_a_broken_first_file_is_not_passed_over(tmp_path: Path) -> None:
    """Pods on another network than the administrator's would be worse than none."""
    cni.write_conf(tmp_path, {"type": "fake"}, file="20-good.conflist")
    (tmp_path / "10-bad.conf").write_text("not json")
    found = ConfFolder(tmp_path).look()

    assert found.network is None
    assert "10-bad.conf cannot be used: not JSON" in str(found.fault)


def test_a_fifo_and_a_link_that_leads_nowhere_are_faults(tmp_path: Path) -> None:
    """Neither hangs the server."""
    fifo, link = tmp_path / "a" / "10-x.conf", tmp_path / "b" / "10-x.conf"
    for path in (fifo, link):
        path.parent.mkdir()
    os.mkfifo(fifo)
    link.symlink_to("/nowhere")
    said = [str(ConfFolder(path.parent).look().fault) for path in (fifo, link)]

    assert said == [
        f"The CNI configuration {fifo} cannot be used: not a file",
        f"The CNI configuration {link} cannot be used: No such file or directory",
    ]


def test_a_huge_file_is_a_fault(tmp_path: Path) -> None:
    """Nobody's configuration is a mebibyte."""
    (tmp_path / "10-x.conf").write_bytes(b" " * (1 << 20) + b"{}")
    fault = ConfFolder(tmp_path).look().fault

    assert "larger than" in str(fault)


def test_plugins_come_from_absolute_folders_alone(tmp_path: Path) -> None:
    """A relative one would mean what the working directory makes of it."""
    with pytest.raises(ValueError, match="absolute"):
        CniConfig(state_directory=tmp_path, bin_folders=(Path("plugins"),))


def test_a_plugin_is_an_executable_file(tmp_path: Path) -> None:
    """The first folder that has one wins; folders and plain files are passed over."""
    one, two, three = (tmp_path / name for name in "abc")
    for folder in (one, two, three):
        folder.mkdir()
    (one / "plugin").mkdir()
    (two / "plugin").write_text("")
    wanted = a_program(three, "exit 0")

    assert invoke.find("plugin", [one, two, three]) == wanted
    assert invoke.find("plugin", [one, two]) is None


@pytest.mark.asyncio
async def test_a_plugin_gets_its_input_and_nothing_of_our_environment(tmp_path: Path) -> None:
    """Neither variables nor open files, but for the lease."""
    program = a_program(tmp_path, "cat; env >&2; ls /proc/self/fd >&2; exit 3")
    inherited = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(inherited, True)
    try:
        outcome = await invoke.run(program, b"hello" * 50_000, {"PATH": os.defpath, "CNI_COMMAND": "ADD"})
    finally:
        os.close(inherited)
    words = outcome.complaint.decode().split()

    assert outcome.code == 3
    assert outcome.output == b"hello" * 50_000
    assert {word.split("=")[0] for word in words if "=" in word} <= {
        "PATH",
        "CNI_COMMAND",
        "PWD",
        "_",
        "SHLVL",
    }
    assert str(inherited) not in words


@pytest.mark.asyncio
async def test_a_plugin_need_not_read_its_input(tmp_path: Path) -> None:
    """As one that knows its answer before."""
    outcome = await invoke.run(a_program(tmp_path, "exit 0"), b"x" * (1 << 20), {"PATH": os.defpath})

    assert outcome.code == 0


@pytest.mark.asyncio
async def test_a_plugin_that_prints_without_end_is_stopped(tmp_path: Path) -> None:
    """Memory stays bounded, and the plugin is gone."""
    pids: list[int] = []
    program = a_program(tmp_path, "exec yes")
    with pytest.raises(OutputTooLongError):
        await invoke.run(program, b"", {"PATH": os.defpath}, started=pids.append)

    assert cni.has_ended(pids[0])


@pytest.mark.asyncio
async def test_a_flood_of_complaints_keeps_its_end(tmp_path: Path) -> None:
    """The end says why."""
    program = a_program(tmp_path, "yes | head -c 3000000 >&2; echo why >&2")
    outcome = await invoke.run(program, b"", {"PATH": os.defpath})

    assert outcome.complaint.endswith(b"why\n")
    assert len(outcome.complaint) == 8192


@pytest.mark.asyncio
@pytest.mark.fault("F62")
async def test_a_plugin_that_is_given_up_on_goes_with_all_it_has_started(tmp_path: Path) -> None:
    """`bridge` waits for `host-local`: ending the first alone would leave the second at work."""
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    program = a_program(tmp_path, f"sleep 1000 & echo $$ $! > {ready}; wait")
    async with asyncio.TaskGroup() as group:
        running = group.create_task(invoke.run(program, b"", {"PATH": os.defpath}))
        async with asyncio.timeout(LIMIT_SECONDS):
            plugin, child = map(int, (await asyncio.to_thread(ready.read_text)).split())
        running.cancel()

    assert cni.has_ended(plugin)
    await until(lambda: cni.has_ended(child), 30)


@pytest.mark.asyncio
async def test_records_survive_and_a_damaged_one_is_set_aside(tmp_path: Path) -> None:
    """The others are read nevertheless."""
    store = Records(tmp_path)
    store.open()
    await store.save(an_attachment("s1"))
    await store.save(an_attachment("s2"))
    (tmp_path / "attachments" / "s2.json").write_bytes(b'{"version": 1, "sand')
    again = Records(tmp_path)
    again.open()

    assert again.all() == (an_attachment("s1"),)
    assert (tmp_path / "attachments" / "s2.damaged").exists()
    again.remove("s1")
    again.remove("s1")
    assert again.all() == ()


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"version": 2}', b"null", b'{"version": 1, "sandbox_id": "a"}']
)
def test_what_is_no_record_is_refused(data: bytes) -> None:
    """A half of one is none."""
    with pytest.raises(ValueError, match=r"."):
        records.decode(data)


@pytest.mark.asyncio
async def test_a_record_that_cannot_be_written_is_not_there(tmp_path: Path) -> None:
    """Nobody may think that the duty is written down."""
    store = Records(tmp_path)
    store.open()
    (tmp_path / "attachments" / "s1.json.new").mkdir()
    with pytest.raises(OSError, match=r"."):
        await store.save(an_attachment("s1"))

    assert store.find("s1") is None


@pytest.mark.asyncio
async def test_one_works_on_a_sandbox_at_a_time_and_leaves_no_file(tmp_path: Path) -> None:
    """Twenty ask; never two have it."""
    store = Records(tmp_path)
    store.open()
    inside: list[int] = []
    most: list[int] = []

    async def work(number: int) -> None:
        async with store.hold("s1", limit_seconds=LIMIT_SECONDS):
            inside.append(number)
            most.append(len(inside))
            await asyncio.sleep(0)
            inside.remove(number)

    await asyncio.gather(*(work(number) for number in range(20)))

    assert most == [1] * 20
    assert list((tmp_path / "busy").iterdir()) == []


_HOLDER = """
import fcntl, os, subprocess, sys
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(descriptor, fcntl.LOCK_EX)
plugin = subprocess.Popen(["sleep", "1000"], pass_fds=(descriptor,), start_new_session=True)
from services.kubelet.cri.network.cni.records import Lock
Lock(descriptor).started(plugin.pid)
print(plugin.pid, flush=True)
sys.stdin.read()
os._exit(1)
"""


@pytest.mark.asyncio
@pytest.mark.fault("F62")
async def test_the_plugin_of_a_server_that_was_killed_is_ended_and_no_other(tmp_path: Path) -> None:
    """While its server lives it is left alone; after that it may not end its work behind our back."""
    store = Records(tmp_path)
    store.open()
    command = [sys.executable, "-c", _HOLDER, str(tmp_path / "busy" / "s1")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:  # noqa: ASYNC220  # waited for
        assert server.stdout is not None
        plugin = int(server.stdout.readline())
        with pytest.raises(NetworkError) as busy:
            async with store.hold("s1", limit_seconds=0.2):
                pass
        spared = not cni.has_ended(plugin)
        server.send_signal(signal.SIGKILL)
        server.wait()
        async with store.hold("s1", limit_seconds=LIMIT_SECONDS):
            pass

    assert busy.value.reason == "CNI_BUSY"
    assert spared
    await until(lambda: cni.has_ended(plugin), 30)


@pytest.mark.asyncio
async def test_a_lock_that_names_nobody_is_waited_for(tmp_path: Path) -> None:
    """A server killed right after it started a plugin has not written it down: nobody is killed by guess."""
    store = Records(tmp_path)
    store.open()
    path = tmp_path / "busy" / "s1"
    with path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(NetworkError) as busy:
            async with store.hold("s1", limit_seconds=0.1):
                pass

    assert busy.value.reason == "CNI_BUSY"
    async with store.hold("s1", limit_seconds=LIMIT_SECONDS):
        pass


@pytest.mark.asyncio
async def test_who_is_alone_is_alone() -> None:
    """GC waits for those at work, and those who come later wait for GC."""
    gate = Gate(4)
    inside = 0
    seen: list[tuple[str, int]] = []

    async def beside() -> None:
        nonlocal inside
        async with gate.shared():
            inside += 1
            await asyncio.sleep(0)
            seen.append(("shared", inside))
            inside -= 1

    async def alone() -> None:
        async with gate.alone():
            seen.append(("alone", inside))
            await asyncio.sleep(0)
            seen.append(("alone", inside))

    await asyncio.gather(*(work() for work in (beside, beside, alone, beside, beside, alone, beside)))

    assert [count for kind, count in seen if kind == "alone"] == [0] * 4
    assert max(count for kind, count in seen if kind == "shared") > 1


def test_a_process_that_is_another_by_now_has_another_start(tmp_path: Path) -> None:
    """By id and start a process is known for good; a namespace of one that has ended is not usable."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        started = netns.started(process.pid)
        inode = Path(f"/proc/{process.pid}/ns/net").stat().st_ino
        here = Netns(str(tmp_path / "x"), process.pid, started, inode)
        lives, other = netns.lives(here), netns.lives(Netns("/x", process.pid, started + 1, inode))
        process.kill()

    assert started > 0
    assert lives
    assert not other
    assert netns.started(process.pid) == 0
    assert not netns.usable(here)
