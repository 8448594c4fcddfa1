"""Rules of the wire that the source itself must keep: deadlines, bounds, and loops that somebody watches."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from cli import node
from services.common import grpcclient, grpcserver
from services.common.grpcserver import Limits

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAMS = sorted([*(ROOT / "services").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])
# Where channels and servers are made; the CLI knows nothing of the services' code.
PLACES = ("services/common/grpcclient.py", "services/common/grpcserver.py", "cli/node.py")
TASK_OWNERS = {
    # Each ends or waits for its task itself, as the line says.
    "services/kubelet/adapters/exec_spdy.py",
    "services/kubelet/adapters/log_reader.py",
    "services/kubelet/adapters/port_forward.py",
    "services/kubelet/loops/interleaved.py",
    "services/kubelet/server/pods.py",
    "services/kubelet/objects/store.py",
}


@cache
def trees() -> tuple[tuple[str, ast.Module], ...]:
    """Return every module of the services and the CLI."""
    return tuple((str(path.relative_to(ROOT)), ast.parse(path.read_text())) for path in PROGRAMS)


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    """Yield every call in a module."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def stub_methods() -> set[str]:
    """Return the names of all methods of all contracts."""
    found = set()
    for path in (ROOT / "protos").rglob("*.proto"):
        for line in path.read_text().splitlines():
            words = line.replace("(", " ").split()
            if words[:1] == ["rpc"]:
                found.add(words[1])
    return found | {"Check", "Watch"}


def stub_calls() -> Iterator[tuple[str, ast.Call, ast.Attribute]]:
    """Yield every call of something that is named like a method of a contract; messages are no stubs."""
    methods = stub_methods()
    for name, tree in trees():
        for call in calls(tree):
            func = call.func
            if not isinstance(func, ast.Attribute) or func.attr not in methods:
                continue
            if not ast.unparse(func.value).endswith(("pb", "pb2")):
                yield name, call, func


def test_no_service_calls_a_stub_but_through_the_wrapper() -> None:
    """So every call has a deadline, a trace, an end in `finally`, and errors of ours."""
    direct = [
        f"{name}:{call.lineno} {func.attr}"
        for name, call, func in stub_calls()
        if name.startswith("services/")
    ]

    assert {"RunPodSandbox", "WatchPods", "ListStats"} <= stub_methods()
    assert direct == []


def test_every_unary_call_of_the_cli_has_a_deadline() -> None:
    """Streams last as long as whoever reads them wants."""
    found = [(name, call, func.attr) for name, call, func in stub_calls() if name.startswith("cli/")]
    without = [
        f"{name}:{call.lineno} {method}"
        for name, call, method in found
        if not method.startswith(("Watch", "Logs", "Exec", "Attach", "PortForward"))
        and not any(keyword.arg == "timeout" for keyword in call.keywords)
    ]

    assert len(found) > 8
    assert without == []


def test_every_unary_call_says_its_deadline() -> None:
    """`grpcclient.call` cannot be called without one, and nobody passes none."""
    without = [
        f"{name}:{call.lineno}"
        for name, tree in trees()
        for call in calls(tree)
        if name.startswith("services/") and isinstance(call.func, ast.Name) and call.func.id == "call"
        for keyword in [next((k for k in call.keywords if k.arg == "deadline_seconds"), None)]
        if keyword is None or (isinstance(keyword.value, ast.Constant) and keyword.value.value is None)
    ]

    assert grpcclient.call.__kwdefaults__ is not None
    assert "deadline_seconds" not in grpcclient.call.__kwdefaults__
    assert without == []


def test_channels_and_servers_are_made_in_one_place() -> None:
    """So none lacks limits and keepalive."""
    made = {"insecure_channel", "secure_channel", "server"}
    elsewhere = [
        f"{name}:{call.lineno} {call.func.attr}"
        for name, tree in trees()
        for call in calls(tree)
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in made
        and ast.unparse(call.func.value) in ("grpc.aio", "grpc")
        and name not in PLACES
    ]
    options, client = dict(grpcserver._options(Limits())), dict(node._options())

    assert elsewhere == []
    assert options["grpc.max_concurrent_streams"] == Limits().concurrent_streams
    assert options["grpc.max_receive_message_length"] == Limits().message_bytes
    assert options["grpc.keepalive_time_ms"] == grpcclient.KEEPALIVE_SECONDS * 1000
    assert client["grpc.keepalive_time_ms"] == grpcclient.KEEPALIVE_SECONDS * 1000
    # Else the client's own pings would be taken for a flood.
    assert options["grpc.http2.min_ping_interval_without_data_ms"] < grpcclient.KEEPALIVE_SECONDS * 1000


@pytest.mark.parametrize("kind", ["Queue", "PriorityQueue", "LifoQueue", "SimpleQueue"])
def test_every_queue_has_a_bound(kind: str) -> None:
    """A queue without one holds whatever a slow reader leaves."""
    unbounded = [
        f"{name}:{call.lineno}"
        for name, tree in trees()
        for call in calls(tree)
        if ast.unparse(call.func).split("[")[0].split(".")[-1] == kind and not (call.args or call.keywords)
    ]

    assert unbounded == []


def test_every_deque_that_lives_on_has_a_bound() -> None:
    """Save the work queue's, which holds each key once."""
    unbounded = [
        name
        for name, tree in trees()
        for call in calls(tree)
        if ast.unparse(call.func).split("[")[0].split(".")[-1] == "deque"
        and not any(keyword.arg == "maxlen" for keyword in call.keywords)
    ]

    assert unbounded == ["services/common/workqueue.py"]


# What a TaskGroup is called where tasks are made in it.
TASK_GROUPS = ("group", "self._group", "self._loop", "pairs", "connections")


def test_no_task_is_started_but_in_a_group() -> None:
    """A task that nobody holds dies unseen; those that are, take their service down when they fail."""
    loose = {
        name
        for name, tree in trees()
        for call in calls(tree)
        if ast.unparse(call.func) in ("asyncio.create_task", "asyncio.ensure_future", "create_task")
    }
    looping = [
        f"{name}:{call.lineno}"
        for name, tree in trees()
        for call in calls(tree)
        if isinstance(call.func, ast.Attribute)
        and call.func.attr == "create_task"
        and ast.unparse(call.func.value) not in TASK_GROUPS
    ]

    assert loose == TASK_OWNERS
    assert looping == []


@pytest.mark.parametrize("service", ["kubelet", "proxy"])
def test_every_loop_of_a_service_is_supervised_by_name(service: str) -> None:
    """What is listed as a loop is started through `supervise`, so that its restarts are told and counted."""
    tree = ast.parse((ROOT / f"services/{service}/app.py").read_text())
    loops = next(
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "loops"
    )
    started = [
        ast.unparse(call.args[0]) for call in calls(tree) if ast.unparse(call.func) == "group.create_task"
    ]

    assert isinstance(loops, ast.Dict)
    assert len(loops.keys) >= 5
    assert "supervise(name, loop, clock=self._clock)" in started
