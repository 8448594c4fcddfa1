"""How the doctor reads a host: tables of the kernel, answers of an engine, and this very machine."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import UnixStreamServer
from typing import Any

import pytest

from cli.doctor.examine import examine
from cli.doctor.facts import Route, Settings
from cli.doctor.finding import Level
from cli.doctor.gather import clock, engine, host, kernel, network, node, ports, rights, surroundings
from tests.lab.command import process, tripod

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:C383 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1
   1: 0100007F:C383 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 4712 1
"""
ROUTES = """\
Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
tripod0\t0000C90A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""
CGROUPS = """\
#subsys_name\thierarchy\tnum_cgroups\tenabled
cpu\t2\t81\t1
memory\t4\t92\t0
pids\t5\t92\t1
"""
MOUNTS = """\
22 27 0:21 / / rw,relatime - ext4 /dev/vda rw
23 22 0:21 /var/lib/tripod /var/lib/tripod rw,relatime shared:7 - ext4 /dev/vda rw
24 22 0:22 / /var/lib/tripodlike rw,relatime master:1 - tmpfs tmpfs rw
"""
INFO: dict[str, Any] = {
    "LiveRestoreEnabled": True,
    "Driver": "overlay2",
    "CgroupDriver": "systemd",
    "CgroupVersion": "2",
    "Runtimes": {"runc": {}, "crun": {}},
    "DefaultRuntime": "runc",
    "DockerRootDir": "/",
    "SystemTime": "2026-01-01T12:00:05.123456789Z",
    "HttpsProxy": "http://ann:secret@192.0.2.9:3128",
    "RegistryConfig": {
        "InsecureRegistryCIDRs": ["127.0.0.0/8", "::1/128", "10.9.0.0/16"],
        "IndexConfigs": {"docker.io": {"Secure": True}, "r.test:5000": {"Secure": False}},
        "Mirrors": ["https://m.test/"],
    },
    "Warnings": ["WARNING: No swap limit support"],
}
VERSION: dict[str, Any] = {
    "Version": "29.1.0",
    "ApiVersion": "1.52",
    "Components": [{"Name": "Engine", "Version": "29.1.0"}, {"Name": "runc", "Version": "1.3.4"}],
}


def test_listeners_are_read_with_their_sockets() -> None:
    """A connection is no listener."""
    assert ports.listeners(TCP) == {50051: "4711"}


def test_a_service_is_told_from_another_program() -> None:
    """By what it was started with; a service on another one's port is not ours."""
    assert ports.is_ours("/opt/tripod/bin/python3 -m services.kubelet", "kubelet, gRPC")
    assert not ports.is_ours("nc -l 50051", "kubelet, gRPC")
    assert not ports.is_ours("python3 -m services.proxy", "kubelet, gRPC")


def test_routes_are_read_without_the_default() -> None:
    """It leads everywhere, so it rivals nothing."""
    assert network.parse_routes(ROUTES) == (Route("10.201.0.0/24", "tripod0"),)


def test_controllers_are_those_that_are_enabled() -> None:
    """The kernel lists the others, too."""
    assert kernel.enabled_controllers(CGROUPS) == {"cpu", "pids"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/var/lib/tripod", "shared (/var/lib/tripod)"),
        ("/var/lib/tripod/pods", "shared (/var/lib/tripod)"),
        ("/var/lib/tripodlike", "a slave (/var/lib/tripodlike)"),
        ("/var/lib", "private (/)"),
    ],
)
def test_a_mount_is_that_of_the_nearest_folder(path: str, expected: str) -> None:
    """A name that only begins alike is another folder."""
    assert node.propagation(MOUNTS, Path(path)) == expected


def test_a_lock_is_seen_without_locking(tmp_path: Path) -> None:
    """To try it would keep a starting kubelet out."""
    file = tmp_path / "kubelet.lock"
    file.touch()
    inode = file.stat().st_ino
    held = f"1: FLOCK  ADVISORY  WRITE 42 fe:00:{inode} 0 EOF\n"

    assert node.holds(held, file)
    assert not node.holds(f"1: POSIX  ADVISORY  READ 42 fe:00:{inode} 0 EOF\n2: FLOCK\n", file)
    assert not node.holds(held, tmp_path / "other")


def test_an_engines_answers_are_read() -> None:
    """Loopback registries are no danger; the skew is in seconds."""
    facts = engine.parse("unix:///d.sock", VERSION, INFO, NOW)

    assert (facts.version, facts.api_version, facts.runc_version) == ("29.1.0", "1.52", "1.3.4")
    assert facts.insecure_registries == ("10.9.0.0/16", "r.test:5000")
    assert facts.runtimes == ("crun", "runc")
    assert facts.skew_seconds == pytest.approx(5.123456)
    assert facts.root_space is not None
    assert surroundings.of_engine(facts) == {"https_proxy": "http://192.0.2.9:3128"}


def test_an_engine_that_says_little_is_read_too() -> None:
    """Another engine may lack any field."""
    facts = engine.parse("unix:///d.sock", {}, {}, NOW)

    assert (facts.version, facts.runtimes, facts.skew_seconds, facts.root_space) == ("", (), 0.0, None)


class _Engine(BaseHTTPRequestHandler):
    """Answers as an engine does."""

    def do_GET(self) -> None:
        """Answer /version and /info."""
        body = json.dumps({"/version": VERSION, "/info": INFO}[self.path]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *words: Any) -> None:  # noqa: A002  # the base class's name
        """Say nothing."""

    def address_string(self) -> str:
        """Name the peer, which has no address."""
        return "unix"


