"""The table of a lock's past: what is known, what is only bounded, and what is not known."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from rich.console import Console

from codomyrmex.concurrency.cli.views import history_table
from codomyrmex.concurrency.models import ForcedRelease, History, Owner, PastHold

THEN = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)
OWNER = Owner("host", 7, "0a", "", 5, THEN, waited=61.0)
HOLD = PastHold("x", OWNER, 5, THEN, THEN + timedelta(seconds=90), None, "released", 6, 9)


def rows(*holds: PastHold, kind: str = "lock", wide: bool = False) -> list[str]:
    history = History("x", 1, holds, (OWNER,), "path" if kind == "path" else "lock")
    grid = history_table.holds(history, "since revision 1 (whole)", holds, wide=wide)
    console = Console(width=250, no_color=True)
    with console.capture() as captured:
        console.print(grid, crop=False)
    return captured.get().splitlines()


def cells(hold: PastHold) -> list[str]:
    return [cell.strip() for cell in rows(hold)[2].split("  ") if cell.strip()]


def stamp(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}"


def test_a_hold_whose_times_are_known() -> None:
    ended = stamp(THEN + timedelta(seconds=90))
    assert cells(HOLD) == ["5", "host:7", "-", stamp(THEN), ended, "released", "1m30s", "1m01s", "6"]
    assert rows(HOLD)[0] == "x: since revision 1 (whole)" and rows(HOLD, kind="path")[0].startswith("tree x: ")


def test_an_end_that_is_only_bounded_and_one_that_is_not_known() -> None:
    bounded = replace(HOLD, ended_at=None, ended_before=THEN + timedelta(seconds=4))
    assert cells(bounded)[4:7] == [f"before {stamp(THEN + timedelta(seconds=4))}", "released", "<5s"]
    assert cells(replace(bounded, ended_before=None))[4:7] == ["?", "released", "?"]
    assert cells(replace(bounded, granted_at=None))[3:7:3] == ["?", "?"]


def test_a_hold_that_is_older_than_the_history_and_one_that_lasts() -> None:
    older = cells(replace(HOLD, granted_at=None, granted_revision=None))
    assert older[3] == older[-1] == "earlier"
    now = datetime.now(UTC)
    held = cells(replace(HOLD, how="held", ended_at=None, granted_at=now, granted_revision=5))
    assert held[4:] == ["-", "held", "0s", "0s", "5"]


def test_every_gap_of_a_record_is_named() -> None:
    assert history_table.missing([]) == ""
    assert history_table.missing([(836, 842), (900, 900)]) == ", without revisions 836-842, 900"


def test_the_reason_of_a_forced_release_is_shown() -> None:
    forced = replace(HOLD, how="forced", forced=ForcedRelease("x", 5, "it\x1b hangs", "anna", THEN))
    head, row = rows(forced, wide=True)[1:3]
    assert "REASON" in head and "anna: it\\x1b hangs" in row and "METADATA" in head
