"""What is promised of dead letters: none lost, none stuck, none doubled, and its record says what happened to it."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable

from tests.chaos.documents.evidence import FOREVER, Claim, Evidence, Version, Violation, entry_key, spans
from tests.chaos.documents.journal import Fact

UNRESOLVED = ("waiting", "running", "parked")
OUTCOMES = {"ok": ("ok",), "failed": ("failed", "parked"), "park": ("parked",), "discard": ("discarded",)}


def _removable(evidence: Evidence, key: str) -> set[str]:
    """The states in which a record may be deleted: resolved ones always, others where somebody purged them."""
    _, namespace, _, _, queue, _, _ = key.split("/")
    states = {"resolved"}
    for fact in evidence.said("purge"):
        if (fact["ns"], fact["queue"]) == (namespace, queue):
            states |= {fact["state"]} if fact.get("state") else {"resolved", "parked"}
    return states


def lost(evidence: Evidence) -> list[Violation]:
    """An `add` that has returned is in etcd, and its record goes only once it is resolved or was purged."""
    found = []
    for fact in evidence.said("added"):
        key = entry_key(fact["ns"], fact["queue"], fact["id"])
        if key not in evidence.entries:
            found.append(
                Violation("lost", f"{fact['process']} was told {fact['id']} for {key}, which never was in etcd")
            )
    for key, versions in evidence.entries.items():
        for before, after in itertools.pairwise(versions):
            if after.state == "deleted" and before.state not in _removable(evidence, key):
                found.append(Violation("lost", f"{key} was deleted at {after.revision} while {before.state}"))
    return found


def unfinished(evidence: Evidence) -> list[Violation]:
    """After the faults, what has a handler ends resolved or parked, or waits for a time that is still to come."""
    handled = {
        (fact["ns"], fact["queue"], operation) for fact in evidence.said("handled") for operation in fact["operations"]
    }
    found = []
    for key, versions in evidence.entries.items():
        record = versions[-1].record
        _, namespace, _, _, queue, _, _ = key.split("/")
        if record is None or (namespace, queue, record["operation"]) not in handled:
            continue
        if record["state"] == "running":
            found.append(Violation("unfinished", f"{key} is still running after {_told(record)}"))
        elif record["state"] == "waiting" and str(record.get("next_attempt_at") or "") < evidence.clock:
            due = record.get("next_attempt_at")
            found.append(Violation("unfinished", f"{key} has been due since {due} and nobody ran it; {_told(record)}"))
    return found


def idle(evidence: Evidence) -> list[Violation]:
    """A worker that lives does what is due, and does not leave it to others; judged at a moment of calm."""
    found = []
    for fact in evidence.said("calm"):
        root = entry_key(fact["ns"], fact["queue"], "")
        for key, versions in evidence.entries.items():
            before = [version for version in versions if version.revision <= fact["revision"]]
            record = before[-1].record if before and key.startswith(root) else None
            if record and record["state"] == "waiting" and str(record["next_attempt_at"]) < fact["clock"]:
                due = record["next_attempt_at"]
                found.append(
                    Violation("idle", f"{key} was due at {due}, and its worker did nothing until {fact['clock']}")
                )
            elif record and record["state"] == "running" and record["attempts"][-1]["time"] < fact["clock"]:
                found.append(Violation("idle", f"{key} is running in name only at {fact['clock']}; {_told(record)}"))
    return found


def _told(record: dict[str, object]) -> str:
    attempts = record.get("attempts") or []
    assert isinstance(attempts, list)
    return f"attempts {[attempt['outcome'] for attempt in attempts]}"


def _ran(fact: Fact) -> tuple[str, int]:
    """Which claim a run says that it runs under. Entries claimed together share a token, never one entry's claims."""
    return entry_key(fact["ns"], fact["queue"], fact["id"]), fact["token"]


def idle_claims(evidence: Evidence) -> list[Violation]:
    """No claim at the end without a run of it under way, in a process that lives."""
    under_way = {
        _ran(fact)
        for fact, end, until in spans(evidence, evidence.said("run"), evidence.said("ran"), "run")
        if end is None and until == FOREVER
    }
    found = []
    for key, claims in evidence.claims.items():
        last = claims[-1]
        if last.ended is None and (key, last.token) not in under_way:
            text = f"{key} is claimed with token {last.token} under lease {last.lease:x}, and nobody runs it"
            found.append(Violation("claim without runner", text))
    return found


def attempts(evidence: Evidence) -> list[Violation]:
    """Attempts on record equal runs: each run has its claim, each claim its run, and the record says how it ended."""
    claims = {(key, claim.token): claim for key, own in evidence.claims.items() for claim in own}
    runs: Counter[tuple[str, int]] = Counter()
    found = []
    for fact, end, _ in spans(evidence, evidence.said("run"), evidence.said("ran"), "run"):
        own = _ran(fact)
        runs[own] += 1
        if own not in claims:
            text = f"{fact['process']} ran {own[0]} under token {own[1]}, and no claim of it was ever in etcd"
            found.append(Violation("attempts", text))
        elif end is not None:
            found += _recorded(evidence, own[0], claims[own], fact, end)
    for (key, token), times in runs.items():
        if times > 1:
            found.append(Violation("attempts", f"{key}: {times} runs under one token {token}"))
    for (key, token), claim in claims.items():
        outcome = _outcome(evidence, key, claim)
        if (key, token) not in runs and outcome not in ("interrupted", "crashed", "running", "", None):
            found.append(Violation("attempts", f"{key}: nobody ran token {token}, and its record says {outcome}"))
    return found


