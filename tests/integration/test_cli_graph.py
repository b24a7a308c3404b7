"""``locks graph`` at the command line, and the mark of a deadlock in ``locks``."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from codomyrmex.concurrency import LockManager, Semaphore, Session
from codomyrmex.concurrency.cli.schemas import output_schema, schemas
from codomyrmex.concurrency.cli.views import lock_table
from tests.helpers import eventually
from tests.integration.command_line import Cli, ended
from tests.integration.test_cli_fleet import Terminal
from tests.json_schema import faults

HOSTILE = 'an "agent"]; evil -> \\node\n\x1b[31m<b>'
STATEMENT = re.compile(r'  "(\\.|[^"\\])*"( -> "(\\.|[^"\\])*")? \[label="(\\.|[^"\\])*"(, [a-z]+=[a-z]+)+\];')


@asynccontextmanager
async def deadlock(session: Session, other: Session) -> AsyncIterator[None]:
    """Two tasks that wait for each other, over a lock with a hostile name and a tree; and a third one behind them."""
    manager, theirs = LockManager(session), LockManager(other)
    barrier = asyncio.Barrier(2)

    async def hostile() -> None:
        async with manager.acquire('a "lock"\\', metadata={"agent": HOSTILE}):
            await barrier.wait()
            await manager.acquire_paths(["src/x"], tree="main", metadata={"agent": HOSTILE})

    async def harmless() -> None:
        async with theirs.acquire_paths(["src/"], tree="main", metadata={"agent": "bob"}):
            await barrier.wait()
            await _waiting(manager, 1)
            await theirs.acquire('a "lock"\\', metadata={"agent": "bob"})

    async def third() -> None:
        await _waiting(manager, 2)
        await manager.acquire('a "lock"\\', metadata={"agent": "carl"})

    tasks = [asyncio.create_task(one) for one in (hostile(), harmless(), third())]
    try:
        await _waiting(manager, 3)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _waiting(manager: LockManager, number: int) -> None:
    async def enough() -> bool:
        return len({edge.token for edge in (await manager.waits()).edges}) == number

    await eventually(enough)


async def test_the_waits_and_the_deadlock_in_words(cli: Cli, session: Session, other: Session) -> None:
    async with deadlock(session, other):
        result = await cli("locks", "graph")
        assert result.code == 0
        lines = [re.sub(r" \([^ ]*:\d+ #\d+\)", "", line) for line in result.out.splitlines()]
        hostile, lock = r'an "agent"]; evil -> \node\n\x1b[31m<b>', """the lock 'a "lock"\\\\'"""
        assert lines == [
            f"{hostile} waits for paths of the tree 'main', held by bob",
            f"bob waits for {lock}, held by {hostile}",
            f"carl waits for {lock}, held by {hostile}, behind bob",
            f"deadlock: {hostile} waits for paths of the tree 'main', which bob holds; bob waits for {lock}, which "
            f"{hostile} holds",
            "3 waits, 1 deadlock",
        ]
        part = await cli("locks", "graph", "--prefix", "mai")
        assert part.out.startswith("an ") and part.out.endswith("1 wait, 1 deadlock\n")
        none = await cli("locks", "graph", "--prefix", "other")
        assert none.code == 0 and none.out == "" and "no requester waits for another one with a name" in none.err


async def test_the_graph_for_graphviz_is_well_formed_whatever_the_names(
    cli: Cli, session: Session, other: Session
) -> None:
    async with deadlock(session, other):
        result = await cli("locks", "graph", "-o", "dot")
    first, *statements, last = result.out.splitlines()
    assert (
        (first, last) == ("digraph waits {", "}")
        and result.out.isascii()
        and result.out.replace("\n", "").isprintable()
    )
    assert all(STATEMENT.fullmatch(line) for line in statements), result.out
    edges = [line for line in statements if '" -> "' in line and "color=" in line]
    assert len(statements) == 3 + 4 and len(edges) == 4
    assert [line.rpartition("color=")[2] for line in edges].count("red];") == 2
    assert [("style=dashed" in line) for line in edges].count(True) == 1
    empty = await cli("locks", "graph", "-o", "dot")
    assert empty.out == "digraph waits {\n}\n"


async def test_the_graph_in_json_is_as_described(cli: Cli, session: Session, other: Session) -> None:
    async with deadlock(session, other):
        found = json.loads((await cli("locks", "graph", "-o", "json")).out)
        assert faults(found, output_schema("locks graph"), schemas()) == []
        assert len(found["edges"]) == 4 and [len(cycle) for cycle in found["cycles"]] == [2]
        one = found["cycles"][0][0]
        assert one["queue"] == {"kind": "path", "name": "main"} and one["holds"] and not one["fails"]
        assert one["waiter"]["label"].startswith(HOSTILE) and one["predecessor"] == found["cycles"][0][1]["waiter"]


async def test_locks_marks_those_in_a_deadlock_in_its_tables_only(cli: Cli, session: Session, other: Session) -> None:
    async with deadlock(session, other), LockManager(session).acquire("apart"):
        result = await cli("locks")
        states = {line.split("  ")[0]: line for line in result.out.splitlines()}
        assert " deadlock " in states['a "lock"\\'] and " deadlock " in states["tree main: src/"]
        assert " held " in states["apart"] and "deadlock" not in states["apart"]
        infos, graph = await LockManager(session).locks(), await LockManager(session).waits()
        grid = lock_table.locks(infos, deadlocked=lock_table.waits_in(graph.cycles))
        assert "2 in a deadlock (see `locks graph`)" in grid.foot
        shown = json.loads((await cli("locks", "-o", "json")).out)
        assert faults(shown, output_schema("locks"), schemas()) == []
        assert "deadlock" not in json.dumps(shown)


async def test_waits_for_a_semaphore_are_shown_too(cli: Cli, session: Session) -> None:
    semaphore = Semaphore("s", max_concurrent=1, session=session, metadata={"agent": "ann"})
    async with semaphore:
        waiting = asyncio.create_task(semaphore.acquire())
        await _waiting(LockManager(session), 1)
        result = await cli("locks", "graph")
        assert "waits for the semaphore 's', held by ann" in result.out and "1 wait, 0 deadlocks" in result.out
    await (await waiting).release()


async def test_another_form_of_output_is_refused(cli: Cli) -> None:
    result = await cli("locks", "graph", "-o", "yaml")
    assert result.code == 2 and "'text', 'dot', 'json'" in result.err


async def test_a_lock_named_graph_is_shown_by_show(cli: Cli, session: Session) -> None:
    async with LockManager(session).acquire("graph"):
        assert (await cli("locks", "show", "graph")).code == 0


async def test_a_live_view_marks_a_deadlock(cli: Cli, session: Session, other: Session) -> None:
    async with Terminal(cli, "locks", "--watch", columns=160) as terminal, deadlock(session, other):
        await eventually(terminal.shows(b"deadlock", b"2 in a deadlock"), 15)
        terminal.type(b"q")
        assert await ended(terminal.process) == 0


async def test_an_etcd_that_does_not_answer_is_told() -> None:
    result = await Cli("http://127.0.0.1:1", "x")("locks", "graph")
    assert result.code == 69 and result.out == "" and "127.0.0.1:1" in result.err
