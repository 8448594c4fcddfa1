"""What a verbose answer says beyond the status: JSON for people and for `crictl inspect`. Pure.

The values of environment variables are left out: they may be secrets. So are labels, which may carry them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Json = Mapping[str, Any]
_HOST_KEYS = (
    *(
        "NetworkMode",
        "IpcMode",
        "PidMode",
        "UTSMode",
        "UsernsMode",
        "CgroupParent",
        "CgroupnsMode",
        "Runtime",
    ),
    *("Privileged", "ReadonlyRootfs", "CapAdd", "CapDrop", "GroupAdd", "Sysctls", "OomScoreAdj"),
    *("Memory", "MemorySwap", "CpuShares", "CpuQuota", "CpuPeriod", "CpusetCpus", "CpusetMems", "PidsLimit"),
    *("MaskedPaths", "ReadonlyPaths", "Devices"),
)


def info(inspected: Json) -> dict[str, str]:
    """Describe a container or a sandbox as the engine has it."""
    config, host, state = inspected["Config"], inspected.get("HostConfig") or {}, inspected["State"]
    told = {
        "pid": state["Pid"],
        "engineState": state["Status"],
        "name": str(inspected.get("Name", "")).lstrip("/"),
        "image": inspected.get("Image"),
        "snapshotter": inspected.get("Driver"),
        "mounts": inspected.get("Mounts") or [],
        "config": {
            "entrypoint": config.get("Entrypoint"),
            "command": config.get("Cmd"),
            "workingDirectory": config.get("WorkingDir"),
            "user": config.get("User"),
            "hostname": config.get("Hostname"),
            "environmentNames": [str(item).partition("=")[0] for item in config.get("Env") or ()],
            "terminal": config.get("Tty"),
            "stdin": config.get("OpenStdin"),
            "stopSignal": config.get("StopSignal"),
        },
        "host": {
            key[0].lower() + key[1:]: host[key] for key in _HOST_KEYS if host.get(key) not in (None, "")
        },
        # A profile given inline is pages long.
        "securityOptions": [
            option if len(option) < 200 else f"{option[:20]}…" for option in host.get("SecurityOpt") or ()
        ],
    }
    return {"pid": str(state["Pid"]), "info": json.dumps(told, sort_keys=True)}
