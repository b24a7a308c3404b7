"""The commands that messages tell to type next, the events of a followed list, and the time left in words."""

from __future__ import annotations

import io
import shlex
import subprocess
from dataclasses import replace
from datetime import UTC, datetime

import click
import pytest
from rich.console import Console

from codomyrmex.concurrency import ReservationInfo
from codomyrmex.concurrency.cli.agents.agent import acting_agent, agent_of
from codomyrmex.concurrency.cli.agents.next_steps import list_command, next_command, reserve_command
from codomyrmex.concurrency.cli.agents.obstacles import Obstacles
from codomyrmex.concurrency.cli.agents.reservation_events import events
from codomyrmex.concurrency.cli.agents.wanted import Wanted, is_like_a_path
from codomyrmex.concurrency.cli.views.reservation_table import reservations
from codomyrmex.concurrency.cli.views.reservation_text import following, left, scope
from codomyrmex.concurrency.cli.views.text import visible

INFO = ReservationInfo(("a",), ("src/",), "main", "me", "note", 7, None, 60.0, 900, "host", 1, "1f")

AT = datetime(2026, 1, 1, tzinfo=UTC)


def context(agent: str | None = None, **given: str) -> click.Context:
    one = click.Context(click.Command("x"), obj=given)
    one.params = {"agent": agent}
    return one


def test_a_command_to_type_next_can_be_typed() -> None:
    name, path = "it's; a name", "a dir/"
    words = shlex.split(reserve_command(context("agent 7", namespace="n"), Wanted((name, "-x"), (path,), "t", True)))
    assert words[:3] == ["codomyrmex", "concurrency", "reserve"]
    assert words[3:] == [
        "--path",
        path,
        "--tree",
        "t",
        "--shared",
        "--namespace",
        "n",
        "--as",
        "agent 7",
        "--",
        name,
        "-x",
    ]
    assert next_command(context(), "renew", arguments=("a",)) == "codomyrmex concurrency renew a"
    assert list_command(context("x", endpoints="e")) == "codomyrmex concurrency reservations --endpoints e"
    assert "--tree" not in reserve_command(context(), Wanted((), ("a",), "default", False))


def test_a_command_with_hidden_characters_can_be_typed_as_it_is_shown() -> None:
    agent = "we/ird\n\t'caf\u00e9' \\x41\u202e"
    shown = visible(next_command(context(agent), "renew", arguments=("a$b", "\x1bc")))
    assert "\\x0a" in shown and shown.isascii()
    echo = "printf '%s\\0' " + shown
    done = subprocess.run(["bash", "-c", echo], capture_output=True, text=True, check=True)
    assert done.stdout.split("\0")[2:] == ["renew", "--as", agent, "a$b", "\x1bc", ""]


def test_an_agent_is_named_by_the_option_the_environment_or_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODOMYRMEX_AGENT", "from-environment")
    assert (agent_of("given"), agent_of(None)) == ("given", "from-environment")
    assert agent_of("cafe\u0301") == "caf\u00e9"
    monkeypatch.delenv("CODOMYRMEX_AGENT")
    monkeypatch.setattr("socket.gethostname", lambda: "host")
    monkeypatch.setattr("getpass.getuser", lambda: "user")
    assert agent_of(None) == "user@host"

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr("getpass.getuser", nobody)
    monkeypatch.setattr("os.getuid", lambda: 4711)
    assert agent_of(None) == "4711@host"


def test_an_agent_that_nobody_has_named_is_warned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "host")
    monkeypatch.setattr("getpass.getuser", lambda: "user")
    monkeypatch.setenv("CODOMYRMEX_AGENT", "from-environment")
    assert (acting_agent("given"), acting_agent(None)) == ("given", "from-environment")
    assert capsys.readouterr() == ("", "")
    monkeypatch.delenv("CODOMYRMEX_AGENT")
    assert acting_agent(None) == "user@host"
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("warning: no agent is named: this acts as user@host; set CODOMYRMEX_")


