"""logs, exec and wait: streams of one pod."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import grpc

from cli.errors import CliError, Exit
from cli.node import Node
from cli.objects import proxy_view
from cli.output import now
from cli.refs import Ref


def logs(node: Node, request: Any, *, timestamps: bool) -> None:
    """Write a container's log to standard output and standard error, as the container did."""
    sinks = {1: sys.stdout.buffer, 2: sys.stderr.buffer}
    for line in node.pods().Logs(request):
        sink = sinks.get(line.stream, sys.stdout.buffer)
        stamp = line.time.ToJsonString().encode() + b" " if timestamps else b""
        sink.write(stamp + line.line + (b"" if line.partial else b"\n"))
        sink.flush()


def log_request(
    namespace: str,
    pod: str,
    container: str,
    *,
    follow: bool,
    previous: bool,
    tail: int | None,
    since: float | None,
) -> Any:
    """Build the request of `tripod logs`."""
    from tripod.kubelet.v1 import pod_service_pb2 as pb

    request = pb.LogsRequest(
        namespace=namespace, pod_name=pod, container=container, follow=follow, previous=previous
    )
    if tail is not None:
        request.tail_lines = tail
    if since is not None:
        request.since_time.FromDatetime(now() - timedelta(seconds=since))
    return request


class _Input:
    """What goes to the command: a queue that the gRPC thread drains."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=64)

    def put(self, request: Any) -> None:
        self._queue.put(request)

    def __iter__(self) -> Iterator[Any]:
        while True:
            request = self._queue.get()
            if request is None:
                return
            yield request


def execute(
    node: Node,
    namespace: str,
    pod: str,
    container: str,
    command: Sequence[str],
    *,
    stdin: bool,
    terminal: bool,
) -> int:
    """Run a command in a container with our own streams. Returns its exit code."""
    from tripod.kubelet.v1 import pod_service_pb2 as pb

    feed = _Input()
    start = pb.ExecStart(
        namespace=namespace, pod_name=pod, container=container, command=command, tty=terminal, stdin=stdin
    )
    feed.put(pb.ExecRequest(start=start))
    with _raw_terminal(feed, pb.ExecRequest) if terminal else contextlib.nullcontext():
        answers = node.pods().Exec(iter(feed), metadata=node.metadata())
        if stdin:
            threading.Thread(target=_pump_stdin, args=(feed, pb.ExecRequest), daemon=True).start()
        return _drain(answers)


def attach(node: Node, namespace: str, pod: str, container: str, *, stdin: bool, terminal: bool) -> None:
    """Join a container's streams with our own until it ends."""
    from tripod.kubelet.v1 import pod_service_pb2 as pb

    feed = _Input()
    start = pb.AttachStart(namespace=namespace, pod_name=pod, container=container, stdin=stdin)
    feed.put(pb.AttachRequest(start=start))
    with _raw_terminal(feed, pb.AttachRequest) if terminal else contextlib.nullcontext():
        answers = node.pods().Attach(iter(feed), metadata=node.metadata())
        if stdin:
            threading.Thread(target=_pump_stdin, args=(feed, pb.AttachRequest), daemon=True).start()
        for answer in answers:
            _show(answer)


def _show(answer: Any) -> None:
    kind = answer.WhichOneof("output")
    sink = sys.stdout.buffer if kind == "stdout" else sys.stderr.buffer
    sink.write(getattr(answer, kind))
    sink.flush()


def _drain(answers: Any) -> int:
    for answer in answers:
        kind = answer.WhichOneof("output")
        if kind == "exit_code":
            return int(answer.exit_code)
        _show(answer)
    raise CliError("The stream ended before the command's exit code came")


def _pump_stdin(feed: _Input, request: Any) -> None:
    from tripod.kubelet.v1 import pod_service_pb2 as pb

    while data := os.read(0, 32_768):
        feed.put(request(stdin=data))
    feed.put(request(stdin_end=pb.StdinEnd()))


