"""The faults that docs/reliability.md promises to inject are those that tests inject."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The faults that the node must withstand so far; the numbers are those of the document.
WANTED = {
    *range(1, 20),
    *range(28, 34),
    *(37, 40, 43, 45, 46, 48, 49, 50),
}


def injected() -> dict[str, set[str]]:
    """Return the test files of each fault, by the marks in them."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if _is_mark(node):
                for argument in node.args:  # type: ignore[attr-defined]  # a call, as was asked
                    if isinstance(argument, ast.Constant):
                        found.setdefault(str(argument.value), set()).add(path.name)
    return found


def _is_mark(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "fault"
        and ast.unparse(node.func) == "pytest.mark.fault"
    )


def documented() -> dict[str, set[str]]:
    """Return the test files of each fault, by the table."""
    text = (ROOT / "docs/reliability.md").read_text()
    rows = re.findall(r"^\| (F\d+) \|.*\| ([^|]+) \|$", text, re.MULTILINE)
    return {fault: set(re.findall(r"test_\w+\.py", files)) for fault, files in rows}


def test_every_fault_is_injected() -> None:
    """None of those that the node must withstand goes without a test."""
    missing = sorted({f"F{number}" for number in WANTED} - injected().keys())

    assert missing == []


def test_the_document_names_the_tests() -> None:
    """The table says where each fault is injected, and nothing else."""
    faults = {name: files for name, files in injected().items() if name.startswith("F")}

    assert documented() == faults
