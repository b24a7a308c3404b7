"""The commands about elections and groups: judged by output and exit code."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import AsyncExitStack

import pytest

from codomyrmex.concurrency import (
    DistributedLock,
    Election,
    EmbeddedEtcd,
    Group,
    LockLost,
    LockManager,
    Session,
    health,
)
from codomyrmex.concurrency.cli.schemas import event_schema, output_schema, schemas
from codomyrmex.concurrency.etcd.transports.protocol import Put
from codomyrmex.concurrency.recipes.election import queues
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue import shared_values
from tests.helpers import eventually
from tests.integration.command_line import Cli, ended, line
from tests.integration.test_cli_fleet import Terminal
from tests.integration.test_completion import completed
from tests.json_schema import faults

HOSTILE = "x\u202e[bold]\u200b"
VALUE = {"url": "http://one/[red]", "text": "\x1b[31m\u202e\u0007"}
UNSAFE = "\x1b\u202e\u200b\u0007"


async def candidate(stack: AsyncExitStack, session: Session, name: str, value: object = None) -> None:
    """A task that leads or waits to lead until the end of the test."""

    async def campaign() -> None:
        async with Election(name, session, metadata={"agent": HOSTILE}).campaign(value):
            await asyncio.Event().wait()

    async def end() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def there() -> bool:
        return len((await shared_values.read(core_of(session), queues(name))).entries) > before

    before = len((await shared_values.read(core_of(session), queues(name))).entries)
    task = asyncio.create_task(campaign())
    stack.push_async_callback(end)
    await eventually(there)


async def member(stack: AsyncExitStack, session: Session, name: str, capabilities: dict[str, object]) -> None:
    metadata = {"agent": HOSTILE}
    await stack.enter_async_context(Group(name, session, metadata=metadata).join(capabilities))


# Elections


async def test_elections_are_listed_with_leader_value_and_candidates(
    cli: Cli, session: Session, other: Session, stack: AsyncExitStack
) -> None:
    for value in (VALUE, "later", "last"):
        await candidate(stack, session if value == "later" else other, HOSTILE, value)
    await candidate(stack, session, "a", None)
    forms = ("table", "wide", "json", "jsonl", "name")
    table, wide, whole, lines, names = await asyncio.gather(*(cli("elections", "-o", form) for form in forms))
    first, second = json.loads(whole.out)
    assert [first, second] == [json.loads(one) for one in lines.out.splitlines()]
    assert (first["name"], first["value"], first["candidates"]) == ("a", None, [])
    assert (second["name"], second["value"]) == (HOSTILE, VALUE) and second["leader"]["pid"] == os.getpid()
    assert second["leader"]["metadata"] == {"agent": HOSTILE} and second["token"] == second["leader"]["token"]
    assert [one["session"] for one in second["candidates"]] == [f"{one.id:016x}" for one in (session, other)]
    assert not faults(json.loads(whole.out), output_schema("elections"), schemas())
    assert "ELECTION" in table.out and "http://one/[red]" in table.out and "METADATA" in wide.out
    assert names.out.splitlines() == ["a", "x\\u202e[bold]\\u200b"]
    for shown in (table, wide, names):
        assert not set(UNSAFE) & set(shown.out) and "x\\u202e[bold]\\u200b" in shown.out


async def test_one_election_is_shown_whole(cli: Cli, session: Session, other: Session, stack: AsyncExitStack) -> None:
    await candidate(stack, session, "scheduler", VALUE)
    await candidate(stack, other, "scheduler")
    table, whole, name = await asyncio.gather(
        cli("elections", "scheduler"),
        cli("elections", "show", "scheduler", "-o", "json"),
        cli("elections", "-o", "name"),
    )
    assert table.out.startswith('scheduler: {"url": "http://one/[red]"') and "waits" in table.out
    found = json.loads(whole.out)
    assert found["value"] == VALUE and len(found["candidates"]) == 1 and name.out == "scheduler\n"
    assert not faults(found, output_schema("elections show"), schemas())
    assert not set(UNSAFE) & set(table.out)


async def test_a_name_that_never_was_is_told_as_for_locks(cli: Cli, session: Session) -> None:
    async with DistributedLock("a-lock", session):
        kinds = ("locks", "elections", "members")
        never = await asyncio.gather(*(cli(kind, "never") for kind in kinds), cli("elections", "a-lock"))
    assert [result.code for result in never] == [1] * 4 and not any(result.out for result in never)
    assert "error: nobody leads the election never in the namespace" in never[1].err
    assert "error: the group never has no members in the namespace" in never[2].err


async def test_names_that_cannot_be_and_lists_without_items_are_told(cli: Cli) -> None:
    wrong = await asyncio.gather(cli("elections", "", "-w"), cli("members", "a\nb"))
    assert [result.code for result in wrong] == [2] * 2 and all("error: a name must not" in one.err for one in wrong)
    none, members = await asyncio.gather(cli("elections", "-o", "json"), cli("members", "--prefix", "q"))
    assert (none.code, members.code, none.out, members.out) == (0, 0, "[]\n", "")
    assert "no group has members with a name that starts with 'q'" in members.err


async def test_watching_tells_each_term_and_value(cli: Cli, session: Session, stack: AsyncExitStack) -> None:
    await candidate(stack, session, "other")
    async with (
        cli.started("elections", "-w", "--prefix", "e", "-o", "json") as every,
        cli.started("elections", "e", "-w") as one,
    ):
        tokens = []
        async with Election("e", session).campaign(VALUE) as term:
            tokens.append(term.token)
            first, text = json.loads(await line(every)), await line(one)
            assert (first["token"], first["value"]) == (term.token, VALUE)
            assert f"token {term.token}" in text and not set(UNSAFE) & set(text)
            await term.proclaim([1])
            second = json.loads(await line(every))
            assert (second["name"], second["token"], second["value"]) == ("e", term.token, [1])
            assert not faults(second, event_schema("elections"), schemas()) and "[1]" in await line(one)
        async with Election("e", session).campaign() as term:
            assert json.loads(await line(every))["token"] == term.token > tokens[0]
            assert f"token {term.token}" in await line(one)
        for process in (every, one):
            process.send_signal(signal.SIGINT)
            assert await ended(process) == 0


async def test_a_term_is_ended_by_force_with_a_reason_that_its_leader_reads(
    cli: Cli, session: Session, other: Session, stack: AsyncExitStack
) -> None:
    leads, lock = asyncio.Event(), DistributedLock("e", session)
    tokens: list[int] = []

    async def lead() -> None:
        async with Election("e", session).campaign() as term:
            tokens.append(term.token)
            leads.set()
            await asyncio.Event().wait()

    leading = asyncio.create_task(lead())
    await leads.wait()
    await candidate(stack, other, "e")
    held = await lock.acquire()
    words = ("elections", "release", "e", "--reason")
    unasked, empty, dry, other_term = await asyncio.gather(
        cli(*words, "r"),
        cli(*words, " ", "-y"),
        cli(*words, "r", "--dry-run"),
        cli(*words, "r", "-y", "--token", "1"),
    )
    assert (unasked.code, empty.code, dry.code, other_term.code) == (2, 2, 0, 1) and not leading.done()
    assert f"with token {tokens[0]}; 1 wait" in dry.out
    assert f"led with token {tokens[0]}, not 1; look again" in other_term.err
    done = await cli(*words, "host is gone", "-y", "--token", str(tokens[0]))
    assert done.code == 0 and f"with token {tokens[0]}" in done.out
    with pytest.raises(LockLost, match="host is gone"):
        await asyncio.wait_for(leading, 15)
    leader = await Election("e", session).leader()
    assert leader and leader.token > tokens[0] and lock.held and not held.lost.is_set()
    none = await cli("elections", "release", "never", "--reason", "r", "-y")
    assert none.code == 1 and "nobody leads the election 'never'" in none.err


# Groups


async def test_members_are_listed_with_their_capabilities(
    cli: Cli, session: Session, other: Session, stack: AsyncExitStack
) -> None:
    await member(stack, session, "workers", {"gpu": VALUE})
    await member(stack, other, "workers", {})
    await member(stack, other, HOSTILE, {"n": 1})
    forms = ("table", "wide", "json", "jsonl", "name")
    table, wide, whole, lines, names = await asyncio.gather(*(cli("members", "-o", form) for form in forms))
    found = json.loads(whole.out)
    assert found == [json.loads(one) for one in lines.out.splitlines()]
    assert [(one["group"], one["capabilities"]) for one in found] == [
        ("workers", {"gpu": VALUE}),
        ("workers", {}),
        (HOSTILE, {"n": 1}),
    ]
    assert not faults(found, output_schema("members"), schemas()) and all(one["owner"]["since"] for one in found)
    assert "CAPABILITIES" in table.out and "http://one/[red]" in table.out and f"{session.id:016x}" in wide.out
    assert names.out.splitlines() == ["workers", "x\\u202e[bold]\\u200b"]
    for shown in (table, wide, names):
        assert not set(UNSAFE) & set(shown.out)
    one, named, some = await asyncio.gather(
        cli("members", "workers", "-o", "json"),
        cli("members", "workers", "-o", "name"),
        cli("members", "--prefix", "x", "-o", "json"),
    )
    assert json.loads(one.out) == found[:2] and json.loads(some.out) == found[2:]
    assert not faults(json.loads(one.out), output_schema("members show"), schemas())
    assert [text.endswith(f":{os.getpid()}") for text in named.out.split()] == [True, True]


async def test_watching_tells_who_joins_changes_and_leaves(cli: Cli, session: Session) -> None:
    async with (
        Group("g", session).join({"n": 1}) as mine,
        cli.started("members", "-w", "-o", "jsonl") as every,
        cli.started("members", "g", "-w") as one,
    ):
        first = json.loads(await line(every))
        assert (first["kind"], first["member"]["capabilities"]) == ("joined", {"n": 1})
        assert not faults(first, event_schema("members"), schemas()) and '{"n": 1}' in await line(one)
        async with Group("g", session).join({"text": VALUE["text"]}):
            await mine.update({"n": 2})
        told = [json.loads(await line(every)) for _ in range(3)]
        texts = [await line(one) for _ in range(3)]
        assert [event["kind"] for event in told] == ["joined", "changed", "left"]
        assert [text.split()[1] for text in texts] == ["joined", "changed", "left"]
        assert not set(UNSAFE) & set("".join(texts))
        for process in (every, one):
            process.send_signal(signal.SIGINT)
            assert await ended(process) == 0


# Beside the others


async def test_live_views_show_them_on_a_terminal(cli: Cli, session: Session, stack: AsyncExitStack) -> None:
    await candidate(stack, session, "e", "first")
    await member(stack, session, "workers", {"n": 1})
    async with Terminal(cli, "elections", "--watch") as every, Terminal(cli, "members", "workers", "-w") as group:
        await eventually(every.shows(b"1 election", b"first"), 15)
        await eventually(group.shows(b"1 member of 1 group"), 15)
        await candidate(stack, session, "f", "second")
        await member(stack, session, "workers", {"n": 2})
        await eventually(every.shows(b"2 elections", b"second"), 15)
        await eventually(group.shows(b"2 members of 1 group"), 15)


async def test_names_are_completed(cli: Cli, session: Session, stack: AsyncExitStack) -> None:
    await candidate(stack, session, "scheduler")
    await member(stack, session, "workers", {})
    typed = ("elections show s", "members show w", "elections show w")
    offered = await asyncio.gather(*(completed(cli, f"codomyrmex concurrency {words}") for words in typed))
    assert offered == [["scheduler"], ["workers"], []]


async def test_status_counts_no_locks_and_tells_of_foreign_keys(
    cli: Cli, etcd: EmbeddedEtcd, session: Session, stack: AsyncExitStack
) -> None:
    await candidate(stack, session, "e")
    await member(stack, session, "g", {})
    found = await health.cluster_status(session.settings)
    assert found.locks == 0 and not any("entries" in warning for warning in found.warnings)
    for segment in ("election", "group"):
        key = core_of(session).layout.below(segment) + b"e/foreign"
        await core_of(session).transport.txn((), (Put(key, b"not leased"),))
    found = await health.cluster_status(session.settings)
    for kind in ("election", "group"):
        assert f"1 keys among the {kind} entries are not entries; they are skipped" in found.warnings
    table = await cli("elections", "-o", "name")
    assert table.out == "e\n" and await LockManager(session).locks() == []
