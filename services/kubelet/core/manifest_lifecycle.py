"""What begins and ends a container: hooks, signals, restarts, its last message. Pure.

Source: Kubernetes API reference, `Lifecycle`, `LifecycleHandler` and
`ContainerRestartRule` v1; KEP-3960 (sleep), KEP-4960 (stop signal), KEP-5307 (restart
rules). A `tcpSocket` hook, which the original reads and never runs, is refused.
"""

from __future__ import annotations

from typing import Any

from services.kubelet.core.fields import Faults, Fields, path_fault
from services.kubelet.core.manifest_probe import MAX_SECONDS, read_exec, read_http_get
from services.kubelet.core.model import (
    Container,
    ContainerPort,
    HookAction,
    Lifecycle,
    MessagePolicy,
    RestartPolicy,
    RestartRule,
    SleepAction,
)

MESSAGE_PATH = "/dev/termination-log"
_MAX_RULES, _MAX_CODES = 20, 255
_CLASSIC = """
    ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF PWR QUIT SEGV STKFLT STOP SYS TERM
    TRAP TSTP TTIN TTOU URG USR1 USR2 VTALRM WINCH XCPU XFSZ RTMIN RTMAX
"""
SIGNALS = frozenset(
    f"SIG{name}"
    for name in (
        *_CLASSIC.split(),
        *(f"RTMIN+{n}" for n in range(1, 16)),
        *(f"RTMAX-{n}" for n in range(1, 15)),
    )
)


def read_lifecycle(container: Fields, ports: tuple[ContainerPort, ...]) -> Lifecycle:
    """Read `lifecycle`."""
    if not container.has("lifecycle"):
        return Lifecycle()
    known = ("postStart", "preStop", "stopSignal")
    fields = Fields(container.raw("lifecycle"), container.at("lifecycle"), container.faults, known=known)
    signal = fields.text("stopSignal")
    if signal and signal not in SIGNALS:
        fields.fault("stopSignal", f"{signal!r} is no signal; write it as SIGTERM or SIGRTMIN+1")
    return Lifecycle(_hook(fields, "postStart", ports), _hook(fields, "preStop", ports), signal)


def _hook(lifecycle: Fields, name: str, ports: tuple[ContainerPort, ...]) -> HookAction | None:
    if not lifecycle.has(name):
        return None
    known = ("exec", "httpGet", "sleep")
    later = {"tcpSocket": ()}
    hook = Fields(lifecycle.raw(name), lifecycle.at(name), lifecycle.faults, known=known, later=later)
    given = [kind for kind in known if hook.has(kind)]
    if len(given) != 1:
        several = f"has several actions: {' and '.join(given)}"
        hook.faults.add(hook.path, several if given else "give one of exec, httpGet or sleep")
        return None
    if given[0] == "exec":
        return read_exec(hook)
    if given[0] == "httpGet":
        return read_http_get(hook, ports)
    sleep = Fields(hook.raw("sleep"), hook.at("sleep"), hook.faults, known=("seconds",))
    return SleepAction(sleep.whole("seconds", 0, low=0, high=MAX_SECONDS, required=True))


def check_sleeps(container: Container, path: str, grace_seconds: int, faults: Faults) -> None:
    """Note hooks that sleep for longer than the pod may take to end; a grace of 0 sets no limit."""
    hooks = {"postStart": container.lifecycle.post_start, "preStop": container.lifecycle.pre_stop}
    for name, action in hooks.items():
        if isinstance(action, SleepAction) and 0 < grace_seconds < action.seconds:
            what = f"must not be more than terminationGracePeriodSeconds, {grace_seconds}"
            faults.add(f"{path}.lifecycle.{name}.sleep.seconds", what)


def read_message_policy(container: Fields) -> MessagePolicy:
    """Read `terminationMessagePolicy`."""
    choices = [policy.value for policy in MessagePolicy]
    return MessagePolicy(container.text("terminationMessagePolicy", "File", choices=choices))


def read_message_path(container: Fields) -> str:
    """Read `terminationMessagePath`."""
    place = container.text("terminationMessagePath", MESSAGE_PATH) or MESSAGE_PATH
    if wrong := path_fault(place) or ("must be without ':'" if ":" in place else None):
        container.fault("terminationMessagePath", wrong)
    return place


def read_restart_policy(container: Fields) -> RestartPolicy | None:
    """Read `restartPolicy`; None when it is the pod's."""
    if not container.has("restartPolicy"):
        return None
    return RestartPolicy(container.text("restartPolicy", "Always", choices=[p.value for p in RestartPolicy]))


def read_restart_rules(container: Fields) -> tuple[RestartRule, ...]:
    """Read `restartPolicyRules`, which need a policy to be exceptions from."""
    items = container.items("restartPolicyRules")
    if items and not container.has("restartPolicy"):
        container.fault("restartPolicyRules", "needs restartPolicy beside it")
    if len(items) > _MAX_RULES:
        container.fault("restartPolicyRules", f"has {len(items)} rules, {_MAX_RULES} are allowed")
    return tuple(_rule(value, path, container.faults) for value, path in items[:_MAX_RULES])


def _rule(value: Any, path: str, faults: Faults) -> RestartRule:
    rule = Fields(value, path, faults, known=("action", "exitCodes"))
    action = rule.text("action", required=True)
    if action == "RestartAllContainers":
        rule.fault("action", "not supported yet")
    elif action and action != "Restart":
        rule.fault("action", f"{action!r} is not Restart")
    if not rule.has("exitCodes"):
        rule.fault("exitCodes", "is required")
        return RestartRule(())
    codes = Fields(rule.raw("exitCodes"), rule.at("exitCodes"), faults, known=("operator", "values"))
    operator = codes.text("operator", "In", required=True, choices=("In", "NotIn"))
    return RestartRule(_codes(codes), others=operator == "NotIn")


def _codes(fields: Fields) -> tuple[int, ...]:
    items = fields.items("values")
    if len(items) > _MAX_CODES:
        fields.fault("values", f"has {len(items)} items, {_MAX_CODES} are allowed")
    found = []
    for value, path in items[:_MAX_CODES]:
        if isinstance(value, int) and not isinstance(value, bool) and -(2**31) <= value < 2**31:
            found.append(value)
        else:
            fields.faults.add(path, "must be a whole number of 32 bits")
    return tuple(found)
