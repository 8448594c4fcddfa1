"""An image for containers of tests: Debian's or the demo's Python, from the engine itself."""

from __future__ import annotations

import subprocess

import pytest

IMAGE = "tripod-demo:1"


@pytest.fixture(scope="session")
def image() -> str:
    """Return an image with `python3` and `sh`."""
    found = subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False)
    if found.returncode != 0:
        pytest.skip(f"{IMAGE} is not here: run `make up`")
    return IMAGE
