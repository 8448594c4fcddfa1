"""What the kubelet reads of the machine it is on."""

from __future__ import annotations

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
