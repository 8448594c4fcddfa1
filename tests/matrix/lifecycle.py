"""Kill the kubelet at every instant of what begins and ends in a pod.

The story: a pod of an init container, a sidecar and a main container with hooks is
applied; the init container ends, the pod becomes ready. The sidecar crashes. The main
container is given another image. The pod is deleted. Another one ends by itself, and
its sidecar after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tripod.kubelet.v1 import pod_service_pb2 as pb

from tests.matrix.kubelet import IMAGE, PULLED, Act, KubeletMatrix, World
from tests.matrix.process import Failure

POST_START, PRE_STOP = "true started", "true stopping"


def _hook(words: str) -> dict[str, Any]:
    return {"exec": {"command": words.split()}}


def composed(name: str, image: str = IMAGE, policy: str = "Always") -> dict[str, Any]:
    """Write a pod of every kind of container that a manifest may begin with."""
    side = {
        "name": "side",
        "image": IMAGE,
        "restartPolicy": "Always",
        "lifecycle": {"preStop": _hook(PRE_STOP)},
    }
    lifecycle = {"postStart": _hook(POST_START), "preStop": _hook(PRE_STOP)}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "restartPolicy": policy,
            "initContainers": [{"name": "first", "image": IMAGE}, side],
            "containers": [{"name": "app", "image": image, "lifecycle": lifecycle}],
        },
    }


async def _initialized(made: World, name: str, restarts: int = 0) -> pb.Pod:
    """End the init container whenever it runs, until the pod is ready."""
    uid = (await made.pods())[name].uid
    found: list[pb.Pod] = []

    async def ready() -> bool:
        made.fake.crash(uid, "first", 0)
        found[:] = [pod for pod in (await made.pods()).values() if pod.name == name and pod.ready]
        return bool(found) and found[0].containers[0].restart_count == restarts

    await made.until(ready, f"{name} is ready")
    return found[0]


async def _apply(made: World) -> None:
    await made.apply(composed("whole"))
    found = await _initialized(made, "whole")
    if [c.restart_count for c in found.init_containers] != [0, 0]:
        raise Failure("I1 continuity: an init container was restarted")


async def _crash(made: World) -> None:
    uid = (await made.pods())["whole"].uid
    made.fake.crash(uid, "side", 3)

    async def back() -> bool:
        found = (await made.pods())["whole"]
        return found.ready and found.init_containers[1].restart_count == 1

    await made.until(back, "the sidecar is back")


async def _change(made: World) -> None:
    await made.apply(composed("whole", PULLED))
    found = await _initialized(made, "whole", restarts=1)
    if found.containers[0].image != PULLED:
        raise Failure(f"I5 no loss: the image is {found.containers[0].image}")


async def _delete(made: World) -> None:
    uid = (await made.pods())["whole"].uid
    await made.delete("whole")
    await made.gone("whole")
    _judge_stops(made, uid)


async def _finish(made: World) -> None:
    await made.apply(composed("job", policy="Never"))
    uid = (await _initialized(made, "job")).uid
    made.fake.crash(uid, "app", 0)

    async def succeeded() -> bool:
        return (await made.pods())["job"].phase == pb.POD_PHASE_SUCCEEDED

    await made.until(succeeded, "the pod has succeeded")
    if made.fake.running(uid):
        raise Failure("the pod has succeeded, and something of it runs")
    await made.delete("job")
    await made.gone("job")


def _judge_stops(made: World, uid: str) -> None:
    """Check that the main container was stopped first, and that every hook has run."""
    entries = [(what, name) for what, owner, name, _ in made.fake.history if owner == uid]
    stops = [name for what, name in entries if what == "stop"]
    if stops[-2:] != ["app", "side"]:
        raise Failure(f"the order of the stops is {stops}")
    runs = {name: sum(entry == ("exec", name) for entry in entries) for _, name in entries}
    # Each hook once, and once more for a kubelet that was killed amid it.
    most = made.service.lives
    wanted = {f"app {POST_START}": 2, f"app {PRE_STOP}": 2, f"side {PRE_STOP}": 1}
    for name, least in wanted.items():
        if not least <= runs.get(name, 0) < least + most:
            raise Failure(f"the hook {name!r} ran {runs.get(name, 0)} times in {most} lives, wanted {least}")


class LifecycleMatrix(KubeletMatrix):
    """The instants of a pod's beginning and end."""

    name = "lifecycle"
    acts: Mapping[str, Act] = {
        "apply": _apply,
        "crash": _crash,
        "change": _change,
        "delete": _delete,
        "finish": _finish,
    }
    rare = ()
