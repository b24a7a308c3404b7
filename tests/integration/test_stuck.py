"""``locks --stuck`` and the notes of progress, in the command line as its users run it."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from codomyrmex.concurrency import DistributedLock, LockManager, Session
from codomyrmex.concurrency.etcd.transports.protocol import Put
from codomyrmex.concurrency.session import core_of
from tests.integration.command_line import Cli, ended, line


@asynccontextmanager
async def reporting(session: Session, name: str) -> AsyncIterator[None]:
    """A holder that reports progress all the while."""

    async def report() -> None:
        while True:
            await grant.progress("busy")
            await asyncio.sleep(0.3)

    async with DistributedLock(name, session) as grant:
        reports = asyncio.create_task(report())
        try:
            yield
        finally:
            reports.cancel()
            await asyncio.gather(reports, return_exceptions=True)


async def test_a_note_is_shown_with_its_holder(cli: Cli, session: Session) -> None:
    async with LockManager(session).acquire("x") as grant:
        bare = await cli("locks", "x")
        await grant.progress("half\x1b done")
        whole, shown, listed = await asyncio.gather(
            cli("locks", "x"), cli("locks", "x", "-o", "json"), cli("locks", "-o", "json")
        )
        waited = await cli("run", "--lock", "x", "--timeout", "300ms", "--", "true")
    assert "NOTE" not in bare.out and "NOTE" in whole.out and "half\\x1b done" in whole.out
    assert json.loads(shown.out)["holders"][0]["note"] == "half\x1b done"
    assert json.loads(listed.out)[0]["holders"][0]["progress"] == 1
    assert waited.code == 75 and "(note: half\\x1b done)" in waited.err


async def test_a_holder_without_progress_is_listed_and_one_with_progress_is_not(cli: Cli, session: Session) -> None:
    foreign = core_of(session).layout.queue("p:foreign") + b"%x" % session.id  # as etcdctl writes it
    async with reporting(session, "p:busy"), DistributedLock("p:idle", session) as grant, DistributedLock("q", session):
        await core_of(session).transport.txn((), (Put(foreign, b"", session.id),))
        # The record of its wait is written while the commands watch, and is no progress.
        table, shown, names = await asyncio.gather(
            *(cli("locks", "--stuck", "3s", "--prefix", "p:", *form) for form in ((), ("-o", "json"), ("-o", "name")))
        )
        assert "watching for 3s" in table.err and "IDLE" in table.out
        assert names.out.split() == ["p:foreign", "p:idle"] or names.out.split() == ["p:idle", "p:foreign"]
        found = {holder["name"]: holder for holder in json.loads(shown.out)}
        assert found.keys() == {"p:idle", "p:foreign"}
        assert found["p:idle"]["owner"]["token"] == grant.token and found["p:idle"]["idle_since"]
        assert (table.code, shown.code, names.code) == (0, 0, 0)
    none = await cli("locks", "--stuck", "200ms", "--prefix", "q")
    assert (none.code, none.out) == (0, "") and "no lock's holder was without progress for" in none.err


async def test_a_live_view_tells_when_a_holder_is_stuck_and_when_it_is_no_longer(cli: Cli, session: Session) -> None:
    async with DistributedLock("x", session) as grant:
        async with cli.started("locks", "--stuck", "2s", "--watch", "-o", "jsonl") as watching:
            stuck = json.loads(await line(watching))
            assert (stuck["name"], stuck["owner"]["token"], stuck["stuck"]) == ("x", grant.token, True)
            await grant.progress("again")
            cleared = json.loads(await line(watching))
            assert (cleared["name"], cleared["stuck"]) == ("x", False)
            again = json.loads(await line(watching))
            assert again["stuck"] and again["owner"]["note"] == "again"
            watching.send_signal(signal.SIGINT)
            assert await ended(watching) == 0
        async with cli.started("locks", "--stuck", "1s", "--watch") as watching:
            told = await line(watching)
            assert "stuck" in told and "note: again" in told


async def test_ctrl_c_ends_the_watching_without_a_list(cli: Cli, session: Session) -> None:
    async with DistributedLock("x", session), cli.started("locks", "--stuck", "10m") as watching:
        assert watching.stderr and b"watching for 10m00s" in await asyncio.wait_for(watching.stderr.readline(), 15)
        watching.send_signal(signal.SIGINT)
        assert await ended(watching) == 130
        assert watching.stdout and await watching.stdout.read() == b""


async def test_wrong_use_of_stuck_ends_with_2(cli: Cli) -> None:
    wrong = {
        ("--stuck", "5"): "has no unit",
        ("--stuck", "0s"): "more than 0",
        ("--stuck", "5m", "x"): "add --prefix and its name",
        ("--stuck", "5m", "--held-longer-than", "5m"): "not both",
    }
    results = await asyncio.gather(*(cli("locks", *args) for args in wrong))
    for result, text in zip(results, wrong.values(), strict=True):
        assert result.code == 2 and text in result.err
