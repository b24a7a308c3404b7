"""Clients of very different demand share a provider's limit, and the provider never answers 429."""

from __future__ import annotations

import asyncio
import os
import pickle
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.documents.journal import of
from tests.chaos.documents.judge import report
from tests.chaos.documents.servers import servers
from tests.chaos.rates.client import Demand
from tests.chaos.rates.figures import jain, revisions, saturating, use
from tests.chaos.rates.fleet import Fleet, Work, peace, run
from tests.chaos.rates.judge import judge, same_writes
from tests.chaos.rates.run import Limits, Run

SECONDS = int(os.environ.get("CHAOS_SECONDS", "60"))
USED = 0.9  # of the limit, at least
REFUNDED = 0.8  # the same where calls reserve ten times their use
HOURS = (0.0, -5.0, 0.0, 11.0)  # by which the clients' wall clocks are wrong

minutely = pytest.mark.skipif(SECONDS < 200, reason="three periods of 60 s need CHAOS_SECONDS of 200 or more")
measured = pytest.mark.skipif(SECONDS < 60, reason="figures need several periods: CHAOS_SECONDS of 60 or more")


def demands(limit: int, per: float, light: int = 4, heavy: int = 4) -> list[Demand]:
    """Demands of 1 : 20 in all. The light ones take a twentieth of an equal share; the heavy ones always wait."""
    rate = limit / per / (light + heavy) / 20
    small = Demand({"requests": 1}, tasks=1, rate=rate)
    large = Demand({"requests": 1}, tasks=4, saturating=True)
    return [
        replace(demand, hours=HOURS[number % len(HOURS)])
        for number, demand in enumerate([small] * light + [large] * heavy)
    ]


async def faults(fleet: Fleet, until: float) -> None:
    """Kill and stop clients, past a slice's life and past their session; stop the one member, kill the leader of
    three."""
    servers = asyncio.create_task(_servers(fleet, until))
    while time.monotonic() < until:
        await asyncio.sleep(fleet.chance.uniform(2, 6))
        if (name := fleet.any()) is not None and time.monotonic() < until:
            if fleet.chance.random() < 0.5:
                await fleet.kill(name)
            else:
                await fleet.stop(name, fleet.chance.choice((0.5, 3.0, 8.0)))
    await servers


async def _servers(fleet: Fleet, until: float) -> None:
    while time.monotonic() < until - 12:
        await asyncio.sleep(8)
        if len(fleet.cluster.members) > 1:
            await fleet.kill_leader()
        else:
            await fleet.stop_member(fleet.chance.choice((0.5, 3.0)))


async def _judged(
    members: int,
    limits: Limits,
    wanted: list[Demand],
    seconds: float,
    work: Work,
    request: pytest.FixtureRequest,
    folder: Path,
    floor: dict[str, float],
    patience: float,
) -> Run:
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(1 << 30))
    print(f"\nrates, members {members}: seed {seed}, {seconds} s")
    with servers(members, request.config.getoption("--etcd-binary")) as cluster:
        made = await run(cluster, folder, limits, wanted, seconds, work, seed)
    made.floor, made.patience = floor, patience
    print(volume(made))
    if kept := os.environ.get("CHAOS_KEEP"):  # a file, for judging the run again
        Path(kept).write_bytes(pickle.dumps(made))
    violations = judge(made)
    assert not violations, f"seed {seed}\n{report(violations, 40)}"
    return made


def volume(made: Run) -> str:
    """The figures of a run, for a person."""
    lines = [f"calls {dict(Counter(call.answer for call in made.calls))}"]
    lines += [f"errors {dict(Counter(fact['error'] for fact in made.facts if fact['fact'] == 'error'))}"]
    for dimension in made.limits:
        got = sorted(map(round, saturating(made, dimension).values()))
        lines.append(f"{dimension}: {use(made, dimension):.1%} used; Jain {jain(got):.3f} of {got}")
    minutes = (made.ended - made.began) / 60
    lines.append(f"{revisions(made.events, made.began, made.ended) / minutes:.0f} revisions a minute")
    return "; ".join(lines)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "facts").mkdir()
    yield tmp_path / "facts"


