"""gRPC calls over HTTP/2: statuses, messages, flow control, and which calls are known not to be applied."""

from __future__ import annotations

import struct

import pytest
from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from codomyrmex.concurrency.errors import EtcdError
from codomyrmex.concurrency.etcd import rpc_pb2 as pb
from codomyrmex.concurrency.etcd.transports import failures
from codomyrmex.concurrency.etcd.transports.failures import NOT_SENT
from codomyrmex.concurrency.etcd.transports.native_calls import MAX_MESSAGE, Call, Calls, result
from tests.unit.etcd.transports.http2_world import ENDPOINT, PATH, Server, Tape, framed

DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 7, 8
END_STREAM, END_HEADERS = 1, 4
GREETING = b"\0\0\0\4\0\0\0\0\0"
WINDOW = 4 << 20
OPENED = ((":status", "200"), ("content-type", "application/grpc"))
OK = (("grpc-status", "0"),)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + struct.pack(">L", stream) + payload


def headers(call: Call, *fields: tuple[str, str], end: bool = False) -> bytes:
    return frame(HEADERS, END_HEADERS | end, call.stream.id, Encoder().encode(fields))


def data(call: Call, payload: bytes, *, end: bool = False) -> bytes:
    parts = [payload[start : start + 16_384] for start in range(0, len(payload), 16_384)]
    return b"".join(frame(DATA, 0, call.stream.id, part) for part in parts[:-1]) + frame(
        DATA, int(end), call.stream.id, parts[-1]
    )


def greeted() -> Calls:
    client = Calls(ENDPOINT)
    client.receive(GREETING)
    client.take()
    return client


def begun(client: Calls | None = None) -> tuple[Calls, Call]:
    client = client or greeted()
    call = client.begin(PATH, (), b"request")
    client.take()
    return client, call


def applied(call: Call) -> str:
    return failures.to_error(call.status, call.details, ENDPOINT).applied


@pytest.mark.parametrize(
    ("fields", "status", "details"),
    [
        ((("grpc-status", "0"),), "OK", ""),
        ((("grpc-status", "5"), ("grpc-message", "no%20such key: 100 %25")), "NOT_FOUND", "no such key: 100 %"),
        ((("grpc-status", "14"), ("grpc-message", "k%C3%A4se %zz %")), "UNAVAILABLE", "käse %zz %"),
        ((("grpc-status", "2"), ("grpc-message", "%ff")), "UNKNOWN", "\ufffd"),
        ((("grpc-status", "16"),), "UNAUTHENTICATED", ""),
        ((("grpc-status", "17"),), "UNKNOWN", ""),
        ((("grpc-status", "-1"),), "UNKNOWN", ""),
        ((("grpc-status", ""),), "UNKNOWN", ""),
        ((("grpc-status", "9" * 5_000),), "UNKNOWN", ""),
        ((("grpc-status", "٣"),), "UNKNOWN", ""),
        ((("other", "x"),), "INTERNAL", "it ended an answer without a status"),
        ((), "INTERNAL", "it ended an answer without a status"),
    ],
)
def test_the_status_comes_in_the_trailers(fields: tuple[tuple[str, str], ...], status: str, details: str) -> None:
    client, call = begun()
    client.receive(headers(call, *OPENED) + data(call, framed(b"")))
    assert client.receive(headers(call, *fields, end=True)) == [call]
    assert (call.status, call.details) == (status, details)


def test_trailers_alone_are_an_answer() -> None:
    client, call = begun()
    client.receive(headers(call, *OPENED, ("grpc-status", "8"), ("grpc-message", "too many"), end=True))
    assert (call.status, call.details) == ("RESOURCE_EXHAUSTED", "too many")


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (((":status", "404"), ("content-type", "text/html")), "UNIMPLEMENTED"),
        (((":status", "503"), ("content-type", "text/plain")), "UNAVAILABLE"),
        (((":status", "401"),), "UNAUTHENTICATED"),
        (((":status", "302"),), "UNKNOWN"),
        (((":status", "200"), ("content-type", "text/html")), "UNKNOWN"),
        (((":status", "200"),), "UNKNOWN"),
    ],
)
def test_an_answer_that_is_not_grpc_says_so(fields: tuple[tuple[str, str], ...], status: str, end: bool) -> None:
    client, call = begun()
    client.receive(headers(call, *fields, end=end) + data(call, b"<html>"))
    assert call.status == status
    assert f"HTTP status {fields[0][1]}" in call.details
    assert (client.take() == frame(RST_STREAM, 0, 1, b"\0\0\0\x08")) is not end
    assert client.count == 0