def test_the_changes_between_two_readings_are_events() -> None:
    other = replace(INFO, lease="2f")
    steps = [
        ([INFO], [("reserved", INFO)]),
        ([replace(INFO, expires_in=59.0), other], [("reserved", other)]),
        ([replace(INFO, expires_in=900.0), other], [("renewed", replace(INFO, expires_in=900.0))]),
        (
            [replace(INFO, expires_in=899.0, note="half"), other],
            [("renewed", replace(INFO, expires_in=899.0, note="half"))],
        ),
        ([other], [("ended", replace(INFO, expires_in=899.0, note="half"))]),
    ]
    before: list[ReservationInfo] = []
    for after, expected in steps:
        assert [(one.kind, one.reservation) for one in events(before, after, AT)] == expected
        before = after


def test_a_command_to_type_shows_its_first_paths_only() -> None:
    full = reserve_command(context("x"), Wanted((), tuple("abcdefgh"), "t", False))
    paths = " ".join(f"--path {path}" for path in "abcdef")
    assert following([full, "b"]) == [
        f"next: codomyrmex concurrency reserve {paths} --tree t --as x …",
        "next: b",
    ]
    assert following([f"reserve {paths}"]) == [f"next: reserve {paths}"]


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("src/a.py", True),
        ("a.py", True),
        ("src/", True),
        ("deploy", False),
        ("file_edit:src/a.py", False),
        ("v1.2", False),
    ],
)
def test_a_name_that_was_meant_as_a_path_is_noticed(name: str, like: bool) -> None:
    assert is_like_a_path(name) is like


def test_names_and_paths_are_told_on_one_line() -> None:
    assert scope(INFO) == "a, src/ in the tree main"
    assert scope(Wanted((), ("",), "main", False)) == "everything in the tree main"
    assert scope(Wanted(tuple("abcdefg"), (), "main", False)) == "a, b, c, d, e and 2 more"
    assert "\x1b" not in scope(Wanted(("\x1b[2J",), (), "main", False))
    assert (left(900.0), left(899.2), left(0.0)) == ("15m00s", "15m00s", "0s")


def test_the_table_has_a_row_for_each_reservation() -> None:
    grid = reservations([replace(INFO, token=9, owner=""), INFO], wide=True)
    assert [[cell.text for cell in row] for row, _ in grid.rows] == [
        ["me", "a, src/", "main", "1m00s", "?", "7", "note", "alone", "host:1", "1f"],
        ["-", "a, src/", "main", "1m00s", "?", "9", "note", "alone", "host:1", "1f"],
    ]
    grid = reservations([replace(INFO, tree="default", paths=("src/", "", "b"))])
    assert [column.title for column in grid.columns] == ["AGENT", "RESERVED", "LEFT", "SINCE", "TOKEN", "NOTE"]
    assert grid.rows[0][0][1].text == "a, src/ +2"


def test_a_terminal_of_80_columns_shows_the_tree_and_with_wide_the_host_and_the_lease() -> None:
    one = replace(INFO, owner="agent-parser", paths=("src/parser/",), note="half of it is done, tests next")
    one = replace(one, host="build-host-17", pid=12345, lease="694d9ab1c2d3e4f5")

    def shown(wide: bool) -> list[str]:
        console = Console(width=80, force_terminal=True, color_system=None, file=io.StringIO())
        with console.capture() as told:
            console.print(reservations([one], wide=wide))
        return told.get().splitlines()

    head, row, *_ = shown(wide=False)
    assert "TREE" in head and "main" in row and "a, src/parser/" in row and max(map(len, (head, row))) <= 80
    head, row, *_ = shown(wide=True)
    assert "HOST" in head and one.lease in row and "12345" in row and max(map(len, (head, row))) <= 80


def test_the_position_counts_the_waiters_in_front_in_the_longest_queue() -> None:
    found = Obstacles((), ((1, 5, 9), (2,), ()), None)
    assert [found.position(own) for own in (1, 6, 10, None)] == [1, 3, 4, 4]
    assert Obstacles((), (), None).position(None) == 1
