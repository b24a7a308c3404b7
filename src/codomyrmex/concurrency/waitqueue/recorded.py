"""The past of a lock or tree as a record's lines tell it. Pure.

A recorder that saw a step has timed it. A step that it read later than it happened is bounded by that time. A hold that
was over after a gap has ended within the gap, and nobody knows how.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, NamedTuple

from pydantic import Field, TypeAdapter

from codomyrmex.concurrency import decode
from codomyrmex.concurrency.models import ForcedRelease, History, HowEnded, Owner, PastHold, QueueKind


@dataclass(frozen=True, slots=True)
class _Step:
    """The fields of a line of an entry that the past needs."""

    revision: int
    at: datetime
    late: bool
    kind: str
    queue_kind: QueueKind
    name: str
    token: int
    owner: Owner
    how: HowEnded = "held"
    forced: ForcedRelease | None = None


@dataclass(frozen=True, slots=True)
class _Begin:
    revision: int
    at: datetime


@dataclass(frozen=True, slots=True)
class _Gap:
    first: Annotated[int, Field(alias="from")]
    to: int
    at: datetime


@dataclass(frozen=True, slots=True)
class _Line:
    """A line that is none of an entry."""

    begin: _Begin | None = None
    gap: _Gap | None = None


_STEP, _LINE = TypeAdapter(_Step), TypeAdapter(_Line)


class Recorded(NamedTuple):
    """The past of one lock or tree in a record, and every gap of the record: its first and its last revision.

    The ``begins_at`` of the ``past`` is the revision of the record's beginning.
    """

    past: History
    gaps: tuple[tuple[int, int], ...]


def recorded(lines: Iterable[bytes], name: str, kind: QueueKind) -> Recorded:
    """Read the past of one lock or tree from a record.

    Raises ``ValueError`` for what is no record.
    """
    past = _Past(name, kind)
    begins_at: int | None = None
    gaps: list[tuple[int, int]] = []
    for number, line in enumerate(lines, 1):
        if (step := decode.record(_STEP, line)) is not None:
            if (step.name, step.queue_kind) == (name, kind):
                past.step(step)
        elif (mark := decode.record(_LINE, line)) and mark.begin:
            begins_at = mark.begin.revision
        elif mark and mark.gap:
            past.gap(mark.gap)
            gaps.append((mark.gap.first, mark.gap.to))
        else:
            raise ValueError(f"line {number} is none of a record of locks")
    if begins_at is None:
        raise ValueError("it is no record of locks")
    return Recorded(past.history(begins_at), tuple(gaps))


class _Past:
    def __init__(self, name: str, kind: QueueKind) -> None:
        self._name = name
        self._kind = kind
        self._living: dict[tuple[str, int], PastHold | Owner] = {}  # by key and token; a waiter is an Owner
        self._missing: dict[tuple[str, int], PastHold | Owner] = {}  # that no line after the gap has named so far
        self._gap_at: datetime | None = None  # when the last gap was read
        self._over: list[PastHold] = []
        self._waits: list[Owner] = []

    def step(self, step: _Step) -> None:
        entry = step.owner.key, step.token
        if step.kind in ("holds", "waits"):
            known = self._missing.pop(entry, None)
            if step.kind == "waits":
                self._living[entry] = step.owner
            elif not isinstance(known, PastHold):
                self._living[entry] = self._granted(step, None)
            else:
                self._living[entry] = known
        elif step.kind == "enqueued":
            self._living[entry] = step.owner
        elif step.kind == "granted":
            self._living[entry] = self._granted(step, step.revision)
        else:
            self._left(self._living.pop(entry, step.owner), step)

    def gap(self, gap: _Gap) -> None:
        self._end_missing()
        self._gap_at, self._missing, self._living = gap.at, self._living, {}

    def history(self, begins_at: int) -> History:
        self._end_missing()
        held = [one for one in self._living.values() if isinstance(one, PastHold)]
        holds = sorted(self._over + held, key=lambda hold: (hold.granted_revision or 0, hold.token))
        return History(self._name, begins_at, tuple(holds), tuple(self._waits), self._kind)

    def _granted(self, step: _Step, revision: int | None) -> PastHold:
        joined = step.owner.since if revision == step.token else None
        return PastHold(
            name=self._name,
            owner=step.owner,
            token=step.token,
            granted_at=step.owner.granted_at or joined,
            ended_at=None,
            ended_before=None,
            how="held",
            granted_revision=revision,
            ended_revision=None,
            kind=self._kind,
        )

    def _left(self, one: PastHold | Owner, step: _Step) -> None:
        if isinstance(one, Owner):
            self._waits.append(step.owner)
            return
        ended = replace(
            one,
            owner=step.owner,
            granted_at=one.granted_at or step.owner.granted_at,
            ended_at=step.forced.at if step.forced else None if step.late else step.at,
            ended_before=step.at,
            how=step.how,
            ended_revision=step.revision,
            forced=step.forced,
        )
        self._over.append(ended)

    def _end_missing(self) -> None:
        """End the entries that were gone after the gap."""
        for one in self._missing.values():
            if isinstance(one, Owner):
                self._waits.append(one)
            else:
                self._over.append(replace(one, ended_before=self._gap_at, how="unknown"))
        self._missing = {}
