"""What is measured, and what it must reach."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from benchmarks import dead_letters, floor, ours, pool
from benchmarks.peers import go
from benchmarks.sample import Sample


@dataclass(frozen=True)
class Case:
    """``run(endpoint, seconds)`` measures it; of its sample, ``metric`` is the figure that counts."""

    name: str
    run: Callable[[str, float], Awaitable[Sample]]
    metric: Literal["cycles", "handoffs"] = "cycles"
    peer: str | None = None

    def rate(self, sample: Sample) -> float:
        done: int = getattr(sample, self.metric)
        return done / sample.seconds


@dataclass(frozen=True)
class Goal:
    """``case`` reaches ``factor`` times ``base``; with ``stands_in``, only where that peer is missing."""

    case: str
    factor: float
    base: str
    stands_in: str | None = None

    def reached(self, ratio: float) -> bool:
        return ratio >= self.factor


# A peer's name, and what says why it cannot run here, or nothing.
PEERS: dict[str, Callable[[], str | None]] = {"go": go.build}

# In the order they run in each round: what is compared runs side by side.
CASES = (
    Case("floor-two-calls", floor.two_calls),
    Case("ours-1", partial(ours.uncontended, workers=1)),
    Case("go-1", partial(go.run, workers=1, mode="uncontended"), peer="go"),
    Case("ours-16", partial(ours.uncontended, workers=16)),
    Case("go-16", partial(go.run, workers=16, mode="uncontended"), peer="go"),
    Case("floor-puts-128", partial(floor.puts, workers=128)),
    Case("ours-128", partial(ours.uncontended, workers=128)),
    Case("go-128", partial(go.run, workers=128, mode="uncontended"), peer="go"),
    Case("floor-puts", partial(floor.puts, workers=1)),
    Case("ours-contended-2", partial(ours.contended, sessions=2), "handoffs"),
    Case("go-contended-2", partial(go.run, workers=2, mode="contended"), "handoffs", "go"),
    Case("ours-contended-8", partial(ours.contended, sessions=8), "handoffs"),
    Case("go-contended-8", partial(go.run, workers=8, mode="contended"), "handoffs", "go"),
    Case("semaphore-contended-2", partial(ours.contended, sessions=2, kind="semaphore"), "handoffs"),
    Case("semaphore-contended-8", partial(ours.contended, sessions=8, kind="semaphore"), "handoffs"),
    Case("pool-by-hand", pool.by_hand),
    Case("pool-by-hand-telling", partial(pool.by_hand, telling=True)),
    Case("pool", pool.ours),
    Case("dead-letters-added", dead_letters.adds),
    Case("dead-letters-one-at-a-time", dead_letters.one_at_a_time),
    Case("dead-letters-retried", dead_letters.retries),
)

GOALS = (
    Goal("ours-1", 0.95, "floor-two-calls"),
    Goal("ours-16", 1.4, "go-16"),
    Goal("ours-128", 2.0, "go-128"),
    Goal("ours-128", 20_000 / 15_000, "floor-puts-128", stands_in="go"),
    Goal("ours-contended-2", 500 / 1_000, "floor-puts"),
    Goal("ours-contended-2", 20, "go-contended-2"),
    Goal("ours-contended-8", 10, "go-contended-8"),
    Goal("semaphore-contended-2", 0.8, "ours-contended-2"),
    Goal("semaphore-contended-8", 0.8, "ours-contended-8"),
    Goal("pool", 1 / 1.5, "pool-by-hand"),
    Goal("pool", 1 / 1.5, "pool-by-hand-telling"),
    Goal("dead-letters-added", 5, "floor-puts"),
    Goal("dead-letters-retried", 5, "dead-letters-one-at-a-time"),
)
