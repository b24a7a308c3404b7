"""The entries of a tree that a session knows, so that its next join reads only the newer ones.

A tree may have a thousand holders, and each join needs the paths of all of them. The first joins read them all. From
then on the session follows the deletions in the tree, and a join reads only the entries created since the newest
reading. An entry whose deletion is not told yet is taken for one that lives: the joining entry then waits for that
deletion as for any other, or reads the queue.

``Known`` decides, without I/O. ``KnownTrees`` follows the deletions; it lets go of a tree that was not used for some
seconds.
"""

from __future__ import annotations

from collections.abc import Iterable

from codomyrmex.concurrency import clock
from codomyrmex.concurrency.etcd.transports.protocol import GetResult, WatchRequest
from codomyrmex.concurrency.etcd.watch import Changed, Follow, Notice, Started
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue.rules import Predecessor, View
from codomyrmex.concurrency.waitqueue.view import entries_in, whole

_KEPT = 10.0  # seconds without a use
_UNREAD = View(0, (Predecessor(b"", 0),), 1)  # the queue must be read


class Known:
    """The entries of one tree. Every living entry created up to ``revision`` is among them; 0 if that is not so yet."""

    def __init__(self) -> None:
        self._entries: dict[bytes, Predecessor] = {}
        self._deleted: dict[bytes, int] = {}  # deletions newer than ``revision``, which older readings lack
        self._needed = 0
        self.revision = 0

    def restart(self, revision: int) -> None:
        """Deletions are told only after ``revision``, so the tree must be read at it or later."""
        self._entries.clear()
        self._deleted.clear()
        self._needed, self.revision = revision, 0

    def read(self, entries: Iterable[Predecessor], revision: int, after: int = 0) -> None:
        """A reading, at ``revision``, of the entries created later than ``after``. One that cannot be joined to what
        is known is ignored."""
        if after:
            if after > self.revision or revision <= self.revision:
                return
        elif revision < max(self.revision, self._needed):
            return
        else:
            self._entries.clear()
        for entry in entries:
            self.add(entry)
        self.revision = revision
        self._deleted = {key: when for key, when in self._deleted.items() if when > revision}

    def add(self, entry: Predecessor) -> None:
        """Add an entry, unless its deletion was told before."""
        if entry.create_revision > self._deleted.get(entry.key, 0):
            self._entries[entry.key] = entry

    def deleted(self, key: bytes, revision: int) -> None:
        """A key was deleted at ``revision``. An entry that was created later is another life of the key."""
        entry = self._entries.get(key)
        if entry and entry.create_revision < revision:
            del self._entries[key]
        if revision > self.revision:
            self._deleted[key] = revision

    def removed(self, key: bytes, token: int) -> None:
        """The session's own entry with this token is gone."""
        entry = self._entries.get(key)
        if entry and entry.create_revision == token:
            del self._entries[key]

    def view(self, token: int, revision: int) -> View:
        """The entries before the one of ``token``. All deletions up to ``revision`` were told."""
        found = [entry for entry in self._entries.values() if entry.create_revision < token]
        return View(revision, found, len(found))


class _Tree:
    """One tree that is followed."""

    def __init__(self, session: SessionCore, queue: bytes, end: bytes) -> None:
        self.known = Known()
        self.known.restart(1 << 63)  # until the watch has begun
        self.follow: Follow = session.hub.follow(WatchRequest(queue, end, deletes_only=True), self._notice)
        if self.follow.in_step:
            self.known.restart(self.follow.revision)
        self.used = clock.now()

    def _notice(self, notice: Notice) -> None:
        if isinstance(notice, Changed):
            for event in notice.events:
                self.known.deleted(event.kv.key, event.kv.mod_revision)
        elif isinstance(notice, Started):
            self.known.restart(notice.revision)
        else:
            self.known.restart(1 << 63)


class KnownTrees:
    """The trees in which a session joins, by the prefix of their queue."""

    def __init__(self, session: SessionCore) -> None:
        self._session = session
        self._trees: dict[bytes, _Tree] = {}

    def __bool__(self) -> bool:
        return bool(self._trees)

    def after(self, queue: bytes) -> int:
        """The revision after which entries must be read to know them all; 0 if the whole tree must be read."""
        tree = self._trees.get(queue)
        return tree.known.revision if tree and tree.follow.in_step else 0

    def joined(self, queue: bytes, end: bytes, own: Predecessor, found: GetResult, after: int) -> View:
        """The view of an entry that has joined: ``found`` are the entries created later than ``after``."""
        tree = self._trees.get(queue)
        if tree is None:
            tree = self._trees[queue] = _Tree(self._session, queue, end)
        tree.used = clock.now()
        token = own.create_revision
        tree.known.read(entries_in(found), token, after)
        if tree.known.revision:
            tree.known.add(own)
        if not after:
            return whole(found, token)
        if tree.known.revision < token or not tree.follow.in_step:
            return _UNREAD
        return tree.known.view(token, tree.follow.revision)

    def looked(self, queue: bytes, found: GetResult) -> None:
        """The whole tree was read."""
        if tree := self._trees.get(queue):
            tree.known.read(entries_in(found), found.revision)

    def removed(self, queue: bytes, key: bytes, token: int) -> None:
        """An own entry is gone from etcd."""
        if tree := self._trees.get(queue):
            tree.known.removed(key, token)

    def expire(self) -> None:
        """Let go of the trees that were not used for a while."""
        for queue, tree in list(self._trees.items()):
            if clock.now() - tree.used >= _KEPT:
                del self._trees[queue]
                tree.follow.end(queue)

    def clear(self) -> None:
        """The session is over, and its watches with it."""
        self._trees.clear()
