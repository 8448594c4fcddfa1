"""Where settings come from, and what is said about bad ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from services.common.settings import HelpRequested, SettingsError, load, setting


@dataclass(frozen=True, slots=True)
class Sample:
    """Settings of no service."""

    node_name: str = setting("here", help="Name.")
    port: int = setting(1, help="Port.")
    quiet: bool = setting(False, help="Say less.")
    state: Path = setting(Path("/state"), help="Folder.")
    names: tuple[str, ...] = setting((), help="Names.")
    token: str = setting("", help="Token.", secret=True)


def test_defaults_hold_when_nobody_says_otherwise() -> None:
    """No source, no surprise."""
    assert load(Sample, argv=[], environ={}) == Sample()


def test_a_flag_beats_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    """The nearest source wins, setting by setting."""
    file = tmp_path / "c.yaml"
    file.write_text("node_name: file\nport: 2\nnames: [a, b]\n")

    made = load(
        Sample,
        argv=["--config", str(file), "--node-name=flag", "--quiet"],
        environ={"TRIPOD_NODE_NAME": "env", "TRIPOD_PORT": "3", "TRIPOD_STATE": ""},
    )

    assert made == Sample(node_name="flag", port=3, quiet=True, names=("a", "b"))


def test_every_fault_is_reported_at_once(tmp_path: Path) -> None:
    """A person mends a file once, not once for each fault."""
    file = tmp_path / "c.yaml"
    file.write_text("prot: 2\n")

    with pytest.raises(SettingsError) as caught:
        load(
            Sample,
            argv=["--config", str(file), "--prot", "1", "--port", "x"],
            environ={"TRIPOD_QUIET": "perhaps"},
        )

    faults = {v.field: v.description for v in caught.value.violations}
    assert faults == {
        f"{file}: prot": "unknown setting, did you mean port?",
        "--prot": "unknown setting, did you mean --port?",
        "--port": "'x' is not a whole number",
        "TRIPOD_QUIET": "'perhaps' is neither true nor false",
    }


def test_a_secret_is_never_printed() -> None:
    """--print-config shows what is in force, without secrets."""
    with pytest.raises(HelpRequested) as caught:
        load(Sample, argv=["--print-config"], environ={"TRIPOD_TOKEN": "hunter2"})

    assert "token: '***'" in str(caught.value)
    assert "hunter2" not in str(caught.value)
