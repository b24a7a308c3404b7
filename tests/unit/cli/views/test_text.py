"""Text on a terminal: ages, durations, and text by others that must not steer the terminal."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta

import click
import pytest
from rich.console import Console
from rich.table import Table

from codomyrmex.concurrency.cli.duration_types import Duration
from codomyrmex.concurrency.cli.views import lock_table, queue_table
from codomyrmex.concurrency.cli.views.text import age, visible
from codomyrmex.concurrency.models import LockInfo, Owner

ESCAPE = "\x1b]0;title\x07\x1b[2J"
HOSTILE = {
    "escape sequence": ESCAPE,
    "newline": "a\nb",
    "C1": "\x9b31m",
    "delete": "\x7f",
    "bidi override": "\u202eexe.txt",
    "zero width": "a\u200bb",
    "line separator": "a\u2028b",
    "variation selector": "a\ufe0fb",
    "tag": "a\U000e0041b",
    "unassigned": "a\u0378b",
    "decomposed": "e\u0301",
}


def rendered(table: Table) -> str:
    out = io.StringIO()
    Console(file=out, width=400, highlight=False).print(table)
    return out.getvalue()


def info(**hostile: str) -> LockInfo:
    fields = {"host": "h", "task": "t", **{k: v for k, v in hostile.items() if k in ("host", "task")}}
    owner = Owner(pid=1, session="0" * 16, token=7, since=None, metadata={"m": hostile.get("metadata", "")}, **fields)
    return LockInfo(hostile.get("name", "n"), (owner,), (owner,))


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_whatever_could_steer_a_terminal_is_shown_as_an_escape(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    assert "\\" in shown


def test_ordinary_text_of_any_language_stays_as_it_is() -> None:
    for text in ("file_edit:src/main.py", "Überprüfung", "锁", "[red]not a style[/red]"):
        assert visible(text) == text


@pytest.mark.parametrize("field", ["name", "host", "task", "metadata"])
@pytest.mark.parametrize(
    "table", [lambda i: lock_table.locks([i], wide=True), lambda i: queue_table.queue(i.name, i.holders, i.waiters)]
)
def test_no_field_of_a_lock_reaches_the_terminal_raw(field: str, table: object) -> None:
    assert callable(table)
    shown = rendered(table(info(**{field: ESCAPE})))
    assert "\x1b" not in shown
    assert "\x07" not in shown


@pytest.mark.parametrize("field", ["name", "host", "task", "metadata"])
@pytest.mark.parametrize(
    "table", [lambda i: lock_table.locks([i], wide=True), lambda i: queue_table.queue(i.name, i.holders, i.waiters)]
)
def test_markup_in_a_field_is_only_text(field: str, table: object) -> None:
    assert callable(table)
    assert "[bold]x[/nothing]" in rendered(table(info(**{field: "[bold]x[/nothing]"})))


@pytest.mark.parametrize(
    ("seconds", "shown"), [(-5, "0s"), (0, "0s"), (59, "59s"), (192, "3m12s"), (7500, "2h05m"), (90_000, "25h00m")]
)
def test_an_age_is_short(seconds: float, shown: str) -> None:
    assert age(datetime.now(UTC) - timedelta(seconds=seconds + 0.2)) == shown
    assert age(None) == "?"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 5), ("5s", 5), ("2m", 120), ("1h30m", 5400), ("250ms", 0.25), ("1.5s", 1.5), ("1d", 86_400), ("0", 0)],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "x", "5x", "-5", "5 s", "s", "nan", "1e3"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Duration().convert(text, None, None)
