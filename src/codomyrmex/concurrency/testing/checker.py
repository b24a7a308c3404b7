"""Judges the history of locks, as etcd itself has ordered it. Pure.

Nothing here comes from the engine: the holders at each revision are worked out anew from the entries that had joined
and left by then.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

Rule = Literal["mutual exclusion", "rising tokens", "fenced writes"]


@dataclass(frozen=True, slots=True)
class Change:
    """One change that concerns a lock, at a revision of etcd.

    ``kind`` is ``"joined"`` or ``"left"`` for an entry of the queue, ``"held"`` where an entry says that it holds, and
    ``"wrote"`` for a write that the lock guards. ``token`` is the entry's, or the one that the write carries; None for
    a write that carries none. ``shared`` marks a reader.
    """

    revision: int
    kind: Literal["joined", "held", "wrote", "left"]
    lock: str
    token: int | None
    shared: bool = False


@dataclass(frozen=True, slots=True)
class BelievedHold:
    """A hold as its process believed in it, from ``since`` to ``until`` by one clock, such as ``time.monotonic()``."""

    lock: str
    token: int
    since: float
    until: float
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken rule: which one, of which lock, and how. ``revision`` is etcd's; 0 for believed holds."""

    rule: Rule
    lock: str
    revision: int
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of ``check_locks``.

    ``violations`` is empty for a good history. ``entries`` and ``writes`` count what was judged: a history without
    any shows nothing.
    """

    violations: tuple[Violation, ...]
    entries: int
    writes: int

    @property
    def ok(self) -> bool:
        """True if no rule was broken."""
        return not self.violations

    def __str__(self) -> str:
        judged = f"{self.entries} entries and {self.writes} writes were judged"
        return "\n".join([judged, *(f"{one.rule}: {one.lock!r}: {one.text}" for one in self.violations)])


def check_locks(history: Iterable[Change], holds: Iterable[BelievedHold] = ()) -> Verdict:
    """Judge the history of any number of locks.

    - Mutual exclusion: an entry says that it holds only while it is the first, or a reader with readers alone before
      it. Of ``holds``, two overlap only if both are shared.
    - Rising tokens: each entry has a higher token than all before it, and no write of an exclusive holder carries a
      lower token than one before it.
    - Fenced writes: a write carries the token of an entry that holds at that revision. One without a token needs a
      holder.
    """
    changes = sorted(history, key=lambda change: (change.revision, _ORDER.index(change.kind)))
    judges: dict[str, _Judge] = defaultdict(_Judge)
    found = [violation for change in changes for violation in judges[change.lock].judge(change)]
    kinds = [change.kind for change in changes]
    return Verdict((*found, *_overlaps(holds)), kinds.count("joined"), kinds.count("wrote"))


# Within one revision. A holder's write commits in a transaction that compares its entry before the transaction runs.
_ORDER = ("held", "wrote", "left", "joined")


class _Judge:
    """The queue of one lock, as it was at the revision that is judged."""

    def __init__(self) -> None:
        self._queue: dict[int, bool] = {}  # token to shared, in order of service
        self._highest = 0
        self._highest_written = 0

    def judge(self, change: Change) -> list[Violation]:
        """Apply a change; the rules that it breaks."""
        token = change.token
        if change.kind == "wrote":
            texts = self._wrote(token)
        elif change.kind == "held":
            texts = self._held(token)
        elif change.kind == "left":
            self._queue.pop(token or 0, None)
            texts = []
        else:
            texts = self._joined(token or 0, change.shared)
        at = change.revision
        return [Violation(rule, change.lock, at, f"at revision {at}, {text}") for rule, text in texts]

    def _joined(self, token: int, shared: bool) -> list[tuple[Rule, str]]:
        before = self._highest
        self._queue[token] = shared
        self._highest = max(before, token)
        return [] if token > before else [("rising tokens", f"token {token} joined after token {before}")]

    def _held(self, token: int | None) -> list[tuple[Rule, str]]:
        holders = self._holders()
        return [] if token in holders else [("mutual exclusion", f"token {token} held beside {_listed(holders)}")]

    def _wrote(self, token: int | None) -> list[tuple[Rule, str]]:
        holders = self._holders()
        if token is None:
            return [] if holders else [("fenced writes", "a write came while no entry held")]
        found: list[tuple[Rule, str]] = []
        if token not in holders:
            found.append(("fenced writes", f"token {token} wrote while {_listed(holders)} held"))
        if not self._queue.get(token, False):
            if token < self._highest_written:
                found.append(("rising tokens", f"token {token} wrote after token {self._highest_written}"))
            self._highest_written = max(self._highest_written, token)
        return found

    def _holders(self) -> list[int]:
        """The first entry, or all readers before the first exclusive one."""
        queue = sorted(self._queue.items())
        readers = [token for token, _ in takewhile(lambda entry: entry[1], queue)]
        return readers or [token for token, _ in queue[:1]]


def _overlaps(holds: Iterable[BelievedHold]) -> Iterator[Violation]:
    """Believed holds that overlap though one of them is exclusive."""
    living: dict[str, list[BelievedHold]] = defaultdict(list)
    for hold in sorted(holds, key=lambda hold: hold.since):
        others = living[hold.lock] = [other for other in living[hold.lock] if other.until > hold.since]
        for other in others:
            if not (hold.shared and other.shared):
                text = f"tokens {other.token} and {hold.token} were both held at {hold.since:.3f}"
                yield Violation("mutual exclusion", hold.lock, 0, text)
        others.append(hold)


def _listed(tokens: list[int]) -> str:
    return " and ".join(f"token {token}" for token in tokens) or "none"
