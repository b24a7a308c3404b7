"""The commands about rate limiters, and ``run --rate``: judged by output and exit code."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from codomyrmex.concurrency import DistributedLock, LockTimeout, Rate, RateLimiter, RateLimitInfo, Session
from codomyrmex.concurrency.cli.schemas import event_schema, output_schema, schemas
from codomyrmex.concurrency.rates import limits, overview
from codomyrmex.concurrency.session import core_of
from tests.helpers import eventually
from tests.integration.command_line import Cli, ended, line
from tests.integration.test_cli_fleet import Terminal
from tests.integration.test_completion import completed
from tests.json_schema import faults

BOTH = {"requests": Rate(10, per=60), "tokens": Rate(1000, per=60)}
HOSTILE = "x\u202e[bold]\u200b"


async def made(session: Session, name: str = "anthropic", rates: dict[str, Rate] | None = None) -> None:
    """A rate limiter in etcd that nobody uses."""
    await limits.agree(core_of(session), name, rates or BOTH)


async def info(session: Session, name: str = "anthropic") -> RateLimitInfo:
    return await overview.limiter(core_of(session), name)


def limits_of(found: RateLimitInfo) -> dict[str, int]:
    return {use.dimension: use.limit for use in found.uses}


def used_of(found: RateLimitInfo) -> dict[str, int]:
    return {use.dimension: use.used for use in found.uses}


async def until(process: asyncio.subprocess.Process, true: Callable[[Any], bool]) -> Any:
    """The first JSON line of which ``true`` holds."""
    while not true(said := json.loads(await line(process))):
        pass
    return said


# Looking


async def test_every_command_has_help_with_an_example(cli: Cli) -> None:
    names = ((), ("show",), ("resize",), ("pause",), ("resume",), ("delete",))
    for result in await asyncio.gather(*(cli("rates", *name, "--help") for name in names)):
        assert result.code == 0 and "Example" in result.out


async def test_each_dimension_is_listed_with_its_use_and_what_is_waited_for(
    cli: Cli, session: Session, other: Session
) -> None:
    await RateLimiter("anthropic", limits=BOTH, session=session, metadata={"agent": "parser"}).acquire(tokens=900)
    waiting = asyncio.create_task(RateLimiter("anthropic", limits=BOTH, session=other).acquire(tokens=500))

    async def waits() -> bool:
        return (await info(session)).waiting == 1

    await eventually(waits)
    forms = ("table", "wide", "json", "jsonl", "name")
    table, wide, whole, lines, names = await asyncio.gather(*(cli("rates", "-o", form) for form in forms))
    requests, tokens = json.loads(whole.out)
    assert [requests, tokens] == [json.loads(one) for one in lines.out.splitlines()]
    assert (tokens["dimension"], tokens["limit"], tokens["per"], tokens["waiters"]) == ("tokens", 1000, 60, 1)
    assert tokens["used"] >= 900 and tokens["free"] == 1000 - tokens["used"] and tokens["waiting"] >= 500
    assert requests["used"] == requests["waiting"] == 0 and requests["paused_until"] is None
    assert names.out == "anthropic\n" and "tokens" in table.out and "PAUSED BY" in wide.out
    shown, users = await asyncio.gather(cli("rates", "anthropic"), cli("rates", "show", "anthropic", "-o", "json"))
    assert f":{os.getpid()}" in shown.out and "parser" in shown.out and "500 waited for" in shown.out
    described = json.loads(users.out)
    assert described["uses"][1]["holders"][0]["metadata"] == {"agent": "parser"} and described["uses"][1]["waiters"]
    known = schemas()
    assert not faults(json.loads(whole.out), output_schema("rates"), known)
    assert not faults(described, output_schema("rates show"), known)
    waiting.cancel()


async def test_rate_limiters_are_selected_and_sorted(cli: Cli, session: Session) -> None:
    for name in ("a:busy", "a:idle", "b"):
        await made(session, name, {"": Rate(4, per=60)})
    await RateLimiter("a:idle", Rate(4, per=60), session=session).acquire()
    await RateLimiter("a:busy", Rate(4, per=60), session=session).acquire(4)
    by_name, by_free, none = await asyncio.gather(
        cli("rates", "--prefix", "a:", "-o", "name"),
        cli("rates", "--sort", "free", "-o", "name"),
        cli("rates", "--prefix", "c"),
    )
    assert by_name.out.split() == ["a:busy", "a:idle"] and by_free.out.split() == ["a:busy", "a:idle", "b"]
    assert (none.code, none.out) == (0, "") and "no rate limiters with a name that starts with 'c'" in none.err


async def test_watching_in_a_pipe_tells_each_change(cli: Cli, session: Session) -> None:
    await made(session)
    known = schemas()
    async with cli.started("rates", "--watch", "-o", "jsonl") as rows, cli.started("rates", "anthropic", "-w") as one:
        await until(rows, lambda row: row["dimension"] == "tokens" and not row["used"])
        assert "0 of 1000 tokens per minute" in await line(one)
        await RateLimiter("anthropic", limits=BOTH, session=session).acquire(tokens=7)
        row = await until(rows, lambda row: row["dimension"] == "tokens" and row["used"] >= 7)
        assert not faults(row, event_schema("rates"), known)
        assert "7 of 1000 tokens per minute" in await line(one)
        assert (await cli("rates", "pause", "anthropic", "--for", "1m")).code == 0
        await until(rows, lambda row: row["dimension"] == "tokens" and row["paused_until"])
        while "paused until" not in await line(one):
            pass
        for watching in (rows, one):
            watching.send_signal(signal.SIGINT)
            assert await ended(watching) == 0


@pytest.mark.parametrize("name", [(), ("anthropic",)], ids=["all", "one"])
async def test_a_live_view_is_redrawn_on_a_terminal(cli: Cli, session: Session, name: tuple[str, ...]) -> None:
    await made(session)
    async with Terminal(cli, "rates", *name, "--watch") as terminal:
        await eventually(terminal.shows(b"q ends", b"anthropic"), 15)
        await RateLimiter("anthropic", limits=BOTH, session=session).acquire(tokens=7)
        await eventually(terminal.shows(b"993" if not name else b"7 of 1000 tokens per minute used"), 15)
        terminal.type(b"q")
        assert await ended(terminal.process) == 0 and b"Traceback" not in terminal.seen


async def test_names_are_completed_without_their_dimensions(cli: Cli, session: Session) -> None:
    await made(session)
    await made(session, "provider", {"": Rate(1, per=1)})
    assert await completed(cli, "codomyrmex concurrency rates resize ") == ["anthropic", "provider"]
    assert await completed(cli, "codomyrmex concurrency run --rate pro") == ["provider"]


async def test_hostile_names_stay_legible(cli: Cli, session: Session) -> None:
    await made(session, HOSTILE, {"": Rate(3, per=60)})
    calls = [("-o", form) for form in ("table", "wide", "json", "jsonl", "name")]
    calls += [("show", HOSTILE), ("resize", HOSTILE, "4"), ("pause", HOSTILE, "--for", "30s")]
    results = await asyncio.gather(*(cli("rates", *call) for call in calls))
    results += [await cli("rates", "resume", HOSTILE), await cli("rates", "delete", HOSTILE, "-y")]
    assert [result.code for result in results] == [0] * 10, results
    for result in results:
        assert not {"\u202e", "\u200b"} & set(result.out + result.err)
        assert "\\u202e[bold]" in result.out + result.err


# Changing


async def test_what_is_not_there_is_an_error(cli: Cli, namespace: str) -> None:
    calls = (("nobody",), ("resize", "nobody", "3"), ("resize", "nobody", "3", "--dry-run"))
    calls += (("pause", "nobody", "--for", "1s"), ("resume", "nobody"), ("delete", "nobody", "-y"))  # type: ignore[assignment]
    for result in await asyncio.gather(*(cli("rates", *call) for call in calls)):
        assert result.code == 1 and result.err.startswith("error: there is no rate limiter 'nobody' in the namespace")
        assert repr(namespace) in result.err


async def test_unknown_dimensions_and_impossible_names_are_refused(cli: Cli, session: Session) -> None:
    await made(session)
    wrong = {
        ("rates", "resize", "anthropic", "5"): "give requests=N or tokens=N",
        ("rates", "resize", "anthropic", "tokns=5"): "no dimension 'tokns'; give requests=N or tokens=N",
        ("rates", "resize", "anthropic", f"tokens={'9' * 20}"): "at most",
        ("rates", "a\x1b[2Jb"): "control characters",
        ("rates", "pause", "a\x07b", "--for", "5s"): "control characters",
        ("run", "--rate", "a\x07b", "--", "true"): "control characters",
        ("run", "--rate", "", "--", "true"): "must not be empty",
    }
    results = await asyncio.gather(*(cli(*args) for args in wrong))
    for (args, said), result in zip(wrong.items(), results, strict=True):
        assert result.code == 2 and said in " ".join(result.err.split()), (args, result)
        assert not {"\x1b", "\x07"} & set(result.err) and "Traceback" not in result.err
    assert limits_of(await info(session)) == {"requests": 10, "tokens": 1000}


async def test_limits_are_resized_for_everyone(cli: Cli, session: Session) -> None:
    await made(session)
    dry = await cli("rates", "resize", "anthropic", "tokens=2000", "--dry-run")
    assert (dry.code, dry.out) == (
        0,
        "would change the limit of anthropic in tokens from 1000 to 2000 per minute; 0 are used\n",
    )
    assert limits_of(await info(session)) == {"requests": 10, "tokens": 1000}
    done = await cli("rates", "resize", "anthropic", "tokens=2000", "requests=5")
    assert (done.code, done.out.splitlines()) == (
        0,
        [
            "the limit of anthropic in requests is 5 per minute, and was 10",
            "the limit of anthropic in tokens is 2000 per minute, and was 1000",
        ],
    )
    assert limits_of(await info(session)) == {"requests": 5, "tokens": 2000}
    await made(session, "provider", {"": Rate(3, per=1)})
    assert (await cli("rates", "resize", "provider", "8")).out == "the limit of provider is 8 per 1 s, and was 3\n"


async def test_a_pause_holds_for_the_fleet_until_it_is_resumed(cli: Cli, session: Session) -> None:
    limiter = RateLimiter("provider", Rate(10, per=60), session=session)
    await limiter.acquire()
    paused = await cli("rates", "pause", "provider", "--for", "60s")
    assert (
        paused.code == 0 and "the rate limiter provider is paused until " in paused.out and "longer" not in paused.out
    )
    with pytest.raises(LockTimeout):
        await limiter.acquire(timeout=0)
    listed, table, shown, refused = await asyncio.gather(
        cli("rates", "-o", "json"),
        cli("rates"),
        cli("rates", "provider"),
        cli("run", "--rate", "provider", "--timeout", "0", "--", "echo", "never"),
    )
    (row,) = json.loads(listed.out)
    assert row["paused_until"] and row["paused_by"] and "paused" in table.out and "paused until" in shown.out
    assert "waited for" not in shown.out and " wait" not in refused.err
    shorter = await cli("rates", "pause", "provider", "--for", "10s")
    assert "paused until" in shorter.out and shorter.out.endswith(
        "; that longer pause stays, and `rates resume` ends it\n"
    )
    assert (refused.code, refused.out) == (75, "") and "paused until" in refused.err
    assert (await cli("rates", "resume", "provider")).out == "the rate limiter provider is resumed\n"
    await limiter.acquire(timeout=5)
    assert await cli("rates", "resume", "provider") == (0, "the rate limiter provider was not paused\n", "")


async def test_a_rate_limiter_is_deleted_unless_it_is_in_use(cli: Cli, session: Session) -> None:
    await made(session)
    await RateLimiter("anthropic", limits=BOTH, session=session).acquire(requests=1)
    refused = await cli("rates", "delete", "anthropic", "-y")
    assert refused.code == 1 and "is in use" in refused.err and (await info(session)).uses
    await made(session, "provider", {"": Rate(3, per=1)})
    assert await cli("rates", "delete", "provider", "-y") == (
        0,
        "the rate limiter provider, of 3 per 1 s, is deleted\n",
        "",
    )
    assert not (await info(session, "provider")).uses


# Running at a rate


async def test_run_spends_of_a_rate_that_stays_spent(cli: Cli, session: Session) -> None:
    unknown, first = await asyncio.gather(
        cli("run", "--rate", "nobody", "--", "true"),
        cli("run", "--rate", "provider", "--rate-limit", "5/60s", "--cost", "2", "--", "sh", "-c", "exit 7"),
    )
    assert unknown.code == 2 and "--rate-limit 100/60s" in unknown.err and "requests=100/60s" in unknown.err
    second = await cli("run", "--rate", "provider", "--", "echo", "ran")
    assert (first.code, second.code, second.out) == (7, 0, "ran\n")
    assert used_of(await info(session, "provider")) == {"": 3}
    late, other = await asyncio.gather(
        cli("run", "--rate", "provider", "--cost", "3", "--timeout", "0", "--", "echo", "never"),
        cli("run", "--rate", "provider", "--rate-limit", "9/60s", "--", "true"),
    )
    assert (late.code, late.out) == (75, "")
    assert "the rate limiter provider: not granted at once; provider: 3 of 5 per minute used; 1 waits" in late.err
    assert other.code == 1 and other.err.startswith("error: ")


async def test_run_spends_in_each_dimension(cli: Cli, session: Session) -> None:
    given = ("--rate-limit", "requests=10/60s", "--rate-limit", "tokens=1000/60s")
    done = await cli("run", "--rate", "anthropic", *given, "--cost", "requests=1", "--cost", "tokens=400", "--", "true")
    assert done.code == 0, done
    assert used_of(await info(session)) == {"requests": 1, "tokens": 400}


async def test_run_refuses_an_impossible_cost(cli: Cli, session: Session) -> None:
    await made(session)
    wrong = {
        (): "give --cost requests=N or --cost tokens=N",
        ("--cost", "tokens=1001"): "the cost in tokens is 1001, but the limit of anthropic is 1000 per minute",
        ("--cost", "5"): "give requests=N or tokens=N",
    }
    results = await asyncio.gather(*(cli("run", "--rate", "anthropic", *args, "--", "true") for args in wrong))
    for (args, said), result in zip(wrong.items(), results, strict=True):
        assert result.code == 2 and said in " ".join(result.err.split()), (args, result)


async def test_run_waits_for_the_rate_after_the_lock_and_says_so(cli: Cli, session: Session) -> None:
    limiter = RateLimiter("provider", Rate(2, per=60), session=session)
    await limiter.acquire(2)
    script = 'echo "$CODOMYRMEX_LOCK_NAME $CODOMYRMEX_FENCING_TOKEN"'
    async with cli.started("run", "--lock", "deploy", "--rate", "provider", "--", "sh", "-c", script) as running:
        assert running.stderr
        told = (await asyncio.wait_for(running.stderr.readline(), 10)).decode()
        await limiter.resize(Rate(3, per=60))
        name, token = (await line(running)).split()
        assert await ended(running) == 0
    assert told.startswith("waiting for the lock deploy, the rate limiter provider; provider: 2 of 2 per minute used")
    assert told.endswith("used; 1 waits\n") and name == "deploy" and int(token) > 0


async def test_a_command_at_a_rate_has_the_token_of_the_run_around_it(cli: Cli, session: Session) -> None:
    cli.environment |= {"CODOMYRMEX_FENCING_TOKEN": "5", "CODOMYRMEX_LOCK_NAME": "outer"}
    script = 'echo "$CODOMYRMEX_LOCK_NAME $CODOMYRMEX_FENCING_TOKEN"'
    result = await cli("run", "--rate", "p", "--rate-limit", "5/1s", "--", "sh", "-c", script)
    assert (result.code, result.out) == (0, "outer 5\n")


async def test_nothing_is_spent_while_the_lock_is_not_held(cli: Cli, session: Session) -> None:
    await made(session, "provider", {"": Rate(2, per=60)})
    async with DistributedLock("deploy", session):
        command = ("run", "--lock", "deploy", "--rate", "provider", "--timeout", "300ms", "--", "true")
        result = await cli(*command)
    assert result.code == 75 and "held by" in result.err
    assert used_of(await info(session, "provider")) == {"": 0}


async def test_waiting_for_a_rate_can_be_interrupted_and_leaves_no_waiter(cli: Cli, session: Session) -> None:
    await RateLimiter("provider", Rate(2, per=60), session=session).acquire(2)
    async with cli.started("run", "--rate", "provider", "--", "echo", "never") as running:
        assert running.stderr and b"waiting for the rate limiter provider" in await running.stderr.readline()
        assert (await info(session, "provider")).waiting == 1
        running.send_signal(signal.SIGINT)
        assert await ended(running) == 128 + signal.SIGINT

    async def alone() -> bool:
        return not (await info(session, "provider")).waiting

    await eventually(alone)
