"""The judge of rate limits: good histories pass, and each kind of bad one is caught."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.documents.history import Event
from tests.chaos.documents.journal import Fact
from tests.chaos.documents.judge import report
from tests.chaos.rates.client import FOREVER, Demand
from tests.chaos.rates.figures import jain, peak, revisions, use
from tests.chaos.rates.judge import judge, same_writes
from tests.chaos.rates.provider import LATE, REFUSED, SERVED, Provider, Window
from tests.chaos.rates.run import Run

LIMIT, PER = 10, 10.0
PACE = 1.002  # seconds from call to call at which a window holds 10
ROOT = "/rated/v1/rate/provider%2Frequests/"


class Said:
    """The facts of clients and provider, for a limit of 10 requests in 10 s."""

    def __init__(self, **demands: Demand) -> None:
        self.facts: list[Fact] = []
        self._numbers = itertools.count()
        for name, demand in demands.items():
            self.fact("began", -1.0, name, demand=asdict(demand))

    def fact(self, kind: str, at: float, process: str = "driver", **about: Any) -> Said:
        self.facts.append({"fact": kind, "at": at, "process": process, **about})
        return self

    def spend(
        self,
        process: str,
        at: float,
        cost: int = 1,
        asked: float | None = None,
        life: float = 2.0,
        late: float = 0.01,
        answer: str = SERVED,
        used: int | None = None,
        overdraft: int = 0,
    ) -> Said:
        """A request that is granted, called ``late`` seconds afterwards, and over then."""
        identity, costs = f"{process}-{next(self._numbers)}", {"requests": cost}
        self.fact("ask", at if asked is None else asked, process, id=identity, cost=costs)
        self.fact("granted", at, process, id=identity, cost=costs, deadline=at + life)
        told = {"requests": min(cost, cost if used is None else used)}
        arrived = at + late
        self.fact("call", arrived, "provider", id=identity, arrived=arrived, due=at + life, cost=told, answer=answer)
        used_up = {"requests": cost if used is None else used}
        more = {"requests": overdraft} if overdraft else {}
        return self.fact("over", arrived, process, id=identity, used=used_up, answer=answer, overdraft=more)

    def waits(self, process: str, asked: float) -> Said:
        identity = f"{process}-{next(self._numbers)}"
        return self.fact("ask", asked, process, id=identity, cost={"requests": 1})


SATURATING = Demand({"requests": 1}, saturating=True)


def judged(said: Said, events: list[Event] | None = None, ended: float = 30.0, **about: Any) -> str:
    facts = sorted(said.facts, key=lambda fact: float(fact["at"]))
    return report(judge(Run({"requests": (LIMIT, PER)}, facts, events or [], 0.0, ended, **about)))


def even(seconds: int = 30) -> Said:
    """Two clients that use all of it, in turn."""
    said = Said(a=SATURATING, b=SATURATING)
    for second in range(seconds):
        said.spend("ab"[second % 2], second * PACE + 0.1)
    return said


def test_a_good_history_passes() -> None:
    limit = Event(2, f"{ROOT}limit-10", b"{}", 2, 0, 0.0)
    entry = Event(3, f"{ROOT}1-0", b"{}", 3, 7, 0.0)
    events = [limit, entry, Event(4, f"{ROOT}1-0", None, seen=20.0)]
    assert judged(even(), events, floor={"requests": 0.9}, patience=5.0, leases=[]) == ""


def test_a_429_is_caught() -> None:
    assert "429" in judged(even().spend("a", 12.0, answer=REFUSED, cost=0))


def test_a_window_one_over_is_caught() -> None:
    text = judged(even().spend("a", 15.0))
    assert "window of calls: 1" in text and "11 of 10" in text
    assert "window of grants: 1" in text


def test_a_late_call_is_counted_apart() -> None:
    said = even().fact("stopped", 14.0, of="c").spend("c", 15.0, life=-1.0, answer=LATE)
    assert judged(said) == ""


def test_late_calls_of_nobody_that_stood_still_are_caught() -> None:
    said = even()
    for second in range(3):
        said.spend("a", second + 0.5, life=-0.1, answer=LATE)
    assert "late: 1" in judged(said)


def test_a_promise_that_lasts_longer_than_it_counts_is_caught() -> None:
    said = Said(a=SATURATING).spend("a", 0.1, life=4.0, late=3.0)
    for _ in range(10):
        said.spend("a", 12.0)
    assert "window of calls: 1" in judged(said)


def test_a_promise_of_a_killed_client_counts_until_its_deadline() -> None:
    said = Said(a=SATURATING, b=SATURATING)
    for second in range(10):
        said.fact("ask", 1.0, "a", id=f"a-{second}", cost={"requests": 1})
        said.fact("granted", 1.0, "a", id=f"a-{second}", cost={"requests": 1}, deadline=3.0)
    said.fact("killed", 1.5, of="a")
    assert "window of grants" in judged(said.spend("b", 12.5, asked=2.0))
    said.facts.pop(), said.facts.pop(), said.facts.pop(), said.facts.pop()
    assert judged(said.spend("b", 13.5, asked=2.0)) == ""


def test_a_call_without_a_deadline_counts_when_it_is_granted() -> None:
    said = Said(a=Demand({"requests": 1}, acquire=True))
    for number in range(20):
        said.spend("a", 0.1 + 10.1 * (number // 10), life=FOREVER)
    assert judged(said) == ""


def test_a_refund_makes_room() -> None:
    said = Said(a=SATURATING)
    for second in range(30):
        said.spend("a", second * PACE + 0.1, cost=10, used=1)
    assert judged(said) == ""


def test_use_below_the_floor_is_caught() -> None:
    said = Said(a=SATURATING)
    for second in range(0, 30, 2):
        said.spend("a", second + 0.1)
    assert "use: 1\n  50.0% of requests" in judged(said, floor={"requests": 0.9})


def test_use_does_not_depend_on_when_the_bursts_come() -> None:
    """A burst every 12.5 s uses four fifths, wherever the run begins and ends."""
    for offset in (0.1, 3.0, 6.0, 9.0, 12.0):
        said = Said(a=SATURATING)
        for burst in range(6):
            for _ in range(10):
                said.spend("a", offset + 12.5 * burst)
        run = Run({"requests": (LIMIT, PER)}, said.facts, [], 0.0, 70.0)
        assert use(run, "requests") == pytest.approx(0.8, abs=0.05)


def test_unfair_shares_are_caught() -> None:
    said = Said(a=SATURATING, b=SATURATING)
    for second in range(30):
        said.spend("b" if second % 4 == 0 else "a", second * PACE + 0.1)
    assert "fairness" in judged(said, floor={"requests": 0.9})


def test_a_client_that_was_killed_has_no_share() -> None:
    said = Said(a=SATURATING, b=SATURATING, c=SATURATING).fact("killed", 1.0, of="c")
    for second in range(30):
        said.spend("ab"[second % 2], second * PACE + 0.1)
    assert judged(said, floor={"requests": 0.9}, calm=False) == ""


def test_a_starved_client_is_caught() -> None:
    said = even()
    said.fact("began", -1.0, "c", demand=asdict(SATURATING)).waits("c", 5.0)
    assert "starved: 1\n  c from 0.000 s to 30.000 s" in judged(said, patience=20.0)
    assert "starved" not in judged(said, patience=26.0)


def test_a_client_that_waits_for_nothing_does_not_starve() -> None:
    said = even().fact("began", -1.0, "c", demand=asdict(SATURATING))
    assert judged(said.spend("c", -0.5, cost=0), patience=5.0) == ""


def test_small_demand_that_is_not_served_is_caught() -> None:
    said = Said(a=Demand({"requests": 1}, tasks=1, rate=0.5))
    for second in range(0, 30, 4):
        said.spend("a", second + 0.1)
    assert "small demand" in judged(said)


def test_overtaking_is_caught() -> None:
    said = even(6)
    said.fact("began", -1.0, "c", demand=asdict(SATURATING))
    for second in range(10, 19):
        said.spend("a", second + 0.1)
    said.spend("c", 20.0, asked=7.0)
    assert "overtaken" in judged(said)
    assert "overtaken" not in judged(said, calm=False)


def test_an_error_that_is_not_documented_is_caught() -> None:
    said = even().fact("error", 3.0, "a", id="a-0", error="KeyError", text="'x'", documented=False)
    assert "error: 1\n  a: KeyError" in judged(said, calm=False)


def test_an_error_without_a_fault_is_caught_but_not_an_asked_timeout() -> None:
    said = even().fact("began", -1.0, "c", demand=asdict(Demand({"requests": 1}, timeout=1.0)))
    said.fact("error", 3.0, "c", id="c-0", error="LockTimeout", text="", documented=True)
    assert judged(said) == ""
    said.fact("error", 3.0, "a", id="a-0", error="LockTimeout", text="", documented=True)
    assert "error: 1" in judged(said)


def test_a_process_that_fails_is_caught() -> None:
    said = even().fact("exit", 31.0, of="a", code=1, killed=False, stderr="Traceback")
    assert "process: 1" in judged(said.fact("exit", 31.0, of="b", code=-9, killed=True, stderr=""))


def test_a_wrong_overdraft_is_caught() -> None:
    assert "overdraft: 1" in judged(Said(a=SATURATING).spend("a", 1.0, cost=2, used=5, overdraft=2))
    assert judged(Said(a=SATURATING).spend("a", 1.0, cost=2, used=5, overdraft=3)) == ""


def test_overdrafts_that_are_never_paid_are_caught() -> None:
    said = Said(a=SATURATING)
    for second in range(30):
        said.spend("a", second * PACE + 0.1, used=3, overdraft=2)
    assert "overdrafts: 1" in judged(said)


def test_a_spend_during_a_pause_is_caught() -> None:
    said = even().fact("paused", 5.0, asked=4.9, seconds=4.0)
    assert "pause: 3" in judged(said)


def test_what_is_left_in_etcd_is_caught() -> None:
    limit = Event(2, f"{ROOT}limit-10", b"{}", 2, 0, 0.0)
    entry = Event(3, f"{ROOT}1-0", b"{}", 3, 7, 0.0)
    assert "left in etcd: 2" in judged(even(), [limit, entry], leases=[7])
    assert judged(even(), [limit, entry]) == "", "not asked while it runs"


def test_more_writes_with_more_calls_are_caught() -> None:
    assert same_writes(100, 110) == [] and same_writes(100, 111)


def test_revisions_are_counted_once() -> None:
    events = [Event(n // 2, "k", b"", seen=float(n)) for n in range(10)]
    assert revisions(events, 2.0, 6.0) == 2


def test_jain() -> None:
    assert jain([5, 5, 5]) == pytest.approx(1.0) and jain([9, 0, 0]) == pytest.approx(1 / 3) and jain([]) == 0.0


entries = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4), st.integers(1, 5)), max_size=12)


@given(entries)
def test_the_peak_is_that_of_a_brute_force_search(drawn: list[tuple[int, int, int]]) -> None:
    spans = [(float(first), float(first + lasts), amount) for first, lasts, amount in drawn]
    ends = [first for first, _, _ in spans]
    brute = max((sum(a for f, last, a in spans if f <= end and last > end - 7) for end in ends), default=0)
    assert peak(spans, 7)[0] == brute


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), max_size=40))
def test_the_provider_never_serves_beyond_the_limit_and_never_refuses_below(drawn: list[tuple[int, int]]) -> None:
    window, now = Window(10, 8), 0.0
    served: list[tuple[float, int]] = []
    for wait, cost in drawn:
        now += wait
        counted = sum(amount for at, amount in served if at > now - 8)
        assert window.fits(now, cost) == (counted + cost <= 10)
        if counted + cost <= 10:
            window.add(now, cost)
            served.append((now, cost))


def test_a_call_counts_in_every_dimension_or_in_none() -> None:
    provider = Provider({"requests": (10, 10), "tokens": (5, 10)})
    assert provider.answer(0, 1, {"requests": 1, "tokens": 6}) == REFUSED
    assert provider.windows["requests"].used == 0
    assert provider.answer(2, 1, {"requests": 1, "tokens": 5}) == LATE
    assert provider.answer(2, 3, {"requests": 1, "tokens": 5}) == SERVED
    assert provider.answer(12, 13, {"requests": 1, "tokens": 5}) == SERVED
