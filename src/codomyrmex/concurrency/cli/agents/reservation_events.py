"""The changes between two readings of the reservations. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from codomyrmex.concurrency import ReservationInfo


@dataclass(frozen=True, slots=True)
class ReservationEvent:
    """A change of a reservation. ``at`` is when this process learned of it."""

    kind: Literal["reserved", "renewed", "ended"]
    reservation: ReservationInfo
    at: datetime


def events(
    before: Sequence[ReservationInfo], after: Sequence[ReservationInfo], at: datetime
) -> Iterator[ReservationEvent]:
    """The events that lead from one reading to the next, which was made at the time ``at``. A renewal shows in more
    time left, or in another note."""
    known = {one.lease: one for one in before}
    for one in after:
        old = known.pop(one.lease, None)
        if old is None:
            yield ReservationEvent("reserved", one, at)
        elif one.expires_in > old.expires_in or (one.note, one.ttl) != (old.note, old.ttl):
            yield ReservationEvent("renewed", one, at)
    for gone in known.values():
        yield ReservationEvent("ended", gone, at)
