"""The client of HTTP/2 against python-hyper's ``h2`` over generated histories, and the checker over broken clients."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codomyrmex.concurrency.etcd.transports import http2_frames, http2_streams, native_calls
from codomyrmex.concurrency.etcd.transports.http2 import Connection
from codomyrmex.concurrency.etcd.transports.http2_headers import HeaderEncoder
from codomyrmex.concurrency.etcd.transports.http2_streams import Reset, Stream
from codomyrmex.concurrency.etcd.transports.native_calls import Call, Calls
from tests.unit.etcd.transports.http2_world import ENDPOINT, PATH, Server, Tape, World, framed, play

HISTORIES = 25


@pytest.fixture(autouse=True, scope="module")
def small_window() -> Iterator[None]:
    """A window that is smaller than some answers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http2_streams, "STREAM_WINDOW", 40_000)
        yield


def numbers(seed: int) -> list[int]:
    chance = random.Random(seed)
    return [chance.randrange(10_000) for _ in range(chance.choice([60, 150, 300]))]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 9_999), max_size=200))
def test_each_call_gets_the_answer_that_the_server_gave_it(tape: list[int]) -> None:
    assert play(tape) == []


def test_the_same_over_long_histories() -> None:
    for seed in range(HISTORIES):
        assert play(numbers(seed)) == [], seed


def _ignore_windows(patch: pytest.MonkeyPatch) -> None:
    original = Connection._send

    def send(self: Connection, stream: Stream) -> None:
        self._window, stream._window = 1 << 30, 1 << 30
        original(self, stream)

    patch.setattr(Connection, "_send", send)


def _shrink_no_window(patch: pytest.MonkeyPatch) -> None:
    original = Connection._widen
    patch.setattr(Connection, "_widen", lambda self, stream, more: original(self, stream, max(0, more)))


def _ignore_frame_sizes(patch: pytest.MonkeyPatch) -> None:
    original = Connection._send

    def send(self: Connection, stream: Stream) -> None:
        self._max_frame = 1 << 20
        original(self, stream)

    patch.setattr(Connection, "_send", send)


def _ignore_the_limit_of_streams(patch: pytest.MonkeyPatch) -> None:
    original = Connection._open_waiting

    def open_waiting(self: Connection) -> None:
        self._max_streams = 1 << 31
        original(self)

    patch.setattr(Connection, "_open_waiting", open_waiting)


def _forget_what_waits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Connection, "_send_blocked", lambda self: None)


def _open_no_stream_after_another(patch: pytest.MonkeyPatch) -> None:
    def forget(self: Connection, stream: Stream) -> None:
        del self._streams[stream.id]
        self._blocked.pop(stream, None)

    patch.setattr(Connection, "_forget", forget)


def _ignore_table_sizes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HeaderEncoder, "resize", lambda self, size: None)


def _give_no_credit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Connection, "consumed", lambda self, stream, size: None)


def _take_every_reset_for_a_refusal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Stream, "_unprocessed", lambda self, refused: True)


def _take_no_reset_for_a_refusal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Stream, "_unprocessed", lambda self, refused: False)


def _call_every_request_written(patch: pytest.MonkeyPatch) -> None:
    original = Calls.lost

    def lost(self: Calls, reason: str = "") -> list[Call]:
        for stream in self._http2._streams.values():
            stream.written = True
        return original(self, reason)

    patch.setattr(Calls, "lost", lost)


def _call_no_request_written(patch: pytest.MonkeyPatch) -> None:
    original = Connection.take

    def take(self: Connection) -> bytes:
        self._completed.clear()
        return original(self)

    patch.setattr(Connection, "take", take)


def _write_what_was_cancelled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Connection, "_take_back", lambda self, stream: None)


def _forget_parts_of_messages(patch: pytest.MonkeyPatch) -> None:
    original = Call.add

    def add(self: Call, data: bytes) -> None:
        self._part.clear()
        original(self, data)

    patch.setattr(Call, "add", add)


def _take_interim_answers_for_answers(patch: pytest.MonkeyPatch) -> None:
    original = Connection._headed

    def headed(self: Connection, stream_id: int, flags: int, block: bytes) -> None:
        original(self, stream_id, flags | http2_frames.END_STREAM, block)

    patch.setattr(Connection, "_headed", headed)