def test_headers_without_fields_are_not_grpc() -> None:
    client, call = begun()
    client.receive(frame(HEADERS, END_HEADERS, 1))
    assert (call.status, "HTTP status none" in call.details) == ("UNKNOWN", True)


def test_a_usual_end_in_the_middle_of_a_message_is_refused() -> None:
    client = greeted()
    encoder = Encoder()
    for cut in (None, None, None, -1, None):
        _, call = begun(client)
        start, end = encoder.encode(OPENED), encoder.encode(OK)
        client.receive(frame(HEADERS, END_HEADERS, call.stream.id, start) + data(call, framed(b"whole")[:cut]))
        client.receive(frame(HEADERS, END_HEADERS | END_STREAM, call.stream.id, end))
        assert call.status == ("INTERNAL" if cut else "OK")


def test_headers_without_a_status_are_not_grpc() -> None:
    client, call = begun()
    client.receive(headers(call, ("content-type", "application/grpc")))
    assert (call.status, "HTTP status none" in call.details) == ("UNKNOWN", True)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.binary(max_size=60), max_size=8),
    st.lists(st.integers(0, 25), max_size=60),
    st.integers(1, 200),
)
def test_messages_come_whole_in_any_cut(messages: list[bytes], sizes: list[int], cut: int) -> None:
    client = greeted()
    call = client.begin_stream(PATH, ())
    stream = b"".join(map(framed, messages))
    frames = headers(call, *OPENED)
    for size in sizes:
        frames += frame(DATA, 0, call.stream.id, stream[:size])
        stream = stream[size:]
    frames += frame(DATA, 0, call.stream.id, stream) + headers(call, *OK, end=True)
    for start in range(0, len(frames), cut):
        client.receive(frames[start : start + cut])
    assert (call.status, list(call.messages)) == ("OK", messages)


def test_an_answer_that_ends_in_a_message_is_refused() -> None:
    client, call = begun()
    client.receive(headers(call, *OPENED) + data(call, framed(b"whole")[:-1]) + headers(call, *OK, end=True))
    assert (call.status, call.details) == ("INTERNAL", "it ended in the middle of a message")


def test_an_answer_without_trailers_is_refused() -> None:
    client, call = begun()
    client.receive(headers(call, *OPENED) + data(call, framed(b"whole"), end=True))
    assert (call.status, call.details) == ("INTERNAL", "it ended an answer without a status")


def test_a_compressed_message_is_refused() -> None:
    client, call = begun()
    client.receive(headers(call, *OPENED) + data(call, b"\1\0\0\0\1x"))
    assert (call.status, "compressed" in call.details) == ("INTERNAL", True)
    assert client.take() == frame(RST_STREAM, 0, 1, b"\0\0\0\x08")


@pytest.mark.parametrize("more", [framed(b"second"), b"\0\0\0", framed(b"x" * 100)[:50]])
def test_a_unary_call_gets_one_message(more: bytes) -> None:
    client, call = begun()
    client.receive(headers(call, *OPENED) + data(call, framed(b"first")))
    assert not call.status
    client.receive(data(call, more))
    assert (call.status, call.details) == ("INTERNAL", "it answered with more than one message")


@pytest.mark.parametrize("messages", [[], [b"\xff\xff"]])
def test_an_answer_that_cannot_be_read_is_an_error(messages: list[bytes]) -> None:
    client, call = begun()
    client.receive(headers(call, *OPENED))
    for message in messages:
        client.receive(data(call, framed(message)))
    client.receive(headers(call, *OK, end=True))
    with pytest.raises(EtcdError, match="cannot be read"):
        result(call, pb.TxnResponse, ENDPOINT)


