"""Reads what the clients of `agent.py` told, and judges it. Pure."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from tests.chaos.checker import Hold, overlaps

Line = Mapping[str, Any]


def lines(log: str) -> list[Line]:
    """The lines of JSON in a log; others, such as a traceback, become lines of the kind "text"."""
    found: list[Line] = []
    for text in log.splitlines():
        try:
            found.append(json.loads(text))
        except ValueError:
            found.append({"kind": "text", "text": text})
    return found


def violations(told: Iterable[Line]) -> list[str]:
    """The holds that overlapped and the tokens that fell, for each lock; an empty list if there is none."""
    holds: dict[str, list[Hold]] = defaultdict(list)
    for line in told:
        if line["kind"] == "hold":
            holds[line["lock"]].append(Hold(line["token"], line["since"], line["until"]))
    found = []
    for lock, its in sorted(holds.items()):
        found += [f"{lock}: {text}" for text in overlaps(its)]
        its.sort(key=lambda hold: hold.since)
        found += [
            f"{lock}: token {later.token} was granted after {earlier.token}"
            for earlier, later in pairwise(its)
            if later.token <= earlier.token
        ]
    return found


class Figures(NamedTuple):
    """The figures of a phase, as its clients saw it. ``longest_gap`` and ``longest_wait`` are in seconds."""

    holds: int
    gaps: int
    longest_gap: float
    longest_wait: float
    lost: int
    errors: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.holds} holds, {self.gaps} gaps (longest {self.longest_gap:.1f} s), longest wait "
            f"{self.longest_wait:.1f} s, {self.lost} lost"
        )


def figures(told: Iterable[Line]) -> Figures:
    """The figures of the lines."""
    holds = gaps = lost = 0
    longest_gap = longest_wait = 0.0
    errors = []
    for line in told:
        match line["kind"]:
            case "hold":
                holds += 1
                lost += line["lost"]
            case "granted":
                longest_wait = max(longest_wait, line["waited"])
            case "gap":
                gaps += 1
                longest_gap = max(longest_gap, line["seconds"])
                errors += [line["error"]] if line["error"] else []
            case "failed":
                errors.append(line["error"])
            case "text":
                errors.append(line["text"])
    return Figures(holds, gaps, longest_gap, longest_wait, lost, tuple(errors))
