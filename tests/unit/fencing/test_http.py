"""``fencing.http``: the headers, the middleware and its stores."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from codomyrmex.concurrency.fencing import http
from codomyrmex.concurrency.keys import PATH
from tests.unit.fencing.holds import entry, held, kept, permit

Sent = list[tuple[bytes, bytes]]


class Client:
    """One request to an application, and its answer."""

    def __init__(self, headers: dict[str, str] | Sent, method: str = "PUT", body: bool = True) -> None:
        pairs = headers if isinstance(headers, list) else [(k.encode(), v.encode()) for k, v in headers.items()]
        self.scope = {"type": "http", "method": method, "headers": [(key.lower(), value) for key, value in pairs]}
        self.body: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.answer: list[Any] = []
        if body:
            self.body.put_nowait({"type": "http.request", "body": b"data", "more_body": False})

    async def to(self, app: http.FencingMiddleware) -> Client:
        async def send(message: Any) -> None:
            self.answer.append(message)

        await app(self.scope, self.body.get, send)
        return self

    @property
    def status(self) -> int:
        return int(self.answer[0]["status"])

    @property
    def json(self) -> Any:
        return json.loads(self.answer[1]["body"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.answer[0]["headers"])


class App:
    """An application that says what it does, and waits for ``go`` in the middle of each request."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.go = asyncio.Event()
        self.go.set()
        self.failure: Exception | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        token = dict(scope.get("headers", ())).get(b"fencing-token", b"-").decode()
        self.log.append(f"begin {token}")
        try:
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.log.append(f"cut {token}")
                    if self.failure:
                        raise self.failure
                    return
                more = message["more_body"]
            await self.go.wait()
        finally:
            self.log.append(f"end {token}")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


@pytest.fixture
async def app() -> App:
    return App()


@pytest.fixture
async def under_way(app: App) -> AsyncIterator[Callable[..., Any]]:
    """Sends a request that goes on, and returns its task once the others have done what they can."""
    tasks: list[asyncio.Task[Client]] = []

    async def start(served: http.FencingMiddleware, client: Client) -> asyncio.Task[Client]:
        tasks.append(asyncio.create_task(client.to(served)))
        for _ in range(20):
            await asyncio.sleep(0)
        return tasks[-1]

    yield start
    for task in tasks:
        task.cancel()


def by(token: int, name: str = "deploy", **options: Any) -> Client:
    return Client(http.headers(held(token, name)), **options)


def test_a_client_sends_token_and_names() -> None:
    assert http.headers(held(7)) == {"Fencing-Token": "7", "Fencing-Names": "/fleet/v1/lock/deploy/"}
    both = http.headers(kept(7, entry("b c"), entry("a"), entry("tree", PATH)))
    assert both["Fencing-Names"] == "/fleet/v1/lock/a/ /fleet/v1/lock/b%20c/"
    with pytest.raises(ValueError, match="semaphore"):
        http.headers(permit(7))


async def test_a_lower_token_is_answered_409_with_the_higher_one(app: App) -> None:
    served = http.FencingMiddleware(app)
    assert (await by(7).to(served)).status == (await by(9).to(served)).status == 200
    late = await by(7).to(served)
    assert (late.status, late.headers[b"fencing-token"]) == (409, b"9")
    assert late.json == {
        "detail": "the token 7 of the lock 'deploy' is too old: the token 9 of a later holder, or of a former etcd, "
        "was here; this request changed nothing",
        "name": "/fleet/v1/lock/deploy/",
        "token": 7,
        "highest": 9,
    }
    assert app.log == ["begin 7", "end 7", "begin 9", "end 9"]


async def test_without_it_the_late_request_lands(app: App) -> None:
    await Client({}).to(http.FencingMiddleware(app))
    assert app.log == ["begin -", "end -"]


async def test_names_are_apart_and_each_name_of_a_reservation_counts(app: App) -> None:
    served = http.FencingMiddleware(app)
    assert (await by(9, "a").to(served)).status == (await by(7, "b").to(served)).status == 200
    both = Client(http.headers(kept(8, entry("a"), entry("b"))))
    assert (await both.to(served)).json["name"] == "/fleet/v1/lock/a/"
    assert (await Client(http.headers(kept(10, entry("a"), entry("b")))).to(served)).status == 200
    assert (await by(9, "b").to(served)).json["highest"] == 10


@pytest.mark.parametrize("method", ["PUT", "POST", "PATCH", "DELETE"])
async def test_required_headers_are_asked_for(app: App, method: str) -> None:
    served = http.FencingMiddleware(app, required=True)
    assert (await Client({}, method).to(served)).status == 428
    assert (await Client({}, "GET").to(served)).status == 200
    assert (await by(7, method=method).to(served)).status == 200


