"""Rules for how reservations end: when they expire, what is told to the next one, what stays behind, what is listed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from urllib.parse import unquote

from tests.chaos.documents.evidence import Violation
from tests.chaos.documents.journal import of
from tests.chaos.reservations.calls import NOTE
from tests.chaos.reservations.queues import Entry, overlap
from tests.chaos.reservations.run import Run

DAY = 86_400
LONGEST = 12  # seconds that a reservation of the workload lives, after which the day begins
LATENCY = 1.5  # seconds by which the follower, or a process on a busy machine, may be late


def expiry(run: Run) -> list[Violation]:
    """Nothing ends before its time to live, counted from the last answered renewal, and nothing lives much longer."""
    found = []
    for entry in run.entries:
        if entry.moved_at is None or entry.ask not in run.requests or run.ending(entry) != "expired":
            continue
        ttl = run.requests[entry.ask].about["ttl"]
        sure, latest = run.last_renewal(entry.ask)
        if sure and entry.ended_at < sure + ttl:
            text = f"{entry.ask} ended {entry.ended_at - sure:.1f} s after its last renewal, which gave it {ttl} s"
            found.append(Violation("ended early", text))
        latest = max(latest, entry.moved_at)
        if entry.ended_at > latest + ttl + run.late:
            text = f"{entry.ask} with {ttl} s ended {entry.ended_at - latest:.1f} s after its last renewal"
            found.append(Violation("ended late", text))
    return found


def promises(run: Run) -> list[Violation]:
    """`expires_in` never promises more than etcd gives."""
    found = []
    for call in run.calls:
        promised = call.about.get("expires_in")
        if promised is None:
            continue
        ttl = run.requests[call.ask].about["ttl"]
        if promised > ttl:
            found.append(
                Violation("promise", f"{call.ask} is said to live {promised:.1f} s, its time to live is {ttl}")
            )
        for entry in run.entries_of[call.ask]:
            if run.ending(entry) == "expired" and entry.ended_at < call.about["asked"] + promised:
                lived = entry.ended_at - call.about["asked"]
                text = f"{call.ask} was to live {promised:.1f} s, and ended {lived:.1f} s later"
                found.append(Violation("promise", text))
    return found


def _reserved(run: Run) -> dict[str, list[Entry]]:
    """The entries of each queue that were put on a lease of their own, in the order in which they held."""
    queues: dict[str, list[Entry]] = defaultdict(list)
    for entry in run.entries:
        if entry.moved_at is not None and entry.granted is not None and entry.ask:
            queues[entry.queue].append(entry)
    for entries in queues.values():
        entries.sort(key=lambda entry: (entry.granted or 0, entry.token))
    return dict(queues)


def _notes(run: Run, ask: str) -> set[str]:
    """The notes that may be a reservation's last one."""
    noted = [call for call in run.renewals(ask) if call.about.get("note") and (call.done or call.uncertain)]
    sure = [call for call in noted if call.done]
    last = max((call.began for call in sure), default=0.0)
    return {call.about["note"] for call in noted if call.ended >= last}


def left(run: Run) -> list[Violation]:
    """The next taker is told the last note of a predecessor that expired without a release, and no other note.

    One that takes several names is told of the predecessor in each.
    """
    wanted: dict[str, list[set[str]]] = defaultdict(list)  # by taker: for each queue, the notes of which one is told
    allowed: dict[str, set[str]] = defaultdict(set)
    for entries in _reserved(run).values():
        shared = any(entry.shared for entry in entries)
        for number, taker in enumerate(entries):
            predecessors = [entry for entry in entries[:number] if overlap(entry, taker)]
            exclusive = not shared and taker.queue.startswith("lock/")
            allowed[str(taker.ask)] |= _interrupted(run, predecessors, exclusive)
            if predecessors and not shared and run.ending(predecessors[-1]) == "expired":
                wanted[str(taker.ask)].append(_notes(run, str(predecessors[-1].ask)))
    found = []
    for call in run.calls:
        if call.what != "reserve" or not call.done:
            continue
        told = {match.group() for match in NOTE.finditer(call.about.get("left") or "")}
        for notes in wanted[call.ask]:
            if notes and not told & notes:
                text = f"{call.ask} was told {sorted(told)}, not one of {sorted(notes)}"
                found.append(Violation("left not told", text))
        if more := told - allowed[call.ask]:
            found.append(Violation("left told wrongly", f"{call.ask} was told {sorted(more)}"))
    return found


