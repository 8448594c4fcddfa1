"""SPDY/3.1 without sockets: the wire byte by byte, cut anywhere, and in the hands of those who mean harm."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.spdy import connection as spdy
from services.common.spdy import frames
from services.common.spdy.connection import Connection
from services.common.spdy.errors import ResetStatus, SpdyError
from services.common.spdy.frames import Data, Frame, FrameReader, FrameWriter
from services.common.spdy.headers import (
    BLOCK_BYTES,
    DICTIONARY,
    HeaderReader,
    HeaderWriter,
    parse,
)

# A longer run: TRIPOD_FUZZ=100000 make check
EXAMPLES = int(os.environ.get("TRIPOD_FUZZ", "50"))
fuzzed: Callable[[Callable[..., None]], Callable[..., None]] = settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None
)

names = st.text("abcdefghijklmnopqrstuvwxyz-:", min_size=1, max_size=12)
headers = st.dictionaries(names, st.text(max_size=40), max_size=6)
stream_ids = st.integers(1, frames.LARGEST_ID)
numbers = st.integers(0, frames.LARGEST_ID)
some_frames: st.SearchStrategy[Frame] = st.one_of(
    st.builds(frames.SynStream, stream_ids, headers, st.booleans(), st.booleans()),
    st.builds(frames.SynReply, stream_ids, headers, st.booleans()),
    st.builds(frames.MoreHeaders, stream_ids, headers, st.booleans()),
    st.builds(frames.RstStream, stream_ids, numbers),
    st.builds(frames.Settings, st.lists(st.tuples(st.integers(0, 255), numbers), max_size=4).map(tuple)),
    st.builds(frames.Ping, numbers),
    st.builds(frames.GoAway, numbers, numbers),
    st.builds(frames.WindowUpdate, numbers, numbers),
    st.builds(Data, stream_ids, st.binary(max_size=100), st.booleans()),
)


def written(*sent: Frame) -> bytes:
    """The bytes of frames."""
    writer = FrameWriter()
    return b"".join(writer.write(frame) for frame in sent)


def joined(received: list[Frame]) -> list[Frame]:
    """Frames with the pieces of each data frame put together, as far as its last piece tells."""
    result: list[Frame] = []
    for frame in received:
        last = result[-1] if result else None
        if isinstance(frame, Data) and isinstance(last, Data) and frame.stream_id == last.stream_id:
            result[-1] = Data(frame.stream_id, last.data + frame.data, frame.fin)
        else:
            result.append(frame)
    return result


def test_the_dictionary_is_the_drafts() -> None:
    """Its checksum is the id that every SPDY/3 header block begins with."""
    assert zlib.adler32(DICTIONARY) == 0xE3C6A7C2
    assert HeaderWriter().write({})[2:6] == bytes.fromhex("e3c6a7c2")


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        pytest.param(Data(3, b"hi", True), "00000003010000026869", id="data-with-its-end"),
        pytest.param(frames.RstStream(1, 5), "80030003000000080000000100000005", id="reset"),
        pytest.param(frames.Ping(7), "800300060000000400000007", id="ping"),
        pytest.param(frames.GoAway(9, 1), "80030007000000080000000900000001", id="goaway"),
        pytest.param(frames.WindowUpdate(0, 8), "80030009000000080000000000000008", id="window"),
        pytest.param(
            frames.Settings(((7, 65536),)), "800300040000000c000000010000000700010000", id="settings"
        ),
    ],
)
def test_frames_are_written_as_the_draft_draws_them(frame: Frame, expected: str) -> None:
    """By hand from the figures of 2.6."""
    assert written(frame).hex() == expected
    assert list(FrameReader().feed(bytes.fromhex(expected))) == [frame]


@fuzzed
@given(sent=st.lists(some_frames, max_size=8), cut=st.data())
def test_what_is_written_is_read_again(sent: list[Frame], cut: st.DataObject) -> None:
    """Header blocks depend on those before; so both sides see them in one order."""
    data = written(*sent)
    at = cut.draw(st.integers(0, len(data)))
    reader = FrameReader()

    received = [*reader.feed(data[:at]), *reader.feed(data[at:])]

    assert joined(received) == joined(sent)


def test_frames_are_read_however_they_are_cut() -> None:
    """At every byte, and byte by byte."""
    sent: list[Frame] = [
        frames.SynStream(1, {"streamtype": "error"}),
        frames.SynReply(1, {"a": "b"}, True),
        Data(1, b"some data", True),
        frames.Settings(((7, 1), (4, 2))),
        frames.Ping(2),
        frames.GoAway(1, 0),
    ]
    data = written(*sent)

    for at in range(len(data) + 1):
        reader = FrameReader()
        assert joined([*reader.feed(data[:at]), *reader.feed(data[at:])]) == sent
    reader = FrameReader()
    assert joined([frame for byte in data for frame in reader.feed(bytes([byte]))]) == sent


def test_a_data_frame_is_passed_on_before_it_is_whole() -> None:
    """Sixteen mebibytes that somebody announces take no memory."""
    reader = FrameReader()

    first = list(reader.feed(bytes.fromhex("0000000101ffffff") + b"begin"))

    assert first == [Data(1, b"begin", False)]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("0000000000000000", id="data-of-stream-0"),
        pytest.param("800200060000000400000001", id="another-version"),
        pytest.param("80030006000000050000000100", id="a-long-ping"),
        pytest.param("800300030000000700000000000000", id="a-short-reset"),
        pytest.param("80030003000000080000000000000001", id="a-reset-of-stream-0"),
        pytest.param("8003000100000009000000010000000000", id="a-short-stream"),
        pytest.param("800300010000000a00000001000000000000", id="a-stream-without-a-block"),
        pytest.param("800300020000000800000001ffffffff", id="headers-that-are-no-zlib"),
        pytest.param("800300040000000c1fffffff0000000700000001", id="more-settings-than-bytes"),
        pytest.param("800300040000000420000000", id="settings-that-overflow-32-bits"),
        pytest.param("800300040000001400000001" + "0000000700000001" * 2, id="fewer-settings-than-bytes"),
        pytest.param("8003000600ffffff", id="a-control-frame-of-16-mebibytes"),
    ],
)
def test_a_frame_that_breaks_the_draft_ends_the_connection(data: str) -> None:
    """And costs no more than its bytes (CVE-2026-35469)."""
    with pytest.raises(SpdyError):
        list(FrameReader().feed(bytes.fromhex(data)))


def test_a_control_frame_of_an_unknown_kind_is_ignored() -> None:
    """2.2.1: "must be ignored"."""
    assert list(FrameReader().feed(bytes.fromhex("8003000a00000002ffff") + written(frames.Ping(1)))) == [
        frames.Ping(1)
    ]


@pytest.mark.parametrize(
    ("plain", "what"),
    [
        pytest.param("ffffffff", "headers", id="four-milliards-of-headers"),
        pytest.param("00000041" + "00000000" * 2, "headers", id="one-more-than-the-limit"),
        pytest.param("00000001ffffffff", "claims more", id="a-name-of-4-gibibytes"),
        pytest.param("0000000100000001617fffffff62", "claims more", id="a-value-of-2-gibibytes"),
        pytest.param("000000010000000000000000", "name", id="an-empty-name"),
        pytest.param("00000001000000014100000000", "name", id="an-upper-case-name"),
        pytest.param("00000002" + "000000016100000000" * 1 + "000000016100000000", "name", id="twice"),
        pytest.param("0000000000", "after", id="more-than-the-headers"),
        pytest.param("0000", "claims more", id="no-count"),
    ],
)
def test_a_block_is_held_against_its_bytes(plain: str, what: str) -> None:
    """Before anything is made of a count or a length."""
    with pytest.raises(SpdyError, match=what):
        parse(bytes.fromhex(plain))


def test_a_block_that_inflates_without_end_is_cut_off() -> None:
    """A kilobyte can hold a megabyte."""
    deflate = zlib.compressobj(zdict=DICTIONARY)
    bomb = deflate.compress(bytes(16 << 20)) + deflate.flush(zlib.Z_SYNC_FLUSH)

    with pytest.raises(SpdyError, match="more than"):
        HeaderReader().read(bomb)


def test_a_block_of_just_the_limit_is_read() -> None:
    """The limit is on what it grows to."""
    value = "v" * (BLOCK_BYTES - 4 - 4 - 1 - 4)

    assert HeaderReader().read(HeaderWriter().write({"n": value})) == {"n": value}
    with pytest.raises(SpdyError, match="more than"):
        HeaderReader().read(HeaderWriter().write({"n": value + "v"}))


def test_a_block_that_ends_the_compression_is_an_error() -> None:
    """The next one could not be read."""
    deflate = zlib.compressobj(zdict=DICTIONARY)

    with pytest.raises(SpdyError, match="ends the compression"):
        HeaderReader().read(deflate.compress(bytes(4)) + deflate.flush(zlib.Z_FINISH))


@fuzzed
@given(data=st.binary(max_size=400))
def test_no_bytes_cause_any_other_error(data: bytes) -> None:
    """A client can send what it likes."""
    connection = Connection()
    try:
        events = list(connection.receive(data))
    except SpdyError:
        return

    assert connection.stream_count <= len(events)


@fuzzed
@given(sent=st.lists(some_frames, max_size=12), harm=st.data())
def test_no_harmed_frames_cause_any_other_error(sent: list[Frame], harm: st.DataObject) -> None:
    """Frames that were right but for one byte."""
    data = bytearray(written(*sent))
    if data:
        data[harm.draw(st.integers(0, len(data) - 1))] ^= harm.draw(st.integers(1, 255))
    connection = Connection(client=harm.draw(st.booleans()))
    try:
        list(connection.receive(bytes(data)))
    except SpdyError:
        return

    # Every received frame answers with one small frame at most.
    assert connection.pending_bytes <= 100 + 32 * (len(data) // 8 + 1)


def pair() -> tuple[Connection, Connection]:
    """A client and a server that have greeted each other."""
    client, server = Connection(client=True), Connection()
    exchange(client, server)
    return client, server


def exchange(client: Connection, server: Connection) -> tuple[list[spdy.Event], list[spdy.Event]]:
    """Pass bytes on until nobody has any; returns what each side saw."""
    seen: tuple[list[spdy.Event], list[spdy.Event]] = ([], [])
    while True:
        to_server, to_client = client.take_output(), server.take_output()
        if not to_server and not to_client:
            return seen
        seen[1].extend(server.receive(to_server))
        seen[0].extend(client.receive(to_client))


def test_a_stream_lives_from_its_opening_to_both_ends() -> None:
    """Each half ends by itself, then nothing is kept."""
    client, server = pair()
    stream = client.open_stream({"streamType": "stdin"})
    opening = exchange(client, server)[1]
    server.reply(stream)
    client.send(stream, b"ask")
    client.send(stream, b"", fin=True)
    answered, asked = exchange(client, server)
    server.send(stream, b"answer", fin=True)
    ended = exchange(client, server)[0]

    assert opening == [spdy.StreamOpened(1, {"streamtype": "stdin"}, False)]
    assert answered == [spdy.StreamReplied(1)]
    assert asked == [spdy.DataReceived(1, b"ask"), spdy.StreamEnded(1)]
    assert ended == [spdy.DataReceived(1, b"answer"), spdy.StreamEnded(1)]
    assert (client.stream_count, server.stream_count) == (0, 0)


def test_a_reset_ends_both_halves_and_later_frames_are_ignored() -> None:
    """The peer may have sent them before it knew."""
    client, server = pair()
    stream = client.open_stream({})
    exchange(client, server)
    server.reset(stream, ResetStatus.CANCEL)
    client.send(stream, b"too late")
    seen = exchange(client, server)

    assert seen == ([spdy.StreamReset(1)], [])
    assert (client.stream_count, server.stream_count) == (0, 0)


def test_data_of_a_stream_that_never_was_is_answered_with_a_reset() -> None:
    """INVALID_STREAM."""
    server = Connection()
    server.take_output()

    events = list(server.receive(written(Data(5, b"x"))))

    assert events == []
    assert server.take_output() == written(frames.RstStream(5, ResetStatus.INVALID_STREAM))


def test_data_after_an_end_is_answered_with_a_reset() -> None:
    """STREAM_ALREADY_CLOSED."""
    server = Connection()
    sent = written(frames.SynStream(1, {}, True), Data(1, b"x"))

    events = list(server.receive(sent))

    assert events == [spdy.StreamOpened(1, {}, True), spdy.StreamReset(1)]
    assert server.take_output().endswith(written(frames.RstStream(1, ResetStatus.STREAM_ALREADY_CLOSED)))


@pytest.mark.parametrize("ids", [[2], [3, 1], [1, 1]])
def test_a_new_stream_must_have_a_new_id_of_its_side(ids: list[int]) -> None:
    """Odd from a client, and rising."""
    server = Connection()
    with pytest.raises(SpdyError, match="new stream"):
        list(server.receive(written(*(frames.SynStream(stream_id) for stream_id in ids))))


def test_more_streams_than_the_limit_are_refused() -> None:
    """A place is free again when one has ended."""
    server = Connection(stream_limit=2)
    server.take_output()
    client = FrameWriter()

    opened = list(server.receive(b"".join(client.write(frames.SynStream(i)) for i in (1, 3, 5))))
    refused = server.take_output()
    server.reset(1)
    again = list(server.receive(client.write(frames.SynStream(7))))

    assert [event.stream_id for event in opened if isinstance(event, spdy.StreamOpened)] == [1, 3]
    assert refused == written(frames.RstStream(5, ResetStatus.REFUSED_STREAM))
    assert again == [spdy.StreamOpened(7, {}, False)]


def test_a_peer_that_counts_is_sent_no_more_than_its_stream_has_room_for() -> None:
    """Another stream has a window of its own."""
    client, server = pair()
    first, second = client.open_stream({}), client.open_stream({})
    exchange(client, server)
    room = server.room(first)
    server.send(first, bytes(room))
    exchange(client, server)

    assert room == spdy.WINDOW_BYTES
    assert (server.room(first), server.room(second)) == (0, room)

    client.consumed(first, room // 2)
    grown = exchange(client, server)[1]

    assert spdy.RoomGrew() in grown
    assert server.room(first) == room // 2


def test_a_peer_that_counts_is_sent_no_more_than_its_connection_has_room_for() -> None:
    """However much the streams could take."""
    server = Connection()
    begun = (frames.Settings(((7, 1 << 20),)), frames.SynStream(1), frames.SynStream(3))
    list(server.receive(written(*begun)))
    server.send(1, bytes(spdy.DRAFT_WINDOW_BYTES - 10))

    assert (server.room(1), server.room(3)) == (10, 10)

    list(server.receive(written(frames.WindowUpdate(0, 90))))

    assert (server.room(1), server.room(3)) == (100, 100)


def test_a_peer_that_does_not_count_is_sent_everything() -> None:
    """The Go library gives no room, ever; the transport must stop us there."""
    server = Connection()
    list(server.receive(written(frames.SynStream(1))))
    server.send(1, bytes(spdy.DRAFT_WINDOW_BYTES))
    server.send(1, bytes(spdy.DRAFT_WINDOW_BYTES))

    assert server.room(1) > 0

    list(server.receive(written(frames.WindowUpdate(1, 1))))

    assert server.room(1) < 0


def test_data_that_nobody_reads_gives_the_connection_its_room_back() -> None:
    """Else a few forgotten streams would stop all others."""
    client, server = pair()
    for _ in range(2 * spdy.CONNECTION_WINDOW_BYTES // spdy.DRAFT_WINDOW_BYTES):
        client.send(client.open_stream({}), bytes(spdy.DRAFT_WINDOW_BYTES))
        exchange(client, server)
    other = client.open_stream({})

    assert client.room(other) == spdy.WINDOW_BYTES


@pytest.mark.parametrize(
    ("sent", "what"),
    [
        pytest.param([frames.WindowUpdate(0, frames.LARGEST_ID)], "too large", id="the-connections-window"),
        pytest.param([frames.WindowUpdate(0, 0)], "nothing", id="no-growth"),
        pytest.param([frames.Settings(((7, 1 << 31),))], "first window", id="a-setting"),
    ],
)
def test_a_window_beyond_31_bits_ends_the_connection(sent: list[Frame], what: str) -> None:
    """2.8.1."""
    with pytest.raises(SpdyError, match=what):
        list(Connection().receive(written(*sent)))


def test_a_streams_window_beyond_31_bits_ends_the_stream() -> None:
    """FLOW_CONTROL_ERROR."""
    server = Connection()
    sent = written(frames.SynStream(1), frames.WindowUpdate(1, frames.LARGEST_ID))

    events = list(server.receive(sent))

    assert events[-1] == spdy.StreamReset(1)
    assert server.take_output().endswith(written(frames.RstStream(1, ResetStatus.FLOW_CONTROL_ERROR)))


def test_a_setting_changes_the_windows_of_open_streams_too() -> None:
    """2.8.2; the window may become negative."""
    server = Connection()
    list(server.receive(written(frames.SynStream(1), frames.WindowUpdate(0, 1 << 20))))
    server.send(1, bytes(1000))
    list(server.receive(written(frames.Settings(((7, 500),)))))

    assert server.room(1) == -500


def test_pings_are_answered_and_answers_are_known() -> None:
    """By who began them: odd is the client's."""
    client, server = pair()
    client.ping()
    server.ping()

    assert exchange(client, server) == ([spdy.PingAnswered()], [spdy.PingAnswered()])


def test_after_a_goodbye_no_stream_begins() -> None:
    """Those that are open go on."""
    client, server = pair()
    stream = client.open_stream({})
    exchange(client, server)
    server.go_away()
    late = client.open_stream({})
    client.send(stream, b"still")
    seen = exchange(client, server)

    assert late == 3
    assert seen == ([spdy.PeerGoesAway()], [spdy.DataReceived(1, b"still")])
