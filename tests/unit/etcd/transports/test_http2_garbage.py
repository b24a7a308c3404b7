"""Bytes that are not HTTP/2 or break its rules: the client fails in order, then keeps quiet, and raises nothing."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Iterable, Iterator

import pytest
from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from codomyrmex.concurrency.etcd.transports.http2 import Connection
from codomyrmex.concurrency.etcd.transports.http2_streams import Failed, Reset
from codomyrmex.concurrency.etcd.transports.native_calls import Call, Calls
from tests.unit.etcd.transports.http2_world import ENDPOINT, PATH, Server, Tape

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
GREETING = b"\0\0\0\4\0\0\0\0\0"  # SETTINGS without a setting
FIELDS = ((":method", "POST"), (":path", PATH))


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"", size: int | None = None) -> bytes:
    length = len(payload) if size is None else size
    return length.to_bytes(3) + bytes((kind, flags)) + struct.pack(">L", stream) + payload


def client_with_calls() -> tuple[Calls, list[Call]]:
    client = Calls(ENDPOINT)
    calls = [client.begin(PATH, (), b"x" * 100) for _ in range(4)]
    calls.append(client.begin_stream(PATH, ()))
    client.send(calls[-1], b"watch")
    return client, calls


def answers() -> list[bytes]:
    """The frames of a server that answers the calls in several ways."""
    client, calls = client_with_calls()
    server = Server()
    server.flush()
    client.receive(bytes(server.out))
    server.receive(client.take())
    quiet = Tape(())
    numbers = [call.stream.id for call in calls]
    server.say(numbers[0], b"one message" * 9, Tape((2,)))  # after two interim answers
    server.decide(numbers[0], 0, "", quiet)
    server.decide(numbers[1], 5, "no such thing, 100 %", quiet)
    server.http2.ping(b"12345678")
    server.say(numbers[4], b"an event" * 300, Tape((0, 7)))  # after headers that need CONTINUATION
    server.pump(numbers[4], Tape((1, 1, 700) * 20))
    server.reset(numbers[2], 7)
    server.http2.update_settings({4: 10, 1: 0, 3: 1})
    server.say(numbers[4], b"another", quiet)
    server.decide(numbers[4], 0, "", quiet)
    server.go_away(numbers[2])
    server.flush()
    return list(frames_of(bytes(server.out)))


def frames_of(data: bytes) -> Iterator[bytes]:
    while data:
        size = 9 + int.from_bytes(data[:3])
        yield data[:size]
        data = data[size:]


ANSWERS = answers()


def check(pieces: Iterable[bytes]) -> str:
    """Give a client these bytes, and return why it failed."""
    client, calls = client_with_calls()
    for piece in pieces:
        before = {id(call) for call in calls if call.status}
        for call in client.receive(piece):
            assert id(call) not in before, "news of a call that is over"
        client.take()
    if client.failure:
        assert not client.usable
        assert client.receive(b"".join(ANSWERS)) == []
        assert client.take() == b""
    reason = client.failure
    client.lost("it is gone")
    assert all(call.status for call in calls)
    assert client.take() == b""
    return reason


def check_events(pieces: Iterable[bytes]) -> None:
    """Give a connection these bytes: after ``Failed`` there are no events."""
    connection = Connection()
    for _ in range(5):
        connection.request(FIELDS, b"x" * 100, end=True)
    failed = False
    for piece in pieces:
        for event in connection.receive(piece):
            assert not failed
            failed = isinstance(event, Failed)
        connection.take()
    assert failed == bool(connection.failed)


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def test_the_answers_alone_are_in_order() -> None:
    assert check(ANSWERS) == ""
    assert check(cut(b"".join(ANSWERS), 1)) == ""


SIZES = st.sampled_from((1, 3, 20, 1_000, 1 << 20))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), SIZES, st.booleans())
def test_random_bytes(data: bytes, size: int, greets: bool) -> None:
    pieces = [GREETING] * greets + cut(data, size)
    check(pieces)
    check_events(pieces)


SOME_FRAME = st.builds(
    frame,
    st.integers(0, 11),
    st.integers(0, 255),
    st.sampled_from((0, 1, 2, 3, 5, 7, 9, 11, 99, (1 << 31) - 1, (1 << 32) - 1)),
    st.one_of(
        st.binary(max_size=40), st.sampled_from((b"\0\0\0\0", b"\0\0\0\1", b"\xff\xff\xff\xff", b"\x88", b"\0" * 8))
    ),
)


@settings(max_examples=250, deadline=None)
@given(st.lists(st.one_of(SOME_FRAME, st.sampled_from(ANSWERS)), max_size=30), SIZES)
def test_frames_in_any_order(frames: list[bytes], size: int) -> None:
    pieces = cut(GREETING + b"".join(frames), size)
    check(pieces)
    check_events(pieces)


@settings(max_examples=250, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(("flip", "cut", "repeat", "swap", "insert")), st.integers(0, 1 << 20), st.integers(0, 255)
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from((97, 1_000, 1 << 20)),
)
def test_answers_that_were_damaged(damages: list[tuple[str, int, int]], size: int) -> None:
    frames = list(ANSWERS)
    for kind, at, number in damages:
        index, other = at % len(frames), number % len(frames)
        data = bytearray(frames[index])
        if kind == "flip" and data:
            data[at % len(data) if number % 2 else at % min(9, len(data))] ^= number or 1
        elif kind == "cut":
            del data[at % (len(data) + 1) :][:number]
            data = data[: max(0, len(data) - number)]
        elif kind == "insert":
            data[:0] = bytes((number,)) * (number % 20)
        frames[index] = bytes(data)
        if kind == "repeat":
            frames.insert(other, frames[index])
        elif kind == "swap":
            frames[index], frames[other] = frames[other], frames[index]
    pieces = cut(b"".join(frames), size)
    check(pieces)
    check_events(pieces)


BOMB = Encoder()
FILL = BOMB.encode([(":status", "200"), ("x", "y" * 3_900)])
LONG = b"\xff" * 8_000 + b"\x01"


def first_headers(flags: int = 4, block: bytes = b"\x88", stream: int = 1) -> bytes:
    return frame(HEADERS, flags, stream, block)


BROKEN = {
    "HTTP/1": (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n400 Bad Request", "HTTP/1"),
    "TLS alert": (b"\x15\x03\x01\0\x02\x02\x46" * 2, "TLS"),
    "SSH": (b"SSH-2.0-OpenSSH_9.6\r\n", "does not speak HTTP/2"),
    "not greeting": (frame(PING, 0, 0, b"12345678"), "does not speak HTTP/2"),
    "acknowledging first": (frame(SETTINGS, 1), "does not speak HTTP/2"),
    "large first frame": (frame(SETTINGS, size=1 << 20), "larger than it may"),
    "large frame": (GREETING + frame(DATA, 0, 1, size=16_385), "larger than it may"),
    "largest frame": (GREETING + frame(99, 0, 0, size=(1 << 24) - 1), "larger than it may"),
    "odd settings": (frame(SETTINGS, 0, 0, b"\0" * 7), "wrong length"),
    "settings of a stream": (frame(SETTINGS, 0, 1), "for a stream"),
    "settings with an acknowledgement": (GREETING + frame(SETTINGS, 1, 0, b"\0" * 6), "acknowledged"),
    "pushing": (frame(SETTINGS, 0, 0, struct.pack(">HL", 2, 1)), "push"),
    "pushed": (GREETING + frame(PUSH, 4, 1, b"\0\0\0\2\x88"), "pushes"),
    "large window": (frame(SETTINGS, 0, 0, struct.pack(">HL", 4, 1 << 31)), "too large"),
    "small frames": (frame(SETTINGS, 0, 0, struct.pack(">HL", 5, 16_383)), "cannot be"),
    "huge frames": (frame(SETTINGS, 0, 0, struct.pack(">HL", 5, 1 << 24)), "cannot be"),
    "no increment": (GREETING + frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\0"), "window wrongly"),
    "wide connection": (GREETING + frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"), "window wrongly"),
    "wide stream": (
        GREETING
        + frame(WINDOW_UPDATE, 0, 1, struct.pack(">L", (1 << 31) - 1 - 65_535))
        + frame(SETTINGS, 0, 0, struct.pack(">HL", 4, 80_000)),
        "widens a window",
    ),
    "short increment": (GREETING + frame(WINDOW_UPDATE, 0, 1, b"\0\0\1"), "wrong length"),
    "data of no stream": (GREETING + frame(DATA, 0, 0, b"x"), "not open"),
    "data of an idle stream": (GREETING + frame(DATA, 0, 99, b"x"), "not open"),
    "data of the server's stream": (GREETING + frame(DATA, 0, 2, b"x"), "not open"),
    "headers of an idle stream": (GREETING + first_headers(stream=99), "not open"),
    "reset of an idle stream": (GREETING + frame(RST_STREAM, 0, 99, b"\0\0\0\0"), "not open"),
    "window of an idle stream": (GREETING + frame(WINDOW_UPDATE, 0, 99, b"\0\0\0\1"), "not open"),
    "short reset": (GREETING + frame(RST_STREAM, 0, 1, b"\0"), "wrong length"),
    "short ping": (GREETING + frame(PING, 0, 0, b"1234567"), "wrong form"),
    "ping of a stream": (GREETING + frame(PING, 0, 1, b"12345678"), "wrong form"),
    "short goaway": (GREETING + frame(GOAWAY, 0, 0, b"1234567"), "wrong form"),
    "goaway of a stream": (GREETING + frame(GOAWAY, 0, 1, b"12345678"), "wrong form"),
    "short priority": (GREETING + frame(PRIORITY, 0, 1, b"1234"), "wrong form"),
    "priority of no stream": (GREETING + frame(PRIORITY, 0, 0, b"12345"), "wrong form"),
    "headers that end in their priority": (GREETING + frame(HEADERS, 0x24, 1, b"1234"), "too short"),
    "padding without a length": (GREETING + frame(DATA, 8, 1, b""), "pads"),
    "padding of the whole frame": (GREETING + frame(DATA, 8, 1, b"\4abc"), "pads"),
    "padded headers": (GREETING + frame(HEADERS, 0xC, 1, b"\2\x88"), "pads"),
    "interrupted headers": (GREETING + first_headers(0) + frame(PING, 0, 0, b"12345678"), "interrupts"),
    "headers in headers": (GREETING + first_headers(0) + first_headers(), "interrupts"),
    "an unknown frame in headers": (GREETING + first_headers(0) + frame(77), "interrupts"),
    "another stream's continuation": (GREETING + first_headers(0) + frame(CONTINUATION, 4, 3), "did not begin"),
    "a lone continuation": (GREETING + frame(CONTINUATION, 4, 1), "did not begin"),
    "a flood of continuations": (
        GREETING + first_headers(0) + frame(CONTINUATION, 0, 1, b"\x88" * 16_384) * 5,
        "without an end",
    ),
    "a flood of empty continuations": (GREETING + first_headers(0) + frame(CONTINUATION, 0, 1) * 9, "without an end"),
    "a header bomb": (GREETING + first_headers(block=FILL + b"\xbe" * 10_000), "cannot be read"),
    "a table that is too large": (GREETING + first_headers(block=b"\x3f\xff\xff\x03"), "cannot be read"),
    "index 0": (GREETING + first_headers(block=b"\x80"), "cannot be read"),
    "an index of no field": (GREETING + first_headers(block=b"\xfe"), "cannot be read"),
    "an endless number": (GREETING + first_headers(block=LONG), "cannot be read"),
    "a cut block": (GREETING + first_headers(block=b"\x40\x05abc"), "cannot be read"),
    "bytes that are no text": (GREETING + first_headers(block=b"\0\x01x\x02\xff\xfe"), "cannot be read"),
    "headers of a stream that is over": (
        GREETING + frame(RST_STREAM, 0, 1, b"\0\0\0\x08") + first_headers(block=b"\x80"),
        "cannot be read",
    ),
    "a flood of PINGs": (GREETING + frame(PING, 0, 0, b"12345678") * 1_001, "floods"),
    "a flood of SETTINGS": (GREETING * 1_001, "floods"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_ends_the_connection(name: str) -> None:
    data, reason = BROKEN[name]
    assert reason in check([data])
    if "flood of PINGs" not in name and "flood of SETTINGS" not in name:
        assert reason in check(cut(data, 1 if len(data) < 2_000 else 777))


@pytest.mark.parametrize("increment", [0, (1 << 31) - 1])
def test_a_window_that_is_wrong_ends_only_its_stream(increment: int) -> None:
    connection = Connection()
    first, second = (connection.request(FIELDS, b"x", end=True) for _ in range(2))
    connection.receive(GREETING)
    connection.take()
    events = connection.receive(frame(WINDOW_UPDATE, 0, first.id, struct.pack(">L", increment)))
    assert events == [Reset(first, 3, False)]
    assert connection.take() == frame(RST_STREAM, 0, first.id, b"\0\0\0\3")
    assert connection.receive(frame(RST_STREAM, 0, second.id, b"\0\0\0\2")) == [Reset(second, 2, False)]


@pytest.mark.parametrize(
    "frames",
    [
        frame(DATA, 0, 1, b"before headers"),
        first_headers() + first_headers(),
    ],
)
def test_a_stream_out_of_order_is_reset(frames: bytes) -> None:
    connection = Connection()
    stream = connection.request(FIELDS, b"x", end=True)
    connection.receive(GREETING)
    connection.take()
    assert connection.receive(frames)[-1] == Reset(stream, 1, False)
    assert connection.take() == frame(RST_STREAM, 0, 1, b"\0\0\0\1")
    assert connection.receive(frames) == []


def test_frames_of_unknown_types_and_settings_are_ignored() -> None:
    connection = Connection()
    connection.receive(frame(SETTINGS, 0, 0, struct.pack(">HL", 999, 5)))
    connection.take()
    assert connection.receive(frame(10, 255, 1, b"any") + frame(200, 0, 77) + frame(PRIORITY, 0, 5, b"12345")) == []
    assert connection.receive(frame(PING, 1, 0, b"87654321")) == []
    assert connection.take() == b""


FLOODS = {
    "PINGs": frame(PING, 0, 0, b"12345678"),
    "SETTINGS": frame(SETTINGS, 0, 0, struct.pack(">HLHL", 1, 0, 1, 4_096)),
    "frames without data": frame(DATA, 0, 1),
    "data of a stream that is over": frame(DATA, 0, 3, b"x" * 200),
    "headers of a stream that is over": first_headers(stream=3),
    "interim answers": first_headers(block=b"\x08\x03103"),
    "GOAWAYs": frame(GOAWAY, 0, 0, struct.pack(">LL", 9, 0) + b"bye"),
    "unknown frames": frame(99, 0, 0, b"x" * 50),
    "windows": frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\1"),
    "empty messages": frame(DATA, 0, 1, b"\0\0\0\0\0" * 100),
}


@pytest.mark.parametrize("takes", [True, False], ids=["taken", "not taken"])
@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_does_not_fill_the_memory(name: str, takes: bool) -> None:
    client, _ = client_with_calls()
    start = GREETING + frame(RST_STREAM, 0, 3, b"\0\0\0\x08")
    answer = Encoder().encode([(":status", "200"), ("content-type", "application/grpc")])
    client.receive(start + (b"" if name == "interim answers" else first_headers(block=answer)))
    client.take()
    flood = FLOODS[name] * 200
    tracemalloc.start()
    try:
        for _ in range(50):
            client.receive(flood)
            if takes:
                client.take()
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()
    if not takes and name in ("PINGs", "SETTINGS"):
        assert "floods" in client.failure


def test_blocks_of_references_do_not_fill_the_memory() -> None:
    connection = Connection()
    connection.request(FIELDS, b"x", end=True)
    connection.receive(GREETING)
    connection.receive(frame(RST_STREAM, 0, 1, b"\0\0\0\x08") + first_headers(block=FILL))
    tracemalloc.start()
    try:
        for number in range(2_000):
            block = b"\xbe" * 10 + bytes((0x81 + number % 61, 0x81 + number // 61))
            connection.receive(first_headers(block=block))
        assert tracemalloc.get_traced_memory()[0] < 2 << 20
        assert not connection.failed
    finally:
        tracemalloc.stop()
