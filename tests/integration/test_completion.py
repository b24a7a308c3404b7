"""The shell completes names as etcd has them."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from codomyrmex.concurrency import DeadLetterQueue, LockManager, Semaphore, Session
from tests.integration.command_line import Cli


async def completed(cli: Cli, words: str) -> list[str]:
    """The words that bash is offered after ``words``, the last of which is being typed."""
    environment = {
        **cli.environment,
        "_CODOMYRMEX_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    program = os.path.join(os.path.dirname(sys.executable), "codomyrmex")
    process = await asyncio.create_subprocess_exec(
        program, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 20)
    assert err == b""
    return [line.partition(",")[2] for line in out.decode().splitlines() if line]


async def test_names_come_from_etcd(cli: Cli, session: Session) -> None:
    async with LockManager(session).acquire_all(["file_edit:a.py", "file_edit:b c.py", "deploy"]):
        names = await completed(cli, "codomyrmex concurrency locks show ")
        assert names == ["deploy", "file_edit:a.py", "file_edit:b c.py"]
        assert await completed(cli, "codomyrmex concurrency locks release dep") == ["deploy"]
        assert await completed(cli, "codomyrmex concurrency run --lock dep") == ["deploy"]
    async with Semaphore("gpu", max_concurrent=1, session=session):
        assert await completed(cli, "codomyrmex concurrency semaphores resize g") == ["gpu"]
        assert await completed(cli, "codomyrmex concurrency run --semaphore ") == ["gpu"]
    await DeadLetterQueue("mail", session=session).add(operation="x", args={}, error="e")
    assert await completed(cli, "codomyrmex concurrency dlq list --queue ") == ["mail"]
    assert "locks" in await completed(cli, "codomyrmex concurrency l")


async def test_the_names_that_an_agent_keeps_and_the_trees_are_offered(
    cli: Cli, session: Session, tmp_path: Path
) -> None:
    cli.environment |= {"XDG_STATE_HOME": str(tmp_path), "CODOMYRMEX_AGENT": "agent-7"}
    assert (await cli("reserve", "deploy", "db", "--path", "src/", "--tree", "main")).code == 0
    assert await completed(cli, "codomyrmex concurrency renew ") == ["db", "deploy", "src/"]
    assert await completed(cli, "codomyrmex concurrency release de") == ["deploy"]
    assert await completed(cli, "codomyrmex concurrency reserve d") == ["db", "deploy"]
    assert await completed(cli, "codomyrmex concurrency guard check --tree ") == ["main"]
    for file in tmp_path.rglob("*.json"):
        file.write_text("damaged")
    assert await completed(cli, "codomyrmex concurrency renew ") == []


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "nonsense://"])
async def test_where_etcd_is_away_nothing_is_said(namespace: str, endpoint: str) -> None:
    assert await completed(Cli(endpoint, namespace), "codomyrmex concurrency locks show ") == []
