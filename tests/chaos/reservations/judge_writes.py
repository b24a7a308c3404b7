"""Rules for what is held and written: grants, tokens, fenced writes, the use of handles."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable

from tests.chaos.documents.evidence import Violation
from tests.chaos.documents.history import Event
from tests.chaos.reservations.calls import Call
from tests.chaos.reservations.queues import Entry
from tests.chaos.reservations.run import Run

LATENCY = 1.5  # seconds by which the follower, or a process on a busy machine, may be late


def grants(run: Run) -> list[Violation]:
    """A reservation is told only when all its entries hold, with their create revision as its token."""
    found = []
    for call in run.calls:
        if call.what != "reserve" or not call.done:
            continue
        entries = run.entries_of[call.ask]
        wanted = {f"lock/{name}" for name in call.about["names"]}
        wanted |= {f"path/{call.about['tree']}"} if call.about["paths"] else set()
        if {entry.queue for entry in entries} != wanted:
            text = f"{call.ask} was told of {sorted(wanted)}, etcd had {[entry.queue for entry in entries]}"
            found.append(Violation("grant without entry", text))
        for entry in entries:
            if entry.token != call.about["token"]:
                text = f"{call.ask} was told token {call.about['token']}, its entry in {entry.queue} has {entry.token}"
                found.append(Violation("wrong token", text))
            if entry.granted is None or entry.granted_at > call.ended + LATENCY:
                text = f"{call.ask} was told of {entry.queue} while another entry held"
                found.append(Violation("grant out of turn", text))
    return found


def own_lease(run: Run) -> list[Violation]:
    """A reservation lies on a lease that no session has, the same for all its entries."""
    sessions = {entry.leases[0] for entry in run.entries}
    found = []
    for call in run.calls:
        if call.what == "reserve" and call.done:
            leases = {entry.leases[-1] for entry in run.entries_of[call.ask] if entry.leases[-1] not in sessions}
            if len(leases) != 1:
                found.append(Violation("no lease of its own", f"{call.ask}: {len(leases)} leases beside its session's"))
    return found


def tokens(run: Run) -> list[Violation]:
    """The tokens of the reservations of one name rise in the order in which they held."""
    found = []
    last: dict[str, int] = defaultdict(int)
    held = [entry for entry in run.entries if entry.granted is not None and entry.queue.startswith("lock/")]
    for entry in sorted(held, key=lambda entry: (entry.granted or 0, entry.token)):
        if entry.token <= last[entry.queue]:
            found.append(Violation("token falls", f"{entry.queue}: {entry.token} after {last[entry.queue]}"))
        last[entry.queue] = entry.token
    return found


def _written(run: Run) -> list[tuple[Event, str, str, int]]:
    """Each fenced write: its event, the file, the request that wrote it, and the token."""
    found = []
    for event in run.events:
        if event.key.startswith(run.root) and event.value is not None:
            value = json.loads(event.value)
            found.append((event, event.key[len(run.root) :], value["ask"], value["token"]))
    return found


def writes(run: Run) -> list[Violation]:
    """A fenced write commits only while each entry of its reservation holds and no other exclusive one covers it."""
    found = []
    highest: dict[tuple[str, bool], int] = defaultdict(int)  # by file, and by shared or exclusive
    for event, file, ask, token in _written(run):
        own = run.entries_of[ask]
        what = f"revision {event.revision}: {ask} with token {token} wrote {file}"
        if not own or not all(entry.holds(event.revision) for entry in own):
            found.append(Violation("write without hold", what))
        covering = [entry for entry in run.entries if entry.holds(event.revision) and entry.covers(file)]
        exclusive = [entry for entry in covering if not entry.shared]
        if len(exclusive) > 1 or (exclusive and len(covering) > 1):
            found.append(Violation("two holders", f"{what} while {[entry.ask for entry in covering]} hold"))
        elif not any(entry.ask == ask for entry in covering):
            found.append(Violation("write not covered", f"{what}; holders {[entry.ask for entry in covering]}"))
        shared = bool(own) and own[0].shared
        last = max(highest[file, False], 0 if shared else highest[file, True])
        if token < last:
            found.append(Violation("token falls", f"{what} after token {last}"))
        highest[file, shared] = max(highest[file, shared], token)
    return found


def uses(run: Run) -> list[Violation]:
    """A handle is refused with `LockLost` once its reservation has expired, and never while it lives."""
    found = []
    for call in run.calls:
        entries = run.entries_of[call.ask]
        if call.what not in ("renew", "write", "release") or not entries or call.error is None:
            continue
        what = f"{call.process}: {call.what} of {call.ask}"
        if (ended := _over_before(run, call, entries)) is not None:
            found.extend(Violation("use of the dead", f"{what} {text}") for text in _refusal(call, ended))
        elif call.error in ("LockLost", "NotHeld") and _alive_after(run, call, entries):
            found.append(Violation("live handle refused", f"{what} raised {call.error}: {call.text}"))
    return found


def _over_before(run: Run, call: Call, entries: list[Entry]) -> str | None:
    """The way in which the reservation had ended before a call began, or None."""
    over = [run.ending(entry) for entry in entries if entry.ended_at < call.began]
    return max(over, key=("waiter", "unknown", "released", "forced", "expired").index) if over else None


def _refusal(call: Call, ended: str) -> list[str]:
    """Complaints about a call's answer, where the reservation had ended in that way before it began."""
    if call.error in ("EtcdUnavailable", "SessionLost"):
        return []
    if call.what == "release" and ended in ("released", "unknown", "forced") and call.done:
        return []
    if call.done:
        return [f"was accepted though it had been {ended}"]
    if ended in ("released", "unknown", "forced") and call.error in ("LockLost", "NotHeld"):
        return []
    if call.error != "LockLost":
        return [f"raised {call.error}, not LockLost, though it had been {ended}"]
    return [] if "expired" in call.text else [f"does not say that it expired: {call.text}"]


def _alive_after(run: Run, call: Call, entries: list[Entry]) -> bool:
    """True if it surely lived well beyond the call, by etcd and by its own reckoning."""
    ttl = run.requests[call.ask].about["ttl"]
    sure, _ = run.last_renewal(call.ask)
    others = [other for other in run.calls_of[call.ask] if other is not call]
    released = any(other.what == "release" and other.began < call.ended for other in others)
    lives = all(entry.ended_at > call.ended + LATENCY for entry in entries)
    return lives and not released and call.ended < sure + ttl - LATENCY


def errors(run: Run) -> list[Violation]:
    """A call raises nothing but the documented errors."""
    return [
        Violation("undocumented error", f"{call.process}: {call.what} of {call.ask} raised {call.error}: {call.text}")
        for call in run.calls
        if call.error and not call.about.get("documented")
    ]


WRITES: tuple[Callable[[Run], list[Violation]], ...] = (grants, own_lease, tokens, writes, uses, errors)
