"""``record``: every step is in the file once, whatever becomes of the recorder, its disk and etcd."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from codomyrmex.concurrency import EmbeddedEtcd, LockManager, Session
from codomyrmex.concurrency.recipes.record_file import lines_of
from codomyrmex.concurrency.testing import TcpProxy
from tests.helpers import eventually
from tests.integration.command_line import CLI, Cli, ended
from tests.integration.test_history import compact, revision_of


def lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in lines_of(file)]


def steps(file: Path) -> list[tuple[str, str, int]]:
    return [(line["kind"], line["name"], line["token"]) for line in lines(file) if "kind" in line]


@asynccontextmanager
async def recording(cli: Cli, file: Path, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A recorder that has begun."""
    async with cli.started("record", str(file), *options) as process:
        assert process.stderr
        said = (await asyncio.wait_for(process.stderr.readline(), 15)).decode()
        assert said.startswith("recording locks ") and "after revision" in said, said
        yield process


async def stopped(process: asyncio.subprocess.Process, number: int = signal.SIGTERM) -> int:
    process.send_signal(number)
    return await ended(process)


async def use(session: Session, name: str, how_often: int = 1) -> list[int]:
    tokens = []
    for _ in range(how_often):
        async with LockManager(session).acquire(name) as grant:
            tokens.append(grant.token)
    return tokens


def whole(name: str, tokens: list[int]) -> list[tuple[str, str, int]]:
    return [(kind, name, token) for token in tokens for kind in ("enqueued", "granted", "released")]


async def test_it_records_every_step_and_goes_on_where_it_stopped(cli: Cli, session: Session, tmp_path: Path) -> None:
    file = tmp_path / "locks.jsonl"
    manager = LockManager(session)
    async with manager.acquire("held") as held:
        async with recording(cli, file, "--prefix", "") as process:
            tokens = await use(session, "x", 2)
            paths = await manager.acquire_paths(["src/"], tree="x", on_loss="notify")
            await manager.force_release("x", reason="gone", token=paths.token, kind="path")
            await eventually(lambda: len(steps(file)) == 10)
            assert await stopped(process) == 0
        tokens += await use(session, "x", 2)  # nobody records them, but etcd remembers
        async with recording(cli, file) as process:
            tokens += await use(session, "x", 1)
            await eventually(lambda: len(steps(file)) == 19)
            assert await stopped(process, signal.SIGINT) == 0
    assert steps(file)[0] == ("holds", "held", held.token)
    assert [step for step in steps(file) if step[2] in tokens] == whole("x", tokens)
    first, *rest = lines(file)
    assert first["begin"]["namespace"] == cli.environment["CODOMYRMEX_ETCD_NAMESPACE"]
    assert not any("gap" in line for line in rest) and [line["revision"] for line in rest[1:]] == sorted(
        line["revision"] for line in rest[1:]
    )
    late = {line["token"] for line in rest[1:] if line["late"]}
    assert late == set(tokens[2:4])
    (by_force,) = (line for line in rest if line.get("how") == "forced")
    assert (by_force["queue_kind"], by_force["forced"]["reason"]) == ("path", "gone")
    shown = await cli("locks", "history", "x", "--from", str(file), "-o", "jsonl")
    asked = await LockManager(session).history("x")
    assert [json.loads(line)["token"] for line in shown.out.splitlines()] == [one.token for one in asked.holds]


async def test_a_recorder_that_is_killed_leaves_a_file_that_the_next_one_completes(
    cli: Cli, session: Session, tmp_path: Path
) -> None:
    """The torn line is removed, and the other lines of its revision are not written twice."""
    file = tmp_path / "locks.jsonl"
    async with recording(cli, file) as process:
        async with LockManager(session).acquire_all(["a", "b", "c"]) as grants:
            await eventually(lambda: len(steps(file)) == 6)  # of one revision
        process.kill()
        await ended(process)
    text = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(text[:4]) + text[4][:50])
    async with recording(cli, file) as process:
        await eventually(lambda: len(steps(file)) >= 9)
        assert await stopped(process) == 0
    token = grants[0].token
    assert sorted(steps(file)) == sorted(step for name in "abc" for step in whole(name, [token]))


async def test_what_etcd_has_compacted_is_a_gap(tmp_path: Path, namespace: str) -> None:
    file = tmp_path / "locks.jsonl"
    async with EmbeddedEtcd() as etcd, Session(endpoints=etcd.endpoint, namespace=namespace) as session:
        cli, manager = Cli(etcd.endpoint, namespace), LockManager(session)
        lasting, ending = await manager.acquire("lasting"), await manager.acquire("ending")
        async with recording(cli, file) as process:
            await eventually(lambda: len(steps(file)) == 2)
            assert await stopped(process) == 0
        last = max(line.get("revision", 0) for line in lines(file))
        await manager.release(ending)
        await use(session, "unseen")
        revision = await revision_of(session)
        tokens = await use(session, "x")  # etcd still has it
        await compact(etcd, revision)
        async with recording(cli, file) as process:
            tokens += await use(session, "x")
            await eventually(lambda: len(steps(file)) == 9)
            assert await stopped(process) == 0
        (gap,) = (line["gap"] for line in lines(file) if "gap" in line)
        assert (gap["from"], gap["to"]) == (last + 1, revision)
        assert steps(file)[2:] == [("holds", "lasting", lasting.token), *whole("x", tokens)]
        assert {line["token"] for line in lines(file) if line.get("name") == "x" and line["late"]} == {tokens[0]}
        table, note, never, shown, also = await asyncio.gather(
            cli("locks", "history", "x", "--from", str(file), "--since", "1h"),
            cli("locks", "history", "lasting", "--from", str(file), "-o", "json"),
            cli("locks", "history", "unseen", "--from", str(file)),
            cli("locks", "history", "ending", "--from", str(file), "-o", "jsonl"),
            cli("locks", "history", "lasting", "--from", str(file), "-o", "jsonl"),
        )
        await manager.release(lasting)
    missing = f", without revisions {last + 1}-{revision}"
    assert missing in table.out.splitlines()[0] and missing in note.err and missing in never.err
    assert (json.loads(shown.out)["how"], json.loads(also.out)["how"]) == ("unknown", "held")


