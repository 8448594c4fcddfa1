"""The channel codec: Kubernetes' messages, byte by byte."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.remotecommand import websocket
from services.common.remotecommand.terminal import SizeReader, TerminalSize
from services.common.remotecommand.websocket import (
    Channel,
    ChannelError,
    Input,
    StdinData,
    StdinEnd,
    decode_input,
)
from services.kubelet.cri.streaming.status import Outcome, document, text

V5, V4 = websocket.V5, websocket.V4


@pytest.mark.parametrize(
    ("message", "subprotocol", "expected"),
    [
        pytest.param(b"\x00ls\n", V5, StdinData(b"ls\n"), id="input"),
        pytest.param(b"\x00\xff\x00", V4, StdinData(b"\xff\x00"), id="input-is-bytes"),
        pytest.param(b"\x00", V5, None, id="empty-input-is-no-end"),
        pytest.param(b"\xff\x00", V5, StdinEnd(), id="v5-ends-the-input"),
        pytest.param(b"\xff\x00", V4, None, id="v4-knows-no-end"),
        pytest.param(b"\xff\x01", V5, None, id="the-client-cannot-end-the-output"),
        pytest.param(b"\xff", V5, None, id="an-end-of-nothing"),
        pytest.param(b'\x04{"Width":80,"Height":24}', V4, TerminalSize(80, 24), id="resize"),
        pytest.param(b'\x04{"Width":0,"Height":0}', V5, None, id="no-terminal"),
        pytest.param(b'\x04{"Width":70000,"Height":24}', V5, None, id="beyond-16-bits"),
        pytest.param(b"\x01forged", V5, None, id="the-client-cannot-write-output"),
        pytest.param(b"\x07what", V5, None, id="unknown-channel"),
    ],
)
def test_a_clients_message_is_read_as_its_channel_says(
    message: bytes, subprotocol: str, expected: Input | None
) -> None:
    """The tables of KEP-4006."""
    assert decode_input(message, subprotocol=subprotocol) == expected


@pytest.mark.parametrize(
    "message", [b"", b"\x04", b"\x04[]", b'\x04{"Width":1}', b'\x04{"Width":"x","Height":1}']
)
def test_a_message_that_breaks_the_protocol_is_an_error(message: bytes) -> None:
    """The stream ends; nothing is guessed."""
    with pytest.raises(ChannelError):
        decode_input(message, subprotocol=V5)


@given(message=st.binary(max_size=64), subprotocol=st.sampled_from(websocket.SUBPROTOCOLS))
def test_no_bytes_cause_any_other_error(message: bytes, subprotocol: str) -> None:
    """A client can send what it likes."""
    try:
        decoded = decode_input(message, subprotocol=subprotocol)
    except ChannelError:
        return

    assert decoded is None or isinstance(decoded, StdinData | StdinEnd | TerminalSize)


@given(channel=st.sampled_from(Channel), data=st.binary())
def test_a_message_is_its_channel_and_its_data(channel: Channel, data: bytes) -> None:
    """One byte in front, nothing else."""
    assert websocket.encode(channel, data) == bytes([channel]) + data


@given(channel=st.integers(0, 9), data=st.binary(max_size=200))
def test_a_base64_message_is_read_as_it_was_written(channel: int, data: bytes) -> None:
    """A digit in front, for clients that can only send text."""
    message = websocket.encode(channel, data, subprotocol=websocket.V4_BASE64)

    assert isinstance(message, str)
    assert websocket.split(message.encode(), subprotocol=websocket.V4_BASE64) == (channel, data)


@pytest.mark.parametrize("message", [b"0%%%", b"xYQ==", b"0YQ=", b":YQ=="])
def test_a_base64_message_that_is_none_is_an_error(message: bytes) -> None:
    """A wrong digit, or wrong data."""
    with pytest.raises(ChannelError):
        websocket.split(message, subprotocol=websocket.V1_BASE64)


@pytest.mark.parametrize("cut", range(1, 44))
def test_sizes_in_a_stream_are_read_however_it_is_cut(cut: int) -> None:
    """SPDY clients send them one after the other."""
    sent = b'{"Width":80,"Height":24}\n{"Width":1,"Height":2}\n'
    reader = SizeReader()

    assert [*reader.feed(sent[:cut]), *reader.feed(sent[cut:])] == [TerminalSize(80, 24), TerminalSize(1, 2)]


def test_older_versions_tell_a_failure_in_words() -> None:
    """And nothing of a success."""
    assert text(Outcome(3)) == "command terminated with non-zero exit code: 3"
    assert text(Outcome(failure="no such container")) == "no such container"
    assert text(Outcome()) == ""


def test_the_status_of_a_failed_command_is_the_one_that_kubernetes_sends() -> None:
    """`kubectl exec` takes its own exit code from it."""
    status = json.loads(document(Outcome(3)))

    assert status["status"] == "Failure"
    assert status["reason"] == "NonZeroExitCode"
    assert status["details"] == {"causes": [{"reason": "ExitCode", "message": "3"}]}
    assert status["metadata"] == {}


def test_the_status_of_a_command_that_ended_well_is_success() -> None:
    """No reason and no causes."""
    assert document(Outcome()) == b'{"metadata":{},"status":"Success"}'


@pytest.mark.parametrize(
    ("offered", "expected"),
    [
        pytest.param([V4, V5], V5, id="the-best-wins"),
        pytest.param([V4], V4, id="an-older-client"),
        pytest.param(
            ["channel.k8s.io", "v4.base64.channel.k8s.io"], websocket.V4_BASE64, id="with-status-first"
        ),
        pytest.param(["channel.k8s.io"], websocket.V1, id="the-oldest"),
        pytest.param(["binary.k8s.io"], None, id="one-that-is-not-ours"),
        pytest.param([], None, id="none-offered"),
    ],
)
def test_the_best_common_subprotocol_is_chosen(offered: list[str], expected: str | None) -> None:
    """Whatever the order of the offer."""
    assert websocket.choose_subprotocol(offered) == expected
