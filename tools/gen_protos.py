"""Generate the Python stubs of every contract in `protos/` into `gen/`.

Run by `make proto`, by the build hook, by a stage of the Dockerfile and by
`tests/conftest.py`. Needs `grpcio-tools`; type stubs come too when
`mypy-protobuf` is installed.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
GEN = ROOT / "gen"
STAMP = GEN / ".stamp"


def sources() -> list[Path]:
    """List every contract, in a stable order."""
    return sorted(PROTOS.rglob("*.proto"))


def stale() -> bool:
    """Tell whether the stubs are missing or older than a contract."""
    if not STAMP.exists():
        return True
    made = STAMP.stat().st_mtime_ns
    listed = "\n".join(str(path.relative_to(PROTOS)) for path in sources())
    return STAMP.read_text() != listed or any(path.stat().st_mtime_ns > made for path in sources())


def generate() -> None:
    """Write the stubs anew. Raises `RuntimeError` when protoc refuses a contract."""
    import grpc_tools
    from grpc_tools import protoc

    shutil.rmtree(GEN, ignore_errors=True)
    GEN.mkdir()
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    files = [str(path.relative_to(PROTOS)) for path in sources()]
    arguments = [
        "protoc",
        f"-I{PROTOS}",
        f"-I{well_known}",
        f"--python_out={GEN}",
        f"--grpc_python_out={GEN}",
    ]
    if protoc.main([*arguments, *type_stub_options(), *files]) != 0:
        raise RuntimeError("protoc refused a contract; its message is above")
    STAMP.write_text("\n".join(files))


def type_stub_options() -> list[str]:
    """Ask for `.pyi` files when the mypy-protobuf plugins are at hand."""
    scripts = Path(sysconfig.get_path("scripts"))
    options: list[str] = []
    for name, option in (("mypy", "mypy_out"), ("mypy_grpc", "mypy_grpc_out")):
        found = scripts / f"protoc-gen-{name}"
        plugin = str(found) if found.exists() else shutil.which(f"protoc-gen-{name}")
        if plugin:
            options += [f"--plugin=protoc-gen-{name}={plugin}", f"--{option}=quiet:{GEN}"]
    return options


def main() -> int:
    """Generate unless `--if-stale` is given and nothing changed."""
    if "--if-stale" in sys.argv and not stale():
        return 0
    generate()
    print(f"Generated stubs of {len(sources())} contracts in {GEN.relative_to(ROOT)}/")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
