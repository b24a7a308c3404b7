"""The grant rules: pure functions that decide from a view of a queue whether an entry is granted, or what it awaits.

A rule looks at the entries ahead of one entry, ordered by create revision. It must be monotonic: no entry can join
ahead of one that exists, so a grant that is right on any consistent view stays right while the entry lives, however old
the view. Hence no second round trip is needed to confirm a grant. (A semaphore's limit may shrink; the permits granted
under the larger limit stay granted.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from codomyrmex.concurrency.keys import READER_SUFFIX, is_in_tree, is_reader, permits_of, permits_suffix
from codomyrmex.concurrency.waitqueue.scopes import Occupied, Scopes, scopes_in


class Predecessor(NamedTuple):
    """An entry ahead of another one in its queue. Its ``value`` counts in a tree only, where it tells the paths."""

    key: bytes
    create_revision: int
    value: bytes = b""


class View(NamedTuple):
    """The queue ahead of an entry at ``revision``: the nearest entries last, ``total`` of them in all.

    ``entries`` may hold only the nearest of them, when a rule needs no more. ``limit`` is the semaphore's.
    """

    revision: int
    entries: Sequence[Predecessor]
    total: int
    limit: int | None = None

    @property
    def complete(self) -> bool:
        """True if ``entries`` has all of them."""
        return len(self.entries) == self.total

    def without(self, key: bytes, revision: int) -> View:
        """The view after ``key`` was deleted at ``revision``. An entry that was created later is another life of it."""
        left = [entry for entry in self.entries if entry.key != key or entry.create_revision > revision]
        return View(revision, left, self.total - (len(self.entries) - len(left)), self.limit)


class Granted(NamedTuple):
    """The entry is granted."""


class WaitFor(NamedTuple):
    """The entry waits until ``key`` is deleted; with an empty key, for any deletion in the queue."""

    key: bytes


class Never(NamedTuple):
    """The entry can never be granted."""

    reason: str


Decision = Granted | WaitFor | Never

_GRANTED = Granted()


class Rule(Protocol):
    """A grant rule. ``key_suffix`` is the end of the keys of its entries, ``fields`` a part of their JSON values."""

    @property
    def key_suffix(self) -> bytes: ...

    @property
    def fields(self) -> str: ...

    @property
    def needs_all(self) -> bool:
        """True if it needs the whole queue; False if the nearest entry ahead and the number of entries will do."""

    def __call__(self, view: View) -> Decision: ...


class _Exclusive:
    key_suffix = b""
    fields = ""
    needs_all = False

    def __call__(self, view: View) -> Decision:
        """Granted when no entry is ahead. Waiting costs one watch, on the predecessor: a release wakes one process.

        With one entry ahead, that entry is the holder, and its deletion is the grant. With several entries ahead, a
        deletion is ambiguous: the predecessor may have released the lock or stopped waiting. Then the queue is read.
        """
        return WaitFor(view.entries[-1].key) if view.total else _GRANTED


class _Shared:
    key_suffix = READER_SUFFIX
    fields = ""
    needs_all = True

    def __call__(self, view: View) -> Decision:
        """Granted when no writer is ahead: readers enter together, and none passes a writer that came before."""
        for entry in reversed(view.entries):
            if not is_reader(entry.key):
                return WaitFor(entry.key)
        return _GRANTED


class _Unconditional:
    key_suffix = READER_SUFFIX
    fields = ""
    needs_all = False

    def __call__(self, view: View) -> Decision:
        """Granted at once, whatever is ahead. So the cost of joining does not grow with the queue and its values."""
        return _GRANTED


exclusive: Rule = _Exclusive()
shared: Rule = _Shared()
unconditional: Rule = _Unconditional()


@dataclass(frozen=True, slots=True)
class WithFields:
    """Another rule, with a part of the JSON values of its entries: ``fields``."""

    rule: Rule
    fields: str

    @property
    def key_suffix(self) -> bytes:
        return self.rule.key_suffix

    @property
    def needs_all(self) -> bool:
        return self.rule.needs_all

    def __call__(self, view: View) -> Decision:
        return self.rule(view)


@dataclass(frozen=True, slots=True)
class Permits:
    """Granted when the permits up to and including one's own fit the limit. Requests are served in order of arrival, so
    a large request waits for room and small ones do not pass it.

    ``together`` is the number of permits of all entries that one request has in the queue; 0 if it has only this one.
    """

    permits: int
    together: int = 0
    needs_all: bool = True
    fields: str = ""

    @property
    def key_suffix(self) -> bytes:
        return permits_suffix(self.permits)

    def __call__(self, view: View) -> Decision:
        wanted = self.together or self.permits
        if view.limit is None:
            return Never("the limit was deleted from etcd; open it anew")
        if wanted > view.limit:
            return Never(f"{wanted} permits were asked for, but the limit is {view.limit} now")
        taken = sum(permits_of(entry.key) for entry in view.entries)
        return _GRANTED if taken + wanted <= view.limit else WaitFor(b"")


@dataclass(frozen=True, slots=True)
class Overlap:
    """Granted when no entry ahead asks for a path that overlaps one of ``scopes``. Disjoint requests never wait for
    each other. Overlapping ones are served in order of arrival, so a directory's waiter keeps later files out."""

    scopes: Scopes
    needs_all: bool = True

    @property
    def key_suffix(self) -> bytes:
        return READER_SUFFIX if self.scopes.shared else b""

    @property
    def fields(self) -> str:
        return self.scopes.fields()

    def __call__(self, view: View) -> Decision:
        own, points, ancestors = self.scopes, self.scopes.points, self.scopes.ancestors
        for entry in view.entries:  # perhaps a thousand, so this is ``Scopes.overlaps`` without its calls
            other = scopes_in(entry.value)
            apart = points.isdisjoint(other.reach) and ancestors.isdisjoint(other.points)
            if not apart and not (own.shared and other.shared):
                return WaitFor(b"")
        return _GRANTED

    def waits_for(self, entry: Predecessor) -> bool:
        """True if ``entry`` must leave before this request is granted."""
        return self.scopes.overlaps(scopes_in(entry.value))


def holders(queue: Sequence[Predecessor], limit: int | None = None) -> list[bool]:
    """For each entry of a whole queue, in its order, True if it holds. ``limit`` is None unless the queue is a
    semaphore's.

    In a tree an entry holds when no entry ahead of it overlaps; elsewhere the first few hold.
    """
    if not queue or not is_in_tree(queue[0].key):
        held = holding([entry.key for entry in queue], limit)
        return [number < held for number in range(len(queue))]
    occupied, found = Occupied(), []
    for entry in queue:
        scopes = scopes_in(entry.value)
        found.append(not occupied.overlaps(scopes))
        occupied.add(scopes)
    return found


def holding(keys: Sequence[bytes], limit: int | None = None) -> int:
    """The number of a whole queue's entries, from its front, that hold. ``limit`` is None for a lock's queue.

    In a tree, others hold too: see ``holders``.
    """
    if limit is None:
        readers = next((n for n, key in enumerate(keys) if not is_reader(key)), len(keys))
        return readers or min(1, len(keys))
    taken = 0
    for number, key in enumerate(keys):
        taken += permits_of(key)
        if taken > limit:
            return number
    return len(keys)
