"""Messages of the command line about misspelt, missing or unattended things; and the worker that it runs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from codomyrmex.concurrency import (
    AsyncWorkerPool,
    DeadLetterQueue,
    EmbeddedEtcd,
    LockManager,
    Retry,
    RetryPolicy,
    Semaphore,
    Session,
)
from codomyrmex.concurrency.cli import dev
from codomyrmex.concurrency.dead_letters import presence
from codomyrmex.concurrency.dead_letters.store import Store
from codomyrmex.concurrency.etcd.transports.protocol import Get, Put
from codomyrmex.concurrency.keys import prefix_end
from codomyrmex.concurrency.session import core_of
from tests.helpers import counting, eventually
from tests.integration.command_line import Cli, Result, ended, line

APP = """
import asyncio
from codomyrmex.concurrency import DeadLetterQueue, RetryPolicy

dlq = DeadLetterQueue("mail", retry=RetryPolicy(max_attempts=2, initial=0.05))
bare = DeadLetterQueue("bare")


@dlq.handler("send")
async def send(entry, attempt):
    print("begun", flush=True)
    await asyncio.sleep(entry.args["takes"])
    print("ended", flush=True)
"""


async def nothing(entry: Any, attempt: Any) -> None:
    pass


async def flop(item: int) -> None:
    raise ConnectionError(f"503: the provider is overloaded {item}")


async def root(*args: str) -> Result:
    """``codomyrmex`` itself, without its group ``concurrency``."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "codomyrmex.concurrency.cli.root", *args),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode is not None
    return Result(process.returncode, out.decode(), err.decode())


# Misspelt and unusual


async def test_each_level_says_its_version(cli: Cli) -> None:
    for result in (await root("--version"), await cli("--version")):
        assert result.code == 0 and result.out.startswith("codomyrmex-concurrency 0.")


async def test_a_misspelt_command_is_answered_with_a_likely_one(cli: Cli) -> None:
    top, group, sub, named = await asyncio.gather(
        root("concurrnecy"), cli("lokcs"), cli("dlq", "lsit"), cli("locks", "relase", "deploy", "--reason", "r", "-y")
    )
    found = [("concurrency", top), ("locks", group), ("list", sub), ("release", named)]
    for meant, result in found:
        assert result.code == 2 and f"Did you mean '{meant}'?" in result.err, result
    option = await cli("dev", "--prot", "1")
    assert option.code == 2 and "--port" in option.err


async def test_a_group_shows_what_it_is_given_the_name_of(cli: Cli, session: Session) -> None:
    async with LockManager(session).acquire("deploy") as grant:
        short, full = await cli("locks", "deploy", "-o", "json"), await cli("locks", "show", "deploy", "-o", "json")
        watched = await cli("locks", "--watch", "deploy")
    shown = [json.loads(result.out)["holders"][0]["token"] for result in (short, full)]  # in time it tells more
    assert shown == [grant.token] * 2 and (short.code, full.code) == (0, 0)
    assert watched.code == 2 and "--prefix" in watched.err


async def test_what_begins_with_a_minus_and_a_digit_is_an_argument(cli: Cli, session: Session) -> None:
    async with LockManager(session).acquire("-5"), Semaphore("-6", max_concurrent=2, session=session):
        calls = [cli("locks", "show", "-5"), cli("locks", "-5"), cli("semaphores", "-6")]
        for result in await asyncio.gather(*calls):
            assert result.code == 0, result
        resized, unknown = await asyncio.gather(cli("semaphores", "resize", "-6", "-5"), cli("locks", "show", "-x"))
    assert resized.code == 2 and "-5 is not in the range" in resized.err
    assert unknown.code == 2 and "'-x'" in unknown.err


async def test_the_options_of_a_command_that_is_run_are_its_own(cli: Cli) -> None:
    result = await cli("run", "--lock", "x", "echo", "-o", "json", "--lock", "y")
    assert (result.code, result.out) == (0, "-o json --lock y\n")


async def test_an_age_needs_a_unit(cli: Cli) -> None:
    wrong = [
        ("dlq", "purge", "--older-than", "5", "-y"),
        ("dlq", "list", "--since", "5"),
        ("locks", "--held-longer-than", "5"),
    ]
    for result in await asyncio.gather(*(cli(*command) for command in wrong)):
        assert result.code == 2 and "'5' has no unit; say 5s, 5m, 5h or 5d" in result.err


# Empty and unknown


