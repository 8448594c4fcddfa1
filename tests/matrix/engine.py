"""Later."""

from pathlib import Path


class EngineMatrix:
    name = "engine"

    def __init__(self, folder: Path) -> None: ...
    async def instants(self) -> list[tuple[str, int]]:
        return []

    async def run(self, instant: str, occurrence: int) -> bool:
        return False
