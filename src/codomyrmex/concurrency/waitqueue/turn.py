"""``Turn``: one waiter's state machine, from its first view of the queue to its grant. Pure.

``rules.py`` decides on a view; this file decides which view and which watch that decision needs.
"""

from __future__ import annotations

from enum import Enum

from codomyrmex.concurrency.keys import limit_of
from codomyrmex.concurrency.waitqueue.handoff import marker_value
from codomyrmex.concurrency.waitqueue.rules import Granted, Never, Predecessor, Rule, View

_NOTHING_READ = View(0, (), 0)


class Action(Enum):
    """The next step of the waiter that drives a ``Turn``."""

    GRANT = "the entry is granted"
    FAIL = "the entry never will be granted, for `Turn.reason`"
    WATCH = "watch `Turn.key` for deletion, from now; the whole queue if the key is empty"
    LOOK = "read the queue, at `Turn.needed` or later"
    WAIT = "nothing, until the next event"


class Turn:
    """One entry's way to the front of its queue.

    A watch and a view fit together if the view is not older than the watch. Otherwise the events in between are
    unknown, and the queue is read once more. A deletion no newer than the view ended an earlier life of the key. Where
    the whole queue is watched, deletions alone keep the view up to date, since no entry can join ahead of one that
    exists.

        event               next step
        seen(view)          the rule's decision: GRANT | FAIL | WATCH another key | LOOK if the watch is newer | WAIT
        watching(rev)       LOOK if the view is older than the watch | WAIT
        deleted(key, rev)   WAIT if the view was read at this revision or later, or lacks the key
                            LOOK if part of the queue is unseen, if the key is a limit, or if another is to be watched
                            the rule's decision otherwise
        handed_off(value)   GRANT if the release marker is the predecessor's: it held, and has released
        missed()            LOOK
        forget()            LOOK, then WATCH again
    """

    __slots__ = ("_deleted_at", "_rule", "_view", "_watch_revision", "key", "needed", "reason")

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._view = _NOTHING_READ
        self._watch_revision = 0
        self._deleted_at = 0  # the revision of the deletion that its view has last; there may be more at that revision
        self.key: bytes | None = None
        self.needed = 0
        self.reason = ""

    @property
    def revision(self) -> int:
        """The revision of its view."""
        return self._view.revision

    @property
    def view(self) -> View:
        """Its latest view of the queue ahead."""
        return self._view

    @property
    def sees_all(self) -> bool:
        """True if its view has every entry ahead."""
        return self._view.complete

    def living_predecessors(self) -> frozenset[int]:
        """The tokens of the entries ahead that live on beside it, as its view has them."""
        return frozenset(entry.create_revision for entry in self._view.entries) if self._rule.needs_all else frozenset()

    @property
    def predecessor(self) -> Predecessor | None:
        """The entry whose end it waits for; None if it waits for any change of the queue."""
        return next((entry for entry in reversed(self._view.entries) if entry.key == self.key), None)

    def forget(self) -> Action:
        """The watch has ended."""
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
        """A watched key was deleted at ``revision``."""
        if revision <= self._view.revision and revision != self._deleted_at:
            return Action.WAIT
        unsure = self.needed > self._view.revision or not self._view.complete
        if unsure or limit_of(key) is not None:
            return self._look(revision)
        left = self._view.without(key, revision)
        if left.total == self._view.total:
            return Action.WAIT
        if self.key == b"" or isinstance(self._rule(left), Granted):
            self._deleted_at = revision
            return self.seen(left)
        return self._look(revision)  # the other entries ahead were not watched and may have left too

    def handed_off(self, value: bytes) -> Action:
        """A release marker with ``value`` was read: an entry held the lock, alone, and has released it. If that entry
        is the predecessor, it was the first, and no entry can have come between."""
        entry = self.predecessor
        return Action.GRANT if entry and value == marker_value(entry.create_revision) else Action.WAIT

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
