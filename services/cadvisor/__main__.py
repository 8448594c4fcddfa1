"""Run cAdvisor: `python -m services.cadvisor`."""

from __future__ import annotations

from services.common.lean import without

# It speaks over unix sockets and loopback alone: without TLS it is 4 MB smaller.
with without("ssl"):
    import asyncio

    from services.cadvisor.app import Cadvisor

import os
import socket
import sys

from services.cadvisor.config import CadvisorConfig
from services.common import failpoints, lifecycle, logs, telemetry
from services.common.failpoints import FailpointSyntaxError
from services.common.settings import HelpRequested, SettingsError, load


def main() -> int:
    """Serve until a signal."""
    try:
        config = load(CadvisorConfig, argv=sys.argv[1:], environ=os.environ)
        failpoints.arm(config.failpoints, allowed=config.allow_failpoints)
    except HelpRequested as text:
        sys.stdout.write(str(text))
        return 0
    except (SettingsError, FailpointSyntaxError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    logs.configure("tripod-cadvisor", level=config.log_level, fmt=config.log_format)
    traces = telemetry.setup("tripod-cadvisor", node_name=config.node_name or socket.gethostname().lower())

    async def body(stop: asyncio.Event) -> None:
        try:
            await Cadvisor(config, traces).run(stop)
        finally:
            traces.shutdown()

    return lifecycle.run(body, service="tripod-cadvisor")


if __name__ == "__main__":
    sys.exit(main())
