"""Judges a run of reservations: each rule is one promise of the documents. Pure functions of history and journals."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

from tests.chaos.documents.evidence import Violation
from tests.chaos.reservations.judge_ends import ENDS
from tests.chaos.reservations.judge_writes import WRITES
from tests.chaos.reservations.run import Run

RULES: tuple[Callable[[Run], list[Violation]], ...] = (*WRITES, *ENDS)


def judge(run: Run) -> list[Violation]:
    """All violations of a run, by rule."""
    return list(chain.from_iterable(rule(run) for rule in RULES))
