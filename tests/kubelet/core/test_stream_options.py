"""What clients of commands and ports may ask for."""

from __future__ import annotations

import pytest

from services.kubelet.core.stream_options import StreamOptionsError, Streams, ports, streams


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"output": ["1"]}, Streams(stdout=True, stderr=False)),
        ({"input": ["1"], "output": ["1"], "error": ["1"]}, Streams(stdin=True)),
        ({"tty": ["1"], "output": ["1"], "error": ["1"]}, Streams(tty=True, stderr=False)),
        ({"input": ["1"], "output": ["true"]}, Streams(stdin=True, stdout=False, stderr=False)),
    ],
)
def test_streams_are_those_that_are_set_to_one(query: dict[str, list[str]], expected: Streams) -> None:
    """Error output joins a terminal's output."""
    assert expected == streams(query)


def test_a_command_without_any_stream_is_refused() -> None:
    """In the original's words."""
    with pytest.raises(StreamOptionsError, match="at least 1 of stdin, stdout, stderr"):
        streams({"tty": ["1"]})


def test_ports_may_be_listed_and_repeated() -> None:
    """In the order of their channels."""
    assert ports({"port": ["80,443", "8080"]}) == (80, 443, 8080)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "is required"),
        ([""], "cannot be empty"),
        (["0"], "must be > 0"),
        (["65536"], "unable to parse"),
        (["x"], "unable to parse"),
        (["80,"], "unable to parse"),
    ],
)
def test_ports_that_are_none_are_refused(values: list[str], words: str) -> None:
    """Before the runtime is asked."""
    with pytest.raises(StreamOptionsError, match=words):
        ports({"port": values})
