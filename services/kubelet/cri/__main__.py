"""Run the CRI server alone: `python -m services.kubelet.cri --socket /run/tripod/cri.sock`."""

from __future__ import annotations

import asyncio
import os
import sys

from services.common import failpoints, lifecycle, logs, telemetry
from services.common.failpoints import FailpointSyntaxError
from services.common.settings import HelpRequested, SettingsError, load
from services.kubelet.cri.app import CriServer
from services.kubelet.cri.config import CriConfig


def main() -> int:
    """Serve until a signal."""
    try:
        config = load(CriConfig, argv=sys.argv[1:], environ=os.environ)
        failpoints.arm(config.failpoints, allowed=config.allow_failpoints)
    except HelpRequested as text:
        sys.stdout.write(str(text))
        return 0
    except (SettingsError, FailpointSyntaxError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    logs.configure("tripod-cri", level=config.log_level, fmt=config.log_format)
    traces = telemetry.setup("tripod-cri", node_name=config.node_name)

    async def body(stop: asyncio.Event) -> None:
        server = CriServer(config)
        await server.start()
        try:
            await lifecycle.until(stop, server.run())
        finally:
            await server.stop()
            traces.shutdown()

    return lifecycle.run(body, service="tripod-cri")


if __name__ == "__main__":
    sys.exit(main())
