"""Judges a run of rate limits: each rule is one promise of the documents. Pure functions of history and journals."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable
from itertools import chain

from tests.chaos.documents.evidence import Violation
from tests.chaos.documents.journal import of
from tests.chaos.rates.client import FOREVER, LIMITER
from tests.chaos.rates.figures import jain, peak, saturating, use
from tests.chaos.rates.provider import REFUSED
from tests.chaos.rates.run import Run, Spend

LATE_CALLS = 0.05  # the part of the calls that may come late where no process is stopped, on a busy machine
FAIRNESS = 0.95
OVERTAKEN = 0.5  # the part of a limit that another process may get while one waits; a slice is at most an eighth
PAUSE_SEEN = 1.0  # seconds in which the fleet must have learned of a pause
MORE_WRITES = 1.1


def no_refusal(run: Run) -> list[Violation]:
    """The provider never answers 429 to a call that is in time."""
    refused = [call for call in run.calls if call.answer == REFUSED]
    return [Violation("429", f"{call.id} at {_at(run, call.arrived)}: {call.cost}") for call in refused]


def windows_of_calls(run: Run) -> list[Violation]:
    """No window holds calls beyond the limit; late ones are counted apart."""
    found = []
    for dimension, (amount, per) in run.limits.items():
        calls = [(call.arrived, call.arrived, call.cost.get(dimension, 0)) for call in run.calls if not call.late]
        found += _beyond(run, "window of calls", dimension, amount, peak(calls, per))
    return found


def windows_of_grants(run: Run) -> list[Violation]:
    """No window may hold grants beyond the limit, whenever within its deadline each call is made."""
    found = []
    for dimension, (amount, per) in run.limits.items():
        spends = [spend for spend in run.grants if spend.in_time]
        entries = [(_granted(spend), _last(spend), spend.counts(dimension)) for spend in spends]
        found += _beyond(run, "window of grants", dimension, amount, peak(entries, per))
    return found


def _last(spend: Spend) -> float:
    """The last moment of its call; of one that was told no deadline, the moment of the grant."""
    return _granted(spend) if spend.deadline >= FOREVER else spend.until


def _beyond(run: Run, kind: str, dimension: str, amount: int, most: tuple[int, float]) -> list[Violation]:
    if most[0] <= amount:
        return []
    return [Violation(kind, f"{dimension}: {most[0]} of {amount} in the window that ends at {_at(run, most[1])}")]


def few_late(run: Run) -> list[Violation]:
    """Calls are late only where a process stood still."""
    late = [call for call in run.calls if call.late and call.process not in run.disturbed]
    skipped = [spend for spend in run.spends if spend.answer == "skipped" and spend.process not in run.disturbed]
    share = (len(late) + len(skipped)) / max(1, len(run.calls))
    return [Violation("late", f"{share:.1%} of the calls, though nobody stood still")] if share > LATE_CALLS else []


def used_up(run: Run) -> list[Violation]:
    """At least the expected part of the limit is used while demand saturates it."""
    found = []
    for dimension, least in run.floor.items():
        part = use(run, dimension)
        if part < least:
            found.append(Violation("use", f"{part:.1%} of {dimension}, less than {least:.0%}"))
    return found


def fair(run: Run) -> list[Violation]:
    """Clients that always wait get the same."""
    found = []
    for dimension in run.floor:
        got = saturating(run, dimension)
        if len(got) > 1 and (index := jain(got.values())) < FAIRNESS:
            found.append(Violation("fairness", f"Jain's index of {dimension} is {index:.3f}: {_rounded(got)}"))
    return found


def _rounded(amounts: dict[str, float]) -> dict[str, int]:
    return {name: round(amount) for name, amount in amounts.items()}


def nobody_starves(run: Run) -> list[Violation]:
    """A client that waits is served within the run's patience."""
    found = []
    for name in run.steady:
        spends = run.spends_of[name]
        grants = sorted(spend.granted for spend in spends if spend.granted is not None)
        for before, after in zip([run.began, *grants], [*grants, run.ended], strict=True):
            if _waits(spends, before, after, run.patience):
                found.append(Violation("starved", f"{name} from {_at(run, before)} to {_at(run, after)}"))
    return found


def _waits(spends: list[Spend], before: float, after: float, patience: float) -> bool:
    """True if a request waited so long at the end of a span without a grant."""
    if after - before <= patience:
        return False
    return any(spend.asked <= after - patience and (spend.ended or FOREVER) >= after for spend in spends)


def small_demand_served(run: Run) -> list[Violation]:
    """A client whose demand is below its share gets all of it."""
    found = []
    for name, demand in run.steady.items():
        if demand.rate and demand.called and run.calm:
            granted = sum(run.began <= _granted(spend) < run.ended for spend in run.spends_of[name])
            wanted = demand.rate * (run.ended - run.began)
            if granted < 0.85 * wanted - demand.tasks:
                found.append(Violation("small demand", f"{name} got {granted} of {wanted:.0f} calls"))
    return found


