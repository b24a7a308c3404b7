"""Who is granted, and whom to watch: pure functions and one small state machine, with no I/O in it.

A grant rule looks at the entries ahead of one's own, ordered by create revision. It must be monotonic: nobody can join
ahead of an entry that exists, so what a rule grants on any consistent view stays right while the entry lives, however
old the view. Hence no second round trip is needed to confirm a grant. (A semaphore's limit may shrink; what was granted
under the larger one stays granted.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from codomyrmex.concurrency.keys import READER_SUFFIX, is_reader, limit_of, permits_of, permits_suffix


class Ahead(NamedTuple):
    """An entry ahead of one's own."""

    key: bytes
    create_revision: int


@dataclass(frozen=True, slots=True)
class View:
    """The queue ahead of an entry at ``revision``: the nearest entries last, ``total`` of them in all.

    ``entries`` may hold only the nearest of them, when that is all a rule needs. ``limit`` is the semaphore's.
    """

    revision: int
    entries: Sequence[Ahead]
    total: int
    limit: int | None = None

    @property
    def complete(self) -> bool:
        return len(self.entries) == self.total

    def without(self, key: bytes, revision: int) -> View:
        """The same after ``key`` was deleted at ``revision``."""
        left = [entry for entry in self.entries if entry.key != key]
        return View(revision, left, self.total - (len(self.entries) - len(left)), self.limit)


class Granted(NamedTuple):
    pass


class WaitFor(NamedTuple):
    """Wait until ``key`` is deleted; without one, for any deletion in the queue."""

    key: bytes


class Never(NamedTuple):
    """This entry can never be granted."""

    reason: str


Decision = Granted | WaitFor | Never


class Rule(Protocol):
    """Decides on a view. ``claim`` is what its entries' keys end with."""

    @property
    def claim(self) -> bytes: ...

    @property
    def needs_all(self) -> bool:
        """Whether it must see the whole queue, or just the nearest entry ahead and how many there are."""

    def __call__(self, view: View) -> Decision: ...


class _Exclusive:
    claim = b""
    needs_all = False

    def __call__(self, view: View) -> Decision:
        """Granted when nobody is ahead. Waiting costs one watch, on the predecessor: a release wakes one process.

        With one entry ahead, that entry is the holder, and its end is our grant. With more, the predecessor may leave
        from the middle of the queue, so its end only says that it is time to look again.
        """
        return WaitFor(view.entries[-1].key) if view.total else Granted()


class _Shared:
    claim = READER_SUFFIX
    needs_all = True

    def __call__(self, view: View) -> Decision:
        """Granted when no writer is ahead: readers enter together, and none passes a writer that came before."""
        for entry in reversed(view.entries):
            if not is_reader(entry.key):
                return WaitFor(entry.key)
        return Granted()


exclusive: Rule = _Exclusive()
shared: Rule = _Shared()


@dataclass(frozen=True, slots=True)
class Permits:
    """Granted when the permits up to and including one's own fit the limit: first come, first served, so a large
    request waits for room and is not passed by small ones."""

    permits: int
    needs_all: bool = True

    @property
    def claim(self) -> bytes:
        return permits_suffix(self.permits)

    def __call__(self, view: View) -> Decision:
        if view.limit is None:
            return Never("the semaphore's limit was deleted from etcd; open it anew")
        if self.permits > view.limit:
            return Never(f"{self.permits} permits were asked for, but the limit is {view.limit} now")
        ahead = sum(permits_of(entry.key) for entry in view.entries)
        return Granted() if ahead + self.permits <= view.limit else WaitFor(b"")


def holding(keys: Sequence[bytes], limit: int | None = None) -> int:
    """How many of a whole queue's entries, from its front, are granted. ``limit`` None: it is a lock's queue."""
    if limit is None:
        readers = next((n for n, key in enumerate(keys) if not is_reader(key)), len(keys))
        return readers or min(1, len(keys))
    taken = 0
    for number, key in enumerate(keys):
        taken += permits_of(key)
        if taken > limit:
            return number
    return len(keys)


