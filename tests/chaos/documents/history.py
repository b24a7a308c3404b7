"""Everything that etcd did, in order, read over its HTTP gateway while it happens.

What has been seen is the highest ``mod_revision`` of the events received, never a header's revision: a watch that
catches up is served in batches whose headers carry the store's current revision.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any
from urllib.parse import urlsplit

from tests.chaos.documents.gateway import Gateway, coded, decoded

BALLAST = "/ballast"  # what fills a database; its values tell nothing


class HistoryLost(Exception):
    """Revisions were compacted before they were read, so nothing can be judged."""


@dataclass(frozen=True, slots=True)
class Event:
    """One put or delete of one key."""

    revision: int
    key: str
    value: bytes | None  # None for a delete
    created: int = 0  # the key's create revision, of a put
    lease: int = 0
    seen: float = 0.0  # when it was received, by this machine's monotonic clock


def state_at_end(events: Iterable[Event]) -> dict[str, Event]:
    """The last put of each key that exists after these events."""
    state: dict[str, Event] = {}
    for event in events:
        if event.value is None:
            state.pop(event.key, None)
        else:
            state[event.key] = event
    return state


def parsed(message: dict[str, Any], seen: float, drop: str = BALLAST) -> Iterator[Event]:
    """The events of one watch answer. Values of keys with the prefix ``drop`` are dropped, to save memory."""
    for raw in message.get("events", ()):
        kv = raw["kv"]
        key = decoded(kv["key"]).decode(errors="replace")
        gone = raw.get("type") == "DELETE"
        value = b"" if key.startswith(drop) else decoded(kv.get("value", ""))
        yield Event(
            int(kv["mod_revision"]),
            key,
            None if gone else value,
            int(kv.get("create_revision", 0)),
            int(kv.get("lease", 0)),
            seen,
        )


class Follower(threading.Thread):
    """A thread that follows all of etcd from revision 1, across broken connections and restarts of its members."""

    def __init__(self, endpoints: list[str], tls: ssl.SSLContext | None = None) -> None:
        super().__init__(daemon=True, name="history")
        self.events: list[Event] = []
        self.upto = 0  # the last revision that was received as a whole
        self._endpoints, self._tls = endpoints, tls
        self._over = threading.Event()
        self._lost: Exception | None = None

    def run(self) -> None:
        turn = 0
        while not self._over.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                self._follow(self._endpoints[turn % len(self._endpoints)])
            if self._lost:
                return
            turn += 1
            self._over.wait(0.1)

    def _follow(self, endpoint: str) -> None:
        address = urlsplit(endpoint)
        host, port = str(address.hostname), int(address.port or 0)
        if self._tls:
            connection = http.client.HTTPSConnection(host, port, timeout=3.0, context=self._tls)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=3.0)
        with contextlib.closing(connection):
            request = {
                "key": coded("\0"),
                "range_end": coded("\0"),
                "start_revision": str(self.upto + 1),
                "fragment": True,
                "progress_notify": True,
            }
            connection.request("POST", "/v3/watch", json.dumps({"create_request": request}))
            answer = connection.getresponse()
            pending: list[Event] = []
            while not self._over.is_set() and (line := answer.readline()):
                message = json.loads(line).get("result", {})
                if int(message.get("compact_revision", 0)) > self.upto + 1:
                    self._lost = HistoryLost(f"compacted at {message['compact_revision']}, read up to {self.upto}")
                    return
                pending.extend(parsed(message, time.monotonic()))
                if not message.get("fragment") and pending:
                    self.events.extend(event for event in pending if event.revision > self.upto)
                    self.upto = pending[-1].revision
                    pending = []

    def caught_up(self, gateway: Gateway, limit: float = 60.0) -> list[Event]:
        """All events up to now. Each revision has an event, so it is known when the last one is there."""
        target, deadline = gateway.revision(), time.monotonic() + limit
        while self.upto < target:
            if self._lost:
                raise self._lost
            if target == 1:  # a new etcd is at revision 1 without an event
                return []
            if time.monotonic() > deadline:
                raise HistoryLost(f"read up to {self.upto} of {target} within {limit} s")
            time.sleep(0.02)
        return [event for event in list(self.events) if event.revision <= target]

    def end(self) -> None:
        self._over.set()
        self.join(10)


class Followers:
    """A follower at each member. An event was seen when the first of them saw it: a member that lags delays nothing."""

    def __init__(self, endpoints: list[str]) -> None:
        turned = [endpoints[number:] + endpoints[:number] for number in range(len(endpoints))]
        self._each = [Follower(first) for first in turned]

    def start(self) -> None:
        for follower in self._each:
            follower.start()

    def caught_up(self, gateway: Gateway) -> list[Event]:
        """All events up to now."""
        return earliest([follower.caught_up(gateway) for follower in self._each])

    def end(self) -> None:
        for follower in self._each:
            follower.end()


def earliest(histories: list[list[Event]]) -> list[Event]:
    """One history out of several of the same revisions, with the earliest time at which each event was seen."""
    seen: dict[tuple[int, str], float] = {}
    for event in chain.from_iterable(histories):
        key = event.revision, event.key
        seen[key] = min(event.seen, seen.get(key, event.seen))
    longest = max(histories, key=len)
    return [replace(event, seen=seen[event.revision, event.key]) for event in longest]
