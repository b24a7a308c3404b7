"""The bench's own arithmetic: which peer a ratio is taken against, what it says of goals, how two runs compare."""

from __future__ import annotations

import io
import json
from typing import Any

from rich.console import Console

from benchmarks.cases import CASES, GOALS, Case
from benchmarks.compare import compared
from benchmarks.report import Report
from benchmarks.sample import Granted, Sample, shared

NAMED = {case.name: case for case in CASES}


def samples(rates: dict[str, float], busiest: dict[str, float] | None = None) -> dict[Case, list[Sample]]:
    return {
        NAMED[name]: [
            Sample(cycles=round(rate), handoffs=round(rate), seconds=1.0, busiest_share=(busiest or {}).get(name, 0.5))
            for _ in range(3)
        ]
        for name, rate in rates.items()
    }


def outcome(report: Report, case: str, against: str) -> dict[str, Any]:
    [goal] = [goal for goal in report.json()["goals"] if (goal["case"], goal["against"]) == (case, against)]
    return goal


def test_every_goal_names_cases_that_exist() -> None:
    for goal in GOALS:
        bases = {goal.base} if isinstance(goal.base, str) else set(goal.base)
        assert {goal.case, *bases} <= NAMED.keys()
    assert len(NAMED) == len(CASES)


def test_the_best_peer_is_the_fastest_of_the_fair_ones() -> None:
    rates = {"lock-contended-2": 800, "kazoo-contended-2": 400, "aetcd-contended-2": 300, "redis-py-contended-2": 5000}
    report = Report(samples(rates, {"redis-py-contended-2": 0.8}), {})
    goal = outcome(report, "lock-contended-2", "kazoo-contended-2")
    assert goal["median"] == 2 and goal["reached"]


def test_a_missed_goal_is_called_missed() -> None:
    report = Report(samples({"lock-1": 800, "floor-two-calls": 1_000}), {"go": "go is not installed"})
    assert not outcome(report, "lock-1", "floor-two-calls")["reached"]
    screen = Console(file=io.StringIO(), width=120)
    report.print(screen)
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "missed: lock-1 against floor-two-calls: a cycle of one worker" in text
    assert "left out: go (go is not installed)" in text


def test_how_a_lock_was_shared_is_read_from_the_times_of_the_grants() -> None:
    first = [Granted(at=1.0, waited=0.1), Granted(at=2.0, waited=0.1), Granted(at=4.0, waited=0.9)]
    second = [Granted(at=3.0, waited=0.5)]
    sample = shared([first, second], 5.0)
    assert sample.cycles == 4 and sample.handoffs == 2 and sample.busiest_share == 0.75
    assert sample.longest_wait_ms == 900


def test_two_runs_stand_beside_one_another() -> None:
    contended = {"lock-contended-2": 600, "kazoo-contended-2": 400}
    then = Report(samples({"lock-1": 800, "floor-two-calls": 1_000, **contended}), {}).json()
    rates = {"lock-1": 880, "floor-two-calls": 1_000, "lock-contended-2": 720, "kazoo-contended-2": 400, "pool": 5}
    now = Report(samples({**rates, "pool-by-hand-telling": 10}), {}).json()
    screen = Console(file=io.StringIO(), width=120)
    screen.print(compared(json.loads(json.dumps(then)), now))
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "0.80" in text and "0.88" in text and "+10%" in text and "+20%" in text and text.count("new") == 1
