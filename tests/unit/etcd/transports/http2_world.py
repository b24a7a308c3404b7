"""A world of one client and one server that speak HTTP/2 in memory, and the checker of what the client says.

The client is the library's ``Calls``. The server is python-hyper's ``h2``, which raises an error at any breach of the
protocol. A tape of numbers decides every step, so hypothesis can shorten a history that goes wrong.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from urllib.parse import quote

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, PingAckReceived, RequestReceived, SettingsAcknowledged, StreamEnded, StreamReset
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame

from codomyrmex.concurrency.etcd.transports.failures import NOT_SENT
from codomyrmex.concurrency.etcd.transports.methods import STATUS_NAMES
from codomyrmex.concurrency.etcd.transports.native_calls import Call, Calls

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
ENDPOINT = "http://etcd:2379"
PATH = "/etcdserverpb.KV/Txn"
CUT = "the connection was cut"
ROUNDS = 400  # of exchanges until the world must be at rest

SIZES = (0, 1, 30, 1_000, 16_379, 16_384, 40_000, 70_000)
CUTS = (1, 2, 9, 40, 500, 20_000, 1 << 20, 1 << 20, 1 << 20)
WINDOWS = (0, 1, 10, 1_000, 65_535, 200_000)
FRAMES = (16_384, 16_385, 50_000)
TABLES = (0, 0, 40, 200, 4_096, 65_536)
LIMITS = (0, 1, 1, 2, 5, 100)
TEXTS = ("", "all is well: 100 %", "käse\n\x07 und 漢字", "etcdserver: too many requests", "%%%41")
CODES = (ErrorCodes.NO_ERROR, ErrorCodes.CANCEL, ErrorCodes.INTERNAL_ERROR, ErrorCodes.REFUSED_STREAM)


def framed(message: bytes) -> bytes:
    """A message with gRPC's prefix."""
    return struct.pack(">BL", 0, len(message)) + message