async def test_an_empty_answer_says_where_was_looked(cli: Cli, namespace: str, etcd: EmbeddedEtcd) -> None:
    for command in (("locks",), ("semaphores",), ("pools",), ("dlq", "list"), ("dlq", "stats")):
        result = await cli(*command)
        assert (result.code, result.out) == (0, "") and repr(namespace) in result.err and etcd.endpoint in result.err
    for command in (("locks", "nobody"), ("semaphores", "nobody")):
        result = await cli(*command)
        assert result.code == 1 and repr(namespace) in result.err
    assert "starts with 'a:'" in (await cli("locks", "--prefix", "a:")).err


async def test_an_empty_queue_says_where_entries_are(cli: Cli, session: Session) -> None:
    await DeadLetterQueue("mail", session=session).add(operation="send", args={}, error="e")
    async with DeadLetterQueue("idle", session=session).worker():
        await eventually(lambda: _workers(session, "idle"))
        empty, parked = await asyncio.gather(cli("dlq", "list"), cli("dlq", "list", "-q", "mail", "--state", "parked"))
    assert empty.code == 0 and "the queue 'default'" in empty.err and "there are some in 'mail';" in empty.err
    assert parked.code == 0 and "none of the 1 dead letters in the queue 'mail'" in parked.err


async def test_an_unknown_queue_or_operation_is_an_error_that_names_those_there_are(cli: Cli, session: Session) -> None:
    dlq = DeadLetterQueue("mail", session=session)
    entry_id = await dlq.add(operation="send", args={}, error="e")
    commands = [("list",), ("show", entry_id), ("retry", entry_id), ("retry", "--all", "-y"), ("stats",)]
    commands += [("purge", "-y"), ("discard", entry_id, "--reason", "r", "-y")]
    for result in await asyncio.gather(*(cli("dlq", *command, "-q", "male") for command in commands)):
        assert result.code == 1 and "no dead letter queue 'male'" in result.err and "'mail'" in result.err, result
    commands = [("list",), ("retry", "--all", "-y")]
    for result in await asyncio.gather(*(cli("dlq", *one, "-q", "mail", "--operation", "sned") for one in commands)):
        assert result.code == 1 and "the operation 'sned'" in result.err and "'send'" in result.err, result


# Dead letters told as they are


async def test_the_error_of_a_parked_entry_is_shown_before_the_reason(cli: Cli, session: Session) -> None:
    dlq = DeadLetterQueue("mail", session=session, retry=RetryPolicy(max_attempts=2, initial=0.01, retry_on=OSError))

    @dlq.handler("used up")
    async def used_up(entry: Any, attempt: Any) -> None:
        raise ConnectionError("the mail server is away")

    @dlq.handler("asks again")
    async def asks_again(entry: Any, attempt: Any) -> None:
        raise Retry(0.01)

    @dlq.handler("not again")
    async def not_again(entry: Any, attempt: Any) -> None:
        raise KeyError("to")

    for operation in ("used up", "asks again", "not again"):
        await dlq.add(operation=operation, args={}, error=TimeoutError("at first"))
    async with dlq.worker() as worker:
        await worker.settled()
    listed = (await cli("dlq", "list", "-q", "mail")).out
    assert "ConnectionError: the mail server is away (attempts are used" in listed
    assert "TimeoutError: at first (attempts are used up)" in listed
    assert "KeyError: 'to' (such an error is not to be retried)" in listed


async def test_a_pool_s_own_tries_are_told_beside_those_of_the_queue(cli: Cli, session: Session) -> None:
    dlq = DeadLetterQueue("mail", session=session)
    retry = RetryPolicy(max_attempts=3, initial=0.01)
    async with AsyncWorkerPool(1, name="crew", session=session, dlq=dlq, retry=retry) as pool:
        ((result),) = await pool.map(flop, [1])
    await dlq.add(operation="by hand", args={}, error="e", metadata={"attempts": 7})
    listed = (await cli("dlq", "list", "-q", "mail")).out
    assert result.dead_letter_id
    shown = (await cli("dlq", "show", result.dead_letter_id, "-q", "mail")).out
    assert "0, 3 in pool" in listed and "7" not in listed.splitlines()[2].split("by hand")[1].split()[1]
    assert "0, 3 in pool, of which 0 killed their worker" in shown


async def test_kinds_of_failures_are_called_so(cli: Cli, session: Session) -> None:
    dlq = DeadLetterQueue("mail", session=session)
    for number in (1, 2):
        await dlq.add(operation="send", args={}, error=f"no {number}")
    result, told = await asyncio.gather(cli("dlq", "stats"), cli("dlq", "stats", "--help"))
    assert "KINDS" in result.out and "FAILURES" not in result.out and "KINDS is how many" in " ".join(told.out.split())


# Workers


async def _workers(session: Session, queue: str) -> list[presence.WorkerInfo]:
    return await presence.workers(Store(core_of(session), queue, 1.0))


