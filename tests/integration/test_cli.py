"""The command line as its users run it: a process of its own, judged by its output and its exit code."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from codomyrmex.concurrency import DistributedLock, EmbeddedEtcd, LockManager, Session
from codomyrmex.concurrency.cli.group import concurrency
from codomyrmex.concurrency.etcd.transports.protocol import Put
from codomyrmex.concurrency.session import core_of
from tests.helpers import eventually, queue_of, revoke
from tests.integration.command_line import Cli, Result, ended, line


def gone(pid: int) -> Callable[[], bool]:
    def check() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
        except OSError:
            return True

    return check


# Help and usage


def test_every_command_has_help_with_an_example() -> None:
    commands = [("locks",), ("locks", "show"), ("locks", "release"), ("run",), ("dev",), ("status",), ("demo",)]
    commands += [("semaphores",), ("pools",), ("dlq",)]
    commands += [("semaphores", name) for name in ("show", "resize", "delete")]
    commands += [("dlq", name) for name in ("list", "show", "retry", "discard", "purge", "stats", "work")]
    for command in commands:
        result = CliRunner().invoke(concurrency, [*command, "--help"])
        assert result.exit_code == 0
        assert "Example" in result.output


async def test_help_does_not_wait_for_protobuf_or_pydantic() -> None:
    code = """
import sys
from codomyrmex.concurrency.cli.root import main
sys.argv = ["codomyrmex", "concurrency", "--help"]
try:
    main()
except SystemExit:
    pass
