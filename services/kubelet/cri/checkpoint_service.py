"""The calls of RuntimeService that Docker cannot serve: each says why. `docs/cri.md` lists them."""

from __future__ import annotations

from typing import Any

from tripod.cri.v1 import api_pb2 as pb

from services.common.errors import Code
from services.kubelet.cri.errors import CriError

WHY = (
    "The Docker Engine makes checkpoints with CRIU in its experimental mode alone, of no container with a "
    "terminal, and as a folder of its own, not as the archive that the CRI asks for"
)
UNSUPPORTED = ("CheckpointContainer", "CheckpointPod", "RestorePod")


class CheckpointCalls:
    """Refuses checkpoints."""

    async def CheckpointContainer(
        self, request: pb.CheckpointContainerRequest, context: Any
    ) -> pb.CheckpointContainerResponse:
        """Refuse."""
        raise _refused("CheckpointContainer")

    async def CheckpointPod(self, request: pb.CheckpointPodRequest, context: Any) -> pb.CheckpointPodResponse:
        """Refuse."""
        raise _refused("CheckpointPod")

    async def RestorePod(self, request: pb.RestorePodRequest, context: Any) -> pb.RestorePodResponse:
        """Refuse."""
        raise _refused("RestorePod")


def _refused(call: str) -> CriError:
    return CriError(
        f"{call}: {WHY}",
        code=Code.UNIMPLEMENTED,
        reason="CHECKPOINT_UNSUPPORTED",
        metadata={"call": call},
    )
