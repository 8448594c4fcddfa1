"""Where the command line finds the node."""

from __future__ import annotations

import socket
from pathlib import Path

from cli.node import Place, find


def test_a_socket_comes_first(tmp_path: Path) -> None:
    """It needs no token."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "kubelet.sock"))

        assert (
            find("kubelet", {"TRIPOD_RUN_DIRECTORY": str(tmp_path)}).address
            == f"unix://{tmp_path}/kubelet.sock"
        )


def test_a_named_folder_means_that_node_alone(tmp_path: Path) -> None:
    """Another node on loopback must never be changed by mistake."""
    assert find("kubelet", {"TRIPOD_RUN_DIRECTORY": str(tmp_path)}).address.startswith("unix://")


def test_an_address_is_used_with_the_token_of_the_state(tmp_path: Path) -> None:
    """Loopback TCP: the token file of the state directory is presented."""
    (tmp_path / "node-token").write_text("secret\n")
    env = {"TRIPOD_ADDRESS": "127.0.0.1:1", "TRIPOD_STATE_DIRECTORY": str(tmp_path)}

    assert find("kubelet", env) == Place("kubelet", "127.0.0.1:1", "secret")
