"""Looks up the addresses of an endpoint anew for each connection, because a restarted member has a new one.

DNS that does not answer costs an earlier answer nothing; DNS that denies the name ends it. A lookup blocks for as long
as the system likes, so a thread of its own makes it, and ends with it.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

PATIENCE = 0.3  # seconds until the last answer is used because DNS gives no new one
_MEMORY = 1.0  # seconds for which an answer is used again


class Address(NamedTuple):
    """An address as the socket module wants it."""

    family: socket.AddressFamily
    where: Any


class Addresses:
    """The addresses of one host and port."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self._port = port
        self._known: list[Address] = []
        self._answered_at = 0.0
        self._asking: Future[list[Address]] | None = None

    async def look_up(self) -> list[Address]:
        """The addresses to try. Raises ``OSError`` if there are none."""
        asked = self.ask()
        if not asked.done():
            loop, answered = asyncio.get_running_loop(), asyncio.Event()

            def tell(_: object) -> None:
                with suppress(RuntimeError):  # the loop may have been closed
                    loop.call_soon_threadsafe(answered.set)

            asked.add_done_callback(tell)
            with suppress(TimeoutError):  # ``settle`` says what it means
                async with asyncio.timeout(self.patience):
                    await answered.wait()
        return self.settle(asked)

    def ask(self) -> Future[list[Address]]:
        """The answer to a lookup, perhaps one that is under way. ``settle`` says what it means."""
        if self._known and time.monotonic() - self._answered_at < _MEMORY:
            return _finished(self._known)
        if self._asking is None or self._asking.done():
            with suppress(OSError):
                return _finished(self._look_up(socket.AI_NUMERICHOST))  # an address needs no thread
            self._asking = Future()
            threading.Thread(target=self._answer, args=(self._asking,), name=f"dns-{self.host}", daemon=True).start()
        return self._asking

    @property
    def patience(self) -> float | None:
        """The seconds for which to wait for ``ask``; None if there is no earlier answer to fall back on."""
        return PATIENCE if self._known else None

    def settle(self, asked: Future[list[Address]]) -> list[Address]:
        """The addresses to try, after ``asked`` was waited for. Raises ``OSError`` if there are none."""
        if not asked.done():
            if self._known:
                return self._known
            raise TimeoutError(f"DNS gave no address for {self.host}")
        try:
            found = asked.result()
        except socket.gaierror as error:
            if error.errno != socket.EAI_AGAIN:
                self._known = []  # the name is denied
            if self._known:
                return self._known
            raise OSError(f"DNS resolution failed for {self.host}: {error.strerror}") from None
        self._known, self._answered_at = found, time.monotonic()
        return found

    def _answer(self, asking: Future[list[Address]]) -> None:
        try:
            asking.set_result(self._look_up(0))
        except OSError as error:
            asking.set_exception(error)

    def _look_up(self, flags: int) -> list[Address]:
        try:
            found = socket.getaddrinfo(self.host, self._port, type=socket.SOCK_STREAM, flags=flags)
        except UnicodeError:
            raise OSError(f"{self.host} is not a host name") from None
        return [Address(family, where) for family, _, _, _, where in found]


def addresses_of(endpoint: str) -> Addresses:
    """The addresses of an endpoint of the settings."""
    parts = urlsplit(endpoint)
    return Addresses(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))


def _finished(addresses: list[Address]) -> Future[list[Address]]:
    future: Future[list[Address]] = Future()
    future.set_result(addresses)
    return future