def test_a_message_of_64_mib_arrives_and_a_larger_one_is_refused() -> None:
    client, call = begun()
    _, large = begun(client)
    message = bytes(MAX_MESSAGE)
    stream = headers(call, *OPENED) + data(call, framed(message)) + headers(call, *OK, end=True)
    given = window = WINDOW
    for start in range(0, len(stream), 1 << 18):
        client.receive(stream[start : start + (1 << 18)])
        given += increments(client.take(), call.stream.id)
        window = min(window, given - start)
    assert (call.status, len(call.messages[0])) == ("OK", MAX_MESSAGE)
    assert window > 0
    client.receive(headers(large, *OPENED) + data(large, struct.pack(">BL", 0, MAX_MESSAGE + 1)))
    assert large.status == "RESOURCE_EXHAUSTED"
    assert str(MAX_MESSAGE + 1) in large.details
    assert client.take() == frame(RST_STREAM, 0, large.stream.id, b"\0\0\0\x08")


def increments(frames: bytes, stream: int) -> int:
    """The credit that these bytes give."""
    total = at = 0
    while at < len(frames):
        size = int.from_bytes(frames[at : at + 3])
        if frames[at + 3] == WINDOW_UPDATE and frames[at + 5 : at + 9] == struct.pack(">L", stream):
            total += int.from_bytes(frames[at + 9 : at + 13])
        at += 9 + size
    return total


class Pair:
    """A client and the ``h2`` server, of which each gets at once what the other says."""

    def __init__(self) -> None:
        self.client = Calls(ENDPOINT)
        self.server = Server()
        self.exchange()

    def exchange(self) -> None:
        for _ in range(3):
            self.server.receive(self.client.take())
            self.server.credit()
            self.client.receive(bytes(self.server.out))
            self.server.out.clear()

    def pump(self, call: Call) -> None:
        """Send all that the windows allow, and what they allow afterwards."""
        self.exchange()
        left = -1
        while left != len(self.server.requests[call.stream.id].to_send):
            left = len(self.server.requests[call.stream.id].to_send)
            self.server.pump(call.stream.id, Tape(()))
            self.exchange()


