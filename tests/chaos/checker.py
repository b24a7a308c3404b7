"""Judges histories that etcd itself has put in order: every change under a namespace, by revision. Pure.

etcd's revisions order everything, so the verdicts are exact. Nothing here is taken from the library: what may be at a
revision is worked out anew from who had joined and left by then.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise, takewhile
from typing import NamedTuple


class Change(NamedTuple):
    """One event of a queue: ``token`` is the create revision of an entry, or the token written into the register.
    ``permits``: what a semaphore's entry asks for, or, for "limit", the limit. ``paths`` are those of an entry in a
    tree, and ``shared`` marks its readers."""

    revision: int
    kind: str  # "joined" | "left" | "wrote" | "limit"
    token: int
    key: bytes = b""
    permits: int = 1
    paths: tuple[str, ...] = ()
    shared: bool = False


class Hold(NamedTuple):
    """A hold as its holder believed in it, on the one monotonic clock of this machine."""

    token: int
    since: float
    until: float
    permits: int = 1
    paths: tuple[str, ...] = ()
    shared: bool = False


class Step(NamedTuple):
    """One event of a dead letter: a record was written, or deleted, or a claim on it came or went."""

    revision: int
    kind: str  # "record" | "deleted" | "claimed" | "unclaimed"
    id: str
    state: str = ""
    attempts: int = 0
    crashes: int = 0


def violations(history: Iterable[Change]) -> list[str]:
    """The violations in the history of a lock; an empty list if there is none."""
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


def semaphore_violations(history: Iterable[Change]) -> list[str]:
    """The violations in the history of a semaphore.

    A writer must be among the first entries whose permits together fit the limit. That covers both the limit and first
    come, first served.
    """
    queue: dict[bytes, Change] = {}
    granted: set[int] = set()  # once granted, a smaller limit takes nothing away
    limit = 0
    found: list[str] = []
    for change in history:
        if change.kind == "wrote":
            if change.token not in {entry.token for entry in queue.values()}:
                found.append(f"revision {change.revision}: wrote with token {change.token}, which had gone")
            elif change.token not in granted:
                found.append(f"revision {change.revision}: wrote with token {change.token} before its turn")
            continue
        if change.kind == "limit":
            limit = change.permits
        elif change.kind == "joined":
            queue[change.key] = change
        else:
            queue.pop(change.key, None)
        taken = 0
        for entry in sorted(queue.values(), key=lambda entry: entry.token):
            taken += entry.permits
            if taken <= limit:
                granted.add(entry.token)
    found += [f"token {entry.token} stayed behind" for entry in queue.values()]
    return found


def path_violations(history: Iterable[Change]) -> list[str]:
    """The violations in the history of a tree: a writer must be there, and no entry ahead of it may have a path that
    equals, contains or lies in one of its own, unless both are readers."""
    queue: dict[bytes, Change] = {}
    found: list[str] = []
    for change in history:
        if change.kind == "joined":
            queue[change.key] = change
        elif change.kind == "left":
            queue.pop(change.key, None)
        else:
            writer = next((entry for entry in queue.values() if entry.token == change.token), None)
            if writer is None:
                found.append(f"revision {change.revision}: wrote with token {change.token}, which had gone")
                continue
            for entry in queue.values():
                if entry.token < writer.token and exclude_each_other(entry, writer):
                    found.append(f"revision {change.revision}: {change.token} wrote, but {entry.token} is ahead")
    return found + [f"token {entry.token} stayed behind" for entry in queue.values()]


def exclude_each_other(one: Change | Hold, other: Change | Hold) -> bool:
    """True if two requests of paths must not hold at the same time. Each path is compared with each, part by part."""
    if one.shared and other.shared:
        return False
    pairs = [(mine.strip("/").split("/"), theirs.strip("/").split("/")) for mine in one.paths for theirs in other.paths]
    return any("" in a or "" in b or all(x == y for x, y in zip(a, b, strict=False)) for a, b in pairs)


def overlapping_paths(holds: Iterable[Hold]) -> list[str]:
    """Holds of paths that two holders believed in at the same time, though they exclude each other."""
    ordered = sorted(holds, key=lambda hold: hold.since)
    return [
        f"at {later.since:.4f}: {later.paths} held with token {later.token} beside {one.paths} with {one.token}"
        for number, one in enumerate(ordered)
        for later in takewhile(lambda later, until=one.until: later.since < until, ordered[number + 1 :])
        if exclude_each_other(one, later)
    ]


def overlaps(holds: Iterable[Hold]) -> list[str]:
    """Holds of a lock that two holders believed in at the same time."""
    return crowds(holds, 1)


def crowds(holds: Iterable[Hold], limit: int) -> list[str]:
    """Moments at which holders believed in more permits together than the limit."""
    steps = [(hold.since, hold.permits, hold.token) for hold in holds]
    steps += [(hold.until, -hold.permits, hold.token) for hold in holds]
    held, found = 0, []
    for when, permits, token in sorted(steps):
        held += permits
        if permits > 0 and held > limit:
            found.append(f"at {when:.4f}: {held} permits of {limit} held, the last with token {token}")
    return found


def dead_letter_violations(
    history: Iterable[Step], acknowledged: Iterable[str], started: Iterable[tuple[str, int]]
) -> list[str]:
    """The violations in the history of a dead letter queue.

    ``acknowledged`` are the ids that ``add`` returned. ``started`` are the starts that handlers report: the entry
    and the attempt's token.
    """
    claims: dict[str, int] = {}
    tokens: defaultdict[str, list[int]] = defaultdict(list)
    records: dict[str, Step] = {}
    successes: Counter[str] = Counter()
    found: list[str] = []
    for step in sorted(history, key=lambda step: (step.revision, step.kind == "record")):
        where = f"revision {step.revision}, {step.id}"
        if step.kind == "claimed":
            if step.id in claims:
                found.append(f"{where}: claimed while claimed at {claims[step.id]}")
            claims[step.id] = step.revision
            tokens[step.id].append(step.revision)
        elif step.kind == "unclaimed":
            claims.pop(step.id, None)
        elif step.kind == "deleted":
            records.pop(step.id, None)
        else:
            before = records.get(step.id)
            if step.state == "running":
                if claims.get(step.id) != step.revision:
                    found.append(f"{where}: runs without a claim of its own")
                if before and step.attempts != before.attempts + 1:
                    found.append(f"{where}: attempt {step.attempts} after {before.attempts}")
            elif step.id in claims:
                found.append(f"{where}: is {step.state} and claimed")
            if step.state == "resolved" and before and before.state != "resolved":
                successes[step.id] += 1
            records[step.id] = step
    for token, count in Counter(started).items():
        if count > 1 or token[1] not in tokens[token[0]]:
            found.append(f"{token[0]}: its handler ran {count} times under the claim {token[1]}")
    for entry_id in acknowledged:
        if entry_id not in records:
            found.append(f"{entry_id}: acknowledged and lost")
        elif records[entry_id].state not in ("resolved", "parked"):
            found.append(f"{entry_id}: still {records[entry_id].state}")
    found += [f"{entry_id}: resolved {count} times" for entry_id, count in successes.items() if count > 1]
    found += [f"{entry_id}: its claim stayed behind" for entry_id in claims]
    found += [
        f"{entry_id}: tokens {one} and {two}"
        for entry_id, own in tokens.items()
        for one, two in pairwise(own)
        if two <= one
    ]
    return found
