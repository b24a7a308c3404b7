"""Writes down everything that happens in a namespace, in etcd's order, for the checker."""

from __future__ import annotations

import json

from codomyrmex.concurrency import Session
from codomyrmex.concurrency.etcd.transports.protocol import Event, WatchRequest
from codomyrmex.concurrency.etcd.watch import Changed, Notice, Started
from codomyrmex.concurrency.keys import (
    ELECTION,
    LOCK,
    PATH,
    SEMAPHORE,
    Layout,
    is_reader,
    limit_of,
    permits_of,
    prefix_end,
)
from codomyrmex.concurrency.session import core_of
from tests.chaos.checker import Change, Step


class Recorder:
    """One lock, one semaphore, one election, one reserved name, one tree and one dead letter queue of a namespace.

    Fenced writes go to ``/<namespace>/lock``, and to ``semaphore``, ``elected``, ``reserved`` and ``paths`` beside it.
    """

    def __init__(self, session: Session, namespace: str) -> None:
        self.lock: list[Change] = []
        self.semaphore: list[Change] = []
        self.election: list[Change] = []
        self.reserved: list[Change] = []
        self.paths: list[Change] = []
        self.dead_letters: list[Step] = []
        self.gaps = 0
        self._layout = Layout(namespace)
        self._root = f"/{namespace}/".encode()
        core_of(session).hub.subscribe(WatchRequest(self._root, prefix_end(self._root)), self._notice)

    def _notice(self, notice: Notice) -> None:
        if isinstance(notice, Started):
            self.gaps += notice.gap
        elif isinstance(notice, Changed):
            for event in notice.events:
                self._record(event)

    def _record(self, event: Event) -> None:
        kv, layout = event.kv, self._layout
        kind = "left" if event.deleted else "joined"
        told = not event.deleted and kv.mod_revision != kv.create_revision  # a holder tells for how long it had waited
        if kv.key == self._root + b"lock":
            self.lock.append(Change(kv.mod_revision, "wrote", int(kv.value)))
        elif kv.key == self._root + b"semaphore":
            self.semaphore.append(Change(kv.mod_revision, "wrote", int(kv.value)))
        elif kv.key == self._root + b"elected":
            self.election.append(Change(kv.mod_revision, "wrote", int(kv.value)))
        elif kv.key == self._root + b"reserved":
            self.reserved.append(Change(kv.mod_revision, "wrote", int(kv.value)))
        elif kv.key == self._root + b"paths":
            self.paths.append(Change(kv.mod_revision, "wrote", int(kv.value)))
        elif told and any(layout.name_of(kv.key, kind) for kind in (LOCK, PATH, SEMAPHORE, ELECTION)):
            return
        elif layout.name_of(kv.key, PATH):
            paths = () if event.deleted else tuple(json.loads(kv.value)["paths"])
            shared = is_reader(kv.key)
            self.paths.append(Change(kv.mod_revision, kind, kv.create_revision, kv.key, paths=paths, shared=shared))
        elif layout.name_of(kv.key, ELECTION):
            self.election.append(Change(kv.mod_revision, kind, kv.create_revision, kv.key))
        elif name := layout.name_of(kv.key):
            history = self.reserved if name == "r" else self.lock
            history.append(Change(kv.mod_revision, kind, kv.create_revision, kv.key))
        elif (limit := limit_of(kv.key)) is not None:
            if not event.deleted:
                self.semaphore.append(Change(kv.mod_revision, "limit", 0, permits=limit))
        elif layout.name_of(kv.key, SEMAPHORE):
            permits = permits_of(kv.key)
            self.semaphore.append(Change(kv.mod_revision, kind, kv.create_revision, kv.key, permits))
        elif kv.key.startswith(layout.dead_letters):
            *_, folder, entry_id = kv.key.decode().split("/")
            if folder == "claim":
                self.dead_letters.append(Step(kv.mod_revision, "unclaimed" if event.deleted else "claimed", entry_id))
            elif folder == "entry" and event.deleted:
                self.dead_letters.append(Step(kv.mod_revision, "deleted", entry_id))
            elif folder == "entry":
                found = json.loads(kv.value)
                counts = found["attempt_count"], found["crash_count"]
                self.dead_letters.append(Step(kv.mod_revision, "record", entry_id, found["state"], *counts))