def _interrupted(run: Run, predecessors: list[Entry], exclusive: bool) -> set[str]:
    """The notes of those that were not released. On an exclusive name only the last of them counts."""
    notes: set[str] = set()
    for entry in reversed(predecessors):
        ending = run.ending(entry)
        if ending != "released":
            notes |= _notes(run, str(entry.ask))
        if exclusive and ending in ("released", "expired"):
            break
    return notes


def leftovers(run: Run) -> list[Violation]:
    """When all has ended, etcd holds no key and no lease but of the notes that are left, each for a day at most."""
    if run.leases is None:
        return []
    root = f"/{run.namespace}/v1/"
    found, leased = [], set()
    for key, event in run.final.items():
        if not key.startswith(root):
            continue
        kind = key.removeprefix(root).partition("/")[0]
        if kind == "left":
            leased.add(event.lease)
            found.extend(_wrong_note(run, key, event.lease))
        elif kind != "audit":
            found.append(Violation("left behind", f"{key} with lease {event.lease:x}"))
    orphans = [lease for lease in run.leases if lease not in leased]
    # Each process that was killed may have just begun one, and each lost answer may have been that of one.
    begun = len([fact for fact in of(run.facts, "exit") if fact["killed"]]) + run.lost
    # A note of several queues is told queue by queue, and its lease ends by itself.
    begun += sum(
        any(run.ending(one) != "released" for one in told) for told in run.entries_of.values() if len(told) > 1
    )
    if len(orphans) > begun:
        told = ", ".join(f"{lease:x} of {run.leases[lease]} s" for lease in orphans[:5])
        found.append(Violation("lease left behind", f"{len(orphans)} leases without a note: {told}"))
    return found


def _wrong_note(run: Run, key: str, lease: int) -> Iterable[Violation]:
    assert run.leases is not None
    if not 0 < run.leases.get(lease, 0) <= DAY + LONGEST:
        yield Violation("left for ever", f"{key} has a lease of {run.leases.get(lease, 0)} s")
    parts = key.split("/")
    queue = f"lock/{unquote(parts[5])}" if parts[4] == "lock" and len(parts) == 6 else None
    reserved = _reserved(run).get(queue or "", [])
    if reserved and run.ending(reserved[-1]) == "released" and not reserved[-1].shared:
        yield Violation("left after release", f"{key}, though {reserved[-1].ask} was released")


def lists(run: Run) -> list[Violation]:
    """A list has every reservation that lived all the while, and none that was over before or began after it."""
    found = []
    for call in run.calls:
        if call.what != "list" or not call.done:
            continue
        listed = set(call.about["tokens"])
        for ask in run.requests:
            if not (entries := run.entries_of[ask]):
                continue
            moved = [entry for entry in entries if entry.moved_at is not None and entry.moved_at < call.began]
            lived = moved == entries and all(entry.ended_at > call.ended + LATENCY for entry in entries)
            over = all(entry.ended_at < call.began or entry.joined_at > call.ended + LATENCY for entry in entries)
            if lived and entries[0].token not in listed:
                found.append(Violation("not listed", f"{ask} with token {entries[0].token} by {call.process}"))
            if over and entries[0].token in listed:
                found.append(Violation("listed though gone", f"{ask} with token {entries[0].token} by {call.process}"))
    return found


ENDS: tuple[Callable[[Run], list[Violation]], ...] = (expiry, promises, left, leftovers, lists)
