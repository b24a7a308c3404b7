"""Judges a run: which promises of the documents were not kept. Pure functions of what etcd did and processes said."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

from tests.chaos.documents.evidence import Evidence, Violation
from tests.chaos.documents.judge_dead import DEAD
from tests.chaos.documents.judge_holds import HOLDS
from tests.chaos.documents.judge_process import PROCESS

RULES: tuple[Callable[[Evidence], list[Violation]], ...] = (*DEAD, *HOLDS, *PROCESS)


def judge(evidence: Evidence) -> list[Violation]:
    """All violations of a run, by rule."""
    return list(chain.from_iterable(rule(evidence) for rule in RULES))


def report(violations: list[Violation], most: int = 12) -> str:
    """The violations as a person reads them: how many of each kind, and the first of them in full."""
    kinds: dict[str, list[Violation]] = {}
    for violation in violations:
        kinds.setdefault(violation.kind, []).append(violation)
    lines = []
    for kind, found in kinds.items():
        lines.append(f"{kind}: {len(found)}")
        lines.extend(f"  {violation.text}" for violation in found[: max(1, most // len(kinds))])
    return "\n".join(lines)
