"""The ObjectService keeps values of Secrets to itself."""

from __future__ import annotations

import json
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from tripod.kubelet.v1 import object_service_pb2 as pb

from services.common.clock import SystemClock
from services.common.errors import TripodError
from services.kubelet.core.allocate import Ranges
from services.kubelet.objects.store import ObjectStore
from services.kubelet.server.objects import ObjectServicer

pytestmark = pytest.mark.asyncio
CANARY = "hunter2-canary"
SECRET = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "key", "namespace": "shop"},
    "stringData": {"password": CANARY},
}


async def test_no_answer_holds_a_value_of_a_secret(tmp_path: Path) -> None:
    """Neither one object, nor a list, nor a refusal."""
    store = ObjectStore(tmp_path / "db", Ranges(IPv4Network("10.0.0.0/24")), SystemClock(), run_id="run")
    await store.open()
    server = ObjectServicer(store, lambda uid: None, SystemClock())
    try:
        await server.ApplyObjects(pb.ApplyObjectsRequest(manifest=json.dumps(SECRET).encode()), None)
        ref = pb.ObjectRef(kind="Secret", namespace="shop", name="key")
        one = await server.GetObject(pb.GetObjectRequest(ref=ref), None)
        many = await server.ListObjects(pb.ListObjectsRequest(kind="Secret"), None)
        broken = {**SECRET, "data": {"password": CANARY}, "type": "kubernetes.io/dockercfg"}
        with pytest.raises(TripodError) as refused:
            await server.ApplyObjects(pb.ApplyObjectsRequest(manifest=json.dumps(broken).encode()), None)
        spaces = await server.ListObjects(pb.ListObjectsRequest(kind="Namespace"), None)
        account = pb.ObjectRef(kind="ServiceAccount", namespace="shop", name="default")
        implied = await server.GetObject(pb.GetObjectRequest(ref=account), None)
    finally:
        await store.close()

    told = [one.object, *many.objects, str(refused.value).encode(), repr(refused.value.violations).encode()]
    assert all(CANARY.encode() not in text for text in told)
    assert json.loads(one.object)["data"] == {"password": f"{len(CANARY)} bytes"}
    assert [json.loads(item)["metadata"]["name"] for item in spaces.objects] == ["default", "shop"]
    assert json.loads(implied.object)["metadata"]["namespace"] == "shop"