@pytest.mark.long
@pytest.mark.timeout(120)
async def test_a_fleet_keeps_to_the_limit(request: pytest.FixtureRequest, folder: Path) -> None:
    """Below 10 s the use that is reached is stated; the limit holds all the same."""
    limits: Limits = {"requests": (120, 4.0)}
    wanted = demands(120, 4.0, light=1, heavy=3)
    await _judged(1, limits, wanted, 9, peace, request, folder, {}, 12.0)


@pytest.mark.long
@pytest.mark.timeout(120)
async def test_refunds_and_overdrafts_keep_to_the_limit(request: pytest.FixtureRequest, folder: Path) -> None:
    limits: Limits = {"requests": (200, 3.0), "tokens": (60_000, 3.0)}
    refunds = Demand({"requests": 1, "tokens": 2_000}, uses={"tokens": 400}, takes=0.05, saturating=True)
    more = Demand({"requests": 1, "tokens": 500}, tasks=1, uses={"tokens": 700})
    simple = Demand({"requests": 1, "tokens": 100}, tasks=1, acquire=True)
    await _judged(1, limits, [refunds, refunds, more, simple], 5, peace, request, folder, {}, 10.0)


@pytest.mark.chaos
@pytest.mark.timeout(200 + 2 * SECONDS)
@pytest.mark.parametrize("members", [1, 3] if SECONDS >= 60 else [3])
async def test_no_fault_breaks_the_limit(members: int, request: pytest.FixtureRequest, folder: Path) -> None:
    limits: Limits = {"requests": (400, 10.0)}
    wanted = [replace(demand, hesitates=0.1) for demand in demands(400, 10.0)]
    await _judged(members, limits, wanted, SECONDS, faults, request, folder, {}, 45.0)


@pytest.mark.chaos
@pytest.mark.timeout(300 + 2 * SECONDS)
@measured
@pytest.mark.parametrize("per", [10.0, pytest.param(60.0, marks=minutely)])
async def test_the_limit_is_used(per: float, request: pytest.FixtureRequest, folder: Path) -> None:
    limit = int(40 * per)
    floor, patience = {"requests": USED}, 2 * per + 4
    await _judged(1, {"requests": (limit, per)}, demands(limit, per), SECONDS, peace, request, folder, floor, patience)


@pytest.mark.chaos
@pytest.mark.timeout(300 + 2 * SECONDS)
@measured
async def test_refunds_are_used(request: pytest.FixtureRequest, folder: Path) -> None:
    demand = Demand({"tokens": 4_000}, tasks=4, uses={"tokens": 400}, takes=0.1, saturating=True)
    floor = {"tokens": REFUNDED}
    await _judged(1, {"tokens": (50_000, 10.0)}, [demand] * 4, SECONDS, peace, request, folder, floor, 24.0)


@pytest.mark.chaos
@pytest.mark.timeout(300 + 2 * SECONDS)
@measured
async def test_writes_do_not_grow_with_calls(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    writes = []
    for rate in (10, 2_000):
        (tmp_path / str(rate)).mkdir()
        wanted = [Demand({"requests": 1}, tasks=max(1, rate // 80), rate=rate / 4, called=False)] * 4
        with servers(1, request.config.getoption("--etcd-binary")) as cluster:
            limits: Limits = {"requests": (1_000_000, 10.0)}
            made = await run(cluster, tmp_path / str(rate), limits, wanted, SECONDS / 2, expire=False)
        assert not judge(made), report(judge(made))
        minutes = (made.ended - made.began) / 60
        counted = sum(fact["counted"] for fact in of(made.facts, "ended"))
        writes.append(revisions(made.events, made.began, made.ended) / minutes)
        print(f"\nrates, {counted / minutes / 60:.0f} calls a second: {writes[-1]:.0f} revisions a minute")
    assert not same_writes(*writes), report(same_writes(*writes))