class Tape:
    """Numbers that decide; after the last one, zero."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers: Iterator[int] = iter(numbers)
        self.over = False

    def number(self, below: int) -> int:
        try:
            return next(self._numbers) % below
        except StopIteration:
            self.over = True
            return 0

    def choice(self, options: tuple[int, ...]) -> int:
        return options[self.number(len(options))]


class Request:
    """A stream as the server sees it, and what the server has said on it."""

    def __init__(self, headers: list[tuple[str, str]]) -> None:
        self.headers = dict(headers)
        self.data = bytearray()
        self.whole = False
        self.refused = False  # by RST_STREAM or GOAWAY, before it said anything
        self.reset: int | None = None
        self.gone = False  # the client has reset it
        self.headed = False
        self.messages: list[bytes] = []
        self.status = -1  # once it has decided how to end
        self.text = ""
        self.to_send = bytearray()
        self.trailed = False  # once the trailers are on their way


class Server:
    """An etcd of sorts. It acts only when the tape says so."""

    def __init__(self) -> None:
        configuration = H2Configuration(client_side=False, header_encoding="utf-8")
        self.http2 = H2Connection(configuration)
        self.http2.initiate_connection()
        self.out = bytearray()
        self._in = bytearray()
        self._greeted = False
        self.requests: dict[int, Request] = {}
        self.unread: list[tuple[int, int]] = []  # bytes for which the client has no credit yet
        self.last = 1 << 31  # the stream of a GOAWAY
        self.unanswered = 0  # PINGs
        self.unacknowledged: list[SettingCodes | None] = [None]  # settings; the first ones are of every kind

    def receive(self, data: bytes) -> None:
        """Read whole frames, one at a time, for ``h2`` obeys an acknowledgement only in the bytes it is given later."""
        self._in += data
        while len(self._in) >= self._next_size():
            size = self._next_size()
            self._read(bytes(self._in[:size]))
            del self._in[:size]
            self._greeted = True
        self.flush()

    def _next_size(self) -> int:
        if not self._greeted:
            return len(PREFACE)
        return 9 + int.from_bytes(self._in[:3]) if len(self._in) >= 9 else 9

    def _read(self, data: bytes) -> None:
        for event in self.http2.receive_data(data):
            if isinstance(event, RequestReceived):
                request = self.requests[event.stream_id] = Request(
                    [(str(name), str(value)) for name, value in event.headers]
                )
                request.refused = event.stream_id > self.last
            elif isinstance(event, DataReceived):
                self.requests[event.stream_id].data += event.data
                self.unread.append((event.stream_id, event.flow_controlled_length))
            elif isinstance(event, StreamEnded):
                self.requests[event.stream_id].whole = True
            elif isinstance(event, PingAckReceived):
                self.unanswered -= 1
            elif isinstance(event, SettingsAcknowledged):
                del self.unacknowledged[0]
            elif isinstance(event, StreamReset):
                self.requests[event.stream_id].gone = True

    def flush(self) -> None:
        self.out += self.http2.data_to_send()

    def configure(self, kind: SettingCodes, value: int) -> None:
        """Change a setting. ``h2`` takes one acknowledgement for all kinds, so only one kind is under way at a time."""
        if set(self.unacknowledged) <= {kind}:
            self.http2.update_settings({kind: value})
            self.unacknowledged.append(kind)

    def open(self) -> list[int]:
        """The streams that are not over."""
        return [
            number
            for number, request in self.requests.items()
            if not (request.gone or request.refused or request.trailed or request.reset is not None)
        ]

    def credit(self) -> None:
        unread, self.unread = self.unread, []
        for number, size in unread:
            if size:
                self.http2.increment_flow_control_window(size)
                try:
                    self.http2.increment_flow_control_window(size, number)
                except (KeyError, ProtocolError):  # the stream is over
                    continue
        self.flush()

    def head(self, number: int, tape: Tape) -> None:
        request = self.requests[number]
        if not request.headed:
            for _ in range(tape.number(3)):
                self.http2.send_headers(number, [(":status", "103")])
            extra = [("x-large", "y" * 30_000)] if tape.number(8) == 7 else []
            self.http2.send_headers(number, [(":status", "200"), ("content-type", "application/grpc"), *extra])
            request.headed = True

    def say(self, number: int, message: bytes, tape: Tape) -> None:
        self.head(number, tape)
        self.requests[number].messages.append(message)
        self.requests[number].to_send += framed(message)

    def decide(self, number: int, status: int, text: str, tape: Tape) -> None:
        """End the answer, by trailers only if nothing was said."""
        request = self.requests[number]
        request.status, request.text = status, text
        if request.headed:
            self.pump(number, tape)
            return
        self.http2.send_headers(number, self._trailers(request, only=True), end_stream=True)
        request.trailed = True

    def pump(self, number: int, tape: Tape) -> None:
        """Send of an answer as much as the windows allow, in frames of any size."""
        request = self.requests[number]
        while request.to_send:
            padding = (None, None, 0, 200)[tape.number(4)]
            room = self.http2.local_flow_control_window(number) - (0 if padding is None else padding + 1)
            size = min(room, len(request.to_send), 1 + tape.number(16_000) if tape.number(2) else 16_000)
            if size <= 0:
                return
            self.http2.send_data(number, bytes(request.to_send[:size]), pad_length=padding)
            del request.to_send[:size]
        if request.status >= 0 and not request.trailed:
            self.http2.send_headers(number, self._trailers(request, only=False), end_stream=True)
            request.trailed = True

    def _trailers(self, request: Request, *, only: bool) -> list[tuple[str, str]]:
        first = [(":status", "200"), ("content-type", "application/grpc")] if only else []
        return [*first, ("grpc-status", str(request.status)), ("grpc-message", quote(request.text, safe=" :"))]

    def reset(self, number: int, code: int) -> None:
        request = self.requests[number]
        request.reset = code
        request.refused = code == ErrorCodes.REFUSED_STREAM and not request.headed
        self.http2.reset_stream(number, code)

    def go_away(self, last: int) -> None:
        """Refuse the streams after ``last``, and go on with the others."""
        self.flush()
        self.last = last
        self.out += GoAwayFrame(0, last, 0, b"maintenance").serialize()
        for number, request in self.requests.items():
            if number > last and number in self.open():
                request.refused = not request.headed
                request.gone = True


class World:
    """The client, the server and the bytes between them."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.client = Calls(ENDPOINT)
        self.server = Server()
        self.to_server = bytearray()
        self.calls: list[UserCall] = []
        self.cut = False
        self.faults: list[str] = []

    def begin(self, *, unary: bool) -> None:
        if not self.client.usable:
            return
        number = len(self.calls)
        metadata = (("token", f"t{self.tape.number(3)}" * (12_000 if self.tape.number(30) == 29 else 1)),)
        body = struct.pack(">L", number) + b"x" * self.tape.choice(SIZES)
        call = self.client.begin(PATH, metadata, body) if unary else self.client.begin_stream(PATH, metadata)
        self.calls.append(UserCall(call, metadata, [body] if unary else []))

    def send(self, user: UserCall) -> None:
        if not user.call.unary and not user.call.status:
            body = b"m" * self.tape.choice(SIZES)
            user.sent.append(body)
            self.client.send(user.call, body)

    def cancel(self, user: UserCall) -> None:
        if not user.call.status:
            user.cancelled = True
            user.written = user.call.stream.written
            self.client.cancel(user.call)

    def read(self, user: UserCall) -> None:
        while (message := self.client.next_message(user.call)) is not None:
            user.taken.append(message)

    def flush(self) -> None:
        self.to_server += self.client.take()

    def deliver_to_server(self, size: int) -> None:
        data = bytes(self.to_server[:size])
        del self.to_server[:size]
        if data:
            self.server.receive(data)

    def deliver_to_client(self, size: int) -> None:
        self.server.flush()
        data = bytes(self.server.out[:size])
        del self.server.out[:size]
        if data:
            over = {id(user.call) for user in self.calls if user.call.status}
            for call in self.client.receive(data):
                if id(call) in over:
                    self.faults.append("it told news of a call that was over")
            if self.client.failure:
                self.faults.append(f"it takes h2 for broken: {self.client.failure}")

    def act(self) -> None:
        """One step."""
        tape, server = self.tape, self.server
        action = tape.number(20)
        user = self.calls[tape.number(len(self.calls))] if self.calls else None
        opened = server.open()
        number = opened[tape.number(len(opened))] if opened else 0
        if action <= 2:
            self.begin(unary=True)
        elif action == 3:
            self.begin(unary=False)
        elif action == 4 and user:
            self.send(user)
        elif action == 5 and user and tape.number(3) == 0:
            self.cancel(user)
        elif action == 6 and user:
            self.read(user)
        elif action in (7, 8):
            self.flush()
        elif action in (9, 10):
            self.deliver_to_server(tape.choice(CUTS))
        elif action in (11, 12):
            self.deliver_to_client(tape.choice(CUTS))
        elif action == 13:
            self.configure()
        elif action == 14:
            server.credit()
        elif action == 15:
            server.unanswered += 1
            server.http2.ping(b"12345678")
            if tape.number(2):
                self.client.pong()
        elif action == 16 and number:
            if server.requests[number].status < 0 and not self.answers_once(number):
                server.say(number, b"a" * tape.choice(SIZES), tape)
        elif action == 17 and number:
            if server.requests[number].status < 0:
                self.answer(number)
        elif action == 18 and number and tape.number(3) == 0:
            server.reset(number, CODES[tape.number(len(CODES))])
        elif action == 19:
            for each in opened:
                if server.requests[each].headed:
                    server.pump(each, tape)
            if tape.number(40) == 39 and server.last == 1 << 31:
                server.go_away(tape.choice((0, 1, 3, 9, (1 << 31) - 1)))

    def configure(self) -> None:
        tape = self.tape
        kind, value = (
            (SettingCodes.INITIAL_WINDOW_SIZE, tape.choice(WINDOWS)),
            (SettingCodes.MAX_FRAME_SIZE, tape.choice(FRAMES)),
            (SettingCodes.HEADER_TABLE_SIZE, tape.choice(TABLES)),
            (SettingCodes.MAX_CONCURRENT_STREAMS, tape.choice(LIMITS)),
            (SettingCodes.HEADER_TABLE_SIZE, 0),
        )[tape.number(5)]
        self.server.configure(kind, value)

    def answers_once(self, number: int) -> bool:
        """True if a unary call has its message."""
        return bool(self.server.requests[number].messages) and not self.streams(number)

    def streams(self, number: int) -> bool:
        return any(user.call.stream.id == number and not user.call.unary for user in self.calls)

    def answer(self, number: int) -> None:
        tape, request = self.tape, self.server.requests[number]
        status = tape.choice((0, 0, 0, 5, 8, 14))
        if status == 0 and not request.messages and not self.streams(number):
            self.server.say(number, b"a" * tape.choice(SIZES), tape)
        self.server.decide(number, status, TEXTS[tape.number(len(TEXTS))] if status else "", tape)

    def settle(self) -> None:
        """Let the server answer every call, and the bytes arrive."""
        server = self.server
        last = [(SettingCodes.MAX_CONCURRENT_STREAMS, 1), (SettingCodes.INITIAL_WINDOW_SIZE, 1 << 20)]
        for _ in range(ROUNDS):
            if last and not server.unacknowledged:
                server.configure(*last.pop())
            for user in self.calls:
                self.read(user)
            self.client.pong()
            self.flush()
            server.credit()
            for number in server.open():
                request = server.requests[number]
                if request.status < 0:
                    if request.whole or self.streams(number):
                        self.answer(number)
                elif request.headed:
                    server.pump(number, self.tape)
            server.flush()
            if not (self.to_server or server.out or server.unread):
                break
            self.deliver_to_server(1 << 24)
            self.deliver_to_client(1 << 24)
        for user in self.calls:
            self.read(user)
        if server.unanswered:
            self.faults.append(f"{server.unanswered} PINGs are not answered")

    def lose(self) -> None:
        """Cut the connection: the server gets what was written, the client nothing more."""
        self.cut = True
        self.deliver_to_server(1 << 24)
        self.client.lost(CUT)
        self.flush()
        self.deliver_to_server(1 << 24)
        for user in self.calls:
            self.read(user)


