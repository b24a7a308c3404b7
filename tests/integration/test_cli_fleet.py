"""The commands about semaphores, pools and dead letters, and what ``run`` can hold: judged by output and exit code."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import termios
from collections.abc import Callable
from typing import Any

import pytest

from codomyrmex.concurrency import AsyncWorkerPool, DeadLetterQueue, DistributedLock, LockManager, Semaphore, Session
from codomyrmex.concurrency.etcd.transports.protocol import Put
from codomyrmex.concurrency.pool.cluster import pools
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue import inspect
from tests.helpers import eventually, queue_of
from tests.integration.command_line import CLI, Cli, ended, line

HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202e[bold]"


async def double(number: int) -> int:
    return 2 * number


async def until(process: asyncio.subprocess.Process, true: Any) -> Any:
    """The first JSON line of which ``true`` holds."""
    while not true(said := json.loads(await line(process))):
        pass
    return said


# Semaphores


async def test_semaphores_are_shown_with_who_holds_and_who_waits(cli: Cli, session: Session) -> None:
    sem = Semaphore("provider", max_concurrent=3, session=session)
    async with sem.hold(permits=2):
        waiting = asyncio.create_task(sem.acquire(permits=2))
        await eventually(lambda: _waiters(session, "provider"))
        calls = [cli("semaphores", "-o", form) for form in ("table", "json", "name")]
        table, whole, names, one = await asyncio.gather(*calls, cli("semaphores", "provider"))
    await (await waiting).release()
    assert "provider" in table.out and str(os.getpid()) in table.out
    (found,) = json.loads(whole.out)
    assert found["limit"] == 3 and found["holders"][0]["permits"] == 2 and found["waiters"][0]["permits"] == 2
    assert names.out == "provider\n"
    assert "2 of 3 permits held, 1 wait" in one.out and "PERMITS" in one.out


async def _waiters(session: Session, name: str) -> Any:
    return (await inspect.semaphore(core_of(session), name)).waiters


async def test_a_semaphore_that_is_not_there_is_an_error(cli: Cli) -> None:
    shown, resized, dry, none = await asyncio.gather(
        cli("semaphores", "nobody"),
        cli("semaphores", "resize", "nobody", "3"),
        cli("semaphores", "resize", "nobody", "3", "--dry-run"),
        cli("semaphores"),
    )
    assert [result.code for result in (shown, resized, dry, none)] == [1, 1, 1, 0]
    assert shown.err.startswith("error: ") and resized.err.startswith("error: ") and none.out == ""


async def test_a_semaphore_is_resized_for_everyone(cli: Cli, session: Session) -> None:
    sem = Semaphore("provider", max_concurrent=1, session=session)
    async with sem:
        dry = await cli("semaphores", "resize", "provider", "2", "--dry-run")
        assert dry.code == 0 and "from 1 to 2" in dry.out and (await sem.info()).limit == 1
        waiting = asyncio.create_task(sem.acquire())
        await eventually(lambda: _waiters(session, "provider"))
        done = await cli("semaphores", "resize", "provider", "2")
        assert done.code == 0 and "was 1" in done.out
        await (await asyncio.wait_for(waiting, 5)).release()
    assert (await cli("semaphores", "resize", "provider", "0")).code == 2


async def test_a_semaphore_called_resize_or_show_can_be_shown(cli: Cli, session: Session) -> None:
    async with Semaphore("resize", max_concurrent=1, session=session):
        shown = await cli("semaphores", "show", "resize", "-o", "json")
    assert json.loads(shown.out)["name"] == "resize"


async def test_watching_semaphores_in_a_pipe_tells_each_change(cli: Cli, session: Session) -> None:
    sem = Semaphore("provider", max_concurrent=2, session=session)
    for args in (("semaphores", "--watch"), ("semaphores", "provider", "--watch")):
        async with cli.started(*args, "-o", "jsonl") as watching:
            async with sem:
                await until(watching, lambda one: one["name"] == "provider" and len(one["holders"]) == 1)
            await until(watching, lambda one: not one["holders"])
            watching.send_signal(signal.SIGINT)
            assert await ended(watching) == 0


# Pools


async def test_pools_are_shown_per_host_and_live(cli: Cli, session: Session, other: Session) -> None:
    async with cli.started("pools", "--watch", "-o", "jsonl") as watching:
        async with (
            AsyncWorkerPool(2, name="crew", session=session, report=0.1) as here,
            AsyncWorkerPool(3, name="crew", session=other, report=0.1) as there,
        ):
            await here.map(double, range(5))
            await there.map(double, range(2))
            await until(watching, lambda pool: pool["completed"] == 7 and len(pool["instances"]) == 2)
            table, whole = await asyncio.gather(cli("pools"), cli("pools", "-o", "json"))
        await until(watching, lambda pool: pool["name"] == "crew" and not pool["instances"])
    (found,) = json.loads(whole.out)
    assert found["submitted"] == 7 and found["max_workers"] == 5
    assert "together" in table.out and table.out.count(f":{os.getpid()}") == 2
    assert await pools(core_of(session)) == []
    nothing = await cli("pools")
    assert (nothing.code, nothing.out) == (0, "")


# Dead letters


async def _three(session: Session) -> tuple[DeadLetterQueue, list[str]]:
    dlq = DeadLetterQueue("mail", session=session)
    ids = [
        await dlq.add(operation=operation, args={"to": f"n{number}"}, error=ValueError(f"no {number}"))
        for number, operation in enumerate(("send", "send", "index"))
    ]
    return dlq, ids


async def test_dead_letters_are_listed_and_shown(cli: Cli, session: Session) -> None:
    dlq, ids = await _three(session)
    forms = ("table", "wide", "json", "jsonl", "name")
    calls = [cli("dlq", "list", "--queue", "mail", "-o", form) for form in forms]
    table, wide, whole, lines, names = await asyncio.gather(*calls)
    assert all(one in table.out for one in ids) and '{"to": "n2"}' in wide.out
    assert [entry["id"] for entry in json.loads(whole.out)] == ids == names.out.split()
    assert [json.loads(one)["operation"] for one in lines.out.splitlines()] == ["send", "send", "index"]
    chosen, shown, missing, other_queue = await asyncio.gather(
        cli("dlq", "list", "-q", "mail", "--operation", "send", "--state", "waiting", "--limit", "1", "-o", "name"),
        cli("dlq", "show", ids[0], "-q", "mail"),
        cli("dlq", "show", "nothing", "-q", "mail"),
        cli("dlq", "list"),
    )
    assert chosen.out.split() == ids[:1]
    assert "ValueError: no 0" in shown.out and "n0" in shown.out
    assert missing.code == 1 and other_queue.out == ""
    await dlq.close()


async def test_what_nobody_handles_is_shown_as_such(cli: Cli, session: Session) -> None:
    dlq = DeadLetterQueue("mail", session=session)
    entry_id = await dlq.add(operation="send", args={}, error="away")
    async with dlq.worker():
        await asyncio.sleep(5.2)
    assert "no worker takes it" in (await cli("dlq", "show", entry_id, "-q", "mail")).out


async def test_parked_entries_are_retried_one_by_one_or_all(cli: Cli, session: Session) -> None:
    dlq, ids = await _three(session)

    async def park() -> None:
        for entry_id in ids:
            store = await dlq._opened()
            stored = await store.get(entry_id)
            assert stored
            from codomyrmex.concurrency.dead_letters import record, steps

            claim = await store.claim(stored)
            assert claim and await store.finish(claim, steps.parked(claim.entry, "test", record.now()))

    async def states() -> list[str]:
        return [entry.state for entry in await dlq.list_entries()]

    await park()
    dry = await cli("dlq", "retry", ids[0], "-q", "mail", "--dry-run")
    assert dry.code == 0 and ids[0] in dry.out and await states() == ["parked"] * 3
    partly = await cli("dlq", "retry", ids[0], "nothing", "-q", "mail")
    assert partly.code == 1 and "nothing" in partly.err and await states() == ["waiting", "parked", "parked"]
    refused = await cli("dlq", "retry", "--all", "-q", "mail")
    assert refused.code == 2 and "-y" in refused.err
    done = await cli("dlq", "retry", "--all", "--operation", "index", "-q", "mail", "-y")
    assert done.code == 0 and await states() == ["waiting", "parked", "waiting"]
    wrong = await asyncio.gather(
        cli("dlq", "retry"), cli("dlq", "retry", "x", "--all"), cli("dlq", "retry", "x", "--rate", "1")
    )
    assert [result.code for result in wrong] == [2, 2, 2]


async def test_entries_are_discarded_and_purged_only_when_confirmed(cli: Cli, session: Session) -> None:
    dlq, ids = await _three(session)
    unconfirmed, wordless, unasked = await asyncio.gather(
        cli("dlq", "discard", ids[0], "-q", "mail", "--reason", "gone"),
        cli("dlq", "discard", ids[0], "-q", "mail", "--reason", " ", "-y"),
        cli("dlq", "purge", "-q", "mail"),
    )
    assert [result.code for result in (unconfirmed, wordless, unasked)] == [2, 2, 2]
    done = await cli("dlq", "discard", ids[0], "-q", "mail", "--reason", "gone", "-y")
    entry = await dlq.get(ids[0])
    assert done.code == 0 and entry and entry.state == "resolved" and entry.reason == "gone"
    young, dry = await asyncio.gather(
        cli("dlq", "purge", "-q", "mail", "--older-than", "1h", "-y"), cli("dlq", "purge", "-q", "mail", "--dry-run")
    )
    assert young.out.startswith("0 ") and ids[0] in dry.out and await dlq.count() == 3
    assert (await cli("dlq", "purge", "-q", "mail", "-y")).out.startswith("1 ")
    assert [entry.id for entry in await dlq.list_entries()] == ids[1:]


async def test_stats_count_all_queues_and_follow_them(cli: Cli, session: Session) -> None:
    dlq, _ = await _three(session)
    await DeadLetterQueue("other", session=session).add(operation="x", args={}, error="e")
    table, whole = await asyncio.gather(cli("dlq", "stats"), cli("dlq", "stats", "-o", "json"))
    found = [(one["queue"], one["operation"], one["waiting"]) for one in json.loads(whole.out)]
    assert found == [("mail", "index", 1), ("mail", "send", 2), ("other", "x", 1)]
    assert "OPERATION" in table.out
    async with cli.started("dlq", "stats", "--queue", "mail", "--watch", "-o", "jsonl") as watching:
        await until(watching, lambda one: one["operation"] == "send")
        dlq.handler("send")(_fine)
        async with dlq.worker():
            await until(watching, lambda one: one["resolved"] == 2)
        await dlq.purge()
        await until(watching, lambda one: one["operation"] == "send" and one["resolved"] == 0)


async def _fine(entry: Any, attempt: Any) -> None:
    pass


async def test_watching_entries_in_a_pipe_tells_every_step(cli: Cli, session: Session) -> None:
    dlq = DeadLetterQueue("mail", session=session)
    dlq.handler("send")(_fine)
    await dlq.add(operation="first", args={}, error="e")
    async with cli.started("dlq", "list", "-q", "mail", "--watch", "-o", "jsonl") as watching, dlq.worker():
        await until(watching, lambda one: one["operation"] == "first")
        await dlq.add(operation="send", args={}, error="e")
        states = [json.loads(await line(watching))["state"] for _ in range(3)]
        assert states == ["waiting", "running", "resolved"]
        watching.send_signal(signal.SIGTERM)
        assert await ended(watching) == 0


async def test_what_others_wrote_cannot_steer_the_terminal(cli: Cli, session: Session) -> None:
    dlq = DeadLetterQueue("mail", session=session)
    entry_id = await dlq.add(operation="send", args={"a": HOSTILE}, error=HOSTILE, metadata={HOSTILE: 1})
    async with Semaphore(f"s{HOSTILE[20:]}", max_concurrent=1, session=session):
        calls = [
            cli(*command, "-o", "wide")
            for command in (("semaphores",), ("dlq", "list", "-q", "mail"), ("dlq", "stats"))
        ]
        for result in await asyncio.gather(*calls, cli("dlq", "show", entry_id, "-q", "mail")):
            assert result.code == 0 and not {"\x1b", "\x07", "\u202e"} & set(result.out + result.err)


async def test_garbage_among_the_keys_is_passed_over(cli: Cli, session: Session) -> None:
    root = core_of(session).layout.root
    for key in (b"semaphore/x/junk", b"pool/crew/junk", b"dead/mail/entry/junk", b"dead/%zz/entry/1"):
        await core_of(session).transport.txn((), (Put(root + key, b"\xff{"),))
    commands = (("semaphores",), ("pools",), ("dlq", "stats"), ("dlq", "list", "-q", "mail"))
    for result in await asyncio.gather(*(cli(*command) for command in commands)):
        assert (result.code, result.out) == (0, "") and "Traceback" not in result.err


async def test_an_unreachable_etcd_is_69(cli: Cli) -> None:
    cli.environment |= {"CODOMYRMEX_ETCD_ENDPOINTS": "http://127.0.0.1:1", "CODOMYRMEX_ETCD_DIAL_TIMEOUT": "0.5"}
    commands = (("semaphores",), ("pools", "--watch"), ("dlq", "retry", "x"))
    assert [result.code for result in await asyncio.gather(*(cli(*command) for command in commands))] == [69] * 3


# What run can hold


async def test_run_holds_several_locks_together(cli: Cli, session: Session) -> None:
    script = 'echo "$CODOMYRMEX_LOCK_NAME"; read x'
    async with cli.started("run", "--lock", "b", "--lock", "a", "--", "sh", "-c", script) as running:
        assert [await line(running), await line(running)] == ["b", "a"]
        infos = await LockManager(session).locks()
        assert [info.name for info in infos] == ["a", "b"]
        assert running.stdin
        running.stdin.write(b"\n")
        assert await ended(running) == 0
    await queue_of(session, "a", 0)


async def test_readers_run_together_and_a_writer_waits(cli: Cli, session: Session) -> None:
    async with cli.started("run", "--lock", "x", "--shared", "--", "sh", "-c", "echo in; read x") as reading:
        assert await line(reading) == "in"
        together = await cli("run", "--lock", "x", "--shared", "--timeout", "5s", "--", "true")
        alone = await cli("run", "--lock", "x", "--timeout", "0", "--", "true")
        assert (together.code, alone.code) == (0, 75) and "held by" in alone.err


async def test_run_holds_a_permit_and_knows_the_limit_there_is(cli: Cli, session: Session) -> None:
    unknown = await cli("run", "--semaphore", "gpu", "--", "true")
    assert unknown.code == 2 and "--max" in unknown.err
    script = "echo $CODOMYRMEX_FENCING_TOKEN; read x"
    async with cli.started("run", "--semaphore", "gpu", "--max", "1", "--", "sh", "-c", script) as running:
        assert int(await line(running)) > 0
        late, other = await asyncio.gather(
            cli("run", "--semaphore", "gpu", "--timeout", "300ms", "--", "true"),
            cli("run", "--semaphore", "gpu", "--max", "2", "--", "true"),
        )
        assert late.code == 75 and "held by" in late.err
        assert other.code == 1 and "limit of 1" in other.err
    wrong = await asyncio.gather(
        cli("run", "--", "true"),
        cli("run", "--shared", "--semaphore", "s", "--", "true"),
        cli("run", "--lock", "x", "--max", "2", "--", "true"),
    )
    assert [result.code for result in wrong] == [2, 2, 2]


async def test_a_lost_permit_ends_the_command(cli: Cli, session: Session) -> None:
    command = ("run", "--lock", "x", "--semaphore", "gpu", "--max", "1", "--", "sh", "-c", "echo in; sleep 60")
    async with cli.started(*command) as running:
        assert await line(running) == "in"
        (holder,) = (await inspect.semaphore(core_of(session), "gpu")).holders
        await core_of(session).remover.remove(holder.key.encode())
        assert await ended(running) == 76
    await queue_of(session, "x", 0)


# On a terminal


class Terminal:
    """A command on a terminal of its own, of so many columns and lines; what it shows is gathered."""

    def __init__(self, cli: Cli, *command: str, columns: int = 80, lines: int = 24) -> None:
        self._cli = cli
        self._command = command
        self._size = struct.pack("HHHH", lines, columns, 0, 0)
        self.seen = b""

    async def __aenter__(self) -> Terminal:
        self._ours, self._theirs = pty.openpty()
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, self._size)
        os.set_blocking(self._ours, False)
        self.mode = self.modes()

        def own_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        ends = {"stdin": self._theirs, "stdout": self._theirs, "stderr": self._theirs}
        environment = {key: text for key, text in self._cli.environment.items() if key not in ("COLUMNS", "LINES")}
        self.process = await asyncio.create_subprocess_exec(
            *CLI, *self._command, **ends, env={**environment, "TERM": "xterm"}, preexec_fn=own_terminal
        )
        return self

    def modes(self) -> list[Any]:
        return termios.tcgetattr(self._theirs)

    def shows(self, *texts: bytes) -> Callable[[], bool]:
        def look() -> bool:
            with contextlib.suppress(BlockingIOError, OSError):
                self.seen += os.read(self._ours, 1 << 16)
            return all(text in self.seen for text in texts)

        return look

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)


@pytest.mark.parametrize(
    "command",
    [
        ("locks",),
        ("semaphores",),
        ("semaphores", "provider"),
        ("pools",),
        ("dlq", "list", "-q", "mail"),
        ("dlq", "stats"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("key", [b"q", b"\x03"], ids=["q", "Ctrl-C"])
async def test_a_live_view_is_redrawn_on_a_terminal(
    cli: Cli, session: Session, command: tuple[str, ...], key: bytes
) -> None:
    async with Terminal(cli, *command, "--watch") as terminal:
        await eventually(terminal.shows(b"q ends", b"etcd answered"), 15)
        assert b"namespace" in terminal.seen and " ".join(command[:1]).encode() in terminal.seen
        assert terminal.modes() != terminal.mode  # keys come one by one, unseen
        dlq = DeadLetterQueue("mail", session=session)
        async with (
            LockManager(session).acquire("a-lock"),
            Semaphore("provider", max_concurrent=7, session=session),
            AsyncWorkerPool(name="crew", session=session, report=0.1) as pool,
        ):
            await dlq.add(operation="send_mail", args={}, error="e")
            await pool.map(double, range(3))
            expected = {"locks": b"a-lock", "semaphores": b"provider", "pools": b"crew", "dlq": b"send_mail"}
            await eventually(terminal.shows(expected[command[0]]), 15)
        terminal.type(key)
        assert await ended(terminal.process) == 0
        assert b"\x1b[?1049h" in terminal.seen and b"Traceback" not in terminal.seen
        assert terminal.modes() == terminal.mode


async def test_a_screen_of_24_lines_tells_how_many_rows_it_leaves_out(cli: Cli, session: Session) -> None:
    locks = [DistributedLock(f"lock-{number:02}", session) for number in range(60)]
    await asyncio.gather(*(lock.acquire() for lock in locks))
    async with Terminal(cli, "locks", "--watch") as terminal:
        await eventually(terminal.shows(b"+40 more; 60 locks, 0 waiting", b"lock-19"), 15)
        assert b"lock-20" not in terminal.seen
        terminal.type(b"s")
        await eventually(terminal.shows("LOCK↓".encode()), 5)
        terminal.type(b"r")
        await eventually(terminal.shows("LOCK↑".encode(), b"lock-59"), 5)
        terminal.type(b"q")
        assert await ended(terminal.process) == 0
    await asyncio.gather(*(lock.release() for lock in locks))


async def test_a_semaphore_is_deleted_from_the_command_line_unless_it_is_in_use(cli: Cli, session: Session) -> None:
    sem = Semaphore("provider", max_concurrent=2, session=session)
    async with sem:
        code, out, err = await cli("semaphores", "delete", "provider", "-y")
        assert (code, out) == (1, "") and "is in use: 1 of 2 permits are held, 0 wait for more" in err
        assert (await sem.info()).limit == 2
    assert await cli("semaphores", "delete", "provider", "-y") == (
        0,
        "the semaphore provider, of 2 permits, is deleted\n",
        "",
    )
    code, _, err = await cli("semaphores", "delete", "provider")
    assert code == 2 and "confirm with -y" in err
    code, _, err = await cli("semaphores", "delete", "provider", "-y")
    assert code == 1 and "there is no semaphore 'provider'" in err
