"""What is measured, and what it must reach."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from benchmarks import dead_letters, floor, imports, pool
from benchmarks.contest import contended, uncontended
from benchmarks.far import far
from benchmarks.peers import go, python
from benchmarks.sample import Sample


@dataclass(frozen=True)
class Case:
    """``run(endpoint, seconds)`` measures it; of its sample, ``metric`` is the figure that counts."""

    name: str
    run: Callable[[str, float], Awaitable[Sample]]
    metric: Literal["cycles", "handoffs"] = "cycles"
    peer: str | None = None
    sessions: int = 1

    @property
    def server(self) -> str:
        return python.SERVERS.get(self.peer or "", "etcd")

    def rate(self, sample: Sample) -> float:
        done: int = getattr(sample, self.metric)
        return done / sample.seconds


@dataclass(frozen=True)
class Goal:
    """``case`` reaches ``factor`` times ``base``; of several bases, the best of those that are fair.

    With ``stands_in``, only where that peer is missing. ``why``: what is known of the reason where it is missed.
    """

    case: str
    factor: float
    base: str | tuple[str, ...]
    stands_in: str | None = None
    why: str = ""

    def reached(self, ratio: float) -> bool:
        return ratio >= self.factor


# A peer's name, and what says why it cannot run here, or nothing.
PEERS: dict[str, Callable[[], str | None]] = {
    "go": go.build,
    **{peer: partial(python.why_not, peer) for peer in python.PACKAGES},
}


def _uncontended(kind: str, workers: int) -> Case:
    return Case(f"{kind}-{workers}", partial(uncontended, kind=kind, workers=workers), peer=_peer(kind))


def _contended(kind: str, processes: int, sessions: int = 1) -> Case:
    run = partial(contended, kind=kind, processes=processes, sessions=sessions)
    number = processes * sessions
    return Case(f"{kind}-contended-{number}", run, "handoffs", _peer(kind), number)


def _peer(kind: str) -> str | None:
    return kind if kind in PEERS else None


def _go(mode: go.Mode, workers: int) -> Case:
    run = partial(go.run, workers=workers, mode=mode)
    if mode == "uncontended":
        return Case(f"go-{workers}", run, peer="go")
    return Case(f"go-contended-{workers}", run, "handoffs", "go", workers)


def _far(case: Case) -> Case:
    return replace(case, name=f"{case.name}-far", run=partial(far, run=case.run))


# In the order they run in each round: what is compared runs side by side.
CASES = (
    Case("floor-two-calls", floor.two_calls),
    _uncontended("lock", 1),
    _uncontended("lock+uvloop", 1),
    _go("uncontended", 1),
    *(_uncontended(peer, 1) for peer in python.PACKAGES),
    _uncontended("lock", 16),
    _go("uncontended", 16),
    *(_uncontended(peer, 16) for peer in ("aetcd", "kazoo", "redis-py")),
    Case("floor-puts-128", partial(floor.puts, workers=128)),
    _uncontended("lock", 128),
    _uncontended("lock+uvloop", 128),
    _go("uncontended", 128),
    _uncontended("redis-py", 128),
    Case("floor-puts", partial(floor.puts, workers=1)),
    _contended("lock", 2),
    _go("contended", 2),
    *(_contended(peer, 2) for peer in python.PACKAGES),
    _contended("lock", 8),
    _contended("lock+uvloop", 8),
    _go("contended", 8),
    *(_contended(peer, 8) for peer in python.PACKAGES),
    _contended("lock", 8, sessions=8),
    _go("contended", 64),
    _far(_contended("lock", 8)),
    _far(_go("contended", 8)),
    _contended("semaphore", 2),
    _contended("semaphore", 8),
    Case("pool-by-hand", pool.by_hand),
    Case("pool-by-hand-telling", partial(pool.by_hand, telling=True)),
    Case("pool", pool.ours),
    Case("dead-letters-added", dead_letters.adds),
    Case("dead-letters-one-at-a-time", dead_letters.one_at_a_time),
    Case("dead-letters-retried", dead_letters.retries),
    *(Case(name, partial(imports.run, name=name)) for name in imports.STATEMENTS),
)


def _fair(sessions: int) -> tuple[str, ...]:
    return tuple(f"{peer}-contended-{sessions}" for peer in python.PACKAGES)


_CPU = "clients and etcd share these cores, and Python's own computing is what a faster call leaves"
_EACH = "a cycle of one worker is two calls, whose own Python costs as much as a call of Go in all"
_BATCH = "a member of a batch costs some 70 µs of Python, for its checks, its futures and its wait"

GOALS = (
    Goal("lock-1", 1.0, "go-1", why=_EACH),
    Goal("lock-1", 1.25, "floor-two-calls", why=_EACH),
    Goal("lock-16", 1.6, "go-16", why=_BATCH),
    Goal("lock-128", 3.5, "go-128", why=_BATCH),
    Goal("lock-128", 20_000 / 15_000, "floor-puts-128", stands_in="go"),
    Goal("lock-contended-2", 0.8, "floor-puts", why=_CPU),
    Goal("lock-contended-2", 20, "go-contended-2"),
    Goal("lock-contended-2", 2, _fair(2), why=_CPU),
    Goal("lock-contended-8", 14, "go-contended-8", why=_CPU),
    Goal("lock-contended-8", 2.2, _fair(8), why=_CPU),
    Goal("lock-contended-64", 2, "go-contended-64", why=_CPU),
    Goal("semaphore-contended-2", 0.95, "lock-contended-2"),
    Goal("semaphore-contended-8", 0.95, "lock-contended-8"),
    Goal("pool", 1 / 1.5, "pool-by-hand-telling"),
    Goal("dead-letters-added", 15, "floor-puts"),
    Goal("dead-letters-retried", 8, "dead-letters-one-at-a-time"),
    Goal("import", 1 / 1.3, "import-protobuf-and-pydantic"),
    Goal("import-names", 1 / 1.3, "import-names-of-those"),
)
