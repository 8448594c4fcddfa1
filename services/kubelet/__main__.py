"""Run the kubelet: `python -m services.kubelet`. `--cleanup` removes all that it made and ends."""

from __future__ import annotations

import asyncio
import os
import sys

from services.common import failpoints, lifecycle, logs, telemetry
from services.common.errors import TripodError
from services.common.failpoints import FailpointSyntaxError
from services.common.settings import HelpRequested, SettingsError, load
from services.kubelet.app import Kubelet, check, cleanup, node_name
from services.kubelet.config import KubeletConfig


def main() -> int:
    """Serve until a signal, or clean up."""
    arguments = [word for word in sys.argv[1:] if word != "--cleanup"]
    try:
        config = load(KubeletConfig, argv=arguments, environ=os.environ)
        check(config)
        failpoints.arm(config.failpoints, allowed=config.allow_failpoints)
    except HelpRequested as text:
        sys.stdout.write(str(text))
        return 0
    except (SettingsError, FailpointSyntaxError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    logs.configure("tripod-kubelet", level=config.log_level, fmt=config.log_format)
    if "--cleanup" in sys.argv:
        return _clean(config)
    traces = telemetry.setup("tripod-kubelet", node_name=node_name(config))

    async def body(stop: asyncio.Event) -> None:
        try:
            await Kubelet(config, traces).run(stop)
        finally:
            traces.shutdown()

    return lifecycle.run(body, service="tripod-kubelet")


def _clean(config: KubeletConfig) -> int:
    try:
        count = asyncio.run(cleanup(config))
    except TripodError as error:
        sys.stderr.write(f"Could not clean up: {error.message}\n")
        return 1
    sys.stdout.write(f"Removed {count} containers and the pod network\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
