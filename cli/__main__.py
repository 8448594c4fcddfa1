"""Start `tripod`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    # gRPC writes its own lines about failed connects otherwise; ours say more.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from cli.main import run

    sys.exit(run())


if __name__ == "__main__":
    main()