def _leave_messages_encoded(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(native_calls, "unquote_to_bytes", str.encode)


def _give_padding_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(http2_frames, "unpadded", lambda flags, payload: payload)


def _hold_on_after_goaway(patch: pytest.MonkeyPatch) -> None:
    original = Calls._was_reset

    def was_reset(self: Calls, event: Reset) -> None:
        if not self.leaving:
            original(self, event)

    patch.setattr(Calls, "_was_reset", was_reset)


BREAKAGES: tuple[Callable[[pytest.MonkeyPatch], None], ...] = (
    _ignore_windows,
    _shrink_no_window,
    _ignore_frame_sizes,
    _ignore_the_limit_of_streams,
    _forget_what_waits,
    _open_no_stream_after_another,
    _ignore_table_sizes,
    _give_no_credit,
    _take_every_reset_for_a_refusal,
    _take_no_reset_for_a_refusal,
    _call_every_request_written,
    _call_no_request_written,
    _write_what_was_cancelled,
    _forget_parts_of_messages,
    _take_interim_answers_for_answers,
    _leave_messages_encoded,
    _give_padding_out,
    _hold_on_after_goaway,
)


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_the_checker_rejects_a_broken_client(
    breakage: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    breakage(monkeypatch)
    assert any(_fails(seed) for seed in range(300))


def _fails(seed: int) -> bool:
    try:
        return bool(play(numbers(seed)))
    except (KeyError, AssertionError, AttributeError):  # a broken client may break its own state
        return True


class Pair:
    """A client and a server of which each gets at once what the other says."""

    def __init__(self) -> None:
        self.client = Calls(ENDPOINT)
        self.server = Server()
        self.exchange()

    def exchange(self, size: int = 1 << 24) -> None:
        """Let bytes go both ways, ``size`` at a time, until none is left."""
        while True:
            request = self.client.take()
            for start in range(0, len(request), size):
                self.server.receive(request[start : start + size])
            self.server.credit()
            answer = bytes(self.server.out)
            self.server.out.clear()
            for start in range(0, len(answer), size):
                self.client.receive(answer[start : start + size])
            if not (request or answer):
                return

    def answer(self, call: Call, *messages: bytes) -> None:
        number = call.stream.id
        for message in messages:
            self.server.say(number, message, Tape(()))
        self.server.decide(number, 0, "", Tape(()))


@pytest.mark.parametrize("size", [1, 2, 3, 10, 1_000])
def test_any_cut_of_the_bytes_gives_the_same_calls(size: int) -> None:
    pair = Pair()
    calls = [pair.client.begin(PATH, (("token", "t" * 20_000),), b"x" * 3_000) for _ in range(3)]
    pair.exchange(size)
    for call in calls:
        pair.answer(call, b"answer" * 500)
    pair.exchange(size)
    for call in calls:
        assert bytes(pair.server.requests[call.stream.id].data) == framed(b"x" * 3_000)
        assert (call.status, list(call.messages)) == ("OK", [b"answer" * 500])


def test_a_thousand_calls_at_once_get_their_own_answers() -> None:
    pair = Pair()
    calls = [pair.client.begin(PATH, (), str(number).encode()) for number in range(1_000)]
    pair.exchange()
    while any(not call.status for call in calls):  # h2 allows 100 streams at a time
        for number in pair.server.open():
            pair.server.say(number, bytes(pair.server.requests[number].data), Tape(()))
            pair.server.decide(number, 0, "", Tape(()))
        pair.exchange()
    for number, call in enumerate(calls):
        assert (call.status, list(call.messages)) == ("OK", [framed(str(number).encode())])
    assert pair.client.count == 0


def test_stream_ids_run_out() -> None:
    pair = Pair()
    pair.client._http2._next_id = (1 << 31) - 5
    calls: list[Call] = []
    while pair.client.usable:
        calls.append(pair.client.begin(PATH, (), b"one of the last"))
    pair.exchange()
    assert [call.stream.id for call in calls] == [(1 << 31) - 5, (1 << 31) - 3, (1 << 31) - 1]
    for call in calls:
        pair.answer(call, b"answer")
    pair.exchange()
    assert {call.status for call in calls} == {"OK"}


def test_calls_that_wait_count_for_the_stream_ids() -> None:
    client = Calls(ENDPOINT)
    client._http2._next_id = (1 << 31) - 5
    for _ in range(3):
        client.begin(PATH, (), b"")
    assert not client.usable


def test_an_answer_before_the_request_is_whole_ends_the_request() -> None:
    pair = Pair()
    pair.server.configure(4, 10)  # type: ignore[arg-type]
    pair.exchange()
    call = pair.client.begin(PATH, (), b"x" * 1_000)
    pair.server.receive(pair.client.take())
    pair.server.decide(call.stream.id, 8, "too large", Tape(()))
    pair.exchange()
    request = pair.server.requests[call.stream.id]
    assert (call.status, call.details) == ("RESOURCE_EXHAUSTED", "too large")
    assert (request.whole, request.gone) == (False, True)


def _world(**state: Any) -> World:
    world = World(Tape(()))
    for name, value in state.items():
        setattr(world, name, value)
    return world


def test_a_cut_connection_ends_every_call_once() -> None:
    world = _world()
    world.begin(unary=True)
    world.begin(unary=False)
    assert len(world.client.lost("it is gone")) == 2
    assert world.client.lost("it is gone") == []
    assert {user.call.status for user in world.calls} == {"UNAVAILABLE"}
