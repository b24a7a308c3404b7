"""Judges a history that etcd itself has put in order: every write and delete under a namespace, by revision. Pure.

etcd's revisions order everything, so the verdict is exact: at the revision of each fenced write its token must be
that of the queue's head, and the tokens of the writes must never fall.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple


class Change(NamedTuple):
    """One event: ``token`` is the create revision of an entry, or the token written into the register."""

    revision: int
    kind: str  # "joined" | "left" | "wrote"
    token: int
    key: bytes = b""


class Hold(NamedTuple):
    """A hold as its holder believed in it, on the one monotonic clock of this machine."""

    token: int
    since: float
    until: float


def violations(history: Iterable[Change]) -> list[str]:
    """What is wrong with a history; an empty list if nothing is."""
    queue: dict[bytes, int] = {}
    found: list[str] = []
    highest = 0
    for change in history:
        if change.kind == "joined":
            if change.token in queue.values():
                found.append(f"revision {change.revision}: two entries share the token {change.token}")
            queue[change.key] = change.token
        elif change.kind == "left":
            queue.pop(change.key, None)
        else:
            head = min(queue.values(), default=None)
            if change.token != head:
                found.append(f"revision {change.revision}: wrote with token {change.token}, but {head} held")
            if change.token < highest:
                found.append(f"revision {change.revision}: token {change.token} after {highest}")
            highest = max(highest, change.token)
    found += [f"token {token} stayed behind" for token in queue.values()]
    return found


def overlaps(holds: Iterable[Hold]) -> list[str]:
    """Holds that two holders believed in at the same time."""
    ordered = sorted(holds, key=lambda hold: hold.since)
    return [
        f"token {one.token} until {one.until:.4f}, but {two.token} since {two.since:.4f}"
        for one, two in pairwise(ordered)
        if one.until > two.since
    ]
