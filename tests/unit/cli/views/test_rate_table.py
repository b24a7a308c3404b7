"""Rate limiters on the screen: states, figures and pauses in words, and a table that leaves room for its figures."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from codomyrmex.concurrency.cli.rate_rows import rows
from codomyrmex.concurrency.cli.views import rate_table
from codomyrmex.concurrency.models import Owner, RateLimitInfo, RateUse
from tests.unit.cli.views.test_tables import drawn

NOW = datetime.now(UTC)


def owner(session: int, permits: int) -> Owner:
    return Owner(host="h", pid=1, session=f"{session:016x}", task="", token=session, since=NOW, permits=permits)


def use(used: int, *waiting: int, dimension: str = "") -> RateUse:
    waiters = tuple(owner(number, amount) for number, amount in enumerate(waiting))
    return RateUse(dimension, 100, 60.0, (owner(9, used),) if used else (), waiters)


@pytest.mark.parametrize(
    ("one", "paused", "state"),
    [
        (use(0), False, "free"),
        (use(99), False, "free"),
        (use(100), False, "full"),
        (use(50, 60), False, "full"),  # room, but not for the first waiter
        (use(0), True, "paused"),
    ],
)
def test_the_state_of_a_dimension_in_a_word(one: RateUse, paused: bool, state: str) -> None:
    (row,) = rows([RateLimitInfo("x", (one,), NOW if paused else None)])
    assert rate_table.rate_state(row) == state


def test_a_row_counts_amounts_and_processes() -> None:
    requests, tokens = rows([RateLimitInfo("x", (use(3, dimension="requests"), use(90, 20, 5, dimension="tokens")))])
    assert (requests.used, requests.free, requests.waiting, requests.waiters) == (3, 97, 0, 0)
    assert (tokens.used, tokens.free, tokens.waiting, tokens.waiters) == (90, 10, 25, 2)


def test_figures_name_the_dimensions_and_the_pause() -> None:
    info = RateLimitInfo("x", (use(3, dimension="requests"), use(90, 20, dimension="tokens\u202e")))
    told = "3 of 100 requests per minute, 90 of 100 tokens\\u202e per minute used"
    assert rate_table.figures(info) == f"{told}; 1 waits" and rate_table.figures(info, 2) == f"{told}; 2 wait"
    later = replace(info, paused_until=datetime.now(UTC) + timedelta(days=2), paused_by="a\x1bb")
    assert rate_table.figures(later).startswith(f"{told}; paused until 20")
    assert rate_table.figures(later).endswith(" by a\\x1bb")
    assert rate_table.figures(RateLimitInfo("x", ())) == "not in etcd"


def test_the_users_leave_room_for_the_figures_above_them() -> None:
    many: Any = tuple(owner(number, 1) for number in range(60))
    grid = rate_table.rate_limiter(RateLimitInfo("x", (replace(use(0), holders=many), use(0, dimension="b"))))
    lines = drawn(grid, 80, 22)
    assert len(lines) == 22 and lines[:3] == [
        "x",
        "60 of 100 per minute used, 0 waited for",
        "0 of 100 b per minute used, 0 waited for",
    ]
    assert lines[-1] == "+43 more"


def test_a_pause_does_not_claim_that_nobody_waits() -> None:
    info = RateLimitInfo("x", (use(3), use(0, 20, dimension="b")), datetime.now(UTC) + timedelta(seconds=9), "a")
    first, second = rows([info])
    head, *drawn_rows = drawn(rate_table.rate_limiters([first, second]), 200, 10)[:3]
    at = head.split().index("WAITING")
    assert [line.split()[at : at + 2] for line in drawn_rows] == [["-", "-"], ["20", "1"]]
    texts = [rate_table.figures(info, 5), str(rate_table.rate_row_line(first)), *drawn(rate_table.rate_limiter(info))]
    assert not [line for line in texts if "wait" in line and not line.startswith("waits")]
    assert [line for line in texts if "paused until" in line]
