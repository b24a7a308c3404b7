"""``locks history`` as its users run it: in words, as JSON, for names that never were and for hostile ones."""

from __future__ import annotations

import asyncio
import json
import re

from codomyrmex.concurrency import EmbeddedEtcd, LockManager, Session
from tests.integration.command_line import Cli
from tests.integration.test_history import compact, revision_of
from tests.json_schema import faults


async def test_one_row_a_hold_says_who_held_and_how_it_ended(cli: Cli, session: Session) -> None:
    manager = LockManager(session)
    async with manager.acquire("x", metadata={"agent": "one"}):
        pass
    grant = await manager.acquire("x", metadata={"agent": "two"}, on_loss="notify")
    await manager.force_release("x", reason="it \x1b[31mhangs")
    async with manager.acquire("x", shared=True) as held:
        table, rows, lines, names = await asyncio.gather(
            *(cli("locks", "history", "x", *form) for form in ((), ("-o", "json"), ("-o", "jsonl"), ("-o", "name")))
        )
        assert (table.code, rows.code, lines.code, names.code) == (0, 0, 0, 0)
        schema = json.loads((await cli("capabilities", "-o", "json")).out)
    found = json.loads(rows.out)
    assert [(row["name"], row["owner"]["metadata"].get("agent"), row["how"]) for row in found] == [
        ("x", "one", "released"),
        ("x", "two", "forced"),
        ("x", None, "held"),
    ]
    assert [row["token"] for row in found][1:] == [grant.token, held.token] and found[1]["forced"]["reason"]
    assert found[0]["granted_at"] and found[1]["ended_at"] and found[2]["ended_at"] is None
    assert [json.loads(line) for line in lines.out.splitlines()] == found
    assert names.out.split() == ["x"] * 3 and "note: the history of x is since" in rows.err
    (described,) = (one for one in schema["commands"] if one["name"] == "locks history")
    assert faults(found, described["output"], schema["schemas"]) == []
    title, head, *body = table.out.splitlines()
    assert title.startswith("x: since ") and "REASON" in head and "\x1b" not in table.out
    assert "before" in body[0] and "it \\x1b[31mhangs" in body[1] and "(reader)" in body[2]


async def test_it_says_where_the_history_begins(namespace: str) -> None:
    async with EmbeddedEtcd() as fresh, Session(endpoints=fresh.endpoint, namespace=namespace) as session:
        cli = Cli(fresh.endpoint, namespace)
        async with LockManager(session).acquire("x"):
            whole = await cli("locks", "history", "x")
            revision = await revision_of(session)
            await compact(fresh, revision)
            rest, never = await asyncio.gather(cli("locks", "history", "x"), cli("locks", "history", "never"))
            async with LockManager(session).acquire("y"):
                later = await cli("locks", "history", "never")
    assert whole.out.startswith("x: since revision 1 (whole)")
    assert rest.out.startswith(f"x: since the compaction at revision {revision}") and "earlier" in rest.out
    assert never.code == later.code == 1 and f"since the compaction at revision {revision}" in never.err
    assert "`record` keeps each in a file" in never.err and "before" not in never.err.partition(";")[0]
    assert re.search(rf"since the compaction at revision {revision}, before (\S+ )?\d\d:\d\d:\d\d", later.err)


async def test_paths_of_a_tree_have_a_past(cli: Cli, session: Session) -> None:
    async with LockManager(session).acquire_paths(["src/parser/"], tree="main"):
        pass
    shown, lock = await asyncio.gather(cli("locks", "history", "main", "--tree"), cli("locks", "history", "main"))
    assert shown.out.startswith("tree main: ") and "src/parser/" in shown.out
    assert lock.code == 1 and "for a tree, add --tree" in lock.err


async def test_only_what_ended_lately_is_shown_with_since(cli: Cli, session: Session) -> None:
    manager = LockManager(session)
    grant = await manager.acquire("x", on_loss="notify")
    await manager.force_release("x", reason="over")
    await asyncio.sleep(1.5)
    none, hour = await asyncio.gather(
        cli("locks", "history", "x", "--since", "1s"), cli("locks", "history", "x", "--since", "1h", "-o", "jsonl")
    )
    assert (none.code, none.out) == (1, "") and "no hold of x has ended in the last 1s, since" in none.err
    assert [json.loads(line)["token"] for line in hour.out.splitlines()] == [grant.token]
    async with manager.acquire("x") as held:
        shown = await cli("locks", "history", "x", "--since", "1s", "-o", "jsonl")
        assert [json.loads(line)["token"] for line in shown.out.splitlines()] == [held.token]


async def test_bad_input_is_refused_with_advice(cli: Cli, session: Session) -> None:
    hostile = "a\u202e[bold]b"
    async with LockManager(session).acquire(hostile, metadata={"agent": "\x1b[2J[red]"}):
        shown, never, there, impossible, empty, future, date, watch = await asyncio.gather(
            cli("locks", "history", hostile, "-o", "wide"),
            cli("locks", "history", "n\u202e"),
            cli("locks", "n\u202e"),
            cli("locks", "history", "n\x1b[2J"),
            cli("locks", "history", ""),
            cli("locks", "history", "x", "--since", "-1h"),
            cli("locks", "history", "x", "--since", "2099-01-01"),
            cli("locks", "--watch", "history", "x"),
        )
    assert shown.code == 0 and "a\\u202e[bold]b: since" in shown.out and "\\x1b[2J[red]" in shown.out
    assert never.code == there.code == 1 and "nobody has held the lock n\\u202e in" in never.err
    assert (impossible.code, empty.code, future.code, date.code, watch.code) == (2, 2, 2, 2, 2)
    assert "is not a duration" in future.err and "is not a duration" in date.err
    for result in (shown, never, impossible):
        assert not {"\x1b", "\u202e"} & set(result.out + result.err)


async def test_an_etcd_that_is_not_there_is_told(namespace: str) -> None:
    away = await Cli("http://127.0.0.1:1", namespace)("locks", "history", "x")
    assert away.code == 69 and away.err.startswith("error: ")
