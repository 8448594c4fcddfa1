"""Compare our contract of the CRI with a released one: `python -m tools.compare_cri PATH/TO/api.proto`.

Prints what only the release has (`-`) and what only ours has (`+`), and exits with 1 when there is anything.
A release's copy is k8s.io/cri-api's `pkg/apis/runtime/v1/api.proto`; it is not kept here.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tools.gen_protos import PROTOS
from tools.wire_lock import file_lines

OURS = PROTOS / "tripod/cri/v1/api.proto"


def contract(path: Path) -> list[str]:
    """Compile one file that imports nothing; returns its lines, sorted. Raises `ValueError`."""
    from google.protobuf import descriptor_pb2
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set.binpb"
        shutil.copy(path, Path(folder) / "api.proto")
        if protoc.main(["protoc", f"-I{folder}", f"--descriptor_set_out={out}", "api.proto"]) != 0:
            raise ValueError(f"{path} does not compile")
        files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
        return sorted(line for file in files for line in file_lines(file))


def differences(released: Path, ours: Path = OURS) -> list[str]:
    """Return `- LINE` for what only the release has, `+ LINE` for what only ours has."""
    theirs, mine = set(contract(released)), set(contract(ours))
    found = [(line, "-") for line in theirs - mine] + [(line, "+") for line in mine - theirs]
    return [f"{sign} {line}" for line, sign in sorted(found)]


def main() -> int:
    """Compare and print."""
    parser = argparse.ArgumentParser(prog="python -m tools.compare_cri", description=__doc__)
    parser.add_argument("released", type=Path, help="a released api.proto")
    try:
        found = differences(parser.parse_args().released)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(found) if found else "The contracts are the same.")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
