"""Streams, log entries, names and conversions of the CRI server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tripod.cri.v1 import api_pb2 as pb

from services.kubelet.cri import convert, naming, resources
from services.kubelet.cri.convert import Host
from services.kubelet.cri.dockerstream import Demultiplexer, FrameError, LineSplitter, PieceDemultiplexer
from services.kubelet.cri.logformat import Cursor, Skipper, cursors, entry, epoch, split
from services.kubelet.cri.naming import Record

HOST = Host("node", "pause:1")


def frame(kind: int, payload: bytes) -> bytes:
    """Write one frame."""
    return bytes([kind, 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload


def test_frames_are_found_wherever_the_stream_is_cut() -> None:
    """A read may end anywhere, also within a header."""
    frames = [(1, b"hello\n"), (2, b""), (1, b"\x00\xff" * 5)]
    data = b"".join(frame(kind, payload) for kind, payload in frames)
    for cut in range(len(data) + 1):
        reader = Demultiplexer()

        assert [*reader.feed(data[:cut]), *reader.feed(data[cut:])] == frames


def test_bytes_that_are_no_frame_are_refused() -> None:
    """A container with a terminal has no frames; mixing them up is a fault."""
    with pytest.raises(FrameError):
        list(Demultiplexer().feed(b"plain text"))


def test_pieces_of_frames_come_before_a_frame_is_whole() -> None:
    """However long it claims to be, and wherever the stream is cut."""
    data = frame(1, b"hello") + frame(2, b"") + frame(2, b"world")
    for cut in range(len(data) + 1):
        reader = PieceDemultiplexer()
        pieces = [*reader.feed(data[:cut]), *reader.feed(data[cut:])]

        assert b"".join(piece for kind, piece in pieces if kind == 1) == b"hello"
        assert b"".join(piece for kind, piece in pieces if kind == 2) == b"world"
    assert list(PieceDemultiplexer().feed(b"\x01\0\0\0\xff\xff\xff\xffbegin")) == [(1, b"begin")]
    with pytest.raises(FrameError):
        list(PieceDemultiplexer().feed(b"plain text"))


def test_a_containers_input_is_opened_as_it_was_asked_for() -> None:
    """Attaching later depends on it."""
    config = pb.ContainerConfig(stdin=True, stdin_once=True, tty=True)
    config.metadata.name = "app"
    config.image.image = "image"
    made = convert.container_config(
        config, Record(naming.CONTAINER, "app"), Record(naming.SANDBOX, "pod"), HOST
    )

    assert (made["OpenStdin"], made["StdinOnce"], made["Tty"]) == (True, True, True)


@given(st.lists(st.binary(max_size=5), max_size=10))
def test_lines_are_found_wherever_the_stream_is_cut(chunks: list[bytes]) -> None:
    """As for frames."""
    reader = LineSplitter()
    found = b"".join(line for chunk in chunks for _, line in reader.feed(chunk))

    whole = b"".join(chunks)
    assert found == whole[: whole.rfind(b"\n") + 1]


def test_an_entry_keeps_every_byte() -> None:
    """Bytes that are no text stay as they are; a part is marked."""
    time = "2026-01-01T00:00:00.000000001Z"

    assert entry(time, 1, b"a\xffb\n") == b"2026-01-01T00:00:00.000000001Z stdout F a\xffb\n"
    assert entry(time, 2, b"part") == b"2026-01-01T00:00:00.000000001Z stderr P part\n"


def test_a_time_is_made_comparable_as_text() -> None:
    """The engine drops zeros at the end."""
    assert split(b"2026-01-01T00:00:00.5Z x\n") == ("2026-01-01T00:00:00.500000000Z", b"x\n")
    assert split(b"no time") is None
    assert epoch("2026-01-01T00:00:00.500000000Z") == "1767225600.500000000"


TIMES = st.sampled_from([f"2026-01-01T00:00:0{i}.000000000Z" for i in range(4)])


@given(st.lists(TIMES, max_size=12).map(sorted), st.data())
def test_a_log_resumed_anywhere_has_each_entry_once(times: list[str], data: st.DataObject) -> None:
    """However often the reader is killed, and however many entries share a time."""
    source = [(time, f"{number}\n".encode()) for number, time in enumerate(times)]
    written = b""
    while True:
        cursor = cursors(written).get(1, Cursor())
        skipper = Skipper(cursor)
        again = [(time, line) for time, line in source if not cursor.time or time >= cursor.time]
        new = [entry(time, 1, line) for time, line in again if skipper.is_new(time)]
        if not new:
            break
        for line in new[: data.draw(st.integers(1, len(new)))]:
            written += line

    assert written == b"".join(entry(time, 1, line) for time, line in source)


def test_a_record_is_read_back_and_an_image_cannot_forge_it() -> None:
    """What is not marked as ours, or not whole, is not ours."""
    record = Record(naming.CONTAINER, "app", attempt=2, labels={"a": "b"}, sandbox_id="s", log_path="/l")
    made = naming.labels(record, "node", Record(naming.SANDBOX, "web", "default", "uid"))

    assert naming.decode(made, "node") == record
    assert naming.decode(made, "other") is None
    assert naming.decode({naming.OWNER_LABEL: "node"}, "node") is None
    assert naming.decode({**made, naming.RECORD_LABEL: '{"kind": "x", "name": "y"}'}, "node") is None


def test_names_are_those_that_people_know() -> None:
    """As with cri-dockerd."""
    sandbox = Record(naming.SANDBOX, "web", "default", "uid", 1)

    assert naming.sandbox_name(sandbox) == "k8s_POD_web_default_uid_1"
    assert (
        naming.container_name(Record(naming.CONTAINER, "app", attempt=3), sandbox)
        == "k8s_app_web_default_uid_3"
    )


@pytest.mark.parametrize(
    ("allowed", "wanted", "expected"), [(True, -997, -997), (False, -997, 0), (False, 500, 500)]
)
def test_a_negative_score_needs_the_right(wanted: int, expected: int, *, allowed: bool) -> None:
    """Small machines refuse it; then it is 0."""
    assert resources.oom_score(wanted, negative=allowed) == expected


def test_a_container_joins_its_sandbox() -> None:
    """Network and IPC of the pod, processes of its own."""
    config = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="app"),
        image=pb.ImageSpec(image="app:1"),
        command=["sh"],
        envs=[pb.KeyValue(key="A", value=b"1")],
        mounts=[pb.Mount(container_path="/d", host_path="/h", readonly=True)],
    )
    config.linux.security_context.namespace_options.pid = pb.CONTAINER
    config.linux.resources.memory_limit_in_bytes = 1 << 20
    record = convert.container_record(config, "box", Record(naming.SANDBOX, "web", "default", "uid"))

    made = convert.container_config(config, record, Record(naming.SANDBOX, "web", "default", "uid"), HOST)

    host = made["HostConfig"]
    assert (host["NetworkMode"], host["IpcMode"], host["PidMode"]) == ("container:box", "container:box", "")
    assert (made["Entrypoint"], made["Env"], host["Memory"], host["MemorySwap"]) == (
        ["sh"],
        ["A=1"],
        1 << 20,
        1 << 20,
    )
    assert host["Mounts"][0] | {"BindOptions": {}} == {
        "Type": "bind",
        "Source": "/h",
        "Target": "/d",
        "ReadOnly": True,
        "BindOptions": {},
    }


@given(st.lists(st.sampled_from("abc"), max_size=8).map(sorted), st.sampled_from("abc"), st.integers(1, 3))
def test_a_cursor_moves_by_many_as_by_one(times: list[str], last: str, count: int) -> None:
    """A batch of entries ends where the same entries one by one end."""
    begin = Cursor(last, count)
    later = [time for time in times if time >= last]
    slow = begin
    for time in later:
        slow = slow.after(time)

    assert begin.after_all(later) == slow


@pytest.mark.parametrize(
    ("stamp", "expected"),
    [
        (b"2026-01-01T00:00:00.000000001Z", "2026-01-01T00:00:00.000000001Z"),
        (b"2026-01-01T00:00:00.5Z", "2026-01-01T00:00:00.500000000Z"),
        (b"2026-01-01T00:00:00Z", "2026-01-01T00:00:00.000000000Z"),
    ],
)
def test_times_have_nine_digits_whatever_the_engine_wrote(stamp: bytes, expected: str) -> None:
    """Text order is time order then."""
    assert split(stamp + b" x y\n") == (expected, b"x y\n")
