"""Who is granted, and whom to watch: pure functions and one small state machine, with no I/O in it.

A grant rule looks at the entries ahead of one's own, ordered by create revision. It must be monotonic: nobody can join
ahead of an entry that exists, so what a rule grants on any consistent view stays right while the entry lives, however
old the view. Hence no second round trip is needed to confirm a grant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class Ahead(NamedTuple):
    """An entry ahead of one's own."""

    key: bytes
    create_revision: int


@dataclass(frozen=True, slots=True)
class View:
    """The queue ahead of an entry at ``revision``: the nearest entries last, ``total`` of them in all.

    ``entries`` may hold only the nearest of them, when that is all a rule needs.
    """

    revision: int
    entries: Sequence[Ahead]
    total: int


class Granted(NamedTuple):
    pass


class WaitFor(NamedTuple):
    """Wait until ``key`` is deleted. ``decisive``: that alone grants, nothing need be read after it."""

    key: bytes
    decisive: bool


Decision = Granted | WaitFor
Rule = Callable[[View], Decision]


def exclusive(view: View) -> Decision:
    """Granted when nobody is ahead. Waiting costs one watch, on the predecessor: a release wakes one process.

    With one entry ahead, that entry is the holder, and its end is our grant. With more, the predecessor may leave
    from the middle of the queue, so its end only says that it is time to look again.
    """
    if view.total == 0:
        return Granted()
    return WaitFor(view.entries[-1].key, decisive=view.total == 1)


class Action(Enum):
    """What the shell must do next."""

    GRANT = "the entry is granted"
    WATCH = "watch `Turn.key` for deletion, from now"
    LOOK = "read the queue, at `Turn.needed` or later"
    WAIT = "nothing, until the next event"


class Turn:
    """One entry's way to the front.

    A watch and a view fit together if the view is not older than the watch; otherwise what happened in between is
    unknown, and the queue is read once more. A deletion no newer than the view ended an earlier life of the key.

        event          grants when            otherwise
        seen(view)     the rule grants        WATCH another key | LOOK if the view is older than the watch | WAIT
        watching(rev)  -                      LOOK if the last view is older than the watch | WAIT
        deleted(rev)   the wait was decisive  LOOK | WAIT if the view is newer
        missed()       -                      LOOK
    """

    __slots__ = ("_decisive", "_rule", "_view_revision", "_watch_revision", "key", "needed")

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._view_revision = 0
        self._watch_revision = 0
        self._decisive = False
        self.key = b""
        self.needed = 0

    @property
    def watched(self) -> bool:
        """Whether the watch on ``key`` is known to have begun."""
        return self._watch_revision > 0

    def seen(self, view: View) -> Action:
        """The queue was read."""
        decision = self._rule(view)
        if isinstance(decision, Granted):
            return Action.GRANT
        self._view_revision = max(self._view_revision, view.revision)
        self._decisive = decision.decisive
        if decision.key != self.key:
            self.key, self._watch_revision = decision.key, 0
            return Action.WATCH
        return self._compare()

    def watching(self, revision: int) -> Action:
        """The watch on ``key`` covers everything after ``revision``."""
        self._watch_revision = revision
        return self._compare()

    def deleted(self, revision: int) -> Action:
        """The key waited for was deleted."""
        if revision <= self._view_revision:
            return Action.WAIT
        if self._decisive:
            return Action.GRANT
        return self._look(revision)

    def missed(self) -> Action:
        """Events may have been missed."""
        return self._look(self._view_revision)

    def _compare(self) -> Action:
        if self._watch_revision > self._view_revision:
            return self._look(self._watch_revision)
        return Action.WAIT

    def _look(self, revision: int) -> Action:
        self.needed = max(self.needed, revision)
        return Action.LOOK
