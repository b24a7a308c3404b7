"""The rules of HTTP/2 one by one: what is written, in which order, and what each frame from the peer means."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hpack import Decoder, Encoder

from codomyrmex.concurrency.etcd.transports.http2 import Connection
from codomyrmex.concurrency.etcd.transports.http2_headers import HeaderDecoder, HeaderEncoder
from codomyrmex.concurrency.etcd.transports.http2_streams import (
    Data,
    GoingAway,
    Headers,
    Pinged,
    Ready,
    Reset,
    Stream,
)

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
TABLE_SIZE, MAX_STREAMS, FIRST_WINDOW, MAX_FRAME = 1, 3, 4, 5
FIELDS = ((":method", "POST"), (":path", "/a"))
ANSWER = Encoder().encode([(":status", "200")])
WINDOW = 65_535


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + struct.pack(">L", stream) + payload


def settings(**values: int) -> bytes:
    numbers = {"table": TABLE_SIZE, "streams": MAX_STREAMS, "window": FIRST_WINDOW, "frame": MAX_FRAME}
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HL", numbers[name], value) for name, value in values.items()))


def widen(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">L", increment))


def frames_of(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    while data:
        size = 9 + int.from_bytes(data[:3])
        assert len(data) >= size
        yield data[3], data[4], int.from_bytes(data[5:9]), data[9:size]
        data = data[size:]


def written(connection: Connection) -> list[tuple[int, int, int, bytes]]:
    return list(frames_of(connection.take()))


def sizes(connection: Connection, kind: int = DATA) -> list[tuple[int, int, int]]:
    """Of each frame of a kind that is written: the stream, the flags and the length."""
    return [(stream, flags, len(payload)) for found, flags, stream, payload in written(connection) if found == kind]


def ready(**values: int) -> Connection:
    connection = Connection()
    assert connection.receive(settings(**values)) == [Ready()]
    connection.take()
    return connection


def request(connection: Connection, size: int = 1) -> Stream:
    return connection.request(FIELDS, b"x" * size, end=True)


def test_a_connection_begins_with_its_settings() -> None:
    data = Connection().take()
    assert data.startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert list(frames_of(data[24:])) == [
        (SETTINGS, 0, 0, struct.pack(">HLHLHL", 2, 0, 4, 4 << 20, 6, 64 << 10)),
        (WINDOW_UPDATE, 0, 0, struct.pack(">L", (64 << 20) - WINDOW)),
    ]


def test_requests_wait_until_the_peer_has_spoken() -> None:
    connection = Connection()
    connection.take()
    stream = request(connection)
    assert (connection.take(), connection.stream_count, connection.ready) == (b"", 1, False)
    connection.receive(settings())
    assert [kind for kind, *_ in written(connection)] == [SETTINGS, HEADERS, DATA]
    assert (stream.id, stream.written, connection.ready) == (1, True, True)


def test_a_request_is_written_once_its_end_is_taken() -> None:
    connection = ready()
    stream = request(connection, WINDOW + 1)
    connection.take()
    assert not stream.written
    connection.receive(widen(0, 10) + widen(stream.id, 10))
    assert not stream.written
    connection.take()
    assert stream.written


def test_data_is_cut_at_the_frame_size_and_ends_once() -> None:
    connection = ready(frame=20_000)
    request(connection, 50_000)
    assert sizes(connection) == [(1, 0, 20_000), (1, 0, 20_000), (1, 1, 10_000)]


def test_data_stops_at_the_smaller_window() -> None:
    connection = ready(window=100)
    first, second = request(connection, 150), request(connection, 100_000)
    assert sizes(connection) == [(first.id, 0, 100), (second.id, 0, 100)]
    connection.receive(widen(second.id, 1 << 20))
    assert sum(size for *_, size in sizes(connection)) == WINDOW - 200
    connection.receive(widen(first.id, 1 << 20))
    assert sizes(connection) == []
    connection.receive(widen(0, 60))
    assert sizes(connection) == [(first.id, 1, 50), (second.id, 0, 10)]


def test_streams_get_the_connections_window_in_the_order_of_their_requests() -> None:
    connection = ready(streams=2, window=0)
    streams = [request(connection, WINDOW) for _ in range(3)]
    connection.take()
    connection.receive(settings(streams=3, window=WINDOW))
    assert {stream for stream, *_ in sizes(connection)} == {streams[0].id}
    connection.receive(widen(0, WINDOW + 5))
    assert {stream for stream, *_ in sizes(connection)} == {streams[1].id, streams[2].id}


def test_a_first_window_may_shrink_below_what_was_sent() -> None:
    connection = ready()
    stream = request(connection, WINDOW)
    late = connection.request(FIELDS, b"", end=False)
    connection.receive(widen(0, 1 << 20) + settings(window=0))
    connection.take()
    connection.send(late, b"y" * 10)
    assert sizes(connection) == []
    connection.receive(settings(window=4))
    assert sizes(connection) == [(late.id, 0, 4)]
    connection.receive(settings(window=0))
    connection.receive(widen(late.id, 4))  # from -4 to 0
    assert sizes(connection) == []
    connection.receive(widen(late.id, 3))
    assert sizes(connection) == [(late.id, 0, 3)]
    assert stream.written


def test_headers_that_are_larger_than_a_frame_are_continued() -> None:
    connection = ready()
    fields = (*FIELDS, ("token", "".join(map(chr, range(33, 127))) * 400))
    connection.request(fields, b"x", end=True)
    frames = written(connection)
    assert [(kind, flags) for kind, flags, *_ in frames] == [
        (HEADERS, 0),
        (CONTINUATION, 0),
        (CONTINUATION, 4),
        (DATA, 1),
    ]
    decoder = Decoder()
    block = b"".join(payload for *_, payload in frames[:3])
    assert tuple((str(name), str(value)) for name, value in decoder.decode(block)) == fields


def test_streams_wait_for_the_limit_in_order() -> None:
    connection = ready(streams=1)
    streams = [request(connection) for _ in range(4)]
    assert [stream.id for stream in streams] == [1, 0, 0, 0]
    connection.cancel(streams[1])
    connection.receive(frame(HEADERS, 5, 1, ANSWER))
    assert [stream.id for stream in streams] == [1, 0, 3, 0]
    connection.receive(settings(streams=0) + frame(HEADERS, 5, 3, ANSWER))
    assert streams[3].id == 0
    connection.receive(settings(streams=1))
    assert (streams[3].id, connection.stream_count) == (5, 1)


@pytest.mark.parametrize("flags", [0x00, 0x08, 0x20, 0x28])
def test_headers_may_be_padded_and_have_a_priority(flags: int) -> None:
    connection = ready()
    stream = request(connection)
    payload = b"\x05" * bool(flags & 8) + b"\0\0\0\0\x10" * bool(flags & 0x20) + ANSWER + b"\0" * (5 * bool(flags & 8))
    assert connection.receive(frame(HEADERS, 4 | flags, 1, payload)) == [Headers(stream, ((":status", "200"),), False)]


def test_headers_may_come_in_parts() -> None:
    connection = ready()
    stream = request(connection)
    block = Encoder().encode([(":status", "200"), ("x", "y")])
    begin = frame(HEADERS, 1, 1, block[:2])
    assert connection.receive(begin + frame(CONTINUATION, 0, 1, block[2:3])) == []
    fields = ((":status", "200"), ("x", "y"))
    assert connection.receive(frame(CONTINUATION, 4, 1, block[3:])) == [Headers(stream, fields, True)]


def test_an_interim_answer_is_no_answer() -> None:
    connection = ready()
    stream = request(connection)
    interim = Encoder().encode([(":status", "103")])
    assert connection.receive(frame(HEADERS, 4, 1, interim) * 3) == []
    assert connection.receive(frame(HEADERS, 4, 1, ANSWER)) == [Headers(stream, ((":status", "200"),), False)]


@pytest.mark.parametrize("padding", [None, 0, 7])
def test_padding_counts_and_is_taken_off(padding: int | None) -> None:
    connection = ready()
    stream = request(connection)
    connection.receive(frame(HEADERS, 4, 1, ANSWER))
    payload = b"data" if padding is None else bytes((padding,)) + b"data" + bytes(padding)
    flags = 0 if padding is None else 8
    assert connection.receive(frame(DATA, flags, 1, payload)) == [Data(stream, b"data", len(payload), False)]


def test_the_connections_credit_is_renewed_for_streams_that_are_over_too() -> None:
    connection = ready()
    stream = request(connection)
    connection.cancel(stream)
    connection.take()
    for _ in range(2047):
        connection.receive(frame(DATA, 0, 1, b"x" * 16_384))
    assert connection.take() == b""
    connection.receive(frame(DATA, 8, 1, b"\x05" + b"x" * 16_383))
    assert connection.take() == widen(0, 32 << 20)


def test_a_streams_credit_is_what_was_consumed() -> None:
    connection = ready()
    stream = request(connection)
    connection.receive(frame(HEADERS, 4, 1, ANSWER))
    connection.take()
    connection.consumed(stream, (2 << 20) - 1)
    assert connection.take() == b""
    connection.consumed(stream, 11)
    assert connection.take() == widen(1, (2 << 20) + 10)
    connection.receive(frame(HEADERS, 5, 1, ANSWER))
    connection.consumed(stream, 4 << 20)
    assert connection.take() == b""


def test_a_peer_that_sends_more_than_the_window_is_reset() -> None:
    connection = ready()
    stream = request(connection)
    connection.receive(frame(HEADERS, 4, 1, ANSWER))
    connection.take()
    full = frame(DATA, 0, 1, b"x" * 16_384)
    for _ in range((4 << 20) // 16_384):
        assert len(connection.receive(full)) == 1
    assert connection.receive(frame(DATA, 0, 1, b"x")) == [Reset(stream, 3, False)]
    assert connection.take() == frame(RST_STREAM, 0, 1, b"\0\0\0\3")


def test_an_answer_ends_a_request_that_goes_on() -> None:
    connection = ready()
    stream = connection.request(FIELDS, b"", end=False)
    connection.take()
    assert connection.receive(frame(HEADERS, 5, 1, ANSWER)) == [Headers(stream, ((":status", "200"),), True)]
    assert connection.take() == frame(RST_STREAM, 0, 1, b"\0\0\0\x08")
    connection.send(stream, b"too late")
    connection.cancel(stream)
    assert connection.take() == b""


def test_goaway_refuses_what_is_later() -> None:
    connection = ready(streams=2)
    streams = [request(connection) for _ in range(3)]
    connection.take()
    events = connection.receive(frame(GOAWAY, 0, 0, struct.pack(">LL", (1 << 31) | 1, 11) + b"calm \xff"))
    assert events == [GoingAway(11, "calm \ufffd"), Reset(streams[1], 7, True), Reset(streams[2], 7, True)]
    assert (connection.going_away, connection.usable, connection.stream_count) == (True, False, 1)
    assert connection.receive(frame(HEADERS, 5, 3, ANSWER)) == []
    assert connection.receive(frame(HEADERS, 5, 1, ANSWER)) == [Headers(streams[0], ((":status", "200"),), True)]


def test_a_reset_of_a_request_that_is_not_written_whole_is_known_not_to_be_processed() -> None:
    connection = ready()
    whole, half = request(connection), request(connection, 2 * WINDOW)
    connection.take()
    events = connection.receive(frame(RST_STREAM, 0, 1, b"\0\0\0\2") + frame(RST_STREAM, 0, 3, b"\0\0\0\2"))
    assert events == [Reset(whole, 2, False), Reset(half, 2, True)]


def test_what_is_taken_back_gives_its_window_to_others() -> None:
    connection = ready()
    first, second = request(connection, WINDOW), request(connection, WINDOW)
    connection.cancel(first)
    assert sum(size for stream, _, size in sizes(connection) if stream == second.id) == WINDOW
    assert (first.written, second.written) == (False, True)


def test_a_ping_is_answered() -> None:
    connection = ready()
    assert connection.receive(frame(PING, 0, 0, b"12345678")) == [Pinged()]
    assert connection.take() == b""
    connection.pong()
    assert connection.take() == frame(PING, 1, 0, b"12345678")
    connection.ping()
    (ping,) = written(connection)
    assert (ping[0], ping[1], len(ping[3])) == (PING, 0, 8)


def test_a_ping_is_answered_at_once_while_a_request_waits_for_a_window() -> None:
    connection = ready(window=0)
    connection.receive(frame(PING, 0, 0, b"earlier!"))
    request(connection)
    assert [payload for kind, _, _, payload in written(connection) if kind == PING] == [b"earlier!"]
    connection.receive(frame(PING, 0, 0, b"and now!"))
    assert [payload for kind, _, _, payload in written(connection) if kind == PING] == [b"and now!"]


def test_answers_to_pings_are_limited_only_while_they_are_not_taken() -> None:
    connection = ready()
    for _ in range(5):
        connection.receive(frame(PING, 0, 0, b"12345678") * 1_000)
        connection.pong()
        assert len(written(connection)) == 1_000


def test_a_lost_connection_writes_nothing_more() -> None:
    connection = ready(streams=1)
    streams = [request(connection), request(connection)]
    assert connection.abandon() == streams
    assert connection.take() == b""
    assert not streams[0].written


@pytest.mark.parametrize(
    ("changes", "announced"),
    [((0,), [0]), ((0, 0), [0]), ((0, 4_096), [0, 4_096]), ((100, 100, 65_536), [100, 4_096]), ((65_536,), [])],
)
def test_a_table_size_is_announced_before_the_next_block(changes: tuple[int, ...], announced: list[int]) -> None:
    encoder, decoder = HeaderEncoder(), Decoder()
    for _ in range(2):
        decoder.decode(encoder.encode(FIELDS))
    for size in changes:
        encoder.resize(size)
    block = encoder.encode(FIELDS)
    sizes: list[int] = []
    original = decoder._update_encoding_context

    def update(data: bytes) -> int:
        consumed = original(data)
        sizes.append(decoder.header_table_size)
        return consumed

    decoder._update_encoding_context = update
    assert tuple((str(name), str(value)) for name, value in decoder.decode(block)) == FIELDS
    assert sizes == announced


def test_many_table_sizes_are_announced_as_two() -> None:
    encoder = HeaderEncoder()
    for number in range(1_000):
        encoder.resize(100 + number % 50)
    encoder.resize(77)
    encoder.resize(300)
    assert encoder._hpack.table_size_changes == [77, 300]


def test_a_block_that_is_remembered_means_the_same_until_the_table_changes() -> None:
    encoder, decoder = Encoder(), HeaderDecoder(1 << 16)
    encoder.header_table_size = 80  # room for one field
    for value in "aabbaab":
        fields = ((":status", "200"), ("x-name", value))
        for _ in range(3):
            assert decoder.decode(encoder.encode(fields)) == fields


def test_a_request_that_is_remembered_means_the_same_until_the_table_changes() -> None:
    encoder, decoder = HeaderEncoder(), Decoder()
    encoder.resize(80)
    for value in "aabbaab":
        fields = (*FIELDS[:1], ("x-name", value))
        for _ in range(3):
            assert tuple((str(name), str(text)) for name, text in decoder.decode(encoder.encode(fields))) == fields
