"""Every example is a manifest that is taken as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.kubelet.core import manifest

FOLDER = Path(__file__).parent.parent / "examples"
STANDALONE = sorted(
    path for path in FOLDER.rglob("*.yaml") if "cluster" not in path.relative_to(FOLDER).parts
)


def test_there_are_examples() -> None:
    """The folder is found."""
    assert len(STANDALONE) >= 4


@pytest.mark.parametrize("path", STANDALONE, ids=lambda path: str(path.relative_to(FOLDER)))
def test_an_example_is_taken(path: Path) -> None:
    """Without a fault."""
    drafts, faults = manifest.read(path.read_bytes())

    assert faults == []
    assert drafts