def _outcome(evidence: Evidence, key: str, claim: Claim) -> str | None:
    """What the record says, at the first revision after the claim, of the attempt that the claim began."""
    versions = evidence.entries.get(key, [])
    at_claim = next((version for version in versions if version.revision == claim.token), None)
    after = next((version for version in versions if version.revision > claim.token), None)
    if at_claim is None or at_claim.record is None or not at_claim.record["attempts"]:
        return None
    if after is None:
        return "running"
    if after.record is None:
        return ""
    began = at_claim.record["attempts"][-1]["time"]
    matching = [attempt for attempt in after.record["attempts"] if attempt["time"] == began]
    return str(matching[-1]["outcome"]) if matching else "forgotten"


def _recorded(evidence: Evidence, key: str, claim: Claim, fact: Fact, end: Fact) -> list[Violation]:
    expected = OUTCOMES.get(end["outcome"])
    outcome = _outcome(evidence, key, claim)
    excused = ("crashed", "interrupted", "running", "")  # lost its session, was stopped, or is judged as unfinished
    if expected is None or outcome in expected or outcome in excused:
        return []
    text = f"{key}: run {fact['number']} under token {claim.token} ended {end['outcome']}, its record says {outcome}"
    return [Violation("attempts", text)]


def doubles(evidence: Evidence) -> list[Violation]:
    """At no revision are there two unresolved records of one dedup key, but by a replay of the older one."""
    holders: dict[str, set[str]] = defaultdict(set)
    replayed: set[str] = set()
    found = []
    changes = [(version, key) for key, versions in evidence.entries.items() for version in versions]
    last: dict[str, Version] = {}
    for version, key in sorted(changes, key=lambda change: change[0].revision):
        before, last[key] = last.get(key), version
        record = version.record or (before.record if before else None)
        if not record or not record.get("dedup"):
            continue
        place = key.rsplit("/", 2)[0] + " " + str(record["dedup"])
        if version.state not in UNRESOLVED:
            holders[place].discard(key)
            continue
        if before and before.state == "resolved":
            replayed.add(key)
        if key not in holders[place]:
            holders[place].add(key)
            others = holders[place] - replayed
            if len(others) > 1 and key not in replayed:
                text = f"{len(others)} unresolved at revision {version.revision}: {', '.join(sorted(others))}"
                found.append(Violation("doubled", text))
    return found


def returned(evidence: Evidence) -> list[Violation]:
    """What was resolved, or tried, stays so, but for a replay; what was deleted is not written again."""
    by_id = {(fact["ns"], fact["queue"], fact["id"]) for fact in evidence.said("replay")}
    whole = {(fact["ns"], fact["queue"]) for fact in evidence.said("replay_all") if fact.get("state") != "parked"}
    found = []
    for key, versions in evidence.entries.items():
        _, namespace, _, _, queue, _, number = key.split("/")
        replayed = (namespace, queue, number) in by_id or (namespace, queue) in whole
        for before, after in itertools.pairwise(versions):
            if before.record is None:
                found.append(Violation("returned", f"{key} was deleted and is written again at {after.revision}"))
            elif after.record is None:
                continue
            elif before.state == "resolved" and after.state != "resolved" and not replayed:
                found.append(Violation("returned", f"{key} was resolved and is {after.state} at {after.revision}"))
            elif len(after.record["attempts"]) < min(len(before.record["attempts"]), 8):
                text = f"{key} had {len(before.record['attempts'])} attempts, at {after.revision} it has fewer"
                found.append(Violation("returned", text))
    return found


def overlaps(evidence: Evidence) -> list[Violation]:
    """No two runs of one entry at once, by one machine's clock; a process that was stopped meanwhile is excepted."""
    runs: dict[tuple[str, str, str], list[tuple[float, float, Fact]]] = defaultdict(list)
    for fact, _, until in spans(evidence, evidence.said("run"), evidence.said("ran"), "run"):
        if not evidence.stopped_for(fact["process"], float(fact["at"]), until):
            runs[fact["ns"], fact["queue"], fact["id"]].append((float(fact["at"]), until, fact))
    found = []
    for entry, own in runs.items():
        own.sort(key=lambda run: run[0])
        for (_, until, one), (began, _, other) in itertools.pairwise(own):
            if began < until:
                text = (
                    f"{'/'.join(entry)}: {one['process']} ran it under token {one['token']} until {until:.3f}, "
                    f"{other['process']} under token {other['token']} from {began:.3f}"
                )
                found.append(Violation("two at once", text))
    return found


def spilled(evidence: Evidence) -> list[Violation]:
    """What failed in a pool arrives exactly once, in its own queue and namespace."""
    wanted = {fact["task"]: fact for fact in evidence.said("failed")}
    arrived: dict[str, list[str]] = defaultdict(list)
    for key, versions in evidence.entries.items():
        record = versions[0].record
        arguments = record["args"].get("args") if record and isinstance(record["args"], dict) else None
        if isinstance(arguments, list) and arguments and str(arguments[0]) in wanted:
            arrived[str(arguments[0])].append(key)
    found = []
    for task, fact in wanted.items():
        place = entry_key(fact["ns"], fact["queue"], "")
        if not arrived[task]:
            found.append(Violation("spilled", f"{task}, which failed in {fact['process']}, never came to {place}"))
        if len(arrived[task]) > 1:
            found.append(Violation("spilled", f"{task} came {len(arrived[task])} times: {', '.join(arrived[task])}"))
        found += [
            Violation("spilled", f"{task} belongs to {place} and came to {key}")
            for key in arrived[task]
            if not key.startswith(place)
        ]
    return found


DEAD: tuple[Callable[[Evidence], list[Violation]], ...] = (
    lost,
    unfinished,
    idle,
    idle_claims,
    attempts,
    doubles,
    returned,
    overlaps,
    spilled,
)