async def test_a_compaction_while_it_follows_loses_only_what_etcd_has_compacted(tmp_path: Path, namespace: str) -> None:
    """The recorder is cut off from etcd. Meanwhile etcd compacts, and goes on."""
    file = tmp_path / "locks.jsonl"
    async with (
        EmbeddedEtcd() as etcd,
        Session(endpoints=etcd.endpoint, namespace=namespace) as session,
        TcpProxy.to(etcd.endpoint) as proxy,
        recording(Cli(proxy.endpoint, namespace), file) as process,
    ):
        first = await use(session, "x")
        await eventually(lambda: len(steps(file)) == 3)
        last = lines(file)[-1]["revision"]
        proxy.refuse()
        proxy.cut()
        await use(session, "unseen")
        revision = await revision_of(session)
        tokens = await use(session, "x", 2)
        await compact(etcd, revision)
        proxy.resume()
        tokens += await use(session, "x")
        await eventually(lambda: len(steps(file)) == 12, 15)
        assert await stopped(process) == 0
    (gap,) = (line["gap"] for line in lines(file) if "gap" in line)
    assert (gap["from"], gap["to"]) == (last + 1, revision)
    assert steps(file) == whole("x", first + tokens)


async def test_it_waits_while_etcd_is_away_and_misses_nothing(tmp_path: Path, namespace: str) -> None:
    file = tmp_path / "locks.jsonl"
    async with EmbeddedEtcd() as etcd:
        cli = Cli(etcd.endpoint, namespace)
        async with recording(cli, file) as process:
            await asyncio.to_thread(etcd.kill)
            await asyncio.sleep(0.5)
            await etcd.start()
            async with Session(endpoints=etcd.endpoint, namespace=namespace) as session:
                tokens = await use(session, "x", 3)
            await eventually(lambda: len(steps(file)) == 9, 15)
            assert await stopped(process) == 0
    assert steps(file) == whole("x", tokens)


async def test_a_full_disk_is_told_and_loses_nothing_that_was_written(
    cli: Cli, session: Session, tmp_path: Path
) -> None:
    file = tmp_path / "locks.jsonl"
    pipe = asyncio.subprocess.PIPE
    limited = ("bash", "-c", 'ulimit -f 4 && exec "$@"', "bash", *CLI, "record", str(file))
    process = await asyncio.create_subprocess_exec(*limited, stdout=pipe, stderr=pipe, env=cli.environment)
    try:
        await eventually(lambda: file.exists() and lines(file), 15)
        tokens: list[int] = []
        while process.returncode is None:  # a batch is not larger than one hold
            tokens += await use(session, "x")
            await eventually(lambda: process.returncode is not None or len(steps(file)) == 3 * len(tokens), 15)  # noqa: B023
        _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    assert process.returncode == 1 and b"cannot be written; all earlier lines are in it" in said
    recorded = steps(file)
    assert recorded == whole("x", tokens)[: len(recorded)] and recorded and file.read_bytes().endswith(b"\n")
    tokens += await use(session, "x")
    async with recording(cli, file) as process:
        await eventually(lambda: ("released", "x", tokens[-1]) in steps(file))
        assert await stopped(process) == 0
    assert steps(file) == whole("x", tokens)


async def test_files_that_it_may_not_write_are_refused(cli: Cli, session: Session, tmp_path: Path) -> None:
    file, foreign, other = tmp_path / "locks.jsonl", tmp_path / "mine", tmp_path / "other.jsonl"
    foreign.write_text("my own notes")
    async with recording(cli, file):
        second, notes, folder, device, reader = await asyncio.gather(
            cli("record", str(file)),
            cli("record", str(foreign)),
            cli("record", str(tmp_path)),
            cli("record", "/dev/null"),
            cli("locks", "history", "x", "--from", str(foreign)),
        )
    async with recording(cli, other, "--prefix", "p:"):
        await use(session, "p:x")
        await use(session, "q:x")
        await eventually(lambda: len(steps(other)) == 3)
    elsewhere, missing, never = await asyncio.gather(
        cli("record", str(other)),
        cli("locks", "history", "x", "--from", str(tmp_path / "none")),
        cli("locks", "history", "x", "--from", str(other)),
    )
    assert second.code == 1 and "another recorder writes to" in second.err
    assert notes.code == 1 and "is no record of locks" in notes.err and foreign.read_text() == "my own notes"
    assert (folder.code, device.code, reader.code) == (2, 1, 1) and "give the file of `record`" in reader.err
    assert elsewhere.code == 1 and "with the prefix 'p:'; choose another file" in elsewhere.err
    assert missing.code == 1 and "cannot be read" in missing.err
    assert never.code == 1 and "nobody has held the lock x" in never.err
    away = await Cli("http://127.0.0.1:1", "n")("record", str(tmp_path / "away"))
    assert away.code == 69
