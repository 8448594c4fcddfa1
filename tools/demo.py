"""`make demo`: the examples, as a person would run them.

Every command is shown; a step that fails ends it.
"""

from __future__ import annotations

import collections
import json
import subprocess
import time
import urllib.request

from tools.steps import ROOT, StepError, main_wrapper

TRIPOD = str(ROOT / "tripod")
NODE_PORT = 30080
WAIT_SECONDS = 30
_ASK = (
    "import sys, urllib.request as u\n"
    "for _ in range(60): print(u.urlopen(sys.argv[1], timeout=5).read().decode().strip())"
)


def title(text: str) -> None:
    """Announce a part."""
    print(f"\n── {text}", flush=True)


def tripod(*words: str, show: bool = True, may_fail: bool = False) -> str:
    """Run `tripod`, showing the command and what it says. Raises `StepError`, unless it may fail."""
    if show:
        print(f"$ tripod {' '.join(words)}", flush=True)
    done = subprocess.run([TRIPOD, *words], capture_output=True, text=True, check=False)
    output = done.stdout.strip()
    if show and output:
        print(output, flush=True)
    if done.returncode != 0 and not may_fail:
        raise StepError(f"tripod {' '.join(words)} failed ({done.returncode})\n{done.stderr.strip()}")
    return output


def spread(answers: list[str]) -> collections.Counter[str]:
    """Count the answers of each pod. Raises `StepError` unless all three answered."""
    counted = collections.Counter(answers)
    for answer, count in sorted(counted.items()):
        print(f"  {count:3} × {answer}")
    missing = [f"web-{i}" for i in (1, 2, 3) if not any(f"web-{i}" in answer for answer in counted)]
    if missing:
        raise StepError(f"No answer from {', '.join(missing)}")
    return counted


def ask(url: str) -> str:
    """Get one answer over a fresh connection."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode().strip())


def restart_count(pod: str) -> int:
    """Return how often a pod's container was started again."""
    status = json.loads(tripod("get", "pod", pod, "-o", "json", show=False))["status"]
    return int(status["containerStatuses"][0]["restartCount"])


def wait_for_restart(pod: str, before: int) -> None:
    """Wait until a pod's container was started again. Raises `StepError`."""
    deadline = time.monotonic() + WAIT_SECONDS
    while restart_count(pod) <= before:
        if time.monotonic() > deadline:
            raise StepError(f"pod/{pod} was not started again within {WAIT_SECONDS} s")
        time.sleep(0.2)


def jaeger_runs() -> bool:
    """Tell whether Jaeger answers."""
    try:
        ask("http://127.0.0.1:16686/")
    except OSError:
        return False
    return True


def main() -> int:
    """Run every part."""
    title("Three web pods, a client and a service, from examples/")
    tripod("apply", "-f", str(ROOT / "examples"))
    tripod("wait", "pod/web-1", "pod/web-2", "pod/web-3", "pod/client", "--timeout", "120s")
    tripod("wait", "service/web", "--for", "endpoints=3")
    tripod("get", "pods", "-o", "wide")
    tripod("get", "services")

    title("The service's address, from a pod: the answers are spread")
    service = json.loads(tripod("get", "service", "web", "-o", "json", show=False))
    address = service["spec"]["clusterIP"]
    print(f"$ tripod exec client -- python3 -c '...60 requests...' http://{address}/")
    spread(
        tripod("exec", "client", "--", "python3", "-c", _ASK, f"http://{address}/", show=False).splitlines()
    )

    title("The node port, from this machine")
    print(f"$ curl localhost:{NODE_PORT}   # 60 times")
    spread([ask(f"http://localhost:{NODE_PORT}/") for _ in range(60)])

    title("A killed container starts again")
    before = restart_count("web-2")
    print("$ tripod exec web-2 -- python3 -c 'import os; os.kill(1, 15)'")
    # The command dies with its container, so it has no good end.
    tripod("exec", "web-2", "--", "python3", "-c", "import os; os.kill(1, 15)", show=False, may_fail=True)
    wait_for_restart("web-2", before)
    tripod("wait", "pod/web-2")
    tripod("get", "pods")

    title("An unready pod leaves the service, and comes back")
    tripod("exec", "web-3", "--", "touch", "/tmp/unready")
    tripod("wait", "pod/web-3", "--for", "condition=Ready=false")
    tripod("describe", "service/web")
    tripod("exec", "web-3", "--", "rm", "/tmp/unready")
    tripod("wait", "pod/web-3")
    tripod("wait", "service/web", "--for", "endpoints=3")

    title("The trace of one pod's start, from manifest to first packet")
    tripod("trace", "pod/web-1")
    if jaeger_runs():
        print("\nIn Jaeger: http://localhost:16686/search?service=tripod-kubelet&operation=pod.start")
    print("\nLive statistics: http://localhost:4194/   Next: ./tripod get pods, or make down")
    return 0


if __name__ == "__main__":
    main_wrapper(main)
