"""The figures as tables for a person and as JSON for a program."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.cases import GOALS, Case, Goal
from benchmarks.sample import Sample

_FAIR = 1.2  # times its equal share, that the busiest session of a fair lock may get


@dataclass(frozen=True)
class Spread:
    """The median over the rounds, and how far they lie apart."""

    median: float
    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))

    def text(self, form: str) -> tuple[str, str]:
        return format(self.median, form), f"{self.low:{form}}-{self.high:{form}}"


@dataclass(frozen=True)
class Report:
    """``samples`` holds one sample a round for every case; ``left_out`` says why a peer is not in it."""

    samples: Mapping[Case, Sequence[Sample]]
    left_out: Mapping[str, str]

    def print(self, console: Console) -> None:
        console.print(self._cases(), self._goals())
        for goal, base, ratio in self._ratios():
            if goal.why and not goal.reached(ratio.median):
                console.print(f"missed: {goal.case} against {base.name}: {goal.why}", markup=False)
        for peer, reason in self.left_out.items():
            console.print(f"left out: {peer} ({reason})", markup=False)

    def json(self) -> dict[str, Any]:
        return {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "cases": {
                case.name: {
                    "metric": f"{case.metric}_per_second",
                    **vars(self._rate(case)),
                    "rounds": [sample.model_dump() for sample in samples],
                }
                for case, samples in self.samples.items()
            },
            "goals": [_outcome(goal, base, ratio) for goal, base, ratio in self._ratios()],
            "left_out": dict(self.left_out),
        }

    def _rate(self, case: Case) -> Spread:
        return Spread.over([case.rate(sample) for sample in self.samples[case]])

    def _ratios(self) -> list[tuple[Goal, Case, Spread]]:
        """Each goal whose two cases ran, with the ratio of the two taken within each round."""
        cases = {case.name: case for case in self.samples}
        goals = [goal for goal in GOALS if not goal.stands_in or goal.stands_in in self.left_out]
        return [
            (goal, base, self._ratio(cases[goal.case], base))
            for goal in goals
            if goal.case in cases and (base := self._base(goal, cases))
        ]

    def _base(self, goal: Goal, cases: Mapping[str, Case]) -> Case | None:
        if isinstance(goal.base, str):
            return cases.get(goal.base)
        ran = [cases[name] for name in goal.base if name in cases]
        fair = [case for case in ran if self._busiest(case) <= _FAIR / case.sessions]
        return max(fair, key=lambda case: self._rate(case).median, default=None)

    def _busiest(self, case: Case) -> float:
        return median(sample.busiest_share for sample in self.samples[case])

    def _ratio(self, case: Case, base: Case) -> Spread:
        rounds = zip(self.samples[case], self.samples[base], strict=True)
        return Spread.over([case.rate(ours) / max(base.rate(theirs), 1e-9) for ours, theirs in rounds])

    def _cases(self) -> Table:
        columns = ("case", "counted", "median", "min-max", "grants", "busiest", "p99 wait", "longest")
        table = _table("A second", *columns)
        for case, samples in self.samples.items():
            row = [case.name, case.metric, *self._rate(case).text(",.0f")]
            if case.metric == "handoffs":
                grants = median(sample.cycles / sample.seconds for sample in samples)
                p99 = median(sample.p99_wait_ms for sample in samples)
                longest = max(sample.longest_wait_ms for sample in samples)
                row += [f"{grants:,.0f}", f"{self._busiest(case):.0%}", f"{p99:,.1f} ms", f"{longest:,.1f} ms"]
            table.add_row(*row)
        return table

    def _goals(self) -> Table:
        table = _table("Ratios", "case", "against", "median", "min-max", "goal", "")
        for goal, base, ratio in self._ratios():
            reached = "[green]reached[/]" if goal.reached(ratio.median) else "[red]missed[/]"
            table.add_row(goal.case, base.name, *ratio.text(".2f"), f"≥ {goal.factor:.2f}", reached)
        return table


def _outcome(goal: Goal, base: Case, ratio: Spread) -> dict[str, Any]:
    return {**vars(goal), "against": base.name, **vars(ratio), "reached": goal.reached(ratio.median)}


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < 2 else "right", no_wrap=i < 2)
    return table