print([name for name in ("google.protobuf", "hpack", "pydantic") if name in sys.modules], file=sys.stderr)
"""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=pipe, stderr=pipe)
    _, err = await process.communicate()
    assert err.decode().strip() == "[]"


async def test_wrong_use_and_wrong_settings_end_with_2(cli: Cli) -> None:
    wrong = (
        ("nonsense",),
        ("locks", "--sort", "colour"),
        ("locks", "--held-longer-than", "soon"),
        ("run", "--lock", "x"),
        ("locks", "release", "x"),
        ("--namespace", "a/b", "locks"),
        ("--endpoints", "ftp://nowhere", "status"),
        ("locks", "show", ""),
    )
    for result in await asyncio.gather(*(cli(*args) for args in wrong)):
        assert result.code == 2, result
        assert "Traceback" not in result.err


async def test_an_etcd_that_is_away_is_69_and_soon(cli: Cli) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        cli.environment["CODOMYRMEX_ETCD_ENDPOINTS"] = f"http://127.0.0.1:{probe.getsockname()[1]}"
    cli.environment["CODOMYRMEX_ETCD_DIAL_TIMEOUT"] = "1"
    started = time.monotonic()
    calls: list[Coroutine[Any, Any, Result]] = [cli("locks"), cli("status"), cli("run", "--lock", "x", "--", "true")]
    for result in await asyncio.gather(*calls):
        assert result.code == 69
        assert result.err.count("\n") == 1
        assert result.err.startswith("error: ")
    assert time.monotonic() - started < 8


# Looking


async def test_locks_are_listed_in_every_format(cli: Cli, session: Session, other: Session) -> None:
    mine, waiting = DistributedLock("deploy", session, metadata={"why": "test"}), DistributedLock("deploy", other)
    grant = await mine.acquire()
    waiter = asyncio.create_task(waiting.acquire())
    await queue_of(session, "deploy", 2)
    formats = ("table", "wide", "json", "jsonl", "name")
    table, wide, whole, lines, names = await asyncio.gather(*(cli("locks", "-o", form) for form in formats))
    assert "deploy" in table.out
    assert str(grant.token) in table.out
    assert "why" in wide.out
    (found,) = json.loads(whole.out)
    assert found == json.loads(lines.out)
    assert [owner["token"] for owner in found["holders"]] == [grant.token]
    assert len(found["waiters"]) == 1
    assert names.out == "deploy\n"
    (shown,) = [json.loads((await cli("locks", "show", "deploy", "-o", "json")).out)]
    assert shown["holders"][0]["metadata"] == {"why": "test"}
    await mine.release()
    await waiter


async def test_locks_are_selected_and_nothing_found_is_told(cli: Cli, session: Session) -> None:
    for name in ("a:1", "b:1"):
        await DistributedLock(name, session).acquire()
    prefixed, young, missing = await asyncio.gather(
        cli("locks", "--prefix", "a:", "-o", "name"),
        cli("-o", "name", "locks", "--held-longer-than", "5m"),
        cli("locks", "show", "nobody"),
    )
    assert prefixed.out == "a:1\n"
    assert (young.code, young.out) == (0, "")
    assert missing.code == 1
    assert missing.err.startswith("error: ")


async def test_names_and_metadata_by_others_cannot_steer_the_terminal(cli: Cli, session: Session) -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J\u202e[bold]"
    lease = session.id
    value = json.dumps({"host": "h", "pid": 1, "task": hostile, "since": time.time(), "metadata": {"m": hostile}})
    key = core_of(session).layout.queue(f"x{hostile}") + b"%016x-1" % lease
    await core_of(session).transport.txn((), (Put(key, value.encode(), lease),))
    calls = [cli("locks", "-o", form) for form in ("table", "wide", "json", "jsonl", "name")]
    for result in await asyncio.gather(*calls, cli("locks", "show", f"x{hostile}")):
        assert not {"\x1b", "\x07", "\u202e"} & set(result.out + result.err)


async def test_watching_in_a_pipe_prints_events_as_they_come_and_ctrl_c_ends_it(cli: Cli, session: Session) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        async with cli.started("locks", "--watch", "-o", "jsonl", "--prefix", f"{number}:") as watching:
            async with LockManager(session).acquire(f"{number}:x") as grant:
                joined, granted = json.loads(await line(watching)), json.loads(await line(watching))
            left = json.loads(await line(watching))
            assert [event["kind"] for event in (joined, granted, left)] == ["enqueued", "granted", "released"]
            assert granted["owner"]["token"] == grant.token
            watching.send_signal(number)
            assert await ended(watching) == 0


async def test_watching_goes_on_with_a_new_session(cli: Cli, session: Session) -> None:
    async with cli.started("locks", "--watch", "-o", "jsonl") as watching:
        async with LockManager(session).acquire("one"):
            await line(watching)
        leases = (await core_of(session).transport.get(_leases(session))).kvs
        (theirs,) = [kv.lease for kv in leases if kv.lease != session.id]
        await revoke(session, theirs)
        async with LockManager(session).acquire("two"):
            while json.loads(await line(watching))["name"] != "two":
                pass


def _leases(session: Session) -> Any:
    from codomyrmex.concurrency.etcd.transports.protocol import Get
    from codomyrmex.concurrency.keys import prefix_end

    return Get(core_of(session).layout.leases, prefix_end(core_of(session).layout.leases))


async def test_a_healthy_cluster_is_status_0(cli: Cli, etcd: EmbeddedEtcd) -> None:
    table, whole = await asyncio.gather(cli("status"), cli("status", "-o", "json"))
    assert (table.code, whole.code) == (0, 0)
    assert etcd.endpoint in table.out
    assert json.loads(whole.out)["problems"] == []


# Releasing by force


async def test_a_forced_release_off_a_terminal_needs_yes(cli: Cli, session: Session) -> None:
    lock = DistributedLock("x", session)
    grant = await lock.acquire()
    refused, dry = await asyncio.gather(
        cli("locks", "release", "x", "--reason", "r"), cli("locks", "release", "x", "--reason", "r", "--dry-run")
    )
    assert refused.code == 2
    assert "-y" in refused.err
    assert dry.code == 0
    assert str(grant.token) in dry.out
    assert lock.held
    done = await cli("locks", "release", "x", "--reason", "host is gone", "-y")
    assert done.code == 0
    await asyncio.wait_for(grant.lost.wait(), 5)
    assert (await cli("locks", "release", "x", "--reason", "again", "-y")).code == 1


async def test_a_forced_release_needs_a_reason_with_words(cli: Cli, session: Session) -> None:
    await DistributedLock("x", session).acquire()
    result = await cli("locks", "release", "x", "--reason", " ", "-y")
    assert result.code == 2
    assert "Traceback" not in result.err


# Running


async def test_a_command_finds_its_token_and_stdin_and_its_code_is_passed_on(cli: Cli) -> None:
    script = 'read x; echo "$x $CODOMYRMEX_LOCK_NAME $CODOMYRMEX_FENCING_TOKEN"; exit 7'
    result = await cli("run", "--lock", "deploy", "--", "sh", "-c", script, stdin="hello\n")
    word, name, token = result.out.split()
    assert (result.code, word, name) == (7, "hello", "deploy")
    assert int(token) > 0


async def test_a_command_that_cannot_run_or_dies_has_the_shells_codes(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    commands = (("/nonexistent",), (str(tmp_path / "data"),), ("sh", "-c", "kill -9 $$"))
    results = await asyncio.gather(*(cli("run", "--lock", f"l{n}", "--", *c) for n, c in enumerate(commands)))
    assert [result.code for result in results] == [127, 126, 137]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
async def test_a_signal_reaches_the_command(cli: Cli, number: signal.Signals) -> None:
    script = f"trap 'exit 9' {number.name[3:]}; echo ready; while :; do sleep 0.05; done"
    async with cli.started("run", "--lock", "x", "--", "sh", "-c", script) as running:
        assert await line(running) == "ready"
        running.send_signal(number)
        assert await ended(running) == 9


async def test_a_lock_not_granted_in_time_is_75(cli: Cli, session: Session) -> None:
    async with DistributedLock("x", session):
        result = await cli("run", "--lock", "x", "--timeout", "300ms", "--", "true")
    assert result.code == 75
    assert result.err.startswith("error: ")
    assert await queue_of(session, "x", 0) == []


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        signal.SIGTERM,
    ],
)
async def test_waiting_can_be_interrupted_and_tells_whom_it_waits_for(
    cli: Cli, session: Session, number: signal.Signals
) -> None:
    async with DistributedLock("x", session), cli.started("run", "--lock", "x", "--", "echo", "never") as running:
        assert running.stderr
        told = (await asyncio.wait_for(running.stderr.readline(), 10)).decode()
        assert "waiting" in told
        assert f":{os.getpid()}" in told
        running.send_signal(number)
        code = await ended(running)
        await queue_of(session, "x", 1)
        assert code == 128 + number


async def test_a_lost_lock_ends_the_whole_group_with_76(cli: Cli, session: Session) -> None:
    script = "trap '' TERM; sleep 60 & echo $!; wait; sleep 60"
    async with cli.started("run", "--lock", "x", "--kill-after", "200ms", "--", "sh", "-c", script) as running:
        grandchild = int(await line(running))
        await LockManager(session).force_release("x", reason="test")
        assert await ended(running) == 76
        await eventually(gone(grandchild), 2)


async def test_a_command_that_runs_longer_than_max_hold_is_ended_with_76(cli: Cli, session: Session) -> None:
    async with cli.started("run", "--lock", "x", "--max-hold", "500ms", "--", "sleep", "60") as running:
        await queue_of(session, "x", 1, limit=15)
        assert await ended(running) == 76
        assert running.stderr and "max_hold of 0.5 s" in (await running.stderr.read()).decode()
    assert (await cli("run", "--lock", "x", "--max-hold", "0", "--", "true")).code == 2


async def test_processes_that_a_command_leaves_are_ended_with_it(cli: Cli) -> None:
    async with cli.started("run", "--lock", "x", "--", "sh", "-c", "sleep 60 & echo $!") as running:
        left = int(await line(running))
        assert await ended(running) == 0
        await eventually(gone(left), 2)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG")
async def test_the_command_dies_with_a_killed_run(cli: Cli) -> None:
    async with cli.started("run", "--lock", "x", "--", "sh", "-c", "echo $$; exec sleep 60") as running:
        command = int(await line(running))
        running.kill()
        await eventually(gone(command), 5)


async def test_stopped_and_continued_in_time_the_command_goes_on(cli: Cli) -> None:
    script = "echo $$; sleep 1.2; exit 5"
    async with cli.started("run", "--lock", "x", "--", "sh", "-c", script) as running:
        await line(running)
        running.send_signal(signal.SIGTSTP)
        await asyncio.sleep(0.3)
        running.send_signal(signal.SIGCONT)
        assert await ended(running) == 5


async def test_stopped_past_its_lease_the_command_does_not_go_on(cli: Cli, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    script = f"echo $$; sleep 2; touch {mark}"
    async with cli.started("run", "--lock", "x", "--", "sh", "-c", script) as running:
        command = int(await line(running))
        running.send_signal(signal.SIGTSTP)
        await asyncio.sleep(4.5)
        running.send_signal(signal.SIGCONT)
        code = await ended(running)
        assert gone(command)()
        assert not mark.exists()
        assert code == 76


# An etcd for development


async def test_dev_runs_a_command_on_an_etcd_of_its_own(cli: Cli) -> None:
    script = "import os, sys; print(os.environ['CODOMYRMEX_ETCD_ENDPOINTS']); sys.exit(3)"
    result = await cli("dev", "--", sys.executable, "-c", script)
    assert result.code == 3
    assert result.out.startswith("http://127.0.0.1:")
    assert result.out.strip() != cli.environment["CODOMYRMEX_ETCD_ENDPOINTS"]


async def test_dev_says_where_it_is_until_ctrl_c(cli: Cli) -> None:
    async with cli.started("dev") as dev:
        cli.environment["CODOMYRMEX_ETCD_ENDPOINTS"] = (await line(dev)).partition(" serves at ")[2].partition(";")[0]
        assert (await cli("status")).code == 0
        dev.send_signal(signal.SIGINT)
        assert await ended(dev) == 0


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_killed_run_takes_the_whole_process_group_along(cli: Cli) -> None:
    script = "sleep 60 & echo $!; sleep 60; true"
    async with cli.started("run", "--lock", "x", "--", "sh", "-c", script) as process:
        assert process.stdout
        grandchild = int(await asyncio.wait_for(process.stdout.readline(), 10))
        await asyncio.sleep(0.3)
        assert _running(grandchild)
        process.kill()
        await eventually(lambda: not _running(grandchild), 3)


async def test_run_passes_its_command_s_code_on_although_etcd_is_gone(namespace: str) -> None:
    async with EmbeddedEtcd() as own:
        cli = Cli(own.endpoint, namespace)
        cli.environment["CODOMYRMEX_ETCD_REQUEST_TIMEOUT"] = "1"
        async with cli.started("run", "--lock", "x", "--", "sh", "-c", "echo ready; sleep 1; exit 3") as process:
            assert process.stdout
            await asyncio.wait_for(process.stdout.readline(), 10)
            await asyncio.to_thread(own.kill)
            _, err = await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode == 3 and b"not released yet" in err


async def test_run_ends_with_76_when_etcd_stays_away(namespace: str) -> None:
    async with EmbeddedEtcd() as own:
        cli = Cli(own.endpoint, namespace)
        cli.environment["CODOMYRMEX_ETCD_REQUEST_TIMEOUT"] = "1"
        async with cli.started("run", "--lock", "x", "--", "sh", "-c", "echo ready; sleep 60") as process:
            assert process.stdout
            await asyncio.wait_for(process.stdout.readline(), 10)
            await asyncio.to_thread(own.kill)
            _, err = await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode == 76 and b"can no longer be trusted" in err


async def test_run_refuses_an_etcd_of_its_own(cli: Cli) -> None:
    result = await cli("--endpoints", "embedded", "run", "--lock", "x", "--", "true")
    assert result.code == 2 and "would exclude nobody" in result.err


async def test_watch_says_when_etcd_falls_silent_and_when_it_is_back(namespace: str) -> None:
    async with (
        EmbeddedEtcd() as own,
        Session(endpoints=own.endpoint, namespace=namespace, session_ttl=60) as session,
        DistributedLock("x", session),
        Cli(own.endpoint, namespace).started("locks", "--watch") as process,
    ):
        assert process.stderr
        assert "x" in await line(process)  # it is connected
        await asyncio.to_thread(own.kill)
        assert b"does not answer" in await asyncio.wait_for(process.stderr.readline(), 10)
        await own.start()
        assert b"answers again" in await asyncio.wait_for(process.stderr.readline(), 10)


async def test_dev_notices_that_its_etcd_has_ended(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    async with cli.started("dev", "--port", str(port)) as process:
        assert process.stdout
        await _line_with(process.stdout, b"export")
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if (
                f"--listen-client-urls=http://127.0.0.1:{port}".encode() in command
                and b"etcd" in command.split(b"\0")[0]
            ):
                os.kill(int(folder.name), signal.SIGKILL)
        _, err = await asyncio.wait_for(process.communicate(), 10)
        assert process.returncode == 1 and b"has ended by itself" in err


async def _line_with(stream: asyncio.StreamReader, text: bytes) -> bytes:
    while text not in (line := await asyncio.wait_for(stream.readline(), 10)):
        assert line
    return line
