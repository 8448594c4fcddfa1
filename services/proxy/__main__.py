"""Run the proxy: `python -m services.proxy`. `--cleanup` removes its rules and ends."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext

from services.common.lean import without
from services.common.settings import HelpRequested, SettingsError, load
from services.proxy.config import ProxyConfig


def _arguments() -> list[str]:
    return [word for word in sys.argv[1:] if word != "--cleanup"]


def _joins() -> bool:
    """Tell whether a cluster is to be joined; faults of the settings are told later."""
    try:
        return bool(load(ProxyConfig, argv=_arguments(), environ=os.environ).kubeconfig)
    except (HelpRequested, SettingsError):
        return False


# A node that is alone speaks over unix sockets and loopback: without TLS it is 4 MB smaller.
with nullcontext() if _joins() else without("ssl"):
    import asyncio

    from services.common import failpoints, lifecycle, logs, telemetry
    from services.common.errors import TripodError
    from services.common.failpoints import FailpointSyntaxError
    from services.proxy.app import Proxy, cleanup, node_name


def main() -> int:
    """Serve until a signal, or clean up."""
    try:
        config = load(ProxyConfig, argv=_arguments(), environ=os.environ)
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
    traces = telemetry.setup("tripod-proxy", node_name=node_name(config))
    try:
        proxy = Proxy(config, traces)
    except (TripodError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2

    async def body(stop: asyncio.Event) -> None:
        try:
            await proxy.run(stop)
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
