"""The node's token and the claim on a socket."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from services.common.errors import TripodError
from services.common.security import load_or_create_token, read_token, token_matches
from services.common.unixsocket import SocketClaim


def test_the_token_is_made_once_and_kept(tmp_path: Path) -> None:
    """A restart does not lock anyone out."""
    path = tmp_path / "state" / "node-token"

    first = load_or_create_token(path, group=os.getgid())

    assert load_or_create_token(path, group=None) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert [file.name for file in path.parent.iterdir()] == ["node-token"]


def test_an_empty_token_file_is_refused(tmp_path: Path) -> None:
    """An empty file must never mean that an empty token is right."""
    path = tmp_path / "node-token"
    path.touch()

    with pytest.raises(TripodError, match="holds no token"):
        read_token(path)


@pytest.mark.parametrize(("presented", "right"), [("abc", True), ("abd", False), ("", False), ("é", False)])
def test_only_the_token_matches(presented: str, right: bool) -> None:
    """Any text may be presented, and only one is right."""
    assert token_matches(presented, "abc") is right


def test_a_socket_that_another_process_serves_is_not_taken(tmp_path: Path) -> None:
    """A second server fails and names the path; the first one's socket stays."""
    path = tmp_path / "s.sock"
    code = (
        "import sys; from pathlib import Path; from services.common.unixsocket import SocketClaim; "
        "SocketClaim(Path(sys.argv[1])).acquire(); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=-1, stdout=-1, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        holder.stdout.readline()
        with pytest.raises(TripodError) as caught:
            SocketClaim(path).acquire()
        holder.kill()
        holder.communicate()
    claim = SocketClaim(path)
    claim.acquire()
    claim.release()

    assert caught.value.reason == "SOCKET_IN_USE"


def test_a_path_too_long_for_a_socket_is_named(tmp_path: Path) -> None:
    """The kernel would only say `invalid argument`."""
    with pytest.raises(TripodError) as caught:
        SocketClaim(tmp_path / ("x" * 120)).acquire()

    assert caught.value.reason == "SOCKET_PATH_TOO_LONG"
