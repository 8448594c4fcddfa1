"""What the images and the make targets are made from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tools import images, steps
from tools.steps import ROOT, Report, StepError

COMPOSE = (ROOT / "docker-compose.yml").read_text()


def test_no_service_is_privileged() -> None:
    """Rights are named one by one."""
    for name, service in yaml.safe_load(COMPOSE)["services"].items():
        assert "privileged" not in service, name
        assert "SYS_RESOURCE" not in service.get("cap_add", []), name


def test_each_capability_says_what_it_is_for() -> None:
    """A comment stands above each."""
    lines = COMPOSE.splitlines()
    blocks = [i for i, line in enumerate(lines) if line.strip() == "cap_add:"]
    for start in blocks:
        for i in range(start + 1, len(lines)):
            text = lines[i].strip()
            if not text.startswith(("#", "- ")):
                break
            if text.startswith("- "):
                assert lines[i - 1].strip().startswith("#"), text


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt", "requirements-build.txt"])
def test_every_requirement_is_locked_and_hashed(name: str) -> None:
    """Plain pip refuses anything else."""
    text = (ROOT / name).read_text()
    entries = re.findall(
        r"^[a-zA-Z0-9][^\n]*==[^\n]*\\\n((?:\s+--hash=sha256:[0-9a-f]{64}.*\n?)+)", text, re.M
    )

    assert len(entries) == len(re.findall(r"^[a-zA-Z0-9]", text, re.M)) > 0


def test_the_dockerfile_needs_no_buildkit() -> None:
    """Debian's engine has none, and a syntax line would ask a registry."""
    text = (ROOT / "Dockerfile").read_text()

    assert "# syntax" not in text
    assert not re.search(r"--mount|--chmod|--link|<<", text)


def test_the_build_context_has_the_wheels() -> None:
    """Or the images could not be made without an index."""
    ignored = (ROOT / ".dockerignore").read_text().split()

    assert "wheels" not in ignored
    assert ".git" in ignored


def test_the_base_is_named_after_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another list makes another base."""
    before = images.base_name()
    monkeypatch.setattr(images, "packages", lambda: ["python3"])

    assert images.base_name() != before


def test_a_users_base_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is asked for anything."""
    monkeypatch.setenv("BASE_IMAGE", "mine:1")

    assert images.choose_base(Report()) == "mine:1"


def test_what_may_not_be_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not root, or not Debian: the person gets the command."""
    monkeypatch.setattr(steps, "may_install", lambda: False)

    with pytest.raises(StepError) as caught:
        steps.install(["docker.io"], Report())

    assert "apt-get install docker.io" in caught.value.advice


def test_a_program_that_fails_is_told_with_its_words(tmp_path: Path) -> None:
    """The last lines of what it said."""
    with pytest.raises(StepError, match="boom"):
        steps.run(["sh", "-c", "echo boom; exit 3"])
    with pytest.raises(StepError, match="is not installed"):
        steps.run([str(tmp_path / "nothing")])
