"""A Kubernetes API server for tests: any resource, with revisions, watches, chunks, and faults on request.

It obeys what our clients rely on: one revision for all, lists as of one revision, watches that
resume or say 410, bookmarks, preconditions, graceful deletion of pods, `status` as a part that
others' writes do not touch. tests/contract/test_kube_api.py holds it to a real kube-apiserver.
"""

from __future__ import annotations

import asyncio
import copy
import json
import socket
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from aiohttp import web

from services.common.clock import Clock, SystemClock
from services.common.kubeaccess import Access

Object = dict[str, Any]
_MERGE_KEYS = {
    "conditions": "type",
    "addresses": "type",
    "taints": "key",
    "ownerReferences": "uid",
    "podIPs": "ip",
    "hostIPs": "ip",
    "containers": "name",
    "volumes": "name",
}
_STATUS_PARTS = {"pods", "nodes", "services"}


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it was heard."""

    verb: str
    resource: str
    namespace: str = ""
    name: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fault:
    """An answer instead of the work; `matches` chooses the requests."""

    status: int
    matches: Callable[[Seen], bool]
    reason: str = ""
    retry_after: str = ""


class _StatusError(Exception):
    def __init__(self, code: int, reason: str, message: str, retry_after: str = "") -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.retry_after = code, reason, message, retry_after


@dataclass(eq=False, slots=True)
class _Stream:
    """One open watch."""

    resource: str
    namespace: str
    query: Mapping[str, str]
    queue: asyncio.Queue[bytes | None]
    request: web.Request
    cut: bool = False

    @property
    def heard(self) -> bool:
        """Whether anybody listens still."""
        return self.request.transport is not None and not self.request.transport.is_closing()


class KubeServer:
    """The server. `start` gives its URL; `seen` is every request that it heard."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self.seen: list[Seen] = []
        self.faults: list[tuple[int, Fault]] = []
        # Streams are told nothing while this is set.
        self.silent = False
        # Fields of a status that this server does not know, and drops.
        self.unknown: set[str] = set()
        self.chunk_limit = 1_000_000
        self.revision = 100
        self.compacted = 0
        self.url = ""
        self._objects: dict[tuple[str, str, str], Object] = {}
        self._history: list[tuple[int, str, str, Object, Object | None]] = []
        self._lists: dict[str, tuple[int, list[Object]]] = {}
        self._streams: set[_Stream] = set()
        self._runner: web.AppRunner | None = None
        self._port = 0

    # What tests do.

    async def start(self, listening: socket.socket | None = None) -> str:
        """Listen on loopback, on the same port as before; or on a socket that listens already."""
        app = web.Application(client_max_size=8 << 20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site: web.BaseSite = (
            web.SockSite(self._runner, listening)
            if listening is not None
            else web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        )
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}"
        return self.url

    async def stop(self) -> None:
        """Be gone; the objects stay."""
        self.cut_streams()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def access(self) -> Access:
        """Return how to reach it."""
        return Access(self.url)

    def refuse(self, status: int, *, times: int = 1, retry_after: str = "", **of: str) -> None:
        """Answer the next requests with a status; `of` chooses by `verb`, `resource`, `name`."""

        def matches(seen: Seen) -> bool:
            return all(getattr(seen, name) == value for name, value in of.items())

        self.faults.append((times, Fault(status, matches, retry_after=retry_after)))

    def compact(self) -> None:
        """Forget history: older revisions are 410 for watches, and lists that go on are too."""
        self.compacted = self.revision
        self._history.clear()
        self._lists.clear()

    def cut_streams(self) -> None:
        """Cut every watch in the middle."""
        for stream in self._streams:
            stream.cut = True
            stream.queue.put_nowait(None)

    def end_streams(self) -> None:
        """End every watch in order."""
        for stream in self._streams:
            stream.queue.put_nowait(None)

    def bookmark(self) -> None:
        """Send every watch a bookmark."""
        for stream in self._streams:
            stream.queue.put_nowait(_bookmark(self.revision))

    def send(self, resource: str, kind: str, value: Object) -> None:
        """Send watches of a resource an event that never happened, or happened already."""
        for stream in self._streams:
            if stream.resource == resource:
                stream.queue.put_nowait(_line(kind, value))

    @property
    def stream_count(self) -> int:
        """How many watches are open."""
        return sum(1 for stream in self._streams if stream.heard)

    def count(self, verb: str = "", resource: str = "") -> int:
        """Count the requests that were heard."""
        return sum(1 for s in self.seen if verb in ("", s.verb) and resource in ("", s.resource))

    def counts(self) -> Counter[tuple[str, str]]:
        """Count the requests that were heard by verb and resource."""
        return Counter((s.verb, s.resource) for s in self.seen)

    def get(self, resource: str, namespace: str, name: str) -> Object | None:
        """Return an object as it is stored."""
        return self._objects.get((resource, namespace, name))

    def all(self, resource: str) -> list[Object]:
        """Return the objects of a resource."""
        return [value for (kind, _, _), value in self._objects.items() if kind == resource]

    def put(self, resource: str, value: Object) -> Object:
        """Create an object, or replace it, as somebody else would."""
        meta = value.setdefault("metadata", {})
        key = (resource, meta.get("namespace", ""), meta["name"])
        old = self._objects.get(key)
        made = copy.deepcopy(value)
        made["metadata"].setdefault("uid", old["metadata"]["uid"] if old else str(uuid.uuid4()))
        made["metadata"].setdefault(
            "creationTimestamp", old["metadata"]["creationTimestamp"] if old else self._now()
        )
        return self._store(key, made)

    def remove(self, resource: str, namespace: str, name: str) -> None:
        """Delete an object at once, as somebody else would by force."""
        self._drop((resource, namespace, name))

    # The work.

    def _now(self) -> str:
        return _time(self._clock.now())

    def _store(self, key: tuple[str, str, str], value: Object) -> Object:
        old = self._objects.get(key)
        self.revision += 1
        value["metadata"]["resourceVersion"] = str(self.revision)
        self._objects[key] = value
        self._tell(key[0], "MODIFIED" if old else "ADDED", value, old)
        return value

    def _drop(self, key: tuple[str, str, str]) -> Object:
        old = self._objects.pop(key)
        self.revision += 1
        value = copy.deepcopy(old)
        value["metadata"]["resourceVersion"] = str(self.revision)
        self._tell(key[0], "DELETED", value, old)
        return value

    def _tell(self, resource: str, kind: str, value: Object, old: Object | None) -> None:
        value = copy.deepcopy(value)
        self._history.append((self.revision, resource, kind, value, old))
        if not self.silent:
            for stream in self._streams:
                self._offer(stream, resource, kind, value, old)

    def _offer(self, stream: _Stream, resource: str, kind: str, value: Object, old: Object | None) -> None:
        if stream.resource != resource or stream.namespace not in (
            "",
            value["metadata"].get("namespace", ""),
        ):
            return
        had = old is not None and _matches(old, stream.query)
        has = kind != "DELETED" and _matches(value, stream.query)
        if has:
            stream.queue.put_nowait(_line("MODIFIED" if had else "ADDED", value))
        elif had:
            stream.queue.put_nowait(_line("DELETED", value))

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        resource, namespace, name, part = _place(request.path)
        raw = await request.read()
        body = json.loads(raw) if raw else None
        query = dict(request.query)
        seen = Seen(
            _verb(request.method, name, query),
            f"{resource}/{part}" if part else resource,
            namespace,
            name,
            query,
            body,
            dict(request.headers),
        )
        self.seen.append(seen)
        try:
            self._refuse_maybe(seen)
            if seen.verb == "watch":
                return await self._watch(request, resource, namespace, query)
            code, answer = self._answer(request, seen, resource, part)
        except _StatusError as error:
            headers = {"Retry-After": error.retry_after} if error.retry_after else {}
            return web.json_response(_status(error), status=error.code, headers=headers)
        return web.json_response(answer, status=code)

    def _refuse_maybe(self, seen: Seen) -> None:
        for index, (times, fault) in enumerate(self.faults):
            if fault.matches(seen):
                self.faults[index : index + 1] = [(times - 1, fault)] if times > 1 else []
                raise _StatusError(fault.status, fault.reason, "as the test asked", fault.retry_after)

    def _answer(self, request: web.Request, seen: Seen, resource: str, part: str) -> tuple[int, Any]:
        key = (resource, seen.namespace, seen.name)
        match request.method:
            case "GET" if seen.name:
                return 200, self._present(key)
            case "GET":
                return 200, self._list(resource, seen.namespace, seen.query)
            case "POST":
                return 201, self._create(key, part, seen.body)
            case "PUT":
                return 200, self._replace(key, part, seen.body)
            case "PATCH":
                kind = request.headers["Content-Type"]
                return 200, self._patch(key, part, seen.body, strategic="strategic" in kind)
            case "DELETE":
                return 200, self._delete(key, seen.body or {}, seen.query)
            case _:
                raise _StatusError(405, "MethodNotAllowed", request.method)

    def _present(self, key: tuple[str, str, str]) -> Object:
        found = self._objects.get(key)
        if found is None:
            raise _StatusError(404, "NotFound", f'{key[0]} "{key[2]}" not found')
        return found

    def _list(self, resource: str, namespace: str, query: Mapping[str, str]) -> Object:
        limit = min(int(query.get("limit") or self.chunk_limit), self.chunk_limit)
        token = query.get("continue", "")
        if token:
            if token not in self._lists:
                raise _StatusError(410, "Expired", "The provided continue parameter is too old")
            revision, items = self._lists.pop(token)
        else:
            revision = self.revision
            items = [
                copy.deepcopy(value)
                for (kind, space, _), value in sorted(self._objects.items())
                if kind == resource and namespace in ("", space) and _matches(value, query)
            ]
        meta: Object = {"resourceVersion": str(revision)}
        if len(items) > limit:
            meta["continue"] = str(uuid.uuid4())
            self._lists[meta["continue"]] = (revision, items[limit:])
        return {"apiVersion": "v1", "kind": "FakeList", "metadata": meta, "items": items[:limit]}

    def _create(self, key: tuple[str, str, str], part: str, body: Object) -> Object:
        resource, namespace, name = key
        if part == "token":
            ends = self._clock.now() + timedelta(seconds=body["spec"]["expirationSeconds"])
            return {**body, "status": {"token": f"token-of-{name}", "expirationTimestamp": _time(ends)}}
        if part == "eviction":
            return self._delete((resource, namespace, name), body.get("deleteOptions") or {}, {})
        if resource in ("tokenreviews", "subjectaccessreviews"):
            return {**body, "status": {"authenticated": True, "allowed": True}}
        meta = body["metadata"]
        if meta.get("generateName") and not meta.get("name"):
            meta["name"] = meta["generateName"] + uuid.uuid4().hex[:5]
        made = (resource, namespace, meta["name"])
        if made in self._objects:
            raise _StatusError(409, "AlreadyExists", f'{resource} "{meta["name"]}" already exists')
        given = {"uid": str(uuid.uuid4()), "creationTimestamp": self._now(), "generation": 1}
        if namespace:
            given["namespace"] = namespace
        if resource == "pods":
            body.setdefault("status", {"phase": "Pending", "qosClass": "BestEffort"})
        return self._store(made, {**body, "metadata": {**meta, **given}})

    def _replace(self, key: tuple[str, str, str], part: str, body: Object) -> Object:
        old = self._present(key)
        self._same(old, body.get("metadata", {}))
        made = copy.deepcopy(old) if part else copy.deepcopy(body)
        if part:
            made[part] = body.get(part)
        made["metadata"] = {**old["metadata"], **body["metadata"]}
        return self._store(key, made)

    def _patch(self, key: tuple[str, str, str], part: str, body: Object, *, strategic: bool) -> Object:
        old = self._present(key)
        meta = body.get("metadata", {})
        if meta.get("uid") not in (None, old["metadata"]["uid"]):
            raise _StatusError(422, "Invalid", "metadata.uid: Invalid value: field is immutable")
        self._same(old, meta)
        merged = _merge(copy.deepcopy(old), body, strategic=strategic)
        if key[0] in _STATUS_PARTS:
            kept = "status" if part != "status" else "spec"
            merged.pop(kept, None)
            if kept in old:
                merged[kept] = copy.deepcopy(old[kept])
        if part == "status":
            merged["status"] = {k: v for k, v in merged["status"].items() if k not in self.unknown}
        if merged == old:
            return old
        return self._store(key, merged)

    def _same(self, old: Object, meta: Object) -> None:
        for name in ("uid", "resourceVersion"):
            if meta.get(name) and meta[name] != old["metadata"].get(name):
                raise _StatusError(409, "Conflict", f"Precondition failed: {name} differs")

    def _delete(self, key: tuple[str, str, str], options: Object, query: Mapping[str, str]) -> Object:
        old = self._present(key)
        self._same(old, options.get("preconditions") or {})
        grace = options.get("gracePeriodSeconds")
        if grace is None and "gracePeriodSeconds" in query:
            grace = int(query["gracePeriodSeconds"])
        if key[0] == "pods" and grace != 0 and old.get("spec", {}).get("nodeName"):
            return self._ask_to_end(key, old, grace)
        return self._drop(key)

    def _ask_to_end(self, key: tuple[str, str, str], old: Object, grace: int | None) -> Object:
        seconds = old["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else grace
        meta = old["metadata"]
        if "deletionTimestamp" in meta and meta["deletionGracePeriodSeconds"] <= seconds:
            return old
        made = copy.deepcopy(old)
        made["metadata"]["deletionTimestamp"] = _time(self._clock.now() + timedelta(seconds=seconds))
        made["metadata"]["deletionGracePeriodSeconds"] = seconds
        return self._store(key, made)

    async def _watch(
        self, request: web.Request, resource: str, namespace: str, query: Mapping[str, str]
    ) -> web.StreamResponse:
        after = int(query.get("resourceVersion") or 0)
        if after < self.compacted:
            raise _StatusError(410, "Expired", f"too old resource version: {after} ({self.compacted})")
        stream = _Stream(resource, namespace, query, asyncio.Queue(), request)
        for revision, kind_of, kind, value, old in self._history:
            if revision > after:
                self._offer(stream, kind_of, kind, value, old)
        self._streams.add(stream)
        response = web.StreamResponse()
        response.content_type = "application/json"
        try:
            await response.prepare(request)
            await self._pour(stream, response, float(query.get("timeoutSeconds") or 300))
        except ConnectionError:
            pass  # Whoever asked is gone.
        finally:
            self._streams.discard(stream)
        if stream.cut and request.transport is not None:
            request.transport.abort()
        return response

    async def _pour(self, stream: _Stream, response: web.StreamResponse, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while (line := await stream.queue.get()) is not None:
                    await response.write(line)
        except TimeoutError:
            await response.write(_bookmark(self.revision))


def _place(path: str) -> tuple[str, str, str, str]:
    """Return resource, namespace, name and part of a path."""
    parts = path.strip("/").split("/")
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    return rest[0], namespace, rest[1] if len(rest) > 1 else "", "/".join(rest[2:])


def _verb(method: str, name: str, query: Mapping[str, str]) -> str:
    if method == "GET":
        return "watch" if query.get("watch") in ("true", "1") else "get" if name else "list"
    return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(method, method)


def _matches(value: Object, query: Mapping[str, str]) -> bool:
    labels = value["metadata"].get("labels") or {}
    return all(_field_holds(value, term) for term in _terms(query.get("fieldSelector", ""))) and all(
        _label_holds(labels, term) for term in _terms(query.get("labelSelector", ""))
    )


def _terms(text: str) -> Iterator[str]:
    return (term for term in text.split(",") if term)


def _field_holds(value: Object, term: str) -> bool:
    name, _, wanted = term.replace("==", "=").partition("=")
    negated = name.endswith("!")
    found: Any = value
    for part in name.rstrip("!").split("."):
        found = found.get(part, "") if isinstance(found, dict) else ""
    return bool(str(found) == wanted) is not negated


def _label_holds(labels: Mapping[str, str], term: str) -> bool:
    if term.startswith("!"):
        return term[1:] not in labels
    name, equals, wanted = term.replace("==", "=").partition("=")
    if not equals:
        return name in labels
    return (labels.get(name.rstrip("!")) == wanted) is not name.endswith("!")


def _merge(old: Any, patch: Any, *, strategic: bool, name: str = "") -> Any:
    if isinstance(patch, dict):
        made = dict(old) if isinstance(old, dict) else {}
        for key, value in patch.items():
            if key.startswith("$"):
                continue
            if value is None:
                made.pop(key, None)
            else:
                made[key] = _merge(made.get(key), value, strategic=strategic, name=key)
        return made
    merge_key = _MERGE_KEYS.get(name) if strategic else None
    if isinstance(patch, list) and merge_key:
        return _merge_list(old or [], patch, merge_key)
    return patch


def _merge_list(old: list[Any], patch: list[Any], key: str) -> list[Any]:
    if any(item.get("$patch") == "replace" for item in patch):
        return [item for item in patch if "$patch" not in item]
    made = {item[key]: item for item in old}
    for item in patch:
        if item.get("$patch") == "delete":
            made.pop(item[key], None)
        else:
            made[item[key]] = _merge(made.get(item[key]), item, strategic=True)
    return list(made.values())


def _line(kind: str, value: Object) -> bytes:
    return json.dumps({"type": kind, "object": value}).encode() + b"\n"


def _bookmark(revision: int) -> bytes:
    return _line("BOOKMARK", {"kind": "Fake", "metadata": {"resourceVersion": str(revision)}})


def _status(error: _StatusError) -> Object:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": error.message,
        "reason": error.reason,
        "code": error.code,
    }


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