@contextlib.contextmanager
def _raw_terminal(feed: _Input, request: Any) -> Iterator[None]:
    """Pass keys through untouched and tell the terminal's size; restore it afterwards."""
    if not sys.stdin.isatty():
        raise CliError("-t needs a terminal on standard input", code=Exit.USAGE, advice="Leave -t out.")

    def tell_size(*_: Any) -> None:
        from tripod.kubelet.v1 import pod_service_pb2 as pb

        size = os.get_terminal_size(0)
        feed.put(request(resize=pb.TerminalSize(width=size.columns, height=size.lines)))

    before = termios.tcgetattr(0)
    tell_size()
    signal.signal(signal.SIGWINCH, tell_size)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        signal.signal(signal.SIGWINCH, signal.SIG_DFL)


def wait_pods(node: Node, refs: Sequence[Ref], namespace: str, condition: str, timeout: float) -> None:
    """Wait until each pod has the condition, or is gone for `delete`. Raises `CliError` (not ready)."""
    from tripod.kubelet.v1 import pod_service_pb2 as pb

    pending = {ref.name for ref in refs}
    seen: dict[str, Any] = {}
    names: dict[str, str] = {}
    bookmarked = False
    stream = node.pods().WatchPods(pb.WatchPodsRequest(), timeout=timeout)
    try:
        for event in stream:
            kind = event.WhichOneof("event")
            if kind == "pod_upserted" and event.pod_upserted.namespace == namespace:
                pod = event.pod_upserted
                seen[pod.name], names[pod.uid] = pod, pod.name
            elif kind == "pod_deleted_uid":
                seen.pop(names.get(event.pod_deleted_uid, ""), None)
            bookmarked = bookmarked or kind == "bookmark"
            done = {name for name in pending if _holds(seen.get(name), condition, bookmarked)}
            for name in sorted(done):
                print(f"pod/{name} condition met")
            pending -= done
            if not pending:
                return
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
            raise
    finally:
        stream.cancel()
    raise CliError(
        f"Timed out after {timeout:g}s waiting for {condition}: "
        + "; ".join(_why(n, seen.get(n)) for n in sorted(pending)),
        code=Exit.NOT_READY,
        advice="`tripod describe pod/NAME` tells more.",
    )


def _holds(pod: Any, condition: str, bookmarked: bool) -> bool:
    if condition == "delete":
        return bookmarked and pod is None
    if pod is None:
        return False
    wanted, _, value = condition.partition("=")
    expected = {"": 1, "true": 1, "false": 2, "unknown": 3}.get(value.lower(), 0)
    return any(c.type.lower() == wanted.lower() and c.status == expected for c in pod.conditions)


def _why(name: str, pod: Any) -> str:
    if pod is None:
        return f"pod/{name} is not known"
    for container in (*pod.init_containers, *pod.containers):
        if container.state.reason in ("Completed", "PodInitializing"):
            continue
        if container.state.reason or container.state.message:
            return f"pod/{name}: {container.name} {container.state.reason} {container.state.message}".rstrip()
    unmet = [f"{c.type} {c.reason} {c.message}".strip() for c in pod.conditions if c.status != 1]
    return f"pod/{name}: {', '.join(unmet) or 'running'}"


def wait_service(node: Node, ref: Ref, namespace: str, timeout: float, minimum: int) -> None:
    """Wait until the kernel has a service's present form with `minimum` endpoints. Raises `CliError`."""
    deadline = time.monotonic() + timeout
    why = "the proxy does not have it yet"
    while time.monotonic() < deadline:
        found, _, error = proxy_view(node, namespace, ref.name)
        why = error or why
        if found is not None:
            count = min((sum(e.used for e in port.endpoints) for port in found.ports), default=0)
            why = found.error or f"{count} endpoints are programmed, {minimum} wanted"
            if not found.error and found.programmed_revision >= found.decided_revision and count >= minimum:
                print(f"service/{ref.name} is programmed with {count} endpoints")
                return
        time.sleep(0.2)
    raise CliError(f"Timed out after {timeout:g}s waiting for service/{ref.name}: {why}", code=Exit.NOT_READY)