def first_come(run: Run) -> list[Violation]:
    """While a request waits at the head of its process, no other process gets many slices."""
    found = []
    for name in run.steady if run.calm else ():
        for head in _heads(run.spends_of[name]):
            for dimension, (amount, _) in run.limits.items():
                for other, got in _granted_between(run, dimension, head.asked, head.granted or run.ended).items():
                    if other != name and got > OVERTAKEN * amount:
                        text = f"{head.id} waited {(head.granted or run.ended) - head.asked:.1f} s"
                        found.append(Violation("overtaken", f"{text} while {other} got {got} {dimension}"))
    return found


def _heads(spends: list[Spend]) -> list[Spend]:
    """The requests that no earlier one of their process waited before, when they were made."""
    heads, served = [], 0.0
    for spend in spends:
        if spend.asked >= served:
            heads.append(spend)
            served = spend.ended or FOREVER
    return heads


def _granted_between(run: Run, dimension: str, begin: float, end: float) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for spend in run.grants[bisect_right(run.grants, begin, key=_granted) : bisect_left(run.grants, end, key=_granted)]:
        found[spend.process] += spend.counts(dimension)
    return found


def _granted(spend: Spend) -> float:
    return spend.granted or 0.0


def errors_documented(run: Run) -> list[Violation]:
    """Each error is a documented one, and without a fault there is none but a timeout that was asked for."""
    found = []
    for fact in of(run.facts, "error"):
        demand = run.demands[fact["process"]]
        expected = fact["error"] == "LockTimeout" and demand.timeout is not None
        if not fact["documented"] or (run.calm and not expected):
            found.append(Violation("error", f"{fact['process']}: {fact['error']}: {fact['text']}"))
    return found


def processes_end(run: Run) -> list[Violation]:
    """Each process ends in order when it is told to."""
    ended = [fact for fact in of(run.facts, "exit") if fact["code"] and not fact["killed"]]
    return [Violation("process", f"{fact['of']} ended with {fact['code']}: {fact['stderr']}") for fact in ended]


def overdrafts_told(run: Run) -> list[Violation]:
    """More than reserved is reported as overdraft, exactly."""
    found = []
    for spend in run.spends:
        if spend.over is not None:
            more = {name: used - spend.cost.get(name, 0) for name, used in spend.used.items()}
            expected = {name: amount for name, amount in more.items() if amount > 0}
            if {name: amount for name, amount in spend.overdraft.items() if amount} != expected:
                found.append(Violation("overdraft", f"{spend.id} was told {spend.overdraft}, not {expected}"))
    return found


def overdrafts_paid(run: Run) -> list[Violation]:
    """In the long run overdrafts count too: all that was used is within the limit of the periods."""
    found = []
    for dimension, (amount, per) in run.limits.items():
        spends = [spend for spend in run.spends if spend.in_time and spend.over is not None]
        used = sum(spend.counts(dimension) + spend.overdraft.get(dimension, 0) for spend in spends)
        periods = int((run.ended - run.began) / per) + 2  # one begins before the span, and one ends after it
        largest = max((spend.overdraft.get(dimension, 0) for spend in spends), default=0)
        if used > amount * periods + largest * len(run.demands):
            found.append(Violation("overdrafts", f"{used} {dimension} in {periods} periods of {amount}"))
    return found


def pauses_kept(run: Run) -> list[Violation]:
    """No client spends while the fleet is paused."""
    found = []
    for pause in of(run.facts, "paused"):
        begin, end = pause["at"] + PAUSE_SEEN, pause["asked"] + pause["seconds"]
        for spend in run.grants:
            if spend.process not in run.disturbed and begin < _granted(spend) < end:
                found.append(Violation("pause", f"{spend.id} was granted {end - _granted(spend):.2f} s too early"))
    return found


def nothing_left(run: Run) -> list[Violation]:
    """When all has expired, etcd has the limits and nothing else: no key, no lease."""
    if run.leases is None:
        return []
    root = f"/{run.namespace}/v1/"
    limits = f"{root}rate/{LIMITER}%2F"
    keys = [key for key in run.final if key.startswith(root)]
    left = [key for key in keys if not (key.startswith(limits) and "/limit-" in key)]
    found = [Violation("left in etcd", f"the key {key}") for key in left]
    return found + [Violation("left in etcd", f"the lease {lease:x}") for lease in run.leases]


def same_writes(slow: float, fast: float) -> list[Violation]:
    """The number of revisions a minute does not grow with the number of calls."""
    if fast <= MORE_WRITES * slow:
        return []
    return [Violation("writes", f"{fast:.0f} revisions a minute with many calls, {slow:.0f} with few")]


def _at(run: Run, moment: float) -> str:
    return f"{moment - run.began:.3f} s"


RULES: tuple[Callable[[Run], list[Violation]], ...] = (
    no_refusal,
    windows_of_calls,
    windows_of_grants,
    few_late,
    used_up,
    fair,
    nobody_starves,
    small_demand_served,
    first_come,
    errors_documented,
    processes_end,
    overdrafts_told,
    overdrafts_paid,
    pauses_kept,
    nothing_left,
)


def judge(run: Run) -> list[Violation]:
    """All violations of a run, by rule."""
    return list(chain.from_iterable(rule(run) for rule in RULES))
