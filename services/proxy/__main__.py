"""Run the proxy: `python -m services.proxy`. `--cleanup` removes its rules and ends."""

from __future__ import annotations

from services.common.lean import without

# It speaks over unix sockets and loopback alone: without TLS it is 4 MB smaller.
with without("ssl"):
    import asyncio

    from services.proxy.app import Proxy, cleanup

import os
import socket
import sys

from services.common import failpoints, lifecycle, logs, telemetry
from services.common.errors import TripodError
from services.common.failpoints import FailpointSyntaxError
from services.common.settings import HelpRequested, SettingsError, load
from services.proxy.config import ProxyConfig


def main() -> int:
    """Serve until a signal, or clean up."""
    arguments = [word for word in sys.argv[1:] if word != "--cleanup"]
    try:
        config = load(ProxyConfig, argv=arguments, environ=os.environ)
        failpoints.arm(config.failpoints, allowed=config.allow_failpoints)
    except HelpRequested as text:
        sys.stdout.write(str(text))
        return 0
    except (SettingsError, FailpointSyntaxError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    logs.configure("tripod-proxy", level=config.log_level, fmt=config.log_format)
    if "--cleanup" in sys.argv:
        return _clean(config)
    traces = telemetry.setup("tripod-proxy", node_name=config.node_name or socket.gethostname().lower())

    async def body(stop: asyncio.Event) -> None:
        try:
            await Proxy(config, traces).run(stop)
        finally:
            traces.shutdown()

    return lifecycle.run(body, service="tripod-proxy")


def _clean(config: ProxyConfig) -> int:
    try:
        asyncio.run(cleanup(config))
    except TripodError as error:
        sys.stderr.write(f"Could not clean up: {error.message}\n")
        return 1
    sys.stdout.write("Removed the service rules\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
