"""Which ended containers start again. Pure.

Source: Kubernetes "Pod Lifecycle", container restart policy; KEP-753 (sidecars),
KEP-5307 (rules by exit code: the first that matches restarts, else the container's own
policy holds, else the pod's).
"""

from __future__ import annotations

from services.kubelet.core.model import Container, Pod, RestartPolicy, RestartRule


def restarts(policy: RestartPolicy, exit_code: int) -> bool:
    """Tell whether a container that ended with `exit_code` starts again by its policy alone."""
    return policy is RestartPolicy.ALWAYS or (policy is RestartPolicy.ON_FAILURE and exit_code != 0)


def policy_of(pod: Pod, container: Container) -> RestartPolicy:
    """Return the policy that holds for a main or an init container."""
    return container.restart_policy or pod.spec.restart_policy


def comes_back(pod: Pod, container: Container, exit_code: int) -> bool:
    """Tell whether a main container, or an init container that failed, starts again after `exit_code`."""
    if any(_matches(rule, exit_code) for rule in container.restart_rules):
        return True
    return restarts(policy_of(pod, container), exit_code)


def _matches(rule: RestartRule, exit_code: int) -> bool:
    return (exit_code in rule.exit_codes) is not rule.others
