"""Build hook: generate the stubs before a wheel or an editable install is made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).resolve().parent))


class GenerateStubs(BuildHookInterface):  # type: ignore[misc]  # hatchling ships no types
    """Run `tools/gen_protos.py` when a contract changed."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generate the stubs that the wheel carries."""
        import gen_protos  # type: ignore[import-not-found]  # beside this file

        if gen_protos.stale():
            gen_protos.generate()
