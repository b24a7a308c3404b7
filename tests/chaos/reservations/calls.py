"""The calls of a run and their answers, read from the journals of the processes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.chaos.documents.journal import Fact

FOREVER = float("inf")
NOTE = re.compile(r"note:([\w-]+)\.(\d+);")  # what every note of the workload looks like: its request and a number


def note(ask: str, number: int) -> str:
    return f"note:{ask}.{number};"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of one process. Without an answer ``error`` is None, and its effect is not known."""

    process: str
    what: str  # reserve, renew, write, release, force, list
    ask: str  # the request that it is about; for a forced release, the name
    began: float
    ended: float
    error: str | None
    text: str
    about: dict[str, Any]

    @property
    def done(self) -> bool:
        return self.error == ""

    @property
    def uncertain(self) -> bool:
        """True if it may have had its effect though no answer says so."""
        return self.error is None or self.error in UNCERTAIN


UNCERTAIN = ("EtcdUnavailable", "SessionLost", "CancelledError")


def calls(facts: Iterable[Fact]) -> list[Call]:
    """All calls, by their beginning."""
    answers: dict[tuple[str, int], Fact] = {}
    begun: list[Fact] = []
    for fact in facts:
        if fact["fact"] == "call":
            begun.append(fact)
        elif fact["fact"] == "answer":
            answers[fact["process"], fact["number"]] = fact
    found = []
    for fact in begun:
        answer = answers.get((fact["process"], fact["number"]))
        ended, error, text = (answer["at"], answer["error"], answer["text"]) if answer else (FOREVER, None, "")
        about = {**fact, **(answer or {})}
        found.append(Call(fact["process"], fact["what"], fact["ask"], fact["at"], ended, error, text, about))
    return sorted(found, key=lambda call: call.began)