@pytest.fixture
def engine_socket(tmp_path: Path) -> Iterator[Path]:
    """Serve an engine's two answers."""
    path = tmp_path / "d.sock"
    with UnixStreamServer(str(path), _Engine) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield path
        server.shutdown()
        thread.join(10)


def test_an_engine_is_asked_over_its_socket(engine_socket: Path) -> None:
    """With the standard library alone."""
    facts = engine.gather(f"unix://{engine_socket}")

    assert (facts.error, facts.version, facts.live_restore) == ("", "29.1.0", True)


def test_an_engine_that_is_away_or_elsewhere_says_why(tmp_path: Path) -> None:
    """Each in its own words."""
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(stale))

    assert engine.gather(f"unix://{tmp_path}/none.sock").error == "No such file or directory"
    assert engine.gather(f"unix://{stale}").error == "Connection refused"
    assert "not a unix socket" in engine.gather("tcp://192.0.2.1:2375").error


def test_reads_that_fail_are_no_errors(tmp_path: Path) -> None:
    """A doctor must not die of the illness."""
    (tmp_path / "word").write_text("many\n")

    assert host.text(tmp_path / "none") is None
    assert host.number(tmp_path / "word") is None
    assert host.output(["no-such-program-of-ours"]) is None
    assert host.output(["false"]) is None
    assert host.output(["sleep", "30"], limit_seconds=0.05) is None
    assert host.file(tmp_path / "none") is None
    assert host.space(tmp_path / "none") is None
    assert host.group(4_000_000_000) == "4000000000"


def test_the_kernel_tells_whether_its_clock_is_kept() -> None:
    """By adjtimex, which anybody may ask."""
    told = clock.adjtimex()

    assert told is not None
    assert told[1] >= 0


def test_this_machine_is_read_without_an_engine_and_a_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every group has findings; the engine is broken, the node is not running."""
    # Compose 1 takes seconds to say its version.
    monkeypatch.setenv("PATH", str(tmp_path))
    run, state = tmp_path / "run", tmp_path / "state"
    found = examine(
        {
            "TRIPOD_RUN_DIRECTORY": str(run),
            "TRIPOD_STATE_DIRECTORY": str(state),
            "TRIPOD_DOCKER_HOST": f"unix://{tmp_path}/d.sock",
        }
    )
    levels = {name: [f.level for f in group] for name, group in found.items()}

    assert all(levels.values())
    assert levels["Engine"] == [Level.BROKEN]
    assert [f.what for f in found["Node"]] == ["The node is not running"]
    assert all(f.fix for group in found.values() for f in group if f.level is Level.BROKEN)


def test_who_this_user_is_needs_no_engine(tmp_path: Path) -> None:
    """And the first process's capabilities are anybody's to read."""
    facts = rights.gather(f"unix://{tmp_path}/d.sock")

    assert facts.root is (os.geteuid() == 0)
    assert (facts.engine_group, facts.reaches_engine) == ("", False)
    assert facts.resource_capability is not None


def test_the_ports_of_this_machine_can_be_read() -> None:
    """A port that a test holds has its owner's name."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        inodes = ports.listeners(Path("/proc/net/tcp").read_text())
        inode = inodes[listener.getsockname()[1]]

        assert ports._owners({inode}) == {inode: os.getpid()}


@pytest.mark.asyncio
async def test_the_command_ends_with_one_when_something_is_broken(tmp_path: Path) -> None:
    """And writes no colour where there is no terminal."""
    environ = {"TRIPOD_DOCKER_HOST": f"unix://{tmp_path}/d.sock", "TRIPOD_STATE_DIRECTORY": str(tmp_path)}
    environ["PATH"] = str(tmp_path)
    text = await process("doctor", run_directory=tmp_path, environ=environ)
    value = await tripod("doctor", "-o", "json", run_directory=tmp_path, environ=environ)

    assert (text.code, value.code) == (1, 1)
    assert "No Docker Engine answers" in text.out
    assert "\033[" not in text.out
    assert json.loads(value.out)["broken"] is True


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_another_user_is_told_what_cannot_be_seen(tmp_path: Path) -> None:
    """In a child that gave up root: nothing raises, and what is hidden says so."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _look_as_nobody(writer, tmp_path)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        told = json.loads(stream.read())
    os.waitpid(child, 0)

    assert told["error"] == ""
    assert told["user"] == "nobody"
    assert told["nf_tables"] is None
    assert told["engine"] in ("denied", "No such file or directory")


def _look_as_nobody(writer: int, folder: Path) -> None:
    told: dict[str, Any] = {"error": ""}
    try:
        os.environ["PATH"] = "/nonexistent"
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        docker = engine.gather("unix:///var/run/docker.sock")
        told["engine"] = "denied" if docker.denied else docker.error
        told["user"] = rights.gather("unix:///var/run/docker.sock").user
        told["nf_tables"] = kernel.gather().nf_tables
        network.gather(Settings())
        ports.gather()
        surroundings.gather(Settings(), {})
        clock.gather()
    except BaseException as error:
        told["error"] = repr(error)
    os.write(writer, json.dumps(told).encode())


def test_a_skew_needs_a_time(tmp_path: Path) -> None:
    """An engine behind us is behind, whatever its zone."""
    behind = engine.parse("a", {}, {"SystemTime": "2026-01-01T13:59:00.5+02:00"}, NOW)

    assert behind.skew_seconds == timedelta(seconds=-59.5).total_seconds()
