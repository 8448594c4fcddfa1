"""What the kubelet reads of the machine it is on."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from services.kubelet.adapters import machine

FIRMWARE = Path("/sys/class/dmi/id/product_uuid")


def test_the_machine_has_its_own_ids(tmp_path: Path) -> None:
    """The system's is the firmware's, or else the machine's, as cAdvisor has it."""
    machine_id = Path("/etc/machine-id")
    if not machine_id.exists() or not machine_id.read_text().strip():
        pytest.skip("this machine has no id")

    facts = machine.read(tmp_path)

    assert facts.machine_id
    assert facts.system_uuid == (FIRMWARE.read_text().strip() if FIRMWARE.exists() else facts.machine_id)
    assert facts.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert facts.os_image
    assert facts.swap_bytes % 1024 == 0


def test_the_hosts_files_are_found_by_the_engine_where_the_first_process_hides_them(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first process that may more than we lets nobody look at its root."""
    read = machine._text
    names = ("machine-id", "os-release")
    hidden = {f"/proc/1/root/etc/{name}": "" for name in names} | {f"/etc/{name}": "" for name in names}
    seen = {
        f"/proc/{os.getpid()}/root/etc/machine-id": "0123\n",
        f"/proc/{os.getpid()}/root/etc/os-release": 'NAME=x\nPRETTY_NAME="A Host 1"\n',
    }
    monkeypatch.setattr(machine, "_text", lambda path: (hidden | seen).get(path, read(path)))
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(short_path / "engine.sock"))
        engine.listen()
        facts = machine.read(short_path, str(short_path / "engine.sock"))

    assert (facts.machine_id, facts.os_image) == ("0123", "A Host 1")


def test_an_engine_that_does_not_run_hides_nothing_else(tmp_path: Path) -> None:
    """What can be read without it is."""
    facts = machine.read(tmp_path, str(tmp_path / "no.sock"))

    assert facts == machine.read(tmp_path)
