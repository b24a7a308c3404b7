"""What processes say that they saw: one file of facts for each, a JSON object on a line, in the order of its clock."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Fact = dict[str, Any]


class Journal:
    """The facts of one process, each written at once, so that a killed process leaves all that it said."""

    def __init__(self, folder: Path, process: str) -> None:
        self.process = process
        self._file = open(folder / f"{process}.jsonl", "a", buffering=1)  # noqa: SIM115 - closed with the process

    def say(self, fact: str, **about: object) -> None:
        line = json.dumps({"at": time.monotonic(), "fact": fact, **about}, default=str)
        self._file.write(line + "\n")

    def close(self) -> None:
        self._file.close()


def read(folder: Path) -> list[Fact]:
    """All facts of all processes, by time. A line that a kill cut short is left out."""
    facts: list[Fact] = []
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                facts.append({"process": path.stem, **json.loads(line)})
            except ValueError:
                continue
    return sorted(facts, key=lambda fact: float(fact["at"]))


def of(facts: Iterable[Fact], *kinds: str) -> list[Fact]:
    """The facts of these kinds."""
    return [fact for fact in facts if fact["fact"] in kinds]
