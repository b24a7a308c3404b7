"""Trees at the command line: a row for each holder of paths, the queue of a tree, events, and release by force."""

from __future__ import annotations

import asyncio
import json

import pytest

from codomyrmex.concurrency import EmbeddedEtcd, LockLost, LockManager, Session
from tests.helpers import eventually
from tests.integration.command_line import Cli, line


@pytest.fixture
def cli(etcd: EmbeddedEtcd, namespace: str) -> Cli:
    return Cli(etcd.endpoint, namespace)


async def test_a_tree_has_a_row_for_each_holder(cli: Cli, session: Session, other: Session) -> None:
    manager = LockManager(session)
    async with (
        manager.acquire("main"),
        manager.acquire_paths(["src/", "a", "b", "c"], tree="main", metadata={"agent": "parser"}),
        manager.acquire_paths([""], tree="empty"),
        manager.acquire_paths(["docs/"], tree="main", metadata={"agent": "writer"}),
    ):
        waiter = asyncio.ensure_future(LockManager(other).acquire_paths(["src/x"], tree="main", timeout=60)._first())
        await eventually(lambda: _waits(manager))
        result = await cli("locks")
        rows = {row.partition("  ")[0]: row.split() for row in result.out.splitlines()}
        assert rows["tree main: docs/"][-2:] == ["0", "-"]
        assert "parser" in rows["tree main: src/, a, b +1"] and "writer" in rows["tree main: docs/"]
        assert "tree empty: (all)" in rows and "main" in rows
        stuck = await cli("locks", "--stuck", "1s", "--prefix", "main")
        assert {row.partition("  ")[0] for row in stuck.out.splitlines()[1:]} == {
            "main",
            "tree main: src/, a, b +1",
            "tree main: docs/",
        }
        hint = await cli("locks", "empty")
        assert hint.code == 1 and hint.err.endswith("; there is a tree of that name: add --tree\n")
        assert (await cli("locks", "-o", "name")).out.split() == ["empty", "main", "main"]
        infos = json.loads((await cli("locks", "-o", "json")).out)
        assert [(info["name"], info["kind"]) for info in infos] == [
            ("empty", "path"),
            ("main", "lock"),
            ("main", "path"),
        ]
        assert infos[2]["holders"][0]["paths"] == ["src/", "a", "b", "c"]
        shown = await cli("locks", "main", "--tree")
        assert shown.code == 0 and "PATHS" in shown.out and "src/x" in shown.out
        assert "PATHS" not in (await cli("locks", "show", "main")).out
        assert json.loads((await cli("locks", "main", "--tree", "-o", "json")).out)["waiters"][0]["paths"] == ["src/x"]
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
    missing = await cli("locks", "main", "--tree")
    assert missing.code == 1 and "nobody holds a path of the tree main" in missing.err
    assert "add --tree" not in (await cli("locks", "main")).err


async def _waits(manager: LockManager) -> bool:
    info = await manager.info("main", "path")
    return bool(info and info.waiters)


async def test_paths_are_taken_away_by_their_token(cli: Cli, session: Session) -> None:
    manager = LockManager(session)
    async with manager.acquire_paths(["docs/"], tree="main", timeout=1):
        with pytest.raises(LockLost, match="the agent is gone"):
            async with manager.acquire_paths(["src/"], tree="main") as grant:
                options = ("--tree", "--reason", "the agent is gone", "-y")
                unnamed = await cli("locks", "release", "main", *options)
                assert unnamed.code == 2 and "`locks main --tree`" in unnamed.err
                wrong = await cli("locks", "release", "main", *options, "--token", "1")
                assert wrong.code == 1 and "look again" in wrong.err
                chosen = (*options, "--token", str(grant.token))
                would = await cli("locks", "release", "main", *chosen, "--dry-run")
                assert would.out.startswith("would release tree main: src/, held by ")
                done = await cli("locks", "release", "main", *chosen)
                assert done.code == 0 and done.out.startswith("released tree main: src/")
                await asyncio.sleep(10)
        shown = await cli("locks", "main", "--tree")
        assert "last forced release" in shown.out and "docs/" in shown.out and "src/" not in shown.out


async def test_steps_in_a_tree_are_told_live(cli: Cli, session: Session) -> None:
    manager = LockManager(session)
    async with cli.started("locks", "--watch") as process:
        async with manager.acquire("first"):
            while "granted" not in await line(process):
                pass
        async with manager.acquire_paths(["src/"], tree="main"):
            while "granted  tree main: src/" not in (told := await line(process)):
                assert told
