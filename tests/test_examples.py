"""Every example is a manifest without a fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.kubelet.core import manifest

FOLDER = Path(__file__).parent.parent / "examples"
FILES = sorted(FOLDER.rglob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_an_example_is_taken(path: Path) -> None:
    """By a node on its own."""
    drafts, faults = manifest.read(path.read_bytes())

    assert faults == []
    assert drafts
