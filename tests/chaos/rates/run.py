"""A whole run, as the judge sees it: what clients and provider say, and what etcd had at the end."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property

from tests.chaos.documents.history import Event, state_at_end
from tests.chaos.documents.journal import Fact, of
from tests.chaos.rates.client import NAMESPACE, Demand
from tests.chaos.rates.provider import LATE, Costs

Limits = dict[str, tuple[int, float]]


@dataclass
class Spend:
    """One request of a client. Times are of the monotonic clock that all processes share."""

    id: str
    process: str
    asked: float
    cost: Costs
    granted: float | None = None
    deadline: float = 0.0
    over: float | None = None  # when its block ended
    used: Costs = field(default_factory=dict)
    overdraft: Costs = field(default_factory=dict)
    answer: str = ""
    error: float | None = None  # when it ended in an error

    @property
    def in_time(self) -> bool:
        """True if it was granted with time left; a process that stood still finds its deadline over."""
        return self.granted is not None and self.granted < self.deadline

    @property
    def ended(self) -> float | None:
        """When it was granted or refused."""
        return self.granted if self.granted is not None else self.error

    @property
    def until(self) -> float:
        """The last moment at which its call may reach the provider."""
        return self.deadline if self.over is None else min(self.deadline, self.over)

    def counts(self, dimension: str) -> int:
        """The part of its cost that was used, or all of it where that is not known."""
        reserved = self.cost.get(dimension, 0)
        return reserved if self.over is None else min(reserved, self.used.get(dimension, reserved))


@dataclass(frozen=True)
class Call:
    """One call as the provider saw it."""

    id: str
    arrived: float
    due: float
    cost: Costs
    answer: str

    @property
    def late(self) -> bool:
        return self.answer == LATE

    @property
    def process(self) -> str:
        return self.id.rpartition("-")[0]


@dataclass
class Run:
    """``began`` and ``ended``: the span in which the clients work. ``calm``: no fault was made.

    ``floor``: the least part of each limit that must be used, for the dimensions that saturate. ``patience``: seconds
    within which a client that waits is served. ``leases``: those of etcd when all has expired; None if not asked.
    """

    limits: Limits
    facts: list[Fact]
    events: list[Event]
    began: float
    ended: float
    calm: bool = True
    floor: dict[str, float] = field(default_factory=dict)
    patience: float = 30.0
    leases: list[int] | None = None
    namespace: str = NAMESPACE

    @cached_property
    def spends(self) -> list[Spend]:
        """All requests, by the time they were made."""
        found: dict[str, Spend] = {}
        for fact in of(self.facts, "ask", "granted", "over", "error"):
            identity = fact["id"]
            if fact["fact"] == "ask":
                found[identity] = Spend(identity, fact["process"], fact["at"], fact["cost"])
            elif spend := found.get(identity):
                _learn(spend, fact)
        return list(found.values())

    @cached_property
    def calls(self) -> list[Call]:
        """All calls, by the time they arrived."""
        fields = ("id", "arrived", "due", "cost", "answer")
        return [Call(*(fact[name] for name in fields)) for fact in of(self.facts, "call")]

    @cached_property
    def demands(self) -> dict[str, Demand]:
        return {fact["process"]: Demand(**fact["demand"]) for fact in of(self.facts, "began")}

    @cached_property
    def disturbed(self) -> set[str]:
        """The processes that were killed or stopped, and those that came later in their stead."""
        named = {fact["of"] for fact in of(self.facts, "killed", "stopped")}
        return named | {fact["process"] for fact in of(self.facts, "began") if fact["at"] > self.began}

    @cached_property
    def steady(self) -> dict[str, Demand]:
        """The clients that worked from beginning to end."""
        return {name: demand for name, demand in self.demands.items() if name not in self.disturbed}

    @cached_property
    def spends_of(self) -> dict[str, list[Spend]]:
        found: dict[str, list[Spend]] = defaultdict(list)
        for spend in self.spends:
            found[spend.process].append(spend)
        return found

    @cached_property
    def grants(self) -> list[Spend]:
        """The requests that were granted, by the time of the grant."""
        granted = [spend for spend in self.spends if spend.granted is not None]
        return sorted(granted, key=lambda spend: spend.granted or 0.0)

    @cached_property
    def final(self) -> dict[str, Event]:
        """The keys that etcd has at the end."""
        return state_at_end(self.events)

    def measured(self, dimension: str) -> tuple[float, float]:
        """The beginning of the second period, and the length of the spans over which use is measured."""
        per = self.limits[dimension][1]
        return self.began + per, max(per, self.ended - self.began - 2 * per)


def _learn(spend: Spend, fact: Fact) -> None:
    match fact["fact"]:
        case "granted":
            spend.granted, spend.deadline = fact["at"], fact["deadline"]
        case "over":
            spend.over, spend.used = fact["at"], fact["used"]
            spend.overdraft, spend.answer = fact["overdraft"], fact["answer"]
        case "error":
            spend.error = fact["at"]
