"""What is promised of every process: no traceback, no hang, no call beyond its limit, figures that add up."""

from __future__ import annotations

from collections.abc import Callable

from tests.chaos.documents.evidence import Evidence, Violation
from tests.chaos.documents.journal import Fact

STALL = 3.0  # seconds for which an event loop may stand still on a busy machine
FACTOR, SLACK = 2.0, 2.0  # a call may take so many times its limit, and so many seconds more, on a busy machine
DEATHS = ("never retrieved", "Exception in callback", "Exception in thread", "Fatal Python error")


def deaths(evidence: Evidence) -> list[Violation]:
    """No process dies with a traceback, and each ends once it is told to."""
    killed = {fact["of"] for fact in evidence.said("killed")}
    found = [
        Violation("hung", f"{fact['of']} did not end within {fact['limit']} s; it last said {_last(evidence, fact)}")
        for fact in evidence.said("hung")
    ]
    for fact in evidence.said("exit", "end"):
        told = fact.get("stderr", "")
        if any(sign in told for sign in DEATHS):
            found.append(Violation("traceback", f"{fact['of']} left: {told.strip()[-600:]}"))
        elif fact["code"] and fact["of"] not in killed:
            found.append(Violation("traceback", f"{fact['of']} ended with {fact['code']}: {told.strip()[-300:]}"))
    return found


def _last(evidence: Evidence, hung: Fact) -> str:
    own = [fact for fact in evidence.facts if fact["process"] == hung["of"] and fact["at"] < hung["at"]]
    return "; ".join(
        f"{fact['fact']} {fact.get('what', '')} {hung['at'] - fact['at']:.0f} s before" for fact in own[-3:]
    )


def errors(evidence: Evidence) -> list[Violation]:
    """What a call raises is one of the documented errors."""
    return [
        Violation("undocumented error", f"{fact['process']}: {fact['what']} raised {fact['error']}")
        for fact in evidence.said("raised")
        if not fact["documented"]
    ]


def overdue(evidence: Evidence) -> list[Violation]:
    """Every call ends within its own time limit, and what is waited for comes."""
    found = []
    for fact in evidence.said("call"):
        began = float(fact["at"]) - fact["took"]
        took = fact["took"] - evidence.stopped_for(fact["process"], began, float(fact["at"]))
        if took > FACTOR * fact["limit"] + SLACK:
            text = f"{fact['process']}: {fact['what']} took {took:.1f} s with a limit of {fact['limit']} s"
            found.append(Violation("too long", text))
    for fact in evidence.said("never"):
        found.append(Violation("never", f"{fact['process']}: {fact['what']}"))
    return found


def stalls(evidence: Evidence) -> list[Violation]:
    """No event loop stands still but in a process that is stopped."""
    found = []
    for fact in evidence.said("stall"):
        began = float(fact["at"]) - fact["seconds"]
        seconds = fact["seconds"] - evidence.stopped_for(fact["process"], began, float(fact["at"]))
        if seconds > STALL:
            found.append(Violation("stall", f"the event loop of {fact['process']} stood still for {seconds:.1f} s"))
    return found


def pools(evidence: Evidence) -> list[Violation]:
    """A pool's figures add up and equal the results that it gave; each task becomes what its function does."""
    found = []
    for fact in evidence.said("pool"):
        figures, results = fact["figures"], fact["results"]
        parts = sum(figures[name] for name in ("completed", "failed", "timed_out", "cancelled", "running", "queued"))
        if figures["submitted"] != parts:
            found.append(Violation("pool figures", f"{fact['process']}: submitted {figures['submitted']}, sum {parts}"))
        if figures["completed"] != results.get("ok", 0) or figures["failed"] != results.get("failed", 0):
            found.append(Violation("pool figures", f"{fact['process']}: figures {figures}, results {results}"))
    for fact in evidence.said("task"):
        if fact["status"] not in fact["wanted"]:
            text = (
                f"{fact['process']}: {fact['what']} became {fact['status']}, not {fact['wanted']}: {fact.get('error')}"
            )
            found.append(Violation("pool task", text))
    return found


def files(evidence: Evidence) -> list[Violation]:
    """The file of what is spilled holds each record about once, and is gone once all was sent."""
    found = []
    for fact in evidence.said("spill file"):
        if fact["lines"] > 2 * fact["wanted"] + 2:
            text = f"{fact['process']}: {fact['lines']} lines, {fact['bytes']} bytes for {fact['wanted']} records"
            found.append(Violation("spill grows", text))
    return found


PROCESS: tuple[Callable[[Evidence], list[Violation]], ...] = (deaths, errors, overdue, stalls, pools, files)
