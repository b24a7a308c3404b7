"""Tables on a screen: columns by its width, rows by its height, in the order asked for; and the words for trouble."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console, RenderableType

from codomyrmex.concurrency.cli.rate_rows import rows
from codomyrmex.concurrency.cli.views import (
    dead_letter_table,
    lock_table,
    operation_table,
    owners,
    pool_table,
    queue_table,
    rate_table,
    semaphore_table,
    text,
)
from codomyrmex.concurrency.cli.views.grid import Cell, Column, Grid, Order, cut, fit
from codomyrmex.concurrency.dead_letters import record
from codomyrmex.concurrency.dead_letters.stats import OperationSummary
from codomyrmex.concurrency.models import LockInfo, Owner, RateLimitInfo, RateUse, SemaphoreInfo
from codomyrmex.concurrency.pool.cluster import _summed
from codomyrmex.concurrency.pool.results import PoolStats
from codomyrmex.concurrency.waitqueue.grant_times import Sightings

NOW = datetime.now(UTC)
HOST = "agents-7d9c6b5f4-x2k8p"


def owner(token: int = 7, **more: Any) -> Owner:
    fields: dict[str, Any] = {"task": "Task-1", "since": NOW - timedelta(hours=1), "key": f"k{token}", **more}
    return Owner(host=HOST, pid=1_234_567, session="0123456789abcdef", token=token, **fields)


def pool(number: int = 1, **more: Any) -> PoolStats:
    figures = dict.fromkeys(("failed", "cancelled", "timed_out", "retried", "dead_lettered", "queued"), 1234)
    times = dict.fromkeys(("total_elapsed_ms", "p50_ms", "p95_ms", "p99_ms", "throughput", "loop_lag_ms"), 12345.6)
    fields: dict[str, Any] = {**figures, **times, "submitted": 9999, "completed": 3, "running": 8, "max_workers": 8}
    origin = {"name": "crawlers-of-the-east", "host": HOST, "pid": number, "instance": f"{number:016x}"}
    return PoolStats(**{**fields, **origin, "started_at": NOW, **more})


LOCK = LockInfo(
    "file_edit:/srv/work/repository/src/codomyrmex/concurrency/waitqueue/wait.py",
    (owner(123_456_789, waited=11.0, granted_at=NOW),),
    tuple(owner(200_000_000 + n) for n in range(12)),
)
RATE = RateLimitInfo(
    "anthropic-batch-eu",
    (
        RateUse("requests", 100, 60.0, (owner(1, permits=30),), ()),
        RateUse("tokens", 50_000, 60.0, (owner(1, permits=40_000),), (owner(2, permits=10_001), owner(3))),
    ),
    NOW + timedelta(days=2),
    f"{HOST}:12",
)
ENTRY = record.new("agents.mail.send_the_weekly_digest", {"to": "x" * 90}, "no route to host " * 9, None, str)
SCREENS: dict[str, tuple[Callable[[bool], Grid], list[str]]] = {
    "locks": (lambda wide: lock_table.locks([LOCK] * 3, wide=wide), [f"{HOST}:1234567"]),
    "queue": (lambda wide: queue_table.queue(LOCK.name, LOCK.holders, LOCK.waiters), [f"{HOST}:1234567"]),
    "semaphores": (
        lambda wide: semaphore_table.semaphores([SemaphoreInfo("provider" * 9, 8, LOCK.holders, ())], wide=wide),
        [],
    ),
    "rates": (lambda wide: rate_table.rate_limiters(rows([RATE] * 2), wide=wide), ["requests", "50000"]),
    "users of a rate limiter": (lambda wide: rate_table.rate_limiter(RATE), [f"{HOST}:1234567"]),
    "pools": (lambda wide: pool_table.pools([_summed("crawlers-of-the-east", [pool(1), pool(2)])], wide=wide), []),
    "dead letters": (lambda wide: dead_letter_table.dead_letters([ENTRY], wide=wide), [ENTRY.id]),
    "operations": (
        lambda wide: operation_table.summaries([OperationSummary("q" * 40, ENTRY.operation, 1, 2, 3, 4, 5, NOW)]),
        [],
    ),
}


def drawn(picture: RenderableType, width: int = 80, height: int | None = None, *, terminal: bool = True) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, no_color=True, highlight=False)
    if height is None:
        with console.capture() as shown:
            console.print(picture, crop=False)
        return [re.sub("\x1b\\[[0-9;]*m", "", line) for line in shown.get().splitlines()]
    lines = console.render_lines(picture, console.options.update(height=height), pad=False)
    return ["".join(segment.text for segment in line) for line in lines]


@pytest.mark.parametrize("wide", [False, True], ids=["table", "wide"])
@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("width", [80, 120, 160])
def test_every_screen_fits_and_no_id_is_broken(screen: str, width: int, wide: bool) -> None:
    make, ids = SCREENS[screen]
    lines = drawn(make(wide), width)
    assert max(map(cell_len, lines)) <= width
    assert all(any(one in line for line in lines) for one in ids)
    around = 2 if screen != "users of a rate limiter" else 1 + len(make(wide).lines)  # it has no sums
    assert len(lines) == len(make(wide).rows) + around + bool(make(wide).title)  # none is folded


@pytest.mark.parametrize("screen", SCREENS)
def test_off_a_terminal_every_column_is_there_whole(screen: str) -> None:
    grid = SCREENS[screen][0](True)
    lines = drawn(grid, 80, terminal=False)
    above = bool(grid.title) + len(grid.lines)
    assert all(column.title in lines[above] for column in grid.columns)
    assert all(grid.rows[0][0][n].text in "\n".join(lines) for n in range(len(grid.columns)))
    assert len(lines) == len(grid.rows) + 1 + above  # no sums, which programs would take for a row


def test_rows_beyond_the_screen_are_counted() -> None:
    grid = lock_table.locks([replace(LOCK, name=f"lock-{n:02}") for n in range(60)])
    lines = drawn(grid, 80, 22)
    assert len(lines) == 22 and "lock-19" in lines[-2]
    assert lines[-1].startswith("+40 more") and "60 locks, 720 waiting" in lines[-1]
    grid.foot = ""
    assert drawn(grid, 80, 22)[-1] == "+40 more"
    assert not any("more" in line for line in drawn(grid, 80, 62))


def test_rows_are_sorted_by_any_column_with_what_is_not_known_at_the_end() -> None:
    grid = Grid([Column("NAME"), Column("HELD")])
    for name, held in (("b", 5.0), ("a", 10.0), ("c", None)):
        grid.add(name, Cell("?", -1.0) if held is None else Cell(text.span(held), held))

    def names(order: Order) -> list[str]:
        grid.order = order
        return [line[0] for line in drawn(grid)[1:]]

    assert names(Order()) == ["b", "a", "c"]
    assert names(Order("NAME")) == ["a", "b", "c"] and names(Order("NAME", reverse=True)) == ["c", "b", "a"]
    assert names(Order("HELD")) == ["a", "b", "c"]
    assert "HELD↓" in drawn(grid)[0]


@given(st.text(), st.integers(1, 60), st.booleans())
def test_a_text_is_cut_to_its_width(text: str, width: int, middle: bool) -> None:
    shown = cut(text, width, middle=middle)
    assert cell_len(shown) <= width or shown == "…"
    assert shown == text or "…" in shown


def test_no_word_is_cut_where_there_is_a_choice() -> None:
    assert cut("no route to the host", 14) == "no route to…"
    assert cut("no route to the host", 20) == "no route to the host"
    assert cut("src/codomyrmex/queue.py", 15, middle=True) == "src/cod…ueue.py"


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(1, 40)), min_size=1), st.integers(1, 200))
def test_columns_are_left_out_by_rank_and_use_the_room_there_is(wishes: list[tuple[int, int, int]], room: int) -> None:
    columns = [Column(str(n), rank, least=least) for n, (rank, least, _) in enumerate(wishes)]
    natural = [width for _, _, width in wishes]
    shown = fit(columns, natural, room)
    assert {n for n, column in enumerate(columns) if not column.rank} <= set(shown) or not shown
    used = sum(shown.values()) + 2 * (len(shown) - 1)
    assert used <= room or not any(columns[n].rank for n in shown)
    worst = max((columns[n].rank for n in shown), default=0)
    assert all(column.rank >= worst for n, column in enumerate(columns) if n not in shown)


# Words


def test_a_made_up_task_name_is_not_shown_and_an_agent_s_name_is() -> None:
    assert owners.agent(owner()) == "-" and owners.agent(owner(task="crawl")) == "crawl"
    assert owners.agent(owner(metadata={"agent": "parser"}, task="crawl")) == "parser"
    assert owners.agent(owner(metadata={"agent": 7})) == "-"
    for lines in (drawn(lock_table.locks([LOCK])), drawn(queue_table.queue("x", LOCK.holders, LOCK.waiters))):
        assert not any("Task-1" in line for line in lines)


def test_what_is_not_known_is_shown_as_not_known() -> None:
    assert owners.held_for(owner()) == "?" and owners.waited_for(owner()) == "?"
    assert owners.held_for(owner(since=datetime.now(UTC))) == "<1s"
    assert owners.held_for(owner(since=datetime.now(UTC) + timedelta(hours=1))) == "?"
    assert owners.held_for(owner(granted_at=datetime.now(UTC) - timedelta(seconds=5.2))) == "5s"
    assert owners.held_for(owner(granted_at=datetime.now(UTC) + timedelta(hours=1))) == "0s"  # by a clock ahead of ours


def test_trouble_has_a_word() -> None:
    now = datetime.now(UTC)
    long_ago = now - timedelta(minutes=10)
    held = owner(1, granted_at=long_ago, waited=0.0)
    assert lock_table.lock_state(LockInfo("x", (held,), (owner(2, since=long_ago),))) == "stuck"
    assert lock_table.lock_state(LockInfo("x", (held,), (owner(2, since=now),))) == "held"
    assert lock_table.lock_state(LockInfo("x", (replace(held, granted_at=now),), (owner(2, since=long_ago),))) == "held"
    assert lock_table.lock_state(LockInfo("x", (replace(held, lost=True),), ())) == "lost"
    assert semaphore_table.semaphore_state(SemaphoreInfo("s", 2, (), (owner(permits=3),))) == "stuck"
    assert semaphore_table.semaphore_state(SemaphoreInfo("s", None, (), ())) == "stuck"
    assert semaphore_table.semaphore_state(SemaphoreInfo("s", 2, (), ())) == "free"
    assert semaphore_table.semaphore_state(SemaphoreInfo("s", 1, (held,), ())) == "full"
    late = replace(ENTRY, next_attempt_at=long_ago)
    assert dead_letter_table.dead_letter_state(late) == "overdue"
    assert dead_letter_table.dead_letter_state(replace(late, next_attempt_at=now + timedelta(hours=1))) == "waiting"
    assert dead_letter_table.dead_letter_state(replace(late, state="parked")) == "parked"


def test_a_pool_tells_what_works_from_what_waits() -> None:
    for waiting, state in ((0, "busy"), (3, "busy"), (8, "waiting")):
        one = pool(waiting=waiting)
        line = drawn(pool_table.pools([_summed(one.name, [one])]), 200)[1]
        assert state in line and f" {8 - waiting} " in line and f" {waiting} " in line
    assert pool_table.pool_state(pool(running=0)) == "idle" and pool_table.pool_state(pool(running=1)) == "working"


# Who follows sees grants happen


def test_a_grant_between_two_readings_is_timed_by_the_looker_s_clock() -> None:
    seen = Sightings()
    first, second, third = owner(1), owner(2), owner(3)
    at = [NOW + timedelta(seconds=n) for n in range(4)]
    (info,) = seen.timed([LockInfo("x", (first,), (second,))], at[0])
    assert info.holders[0].granted_at is None  # it was there before
    (info,) = seen.timed([LockInfo("x", (second,), (third,))], at[1])
    assert (info.holders[0].granted_at, info.holders[0].waited) == (at[1], None)  # since when it waited nobody saw
    (info,) = seen.timed([LockInfo("x", (replace(second, granted_at=at[3], waited=9.0),), (third,))], at[2])
    assert (info.holders[0].granted_at, info.holders[0].waited) == (at[1], 9.0)  # no other host's clock counts
    (info,) = seen.timed([LockInfo("x", (third,), ())], at[3])
    assert (info.holders[0].granted_at, info.holders[0].waited) == (at[3], 2.0)


def test_what_a_holder_told_before_stands() -> None:
    told = owner(1, granted_at=NOW, waited=4.0)
    seen = Sightings()
    for _ in range(2):
        (info,) = seen.timed([LockInfo("x", (told,), ())], NOW + timedelta(seconds=9))
        assert info.holders == (told,)


@pytest.mark.parametrize(
    "task",
    ["", "Task-12", "MainThread", "Thread-3", "Thread-3 (work)", "Dummy-1", "ThreadPoolExecutor-0_1", "asyncio_0"],
)
def test_a_name_that_nobody_chose_is_no_agent(task: str) -> None:
    one = Owner("host", 7, "0a", task, 5, None)
    assert owners.agent(one) == "-" and owners.owners([one]) == "host:7"
    assert owners.agent(replace(one, task="MainThread-runner")) == "MainThread-runner"
