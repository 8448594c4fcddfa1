"""Hooks: commands, requests and sleeps, within their time."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from services.common.clock import SystemClock
from services.common.errors import Code, TripodError
from services.kubelet.adapters.hook_runner import NetworkHookRunner
from services.kubelet.core.model import ContainerId, ExecAction, HookAction, HttpGet, Pod, SleepAction
from services.kubelet.ports import ProbeTarget
from tests.builders import a_container, a_pod
from tests.common.test_kubecredentials import a_pair
from tests.fakes.runtime import FakeRuntime

pytestmark = pytest.mark.asyncio


class Commands(FakeRuntime):
    """Runs each command as a test says: with an exit code, or an error."""

    def __init__(self, outcome: int | TripodError) -> None:
        super().__init__()
        self._outcome = outcome

    async def exec_sync(
        self, container: ContainerId, command: Sequence[str], timeout_seconds: int
    ) -> tuple[int, bytes]:
        """Answer."""
        if isinstance(self._outcome, TripodError):
            raise self._outcome
        return self._outcome, b"a secret"


class Events:
    """Keeps events."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def emit(
        self, pod: Pod, reason: str, message: str, *, container: str = "", warning: bool = False
    ) -> None:
        """Keep one."""
        self.told.append((reason, message))


async def ran(
    action: HookAction, outcome: int | TripodError = 0, seconds: int = 5
) -> tuple[str | None, Events]:
    """Run a hook of a container on this host."""
    events = Events()
    runner = NetworkHookRunner(Commands(outcome), events, SystemClock())
    container = a_container()
    target = ProbeTarget(a_pod(container), container, ContainerId("c1"), "127.0.0.1")
    return await runner.run(action, target, seconds), events


@asynccontextmanager
async def serving(
    status: int = 200, *, hang: bool = False, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[int, list[web.Request]]]:
    """Serve for a block; the body has no end."""
    requests: list[web.Request] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        requests.append(request)
        if hang:
            await asyncio.Event().wait()
        body = web.StreamResponse(status=status)
        await body.prepare(request)
        while True:
            await body.write(b"x" * 4096)

    application = web.Application()
    application.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    try:
        yield runner.addresses[0][1], requests
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("outcome", "fault"),
    [
        pytest.param(0, "", id="success"),
        pytest.param(3, "its command ended with exit code 3", id="what-it-wrote-is-not-told"),
        pytest.param(
            TripodError("too slow", code=Code.DEADLINE_EXCEEDED, reason="EXEC_TIMEOUT"), "too slow", id="slow"
        ),
        pytest.param(
            TripodError("gone", code=Code.UNAVAILABLE, reason="RUNTIME_DOWN"), None, id="no-runtime-no-fault"
        ),
    ],
)
async def test_a_command_fails_by_its_exit_code(outcome: int | TripodError, fault: str | None) -> None:
    """A runtime that does not answer is no fault of the container."""
    found, _ = await ran(ExecAction(("x",)), outcome)

    assert found == fault


@pytest.mark.parametrize("status", [200, 302, 404, 500])
async def test_any_answer_to_a_request_is_a_success(status: int) -> None:
    """As the original has it; a body without an end is not read to its end."""
    async with serving(status) as (port, requests):
        fault, events = await ran(HttpGet(port, path="up?a=b", headers=(("X-A", "b"),)))

        assert (fault, events.told) == ("", [])
        assert requests[0].path_qs == "/up?a=b"
        assert requests[0].headers["X-A"] == "b"
        assert requests[0].headers["User-Agent"].startswith("kube-lifecycle/")


async def test_a_request_without_an_answer_fails_in_time() -> None:
    """Also one that nobody listens for."""
    async with serving(hang=True) as (port, _):
        fault, _ = await ran(HttpGet(port), seconds=1)
    refused, _ = await ran(HttpGet(port))

    assert fault == "it did not end within 1 s"
    assert refused


async def test_a_request_in_tls_falls_back_to_http_without_its_credentials() -> None:
    """With an event, as the original."""
    async with serving() as (port, requests):
        headers = (("authorization", "Bearer secret"), ("X-A", "b"))
        fault, events = await ran(HttpGet(port, scheme="HTTPS", headers=headers))

        assert fault == ""
        assert "Authorization" not in requests[0].headers
        assert requests[0].headers["X-A"] == "b"
        assert events.told == [
            (
                "LifecycleHTTPFallback",
                f"request to HTTPS lifecycle hook 127.0.0.1:{port} got HTTP response,"
                " retry with HTTP succeeded",
            )
        ]


async def test_a_certificate_is_not_checked(tmp_path: Path) -> None:
    """Nor is there anybody to vouch for a pod's."""
    for name, data in zip(("cert", "key"), a_pair("nobody"), strict=True):
        (tmp_path / name).write_bytes(data)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    async with serving(tls=context) as (port, requests):
        fault, events = await ran(HttpGet(port, scheme="HTTPS"))

        assert (fault, events.told, len(requests)) == ("", [], 1)


async def test_a_sleep_ends_in_its_time() -> None:
    """Zero is allowed; one that is longer than its limit fails."""
    assert (await ran(SleepAction(0)))[0] == ""
    assert (await ran(SleepAction(60), seconds=1))[0] == "it did not end within 1 s"


async def test_a_port_that_has_no_such_name_is_a_fault() -> None:
    """The manifest is checked for it; the hook says so all the same."""
    assert (await ran(HttpGet("web")))[0] == "no port is called 'web'"