async def test_a_worker_keeps_one_key_that_says_what_it_handles(session: Session, other: Session) -> None:
    dlq = DeadLetterQueue("mail", session=other)
    dlq.handler("send")(nothing)
    async with dlq.worker():
        assert await eventually(lambda: _workers(session, "mail"))
        dlq.handler("index")(nothing)
        (info,) = await eventually(lambda: _with(session, "index"))
        assert info == presence.WorkerInfo(core_of(other).host, os.getpid(), ("index", "send"))
        with counting(other) as calls:
            await dlq.add(operation="send", args={}, error="e")
            await eventually(lambda: _done(dlq))
            assert calls["txn"] == 3  # the entry, taking it, its outcome
    await eventually(lambda: _none(session))


async def _with(session: Session, operation: str) -> list[presence.WorkerInfo]:
    return [one for one in await _workers(session, "mail") if operation in one.operations]


async def _none(session: Session) -> bool:
    return not await _workers(session, "mail")


async def _done(dlq: DeadLetterQueue) -> bool:
    return bool(await dlq.list_entries(state="resolved"))


async def test_the_key_goes_with_the_lease_and_garbage_beside_it_is_passed_over(session: Session) -> None:
    dlq = DeadLetterQueue("mail", session=session)
    store = Store(core_of(session), "mail", 1.0)
    async with Session(session.settings) as gone, DeadLetterQueue("mail", session=gone).worker():
        await eventually(lambda: _workers(session, "mail"))
        found = await core_of(session).transport.get(Get(store.workers, prefix_end(store.workers)))
        assert [kv.lease for kv in found.kvs] == [gone.id]
    for number, value in enumerate((b"\xff", b"{}", b'{"host": "h", "pid": 1, "operations": ["x"]}')):
        await core_of(session).transport.txn((), (Put(store.workers + b"%d" % number, value),))
    assert await _workers(session, "mail") == []
    dlq.handler("send")(nothing)
    await dlq.add(operation="send", args={}, error="e")
    async with dlq.worker() as worker:
        await worker.settled()
    assert await _done(dlq)


async def test_retry_warns_of_what_no_worker_will_take(cli: Cli, session: Session) -> None:
    dlq = DeadLetterQueue("mail", session=session)
    ids = [await dlq.add(operation=operation, args={}, error="e") for operation in ("send", "index")]
    one, every = await cli("dlq", "retry", ids[0], "-q", "mail"), await cli("dlq", "retry", "--all", "-q", "mail", "-y")
    for result in (one, every):
        assert result.code == 0 and "warning: the queue 'mail' has no worker" in result.err
    dlq.handler("other")(nothing)
    async with dlq.worker():
        await eventually(lambda: _workers(session, "mail"))
        partly = await cli("dlq", "retry", "--all", "-q", "mail", "-y")
        assert "has a handler for 'index', 'send'" in partly.err
        dlq.handler("retried")(nothing)
        await eventually(lambda: _with(session, "retried"))
        parked = await dlq.add(operation="retried", args={}, error="e")
        await eventually(lambda: _done(dlq))
        silent = await cli("dlq", "retry", parked, "-q", "mail")
    assert (silent.code, silent.err) == (0, "")


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "mail_app.py").write_text(APP)
    (tmp_path / "broken.py").write_text("raise ValueError('bad settings')")
    (tmp_path / "needing.py").write_text("import no_such_module_of_theirs")
    with working_in(tmp_path):
        yield tmp_path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_work_runs_the_handlers_of_an_app_and_drains(
    cli: Cli, session: Session, app: Path, number: signal.Signals
) -> None:
    dlq = DeadLetterQueue("mail", session=session)
    for _ in range(2):
        await dlq.add(operation="send", args={"takes": 1}, error="e")
    async with cli.started("dlq", "work", "--app", "mail_app:dlq", "--concurrency", "1") as working:
        assert await line(working) == "begun"
        assert len(await _workers(session, "mail")) == 1
        working.send_signal(number)
        assert await line(working) == "ended"
        assert await ended(working) == 0
    assert sorted(entry.state for entry in await dlq.list_entries()) == ["resolved", "waiting"]
    assert await _none(session)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_cancels_the_handlers(
    cli: Cli, session: Session, app: Path, number: signal.Signals
) -> None:
    dlq = DeadLetterQueue("mail", session=session)
    await dlq.add(operation="send", args={"takes": 60}, error="e")
    async with cli.started("dlq", "work", "--app", "mail_app:dlq") as working:
        assert await line(working) == "begun"
        working.send_signal(number)
        assert working.stderr
        while b"takes nothing more" not in await asyncio.wait_for(working.stderr.readline(), 10):
            pass
        working.send_signal(number)
        assert await ended(working) == 128 + number
    (entry,) = await dlq.list_entries()
    assert (entry.state, entry.attempt_count) == ("waiting", 0)