@pytest.mark.parametrize("size", [100, 5_000, 1_000_000])
def test_a_reader_that_takes_nothing_stops_its_own_stream_only(size: int) -> None:
    pair = Pair()
    slow = pair.client.begin_stream(PATH, ())
    call = pair.client.begin(PATH, (), b"request")
    pair.exchange()
    pair.server.say(slow.stream.id, b"first", Tape(()))
    pair.pump(slow)
    pair.server.requests[slow.stream.id].to_send += framed(b"x" * size) * ((12 << 20) // size)
    whole = len(pair.server.requests[slow.stream.id].to_send) + len(framed(b"first"))
    pair.pump(slow)
    assert whole - len(pair.server.requests[slow.stream.id].to_send) == WINDOW  # not a byte more or less
    assert pair.server.http2.local_flow_control_window(slow.stream.id) == 0

    pair.server.say(call.stream.id, b"y" * (5 << 20), Tape(()))
    pair.server.decide(call.stream.id, 0, "", Tape(()))
    pair.pump(call)
    assert (call.status, len(call.messages[0])) == ("OK", 5 << 20)

    pair.server.decide(slow.stream.id, 0, "", Tape(()))
    taken = 0
    while not slow.status:
        while (message := pair.client.next_message(slow)) is not None:
            taken += len(framed(message))
        pair.pump(slow)
    while (message := pair.client.next_message(slow)) is not None:
        taken += len(framed(message))
    assert (slow.status, taken) == ("OK", whole)


def test_the_server_gets_credit_for_what_was_consumed() -> None:
    pair = Pair()
    call = pair.client.begin_stream(PATH, ())
    pair.exchange()
    for _ in range(600):
        pair.server.say(call.stream.id, b"x" * 10_000, Tape(()))
        pair.server.pump(call.stream.id, Tape((1, 3, 1, 3, 1)))  # with padding
        pair.exchange()
        room = pair.server.http2.local_flow_control_window(call.stream.id)
        assert room + call.unread + call.stream._credit == WINDOW
        while pair.client.next_message(call) is not None:
            pass
        pair.exchange()
        room = pair.server.http2.local_flow_control_window(call.stream.id)
        assert room + call.stream._credit == WINDOW
        assert room > WINDOW // 2


def test_a_call_that_was_never_taken_was_not_applied() -> None:
    client = greeted()
    call = client.begin(PATH, (), b"request")
    client.lost("it is gone")
    assert call.details == f"{NOT_SENT}: it is gone"
    assert applied(call) == "no"
    assert client.take() == b""


def test_a_call_that_was_taken_may_be_applied() -> None:
    client, call = begun()
    client.lost("it is gone")
    assert applied(call) == "unknown"


def test_a_call_that_waits_for_a_window_was_not_applied() -> None:
    client = greeted()
    call = client.begin(PATH, (), b"x" * 70_000)
    assert len(client.take()) > 65_535
    client.lost("it is gone")
    assert applied(call) == "no"


@pytest.mark.parametrize(("code", "expected"), [(7, "no"), (8, "unknown"), (2, "unknown"), (0, "unknown")])
def test_only_a_refused_stream_was_not_applied(code: int, expected: str) -> None:
    client, call = begun()
    assert client.receive(frame(RST_STREAM, 0, 1, struct.pack(">L", code))) == [call]
    assert call.status == ("CANCELLED" if code == 8 else "UNAVAILABLE")
    assert applied(call) == expected


def test_a_refusal_after_an_answer_began_is_not_believed() -> None:
    client, call = begun()
    _, other = begun(client)
    client.receive(headers(call, *OPENED) + frame(RST_STREAM, 0, 1, struct.pack(">L", 7)))
    assert applied(call) == "unknown"
    client.receive(headers(other, *OPENED) + frame(GOAWAY, 0, 0, struct.pack(">LL", 0, 0)))
    assert applied(other) == "unknown"


def test_goaway_refuses_the_later_calls_and_those_that_wait() -> None:
    client = greeted()
    client.receive(frame(SETTINGS, 0, 0, struct.pack(">HL", 3, 2)))
    first, second, third = (client.begin(PATH, (), b"x") for _ in range(3))
    client.take()
    news = client.receive(frame(GOAWAY, 0, 0, struct.pack(">LL", 1, 0) + b"restart"))
    assert news == [second, third]
    assert {call.details for call in news} == {f"{NOT_SENT}: it is going away (NO_ERROR: restart)"}
    assert not client.usable
    client.receive(headers(first, *OPENED) + data(first, framed(b"")) + headers(first, *OK, end=True))
    assert first.status == "OK"
    assert client.count == 0


def test_a_cancelled_call_that_was_not_taken_is_never_written() -> None:
    client = greeted()
    server = Server()
    server.receive(Calls(ENDPOINT).take())
    blocked = [client.begin(PATH, (), bytes([number]) * 40_000) for number in range(2)]
    assert not blocked[0].stream.written
    client.cancel(blocked[0])
    server.receive(client.take())
    requests = list(server.requests.values())
    assert [(request.whole, bytes(request.data)) for request in requests] == [
        (False, b""),
        (True, framed(b"\1" * 40_000)),  # it got the window back
    ]
    assert blocked[1].stream.written


def test_a_call_that_waits_is_cancelled_without_a_word() -> None:
    client = Calls(ENDPOINT)
    call = client.begin(PATH, (), b"x")
    client.cancel(call)
    client.cancel(call)
    client.take()
    client.receive(GREETING)
    assert client.take() == frame(SETTINGS, 1, 0)
    assert (call.status, client.count) == ("CANCELLED", 0)


def test_many_tokens_leave_nothing_behind() -> None:
    client = greeted()
    for number in range(500):
        client.begin(PATH, (("token", str(number)),), b"x")
    assert len(client._fields) < 110
