"""Reads from etcd's own past what happened to the locks of a namespace."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from codomyrmex.concurrency.keys import LOCK, Layout, is_reader, prefix_end
from codomyrmex.concurrency.testing.checker import Change
from codomyrmex.concurrency.testing.gateway import call, coded, decoded, stream


class RecordingLost(Exception):
    """etcd does not tell all of its past, so nothing can be judged."""


def number_in(value: bytes) -> int | None:
    """The token that a value is, in decimal digits; None for any other value."""
    return int(value) if value.isdigit() else None


class Recording:
    """All that etcd does in a namespace from now on. Nothing runs meanwhile: etcd keeps its past by itself.

    Args:
        endpoint: the plain http address of an etcd.
        namespace: the namespace of the locks.
    """

    def __init__(self, endpoint: str, namespace: str) -> None:
        self._endpoint = endpoint
        self._layout = Layout(namespace)
        locks = self._layout.under(LOCK)
        answer = call(endpoint, "kv/range", {"key": coded(locks), "range_end": coded(prefix_end(locks))})
        self._since = int(answer["header"]["revision"])
        self._before: list[dict[str, Any]] = answer.get("kvs", [])

    def changes(
        self,
        writes: Mapping[str, str] | None = None,
        token_in: Callable[[bytes], int | None] = number_in,
    ) -> list[Change]:
        """The history of the locks since the recording began, for ``check_locks``. Reservations of names are locks too;
        semaphores, rate limits and paths are left out.

        Args:
            writes: the keys that locks guard, each with the name of its lock.
            token_in: the token that a written value carries, or None. It reads a decimal number when left out.

        Raises ``RecordingLost`` if etcd no longer has all of it: an embedded one keeps five minutes.
        """
        guarded = {key.encode(): lock for key, lock in (writes or {}).items()}
        replay = _Replay(self._layout)
        found = [change for kv in self._before for change in replay.put(kv)]
        for event in self._events():
            kv, gone = event["kv"], event.get("type") == "DELETE"
            lock = guarded.get(decoded(kv["key"]))
            if lock is None:
                found.extend(replay.deleted(kv) if gone else replay.put(kv))
            elif not gone:
                token = token_in(decoded(kv.get("value", "")))
                found.append(Change(int(kv["mod_revision"]), "wrote", lock, token))
        return found

    def _events(self) -> Iterator[dict[str, Any]]:
        """The events of all of etcd up to now. Each revision has one, so that of the last revision is the end."""
        everything = {"key": coded(b"\0"), "range_end": coded(b"\0")}
        answer = call(self._endpoint, "kv/range", {**everything, "count_only": True})
        reached, until = self._since, int(answer["header"]["revision"])
        if reached == until:
            return
        request = {**everything, "start_revision": str(reached + 1), "fragment": True}
        for message in stream(self._endpoint, "watch", {"create_request": request}):
            if "compact_revision" in message:
                raise RecordingLost(f"etcd has compacted its past up to revision {message['compact_revision']}")
            for event in message.get("events", ()):
                reached = int(event["kv"]["mod_revision"])
                if reached <= until:
                    yield event
            if reached >= until and not message.get("fragment"):
                return
        raise RecordingLost(f"etcd told its past up to revision {reached} of {until}")


class _Replay:
    """The tokens of the entries that are there, for etcd names only the key of an entry that went."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._tokens: dict[str, int] = {}  # by key, as the gateway has it

    def put(self, kv: Mapping[str, Any]) -> Iterator[Change]:
        """A key was written: an entry joined, or its holder has told that it holds."""
        key = decoded(kv["key"])
        if (lock := self._layout.name_of(key)) is None:
            return
        token, revision, shared = int(kv["create_revision"]), int(kv["mod_revision"]), is_reader(key)
        if self._tokens.get(kv["key"]) != token:
            self._tokens[kv["key"]] = token
            yield Change(token, "joined", lock, token, shared)
        if _tells_wait(decoded(kv["value"])):
            yield Change(revision, "held", lock, token, shared)

    def deleted(self, kv: Mapping[str, Any]) -> Iterator[Change]:
        """A key was deleted."""
        key = decoded(kv["key"])
        token = self._tokens.pop(kv["key"], None)
        if token is not None and (lock := self._layout.name_of(key)) is not None:
            yield Change(int(kv["mod_revision"]), "left", lock, token, is_reader(key))


def _tells_wait(value: bytes) -> bool:
    """True for the value of an entry whose holder has told how long it had waited: only a holder does."""
    try:
        record = json.loads(value)
    except ValueError:
        return False
    return isinstance(record, dict) and record.get("waited") is not None
