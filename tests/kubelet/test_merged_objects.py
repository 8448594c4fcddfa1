"""Whose objects a pod brings in on a node of a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

import pytest

from services.kubelet.core.model import ConfigMap, ObjectKey, Pod, PodUid, Secret, Service
from services.kubelet.loops.merged_objects import MergedObjects
from services.kubelet.ports import Token, TokenRequest
from tests.builders import a_pod

pytestmark = pytest.mark.asyncio


class Objects:
    """Objects of one kind of owner, all of whose values say whose they are. Obeys `PodObjects`."""

    def __init__(self, owner: str, *names: str) -> None:
        self.owner = owner
        self.names = names
        self.moved: asyncio.Queue[ObjectKey] = asyncio.Queue()

    async def config_map(self, namespace: str, name: str) -> ConfigMap | None:
        """Return a ConfigMap."""
        return ConfigMap(self.owner, namespace, name) if name in self.names else None

    async def secret(self, namespace: str, name: str) -> Secret | None:
        """Return a Secret."""
        return Secret(self.owner, namespace, name) if name in self.names else None

    async def services(self, namespace: str) -> Sequence[Service]:
        """Return none."""
        return ()

    async def token(self, request: TokenRequest) -> Token:
        """Return a token."""
        return Token(self.owner, datetime(2026, 1, 1, tzinfo=UTC))

    async def kept_token(self, request: TokenRequest) -> str:
        """Return a token."""
        return self.owner

    async def root_certificates(self) -> str:
        """Return none."""
        return ""

    async def object_changes(self) -> AsyncIterator[ObjectKey]:
        """Yield what the test says."""
        while True:
            yield await self.moved.get()


class Source:
    """Pods of values. Obeys `PodSource`."""

    def __init__(self, *pods: Pod) -> None:
        self._pods = pods

    def pods(self) -> Sequence[Pod]:
        """Return every pod."""
        return self._pods

    def pod(self, uid: PodUid) -> Pod | None:
        """Return one pod."""
        return next((pod for pod in self._pods if pod.uid == uid), None)

    def take_new(self, uid: PodUid) -> bool:
        """Tell nothing."""
        return False

    async def changes(self) -> AsyncIterator[tuple[PodUid, str]]:
        """Yield nothing."""
        none: tuple[tuple[PodUid, str], ...] = ()
        for change in none:
            yield change

    async def finalize(self, uid: PodUid) -> None:
        """Do nothing."""


def a_user_of(name: str, uid: str) -> Pod:
    """Make a pod that names a Secret."""
    return a_pod(image_pull_secrets=(name,), uid=uid)


def merged(static: Source, cluster: Source) -> tuple[MergedObjects, Objects, Objects]:
    """Make both owners, each of which has `both`, and one more."""
    api, local = Objects("api", "both", "only-api"), Objects("local", "both", "only-local")
    return MergedObjects(api, local, static=static, cluster_pods=cluster), api, local


@pytest.mark.parametrize(
    ("static", "cluster", "name", "owner"),
    [
        pytest.param(["both"], [], "both", "local", id="a-static-pods-is-the-directorys"),
        pytest.param([], ["both"], "both", "api", id="a-cluster-pods-is-the-apis"),
        pytest.param(["both"], ["both"], "both", "api", id="one-that-both-name-is-the-apis"),
        pytest.param(["only-api"], [], "only-api", "api", id="what-the-directory-lacks-is-the-apis"),
        pytest.param([], ["only-local"], "only-local", None, id="a-cluster-pod-sees-no-directory"),
    ],
)
async def test_whose_object_it_is(
    static: list[str], cluster: list[str], name: str, owner: str | None
) -> None:
    """A pod of the cluster never gets what somebody laid on the node."""
    objects, _, _ = merged(
        Source(*(a_user_of(item, f"s-{item}") for item in static)),
        Source(*(a_user_of(item, f"c-{item}") for item in cluster)),
    )

    found = await objects.secret("default", name)

    assert (found.uid if found else None) == owner


async def test_a_static_pods_token_is_the_nodes_own() -> None:
    """The API has no such pod to bind one to."""
    static, other = a_pod(uid="static"), a_pod(uid="other")
    objects, _, _ = merged(Source(static), Source(other))

    assert (await objects.token(TokenRequest(static, "default"))).text == "local"
    assert (await objects.token(TokenRequest(other, "default"))).text == "api"


async def test_changes_of_either_are_told() -> None:
    """Volumes of both kinds of pods are written anew."""
    objects, api, local = merged(Source(), Source())
    keys = [ObjectKey("ConfigMap", "default", name) for name in ("a", "b")]
    api.moved.put_nowait(keys[0])
    local.moved.put_nowait(keys[1])

    changes = objects.object_changes()
    found = {await anext(changes), await anext(changes)}

    assert found == set(keys)
    await changes.aclose()  # type: ignore[attr-defined]  # a generator
