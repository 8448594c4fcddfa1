"""Every call of the CRI is served, or refused with a reason, and docs/cri.md says which."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tripod.cri.v1 import api_pb2 as pb
from tripod.cri.v1 import api_pb2_grpc as pb_grpc

from services.common.errors import Code
from services.kubelet.cri import engineapi
from services.kubelet.cri.checkpoint_service import UNSUPPORTED, CheckpointCalls
from services.kubelet.cri.errors import CriError
from services.kubelet.cri.image_service import ImageService
from services.kubelet.cri.runtime_service import RuntimeService

DOCUMENT = (Path(__file__).parents[2] / "docs/cri.md").read_text()
ROWS = dict(re.findall(r"^\| (\w+) \| ([^|]*) \|", DOCUMENT, flags=re.MULTILINE))
SERVICES: dict[str, tuple[type, type]] = {
    "RuntimeService": (RuntimeService, pb_grpc.RuntimeServiceServicer),
    "ImageService": (ImageService, pb_grpc.ImageServiceServicer),
}
CALLS = [
    (service, method.name, method)
    for service in SERVICES
    for method in pb.DESCRIPTOR.services_by_name[service].methods
]


@pytest.mark.parametrize(("service", "name"), [call[:2] for call in CALLS])
def test_every_call_is_served_and_documented(service: str, name: str) -> None:
    """None is left to the generated base class, which answers with no reason."""
    ours, generated = SERVICES[service]

    assert getattr(ours, name) is not getattr(generated, name)
    assert name in ROWS
    assert (ROWS[name] == "UNIMPLEMENTED") is (name in UNSUPPORTED)


def test_no_row_is_of_a_call_that_is_not_there() -> None:
    """The table is the contract, call by call."""
    table = DOCUMENT[DOCUMENT.index("## Calls") : DOCUMENT.index("## Statistics")]
    rows = re.findall(r"^\| (\w+) \|", table, flags=re.MULTILINE)

    assert sorted(rows) == sorted(["call", *(name for _, name, _ in CALLS)])


@pytest.mark.asyncio
@pytest.mark.parametrize("name", UNSUPPORTED)
async def test_what_is_refused_says_why(name: str) -> None:
    """With the code that clients fall back on."""
    method: Any = next(method for _, known, method in CALLS if known == name)
    request = getattr(pb, method.input_type.name)()
    with pytest.raises(CriError) as caught:
        await getattr(CheckpointCalls(), name)(request, None)

    assert caught.value.code is Code.UNIMPLEMENTED
    assert "CRIU" in caught.value.message


def test_the_versions_of_features_are_documented() -> None:
    """The second table is the one of the code."""
    rows = re.findall(r"^\| ([^|]+) \| (1\.\d+) \|", DOCUMENT, flags=re.MULTILINE)
    documented = {(name.strip(), since) for names, since in rows for name in names.split(", ")}

    assert documented == {(f.name, engineapi.written(f.since)) for f in engineapi.FEATURES}
