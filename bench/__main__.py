"""Run benchmarks: `python -m bench NAME... [--json FILE]`. Exits with 1 when a bar is missed.

A benchmark is a module `bench/NAME.py` with `run() -> Result`; its docstring names
its bars. A module whose name begins with `_` helps others. Without a name, all are listed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
from pathlib import Path

from bench.report import Result, document, table

_NOT_BENCHMARKS = {"__main__", "report"}


def names() -> list[str]:
    """Return the benchmarks that there are."""
    found = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    return sorted(name for name in found if name not in _NOT_BENCHMARKS and not name.startswith("_"))


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(names())}")
    parser.add_argument("--json", default="", metavar="FILE", help="write the results to a file, too")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(names()))
    if unknown or not options.names:
        print(
            f"Name one or more of {', '.join(names())}; not {', '.join(unknown) or 'none'}", file=sys.stderr
        )
        return 2
    results: dict[str, Result] = {}
    for name in options.names:
        results[name] = importlib.import_module(f"bench.{name}").run()
        print(table(name, results[name]), flush=True)
    if options.json:
        made = [document(name, result) for name, result in results.items()]
        Path(options.json).write_text(json.dumps(made, indent=2) + "\n")
    return int(not all(result.held for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