TOKEN, NAMES = http.TOKEN.encode(), http.NAMES.encode()
NAME = b"/fleet/v1/lock/deploy/"


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        ([(TOKEN, b"7")], "come together"),
        ([(NAMES, NAME)], "come together"),
        ([(TOKEN, b"7"), (TOKEN, b"8"), (NAMES, NAME)], "Fencing-Token must be there once"),
        ([(TOKEN, b"7"), (NAMES, NAME), (NAMES, NAME)], "Fencing-Names must be there once"),
        *(
            ([(TOKEN, token), (NAMES, NAME)], "positive whole number")
            for token in (b"", b"0", b"-7", b"07", b"7.0", b"seven", b"9" * 30, b"\xb2")
        ),
        *(
            ([(TOKEN, b"7"), (NAMES, names)], "must be names")
            for names in (b"", b"deploy", NAME + b" ", NAME + b",/x", b"/fleet/v1/path/tree/", b"\xff")
        ),
    ],
)
async def test_wrong_headers_are_answered_400(app: App, sent: Sent, text: str) -> None:
    wrong = await Client(sent).to(http.FencingMiddleware(app))
    assert wrong.status == 400 and text in wrong.json["detail"]
    assert app.log == []


async def test_a_higher_one_waits_for_a_lower_one_under_way(app: App, under_way: Any) -> None:
    served = http.FencingMiddleware(app)
    app.go.clear()
    lower = await under_way(served, by(7))
    higher = await under_way(served, by(9))
    other = await under_way(served, by(8, "other"))
    assert app.log == ["begin 7", "begin 8"]
    assert (await by(7).to(served)).status == 409, "it has not begun, so it is refused"
    app.go.set()
    for task in (lower, higher, other):
        assert (await task).status == 200
    assert app.log.index("end 7") < app.log.index("begin 9")


async def test_one_holders_requests_run_at_the_same_time(app: App, under_way: Any) -> None:
    served = http.FencingMiddleware(app)
    app.go.clear()
    for _ in range(2):
        await under_way(served, by(7))
    assert app.log == ["begin 7", "begin 7"]


async def test_a_waiting_one_is_refused_when_overtaken(app: App, under_way: Any) -> None:
    served = http.FencingMiddleware(app)
    app.go.clear()
    await under_way(served, by(7))
    middle = await under_way(served, by(8))
    highest = await under_way(served, by(9))
    assert (await middle).json["highest"] == 9
    assert app.log == ["begin 7"]
    app.go.set()
    assert (await highest).status == 200


async def test_a_waiting_one_that_is_cancelled_holds_up_nothing(app: App, under_way: Any) -> None:
    served = http.FencingMiddleware(app)
    app.go.clear()
    lower = await under_way(served, by(7))
    waiting = await under_way(served, by(8))
    waiting.cancel()
    highest = await under_way(served, by(9))
    app.go.set()
    assert [(await task).status for task in (lower, highest)] == [200, 200]
    assert not served._order._requests


@pytest.mark.parametrize("failure", [None, ConnectionError("the client has gone")])
async def test_a_stopped_upload_does_not_stop_the_next_holder(
    app: App, under_way: Any, failure: Exception | None
) -> None:
    served = http.FencingMiddleware(app)
    app.failure = failure
    stopped = by(7, body=False)
    stopped.body.put_nowait({"type": "http.request", "body": b"half", "more_body": True})
    upload = await under_way(served, stopped)
    async with asyncio.timeout(5):
        assert (await by(9).to(served)).status == 200
    assert (await upload).status == 409
    assert app.log == ["begin 7", "cut 7", "end 7", "begin 9", "end 9"]


async def test_an_error_of_the_application_stays(app: App, under_way: Any) -> None:
    served = http.FencingMiddleware(app)
    app.failure = ValueError("broken")
    client = by(7, body=False)
    client.body.put_nowait({"type": "http.disconnect"})
    with pytest.raises(ValueError, match="broken"):
        await client.to(served)
    assert (await by(9).to(served)).status == 200


async def test_a_lower_one_whose_store_answers_late_does_not_begin_after_a_higher_one(app: App, under_way: Any) -> None:
    class Slow(http.MemoryStore):
        async def advance(self, name: str, token: int) -> int:
            highest = await super().advance(name, token)
            if token == 7:
                await answered.wait()
            return highest

    answered = asyncio.Event()
    served = http.FencingMiddleware(app, Slow())
    lower = await under_way(served, by(7))
    higher = await under_way(served, by(9))
    answered.set()
    assert [(await task).status for task in (lower, higher)] == [409, 200]
    assert app.log == ["begin 9", "end 9"]


async def test_a_sql_store_is_shared_and_lasts(app: App, tmp_path: Path) -> None:
    def connect() -> sqlite3.Connection:
        return sqlite3.connect(tmp_path / "tokens.db")

    one, two = (http.FencingMiddleware(app, http.SqlStore(connect)) for _ in range(2))
    assert (await by(9).to(one)).status == 200
    assert (await by(7).to(two)).json["highest"] == 9
    assert (await by(9).to(two)).status == 200


async def test_a_store_that_fails_lets_nothing_through(app: App) -> None:
    def connect() -> sqlite3.Connection:
        raise sqlite3.OperationalError("unable to open database file")

    with pytest.raises(sqlite3.OperationalError):
        await by(7).to(http.FencingMiddleware(app, http.SqlStore(connect)))
    assert app.log == []


async def test_other_protocols_pass(app: App) -> None:
    client = Client({})
    client.scope = {"type": "websocket"}
    await client.to(http.FencingMiddleware(app, required=True))
    assert app.log == ["begin -", "end -"]