class Action(Enum):
    """What the shell must do next."""

    GRANT = "the entry is granted"
    FAIL = "it never will be, for `Turn.reason`"
    WATCH = "watch `Turn.key` for deletion, from now; the whole queue if it is empty"
    LOOK = "read the queue, at `Turn.needed` or later"
    WAIT = "nothing, until the next event"


class Turn:
    """One entry's way to the front.

    A watch and a view fit together if the view is not older than the watch; otherwise what happened in between is
    unknown, and the queue is read once more. A deletion no newer than the view ended an earlier life of the key. Where
    the whole queue is watched, deletions alone keep the view up to date, since nobody can join ahead.

        event              does
        seen(view)         what the rule says: GRANT | FAIL | WATCH another key | LOOK if the watch is newer | WAIT
        watching(rev)      LOOK if the view is older than the watch | WAIT
        deleted(key, rev)  WAIT if the view is newer; what the rule says without that entry; LOOK if part is unseen
        passed_on(baton)   GRANT if it is that of the entry ahead: it held, and has released
        missed()           LOOK
        forget()           LOOK, then WATCH again
    """

    __slots__ = ("_rule", "_view", "_watch_revision", "key", "needed", "reason")

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._view = View(0, (), 0)
        self._watch_revision = 0
        self.key: bytes | None = None
        self.needed = 0
        self.reason = ""

    @property
    def revision(self) -> int:
        """How new its view is."""
        return self._view.revision

    @property
    def sees_all(self) -> bool:
        """Whether there is nobody ahead whom it does not know."""
        return self._view.complete

    @property
    def ahead(self) -> Ahead | None:
        """The entry whose end it waits for, if it is one."""
        return next((entry for entry in reversed(self._view.entries) if entry.key == self.key), None)

    def forget(self) -> Action:
        """Nothing is watched any more."""
        self.key, self._watch_revision = None, 0
        return self.missed()

    def seen(self, view: View) -> Action:
        """The queue was read."""
        if view.revision < max(self.needed, self._view.revision):
            return self._compare()  # events have told more since
        self._view = view
        decision = self._rule(view)
        if isinstance(decision, Granted):
            return Action.GRANT
        if isinstance(decision, Never):
            self.reason = decision.reason
            return Action.FAIL
        if decision.key != self.key:
            self.key, self._watch_revision = decision.key, 0
            return Action.WATCH
        return self._compare()

    def watching(self, revision: int) -> Action:
        """The watch on ``key`` covers everything after ``revision``."""
        self._watch_revision = revision
        return self._compare()

    def deleted(self, key: bytes, revision: int) -> Action:
        """A key that was watched is gone."""
        if revision <= self._view.revision:
            return Action.WAIT
        unsure = self.needed > self._view.revision or not self._view.complete
        if unsure or limit_of(key) is not None:
            return self._look(revision)
        left = self._view.without(key, revision)
        if left.total == self._view.total:
            return Action.WAIT
        if self.key == b"" or isinstance(self._rule(left), Granted):
            return self.seen(left)
        return self._look(revision)  # whoever else has left was not watched

    def passed_on(self, baton: bytes) -> Action:
        """An entry has said that it held the lock, alone, and has released it: its token, in digits. If that is the one
        ahead, nobody was ahead of it, and nobody can have come between."""
        ahead = self.ahead
        return Action.GRANT if ahead and baton == b"%d" % ahead.create_revision else Action.WAIT

    def missed(self) -> Action:
        """Events may have been missed."""
        return self._look(self._view.revision)

    def _compare(self) -> Action:
        if max(self._watch_revision, self.needed) > self._view.revision:
            return self._look(self._watch_revision)
        return Action.WAIT

    def _look(self, revision: int) -> Action:
        self.needed = max(self.needed, revision)
        return Action.LOOK