async def test_work_says_what_is_wrong_with_its_app(cli: Cli, app: Path) -> None:
    cases = {
        "mail_app": (2, "MODULE:QUEUE"),
        "nowhere:dlq": (2, "no module 'nowhere'"),
        "mail_app.inner:dlq": (2, "no module 'mail_app.inner'"),
        "mail_app:qlq": (2, "its queues are: dlq, bare"),
        "mail_app:send": (2, "is no DeadLetterQueue"),
        "mail_app:bare": (2, "has no handlers"),
        "broken:dlq": (1, "ValueError: bad settings"),
        "needing:dlq": (1, "no_such_module_of_theirs"),
    }
    results = await asyncio.gather(*(cli("dlq", "work", "--app", name) for name in cases))
    for (code, said), result in zip(cases.values(), results, strict=True):
        assert result.code == code and said in result.err, result
    cli.environment |= {"CODOMYRMEX_ETCD_ENDPOINTS": "http://127.0.0.1:1", "CODOMYRMEX_ETCD_DIAL_TIMEOUT": "0.5"}
    assert (await cli("dlq", "work", "--app", "mail_app:dlq")).code == 69


async def test_work_works_where_its_options_say(cli: Cli, session: Session, app: Path) -> None:
    dlq = DeadLetterQueue("mail", session=session)
    await dlq.add(operation="send", args={"takes": 0}, error="e")
    cli.environment["CODOMYRMEX_ETCD_NAMESPACE"] = "elsewhere"
    where = ("--namespace", session.settings.namespace)
    async with cli.started("dlq", *where, "work", "--app", "mail_app:dlq") as working:
        assert await line(working) == "begun"
        await eventually(lambda: _done(dlq))
        working.send_signal(signal.SIGTERM)
        assert await ended(working) == 0


# An etcd for development


async def _said(cli: Cli, *args: str) -> str:
    """The lines that ``dev`` prints before it waits."""
    async with cli.started("dev", *args) as running:
        said = await line(running) + "\n" + await line(running) + "\n" + await line(running)
        running.send_signal(signal.SIGINT)
        assert await ended(running) == 0
        return said


async def test_dev_serves_where_it_is_told_and_says_which_etcd_it_found(cli: Cli, etcd: EmbeddedEtcd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    said = await _said(cli, "--port", str(port))
    assert f"http://127.0.0.1:{port};" in said and f"It is {etcd.binary}," in said
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = await cli("dev", "--port", str(taken.getsockname()[1]))
    assert result.code == 69 and "is taken" in result.err


async def test_dev_takes_the_port_where_everything_looks_if_it_stands_alone_and_that_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    monkeypatch.setattr(dev, "_USUAL", port)
    usual = f"http://127.0.0.1:{port}"
    async with await dev.started(None, None, alone=False) as around_a_command:
        assert around_a_command.endpoint != usual
    async with await dev.started(None, None, alone=True) as first:
        assert first.endpoint == usual
        async with await dev.started(None, None, alone=True) as second:
            assert second.endpoint != usual


@pytest.mark.parametrize(
    ("version", "old"),
    [("3.5.1", True), ("3.6.13", True), ("3.6.14", False), ("3.7.0", True), ("3.7.1", False), ("3.8.0", False)],
)
def test_an_old_etcd_is_told_to_do(version: str, old: bool) -> None:
    etcd = EmbeddedEtcd(binary="/usr/bin/etcd")
    etcd.version = version
    assert ("this one will do" in dev.described(etcd)) is old and "found on PATH" in dev.described(etcd)


# The demo


async def test_the_demo_says_what_a_token_is_and_looks_like_neither_a_crash_nor_a_prompt(cli: Cli) -> None:
    async with cli.started("demo", "--agents", "2", "--edits", "2") as demo:
        out, err = await asyncio.wait_for(demo.communicate(), 90)
    told = out.decode()
    assert (demo.returncode, err) == (0, b"")
    lines = told.splitlines()
    assert all(line.startswith("    log of ") for line in lines if "log of " in line)
    before_the_first = told.partition("agent-1")[0].partition("agent-2")[0]
    assert "is given a token at that moment: a number" in before_the_first
    to_type = [line for line in lines if line.strip().startswith("codomyrmex ")]
    assert len(to_type) == 3 and "second terminal" in told and told.index(to_type[1]) > told.index("is gone with")
    assert all(
        line.startswith("  ") for line in lines if "SEMAPHORE" in line or "POOL  " in line or "OPERATION" in line
    )
