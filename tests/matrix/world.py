"""The judgements that every kubelet's story shares."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tripod.kubelet.v1 import node_service_pb2 as node_pb
from tripod.kubelet.v1 import pod_service_pb2 as pod_pb
from tripod.kubelet.v1 import pod_service_pb2_grpc as pod_grpc

from services.common.grpcclient import stream
from tests.lab.kubelet_client import KubeletClient
from tests.matrix.process import Failure

CANARY = "canary-c8f1d2"


async def judge_order(made: KubeletClient) -> None:
    """Read every pod's watch to its bookmark: revisions only go up. Raises `Failure`."""
    stub = pod_grpc.PodServiceStub(made.channel)
    last = 0
    async with stream(stub.WatchPods, pod_pb.WatchPodsRequest()) as answers:
        async for answer in answers:
            if answer.revision < last:
                raise Failure(f"I6 order: revision {answer.revision} after {last}")
            last = answer.revision
            if answer.WhichOneof("event") == "bookmark":
                return


def judge_bounds(use: node_pb.ProcessUse, caps: Mapping[str, int]) -> None:
    """Compare what the process holds with its caps. Raises `Failure`."""
    held = {"open files": use.open_file_count, "threads": use.thread_count, "tasks": use.task_count}
    over = {name: count for name, count in held.items() if count > caps[name]}
    if over:
        raise Failure(f"I7 bounded: {over}, caps are {caps}")


def judge_folders(state: Path, count: int) -> None:
    """Count the folders of pods in the state directory. Raises `Failure`."""
    folders = {path.name for path in (state / "pods").iterdir()}
    if len(folders) != count:
        raise Failure(f"I4 no leak: pod folders {folders}")


def judge_silence(made: KubeletClient) -> None:
    """Look for the value that must never be told. Raises `Failure`."""
    if CANARY in made.service.log.read_text():
        raise Failure("I12 silence: an environment value stands in the log")
