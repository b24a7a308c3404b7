"""The judge's evidence: etcd's history and the processes' facts, side by side."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tests.chaos.documents.history import Event, state_at_end
from tests.chaos.documents.journal import Fact, of

FOREVER = float("inf")


@dataclass(frozen=True, slots=True)
class Violation:
    """One promise that was not kept; ``kind`` names the promise, ``text`` says what happened."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(frozen=True, slots=True)
class Version:
    """One state of a dead letter's record; ``record`` is None where it was deleted."""

    revision: int
    record: dict[str, Any] | None
    lease: int

    @property
    def state(self) -> str:
        return str(self.record["state"]) if self.record else "deleted"


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim of an entry; its create revision is the attempt's token."""

    token: int
    lease: int
    ended: int | None  # the revision of its deletion


@dataclass(frozen=True)
class Evidence:
    """A whole run. ``clock`` is the time of day at its end, for what waits until a time of day."""

    events: list[Event]
    facts: list[Fact]
    clock: str = "9999"

    def said(self, *kinds: str) -> list[Fact]:
        return of(self.facts, *kinds)

    @cached_property
    def final(self) -> dict[str, Event]:
        """The keys that etcd holds at the end."""
        return state_at_end(self.events)

    @cached_property
    def entries(self) -> dict[str, list[Version]]:
        """Every state of every dead letter, by the record's key. What is no record of ours is left out."""
        versions: dict[str, list[Version]] = defaultdict(list)
        for event in self.events:
            if not part_of(event.key, "entry"):
                continue
            record = None if event.value is None else decoded_record(event.value)
            if record or (event.value is None and event.key in versions):
                versions[event.key].append(Version(event.revision, record, event.lease))
        return dict(versions)

    @cached_property
    def claims(self) -> dict[str, list[Claim]]:
        """Every claim of every dead letter, by the key of its record. A key without a lease is none."""
        claims: dict[str, list[Claim]] = defaultdict(list)
        for event in self.events:
            if not part_of(event.key, "claim"):
                continue
            own = claims[event.key.replace("/claim/", "/entry/")]
            if event.lease and (not own or own[-1].ended is not None):
                own.append(Claim(event.created, event.lease, None))
            elif event.value is None and own and own[-1].ended is None:
                own[-1] = Claim(own[-1].token, own[-1].lease, event.revision)
        return {key: own for key, own in claims.items() if own}

    @cached_property
    def ends(self) -> dict[str, float]:
        """When each process that was killed or ended did so."""
        ends: dict[str, float] = {}
        for fact in self.said("killed", "exit"):
            ends.setdefault(fact["of"], float(fact["at"]))
        return ends

    @cached_property
    def stops(self) -> dict[str, list[tuple[float, float]]]:
        """From when to when each process was stopped by SIGSTOP."""
        stops: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for fact in self.said("stopped", "continued"):
            if fact["fact"] == "stopped":
                stops[fact["of"]].append((float(fact["at"]), FOREVER))
            elif stops[fact["of"]]:
                stops[fact["of"]][-1] = (stops[fact["of"]][-1][0], float(fact["at"]))
        return dict(stops)

    def stopped_for(self, process: str, began: float, ended: float) -> float:
        """The seconds for which a process was stopped within a span of time."""
        spans = self.stops.get(process, ())
        return sum(max(0.0, min(ended, until) - max(began, since)) for since, until in spans)


def part_of(key: str, kind: str) -> bool:
    """True if a key lies under ``dead/<queue>/<kind>/``."""
    parts = key.split("/")
    return len(parts) == 7 and parts[2] == "v1" and parts[3] == "dead" and parts[5] == kind


def decoded_record(value: bytes) -> dict[str, Any] | None:
    """A dead letter's record, or None for what cannot be one."""
    try:
        record = json.loads(value)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("state"), str) or "operation" not in record:
        return None
    return record


def entry_key(namespace: str, queue: str, number: str) -> str:
    """The key of a dead letter's record, by SPEC's key layout."""
    return f"/{namespace}/v1/dead/{queue}/entry/{number}"


def spans(
    evidence: Evidence, began: Iterable[Fact], ended: Iterable[Fact], name: str
) -> list[tuple[Fact, Fact | None, float]]:
    """Each beginning with its end; what has no end lasted until its process ended."""
    last = {(fact["process"], fact[name]): fact for fact in ended}
    found = []
    for fact in began:
        end = last.get((fact["process"], fact[name]))
        until = float(end["at"]) if end else evidence.ends.get(fact["process"], FOREVER)
        found.append((fact, end, until))
    return found
