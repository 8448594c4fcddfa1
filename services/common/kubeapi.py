"""A client of a Kubernetes API server: get, list, watch, create, patch, delete. Objects are dicts.

docs/adr/0011 says why this is not a library. Source: Kubernetes API concepts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from random import random

from services.common import kubeerror
from services.common.clock import Clock
from services.common.kubeaccess import Access
from services.common.kuberequest import (
    LIST_CHUNK,
    Json,
    Lines,
    Page,
    PatchType,
    Resource,
    Selection,
    WatchEvent,
    delete_options,
)
from services.common.kubetransport import CALL_SECONDS, TRIES, Call, Transport

_LIST_SECONDS = 60.0
_LINE_LIMIT_BYTES = 16 << 20


class KubeApi:
    """One server. `agent` names us to it. All verbs raise `KubeApiError`, `CredentialsError`."""

    def __init__(
        self, access: Access, clock: Clock, *, agent: str, jitter: Callable[[], float] = random
    ) -> None:
        self._transport = Transport(access, clock, agent=agent, jitter=jitter)

    @property
    def requests(self) -> Counter[tuple[str, str, int]]:
        """How many requests were sent, by verb, resource and status; 0 is no answer."""
        return self._transport.requests

    def fault(self) -> str | None:
        """Say why and since when the server cannot be used; None when its last answer was one."""
        return self._transport.fault()

    async def recovery(self) -> None:
        """Wait until the server answers after it was silent."""
        await self._transport.recovery()

    async def close(self) -> None:
        """End all connections."""
        await self._transport.close()

    async def get(
        self, resource: Resource, namespace: str, name: str, *, seconds: float = CALL_SECONDS
    ) -> Json:
        """Return one object."""
        path = resource.path(namespace, name)
        return await self._transport.send(Call("GET", "get", path, resource.plural, seconds=seconds))

    async def list(self, selection: Selection, *, token: str = "", chunk: int = LIST_CHUNK) -> Page:
        """Return one part of a list, as of now or, with the `token` of the part before, as of then."""
        parameters = {**selection.parameters(), "limit": str(chunk)}
        if token:
            parameters["continue"] = token
        path = selection.resource.path(selection.namespace)
        call = Call("GET", "list", path, str(selection), parameters, seconds=_LIST_SECONDS, tries=1)
        answer = await self._transport.send(call)
        meta, items = answer.get("metadata"), answer.get("items")
        # An answer that is no list is an error: an empty one would be taken for nothing being there.
        if (
            not isinstance(meta, dict)
            or not meta.get("resourceVersion")
            or not str(answer.get("kind")).endswith("List")
        ):
            raise kubeerror.unreachable(f"list {selection}", "the answer is no list", sent=True)
        return Page(tuple(items or ()), str(meta["resourceVersion"]), str(meta.get("continue") or ""))

    async def watch(
        self, selection: Selection, *, revision: str, seconds: int
    ) -> AsyncGenerator[WatchEvent, None]:
        """Yield OPENED, then what happens after `revision`, bookmarks too, for about `seconds`.

        It ends when the server ends it; a stream that is cut raises. The caller closes the iterator.
        """
        parameters = {
            **selection.parameters(),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": revision,
            "timeoutSeconds": str(seconds),
        }
        path = selection.resource.path(selection.namespace)
        call = Call("GET", "watch", path, str(selection), parameters, tries=1)
        lines = Lines(_LINE_LIMIT_BYTES)
        async with self._transport.answer(call, stream=True) as response:
            yield WatchEvent("OPENED", {})
            async for part in response.content.iter_any():
                for line in _fed(lines, part, call):
                    yield _event(line, call)

    async def create(
        self,
        resource: Resource,
        namespace: str,
        body: Json,
        *,
        name: str = "",
        subresource: str = "",
        seconds: float = CALL_SECONDS,
    ) -> Json:
        """Create an object, or post to a part of `name`. Returns it, or the server's answer."""
        what = f"{resource.plural}/{subresource}" if subresource else resource.plural
        path = resource.path(namespace, name, subresource)
        data = json.dumps(body).encode()
        return await self._transport.send(Call("POST", "create", path, what, body=data, seconds=seconds))

    async def patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        body: Json | Sequence[Json],
        *,
        kind: PatchType = PatchType.STRATEGIC,
        subresource: str = "",
        parameters: Mapping[str, str] | None = None,
        seconds: float = CALL_SECONDS,
        tries: int = TRIES,
    ) -> Json:
        """Change an object, or a part of it such as `status`. Returns it."""
        what = f"{resource.plural}/{subresource}" if subresource else resource.plural
        call = Call(
            "PATCH",
            "patch",
            resource.path(namespace, name, subresource),
            what,
            parameters or {},
            json.dumps(body).encode(),
            kind.value,
            seconds,
            tries,
        )
        return await self._transport.send(call)

    async def delete(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        *,
        grace_seconds: int | None = None,
        uid: str = "",
        revision: str = "",
    ) -> Json:
        """Delete an object, if it is of that `uid` and `revision`. One that is gone raises `NOT_FOUND`."""
        body = json.dumps(delete_options(grace_seconds, uid, revision)).encode()
        path = resource.path(namespace, name)
        return await self._transport.send(Call("DELETE", "delete", path, resource.plural, body=body))


def _event(line: bytes, call: Call) -> WatchEvent:
    try:
        value = json.loads(line)
        event = WatchEvent(value["type"], value["object"])
        fits = isinstance(event.type, str) and isinstance(event.object, dict)
    except (ValueError, KeyError, TypeError):
        fits = False
    if not fits:
        raise kubeerror.unreachable(
            f"watch {call.what}", "a line is no event", sent=True, reason=kubeerror.STREAM_CUT
        )
    if event.type == "ERROR":
        raise kubeerror.of_status(event.object, http_status=500, what=f"watch {call.what}")
    return event


def _fed(lines: Lines, part: bytes, call: Call) -> list[bytes]:
    try:
        return lines.feed(part)
    except ValueError as error:
        raise kubeerror.unreachable(
            f"watch {call.what}", str(error), sent=True, reason=kubeerror.STREAM_CUT
        ) from error
