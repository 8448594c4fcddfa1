"""What begins and ends a container, as Kubernetes JSON. Pure. The counterpart of `manifest_lifecycle`."""

from __future__ import annotations

from typing import Any

from services.kubelet.core.manifest_lifecycle import MESSAGE_PATH
from services.kubelet.core.model import (
    Container,
    ExecAction,
    HookAction,
    HttpGet,
    Lifecycle,
    MessagePolicy,
    RestartRule,
)

Json = dict[str, Any]


def of_container(value: Container) -> Json:
    """Write the fields of a container that say how it begins and ends; defaults are left out."""
    path, policy = value.termination_message_path, value.termination_message_policy
    made: Json = {
        "restartPolicy": value.restart_policy.value if value.restart_policy else "",
        "restartPolicyRules": [_rule(rule) for rule in value.restart_rules],
        "lifecycle": _lifecycle(value.lifecycle),
        "terminationMessagePath": "" if path == MESSAGE_PATH else path,
        "terminationMessagePolicy": "" if policy is MessagePolicy.FILE else policy.value,
        "targetContainerName": value.target,
    }
    return {name: item for name, item in made.items() if item}


def _rule(value: RestartRule) -> Json:
    operator = "NotIn" if value.others else "In"
    return {"action": "Restart", "exitCodes": {"operator": operator, "values": list(value.exit_codes)}}


def _lifecycle(value: Lifecycle) -> Json:
    made: Json = {"stopSignal": value.stop_signal} if value.stop_signal else {}
    if value.post_start is not None:
        made["postStart"] = action(value.post_start)
    if value.pre_stop is not None:
        made["preStop"] = action(value.pre_stop)
    return made


def action(value: HookAction) -> Json:
    """Write a command, a request or a sleep."""
    if isinstance(value, ExecAction):
        return {"exec": {"command": list(value.command)}}
    if not isinstance(value, HttpGet):
        return {"sleep": {"seconds": value.seconds}}
    headers = [{"name": name, "value": text} for name, text in value.headers]
    get = {"port": value.port, "path": value.path, "scheme": value.scheme}
    optional = {"host": value.host, "httpHeaders": headers}
    return {"httpGet": {**get, **{name: item for name, item in optional.items() if item}}}
