"""A server that takes configurations, and two clients that send them under a lock. The client that has lost its lock is
answered 409. Run it with an etcd around it:

codomyrmex concurrency dev -- python examples/fenced_http.py

The server is an ASGI application. To need no other package, the clients call it here in its own process.
"""

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

from codomyrmex.concurrency import LockManager, fencing
from codomyrmex.concurrency.fencing.http import FencingMiddleware, Receive, Send

Message = MutableMapping[str, Any]
configuration = {"text": ""}


async def application(scope: Message, receive: Receive, send: Send) -> None:
    """Keep the body of a PUT as the configuration."""
    configuration["text"] = (await receive())["body"].decode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b'{"detail": "stored"}'})


app = FencingMiddleware(application, required=True)  # as in app.add_middleware(FencingMiddleware, required=True)


async def put(text: str, headers: dict[str, str]) -> str:
    """Send a configuration as an HTTP client does; returns the status and the detail of the answer."""
    answer: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": text.encode(), "more_body": False}

    async def send(message: Message) -> None:
        answer.append(message)

    pairs = [(key.lower().encode(), value.encode()) for key, value in headers.items()]
    await app({"type": "http", "method": "PUT", "headers": pairs}, receive, send)
    return f"{answer[0]['status']} {json.loads(answer[1]['body'])['detail']}"


async def main() -> None:
    manager = LockManager()
    print("no headers:", await put("from nobody", {}))
    async with manager.acquire("configuration", on_loss="notify") as first:
        print("the first client:", await put("from the first", fencing.http.headers(first)))
        await manager.force_release("configuration", reason="to show fencing", token=first.token)
        async with manager.acquire("configuration") as second:
            print("the second client:", await put("from the second", fencing.http.headers(second)))
        print("the first client again:", await put("too late", fencing.http.headers(first)))
    print("the configuration is", configuration["text"])


if __name__ == "__main__":
    asyncio.run(main())