class UserCall:
    """A call as its user sees it: what was sent, what was taken, and if it was cancelled."""

    def __init__(self, call: Call, metadata: tuple[tuple[str, str], ...], sent: list[bytes]) -> None:
        self.call = call
        self.metadata = metadata
        self.sent = sent
        self.taken: list[bytes] = []
        self.cancelled = False
        self.written = False


def play(numbers: Iterable[int]) -> list[str]:
    """Play a history, and return what is wrong with what the client said."""
    tape = Tape(numbers)
    world = World(tape)
    cut = tape.number(3) == 2
    try:
        while not tape.over:
            world.act()
        if cut:
            world.lose()
        else:
            world.settle()
    except ProtocolError as error:
        return [f"h2 says: {type(error).__name__} {error}"]
    return world.faults + [fault for user in world.calls for fault in faults_of(world, user)]


def faults_of(world: World, user: UserCall) -> Iterator[str]:
    """The checker: compares a call with what the server saw and said on its stream."""
    call = user.call
    number = call.stream.id
    request = world.server.requests.get(number)
    where = f"stream {number}, {call.status or 'no status'} ({call.details}): "
    not_sent = NOT_SENT in call.details
    if not call.status:
        yield where + "it hangs"
        return
    if request:
        yield from (where + fault for fault in _wrong_request(user, request))
    said = request.messages if request else []
    if user.taken != said[: len(user.taken)]:
        yield where + "it took a message that the server did not send"
    whole = bool(request and request.whole)
    refused = bool(request and request.refused)
    if not_sent and whole and not refused:
        yield where + "it says that it was not sent, and the server saw it whole"
    if user.cancelled:
        if not user.written and whole:
            yield where + "it was cancelled before it was written, and the server saw it whole"
        return
    ended = _ending(request) if request else None
    if ended and (call.status, call.details) == ended:
        if call.status == "OK" and user.taken != said:
            yield where + "it is over, and a message is missing"
        return
    reset = bool(request and request.reset is not None)
    if world.cut and call.details in (CUT, f"{NOT_SENT}: {CUT}"):
        if call.status != "UNAVAILABLE":
            yield where + "its status is not the one of a lost connection"
        deaf = bool(request and (request.reset is not None or request.gone))  # it ignored the rest
        if not (whole or deaf or not_sent) and (call.unary or number == 0):
            yield where + "it was never written whole, and does not say so"
    elif reset or refused or number == 0 or number > world.server.last:
        if (refused or number == 0) and not not_sent:
            yield where + "it was refused, and does not say so"
        if call.status not in ("UNAVAILABLE", "CANCELLED"):
            yield where + "its status is not the one of a call that was reset"
        if number == 0 and world.server.last == 1 << 31:
            yield where + "it ended, and nothing had happened to it"
    else:
        yield where + f"the server said {ended}"


def _ending(request: Request) -> tuple[str, str] | None:
    """The status and text of an answer that the server sent whole."""
    return (STATUS_NAMES[request.status], request.text) if request.trailed else None


def _wrong_request(user: UserCall, request: Request) -> Iterator[str]:
    wanted = {":method": "POST", ":scheme": "http", ":path": PATH, ":authority": "etcd:2379", "te": "trailers"}
    if request.headers != {**wanted, "content-type": "application/grpc", **dict(user.metadata)}:
        yield "the server read other headers"
    sent = b"".join(map(framed, user.sent))
    if not sent.startswith(request.data):
        yield "the server read another request"
    if request.whole and sent != request.data:
        yield "the server read a part as the whole"
