"""Fencing over HTTP: the headers that a client sends, and an ASGI middleware that refuses requests of earlier holders.

Fencing-Token: 1234
Fencing-Names: /codomyrmex/v1/lock/deploy/      several are separated by spaces
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from codomyrmex.concurrency.decode import number
from codomyrmex.concurrency.fencing.fence import Fence, Granted, Reserved, fence_of, is_name, rejected
from codomyrmex.concurrency.fencing.request_order import Higher, Request, RequestOrder
from codomyrmex.concurrency.fencing.token_stores import MemoryStore, SqlStore, TokenStore

__all__ = [
    "NAMES",
    "TOKEN",
    "App",
    "FencingMiddleware",
    "MemoryStore",
    "Receive",
    "Send",
    "SqlStore",
    "TokenStore",
    "headers",
]

TOKEN, NAMES = "Fencing-Token", "Fencing-Names"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_SAFE = {"GET", "HEAD", "OPTIONS", "TRACE"}  # methods that change nothing
_HEADERS = {TOKEN.lower().encode(): TOKEN, NAMES.lower().encode(): NAMES}


def headers(grant: Granted | Reserved) -> dict[str, str]:
    """The headers of a request that the holder of ``grant`` sends.

    Raises ``TypeError`` or ``ValueError`` for a grant that does not exclude others: a semaphore's, a reader's, a
    member's, and one of paths alone.
    """
    fence = fence_of(grant)
    return {TOKEN: str(fence.token), NAMES: " ".join(fence.names)}


class FencingMiddleware:
    """An ASGI application that lets requests of the latest holder through to ``app``, and answers 409 to earlier ones.

    The answer has the higher token in its JSON and in the header ``Fencing-Token``. Requests are in order for each
    lock: one with a higher token begins after those with a lower token have ended. Requests with one token run at the
    same time. This order is that of one process. Across several, a ``SqlStore`` refuses requests that come too late,
    and ``fencing.sql`` in the transaction of the request orders those that are under way.

    A request without the headers passes. A request with only one of them, or with a wrong one, is answered 400.

    Args:
        app: the ASGI application.
        store: keeps the highest tokens; a ``MemoryStore`` when left out.
        required: answer 428 to a request without the headers, unless its method is GET, HEAD, OPTIONS or TRACE.
    """

    def __init__(self, app: App, store: TokenStore | None = None, required: bool = False) -> None:
        self._app = app
        self._order = RequestOrder(MemoryStore() if store is None else store)
        self._required = required

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            fence = _fence_in(scope["headers"])
        except ValueError as error:
            return await _answer(send, 400, {"detail": str(error)})
        if fence:
            return await self._fenced(fence, scope, receive, send)
        if self._required and scope["method"] not in _SAFE:
            return await _answer(send, 428, {"detail": f"this request needs the headers {TOKEN} and {NAMES}"})
        return await self._app(scope, receive, send)

    async def _fenced(self, fence: Fence, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        request = Request(fence)
        try:
            refused = await self._order.begin(request)
            if not refused:
                exchange = _Exchange(request, receive, send)
                refused = await exchange.run(self._app, scope)
        finally:
            self._order.end(request)
        if refused:
            await _refuse(send, fence, refused)


class _Exchange:
    """A request that has begun. When it is overtaken while its body is incomplete, ``app`` is told that its client has
    gone."""

    def __init__(self, request: Request, receive: Receive, send: Send) -> None:
        self._request = request
        self._receive = receive
        self._send = send
        self._body_complete = self._cut = self._answered = False

    async def run(self, app: App, scope: MutableMapping[str, Any]) -> Higher | None:
        """Run ``app``; returns the higher token if the request was cut off before it was answered."""
        try:
            await app(scope, self.receive, self.send)
        except Exception:
            if not self._cut or self._answered:
                raise
        return self._request.higher if self._cut and not self._answered else None

    async def receive(self) -> Message:
        """The next message of the client."""
        if self._body_complete:
            return await self._receive()
        message = await _unless(self._request.overtaken, self._receive())
        if message is None:
            self._cut = True
            return {"type": "http.disconnect"}
        self._body_complete = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a message to the client."""
        self._answered = True
        await self._send(message)


async def _unless(event: asyncio.Event, work: Awaitable[Message]) -> Message | None:
    """The result of ``work``, or None once ``event`` is set."""
    result, stopped = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((result, stopped), return_when=asyncio.FIRST_COMPLETED)
        return result.result() if result.done() else None
    finally:
        result.cancel()
        stopped.cancel()


def _fence_in(sent: Iterable[tuple[bytes, bytes]]) -> Fence | None:
    """The fence that the headers of a request name; None without these headers. Raises ``ValueError``."""
    found: dict[str, str] = {}
    for key, value in sent:
        header = _HEADERS.get(key.lower())
        if header in found:
            raise ValueError(f"the header {header} must be there once")
        if header:
            found[header] = value.decode("latin-1")
    if not found:
        return None
    if len(found) == 1:
        raise ValueError(f"the headers {TOKEN} and {NAMES} come together; take them from fencing.http.headers(grant)")
    token = number(found[TOKEN].encode())
    if not token:
        raise ValueError(f"{TOKEN} must be a positive whole number, not {found[TOKEN][:40]!r}")
    names = found[NAMES].split(" ")
    if wrong := [name for name in names if not is_name(name)]:
        raise ValueError(f"{NAMES} must be names that fencing.http.headers(grant) gives, not {wrong[0][:80]!r}")
    return Fence(tuple(sorted(set(names))), token)


async def _refuse(send: Send, fence: Fence, higher: Higher) -> None:
    error = rejected(higher.name, fence.token, higher.token, "this request changed nothing")
    body = {"detail": str(error), "name": higher.name, "token": fence.token, "highest": higher.token}
    await _answer(send, 409, body, {TOKEN: str(higher.token)})


async def _answer(send: Send, status: int, body: dict[str, Any], extra: Mapping[str, str] | None = None) -> None:
    content = json.dumps(body).encode()
    fields = {"Content-Type": "application/json", "Content-Length": str(len(content)), **(extra or {})}
    sent = [(name.lower().encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": sent})
    await send({"type": "http.response.body", "body": content})
