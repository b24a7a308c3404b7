"""Dead letters that were spilled to files while etcd was away reach the right queue once."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from codomyrmex.concurrency import AsyncWorkerPool, Attempt, DeadLetter, DeadLetterQueue, EtcdQuotaExceeded, Session
from codomyrmex.concurrency.dead_letters import record, spiller
from codomyrmex.concurrency.dead_letters.spill import Spill
from codomyrmex.concurrency.dead_letters.store import Store
from codomyrmex.concurrency.etcd.embedded import EmbeddedEtcd
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.testing import TcpProxy
from tests.helpers import eventually

pytestmark = pytest.mark.usefixtures("state")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(spiller, "SEND_EVERY", 0.1)
    return tmp_path / "codomyrmex" / "dead-letters"


@asynccontextmanager
async def far(etcd: EmbeddedEtcd, namespace: str) -> AsyncIterator[tuple[TcpProxy, Session]]:
    host, _, port = etcd.endpoint.removeprefix("http://").partition(":")
    async with (
        TcpProxy(host, int(port)) as proxy,
        Session(endpoints=proxy.endpoint, namespace=namespace, dial_timeout=0.3, request_timeout=0.3) as session,
    ):
        yield proxy, session


def go_away(proxy: TcpProxy) -> None:
    proxy.refuse()
    proxy.cut()


async def route(dlq: DeadLetterQueue, number: int = 0) -> str:
    routed = await dlq.route(operation="x", args={"n": number}, error=ValueError("bad"), metadata={})
    assert routed.id
    return routed.id


def size(state: Path) -> int:
    return sum(path.stat().st_size for path in state.rglob("*") if path.is_file())


async def all_sent(dlq: DeadLetterQueue) -> None:
    sending = dlq._spilling()
    await eventually(lambda: sending._task and sending._task.done() and not sending.spill.waiting(), limit=15)


async def versions(session: Session, queue: str) -> list[int]:
    """The number of writes of each entry of a queue."""
    store = Store(core_of(session), queue, 60)
    return [kv.version async for page in store.pages(store.entries) for kv in page.kvs]


async def test_while_etcd_is_away_the_files_do_not_grow_and_each_is_sent_once(
    etcd: EmbeddedEtcd, namespace: str, session: Session, state: Path
) -> None:
    async with far(etcd, namespace) as (proxy, here), DeadLetterQueue("q", session=here) as dlq:
        await dlq.count()
        go_away(proxy)
        ids = [await route(dlq, number) for number in range(5)]
        before, accepted = size(state), proxy.accepted
        await eventually(lambda: proxy.accepted >= accepted + 10, limit=20)
        assert size(state) == before
        proxy.resume()
        await all_sent(dlq)
    assert [entry.id for entry in await DeadLetterQueue("q", session=session).list_entries()] == ids
    assert await versions(session, "q") == [1] * 5
    assert size(state) == 0


async def test_an_add_in_doubt_does_not_bring_back_what_was_resolved_meanwhile(
    etcd: EmbeddedEtcd, namespace: str, session: Session
) -> None:
    near = DeadLetterQueue("q", session=session)
    async with far(etcd, namespace) as (proxy, here), DeadLetterQueue("q", session=here) as dlq:
        await dlq.count()
        proxy.blackhole(up=False)  # etcd hears, and is not heard
        spilled = asyncio.create_task(dlq.route(operation="x", args={}, error=ValueError("bad"), metadata={}))
        entry_id = await eventually(lambda: _first(near))
        routed = await spilled
        assert routed.id == entry_id and "kept in" in routed.note
        await near.discard(entry_id, reason="seen to")
        proxy.resume()
        await all_sent(dlq)
    entry = await near.get(entry_id)
    assert entry and (entry.state, entry.reason) == ("resolved", "seen to") and await near.count() == 1


async def _first(dlq: DeadLetterQueue) -> str:
    return next((entry.id for entry in await dlq.list_entries()), "")


async def test_what_was_sent_before_etcd_went_away_again_is_over_for_the_file(
    etcd: EmbeddedEtcd, namespace: str, session: Session
) -> None:
    """Handled, resolved and removed while the rest of the files wait: nothing runs twice, nothing comes back."""
    runs: list[int] = []
    near = DeadLetterQueue("q", session=session)
    await near._spilling().close()  # it is on another host: it sees etcd, and not the files

    @near.handler("x")
    async def handle(entry: DeadLetter, attempt: Attempt) -> None:
        runs.append(entry.args["n"])

    async with far(etcd, namespace) as (proxy, here), DeadLetterQueue("q", session=here) as dlq:
        await dlq.count()
        go_away(proxy)
        for number in range(6):
            await route(dlq, number)
        add, sent = dlq._spilling()._add, 0

        async def half(entry: DeadLetter) -> str:
            nonlocal sent
            entry_id = await add(entry)
            sent += 1
            if sent == 3:
                go_away(proxy)
            return entry_id

        dlq._spilling()._add = half
        async with near.worker() as worker:
            proxy.resume()
            await eventually(lambda: len(runs) == 3, limit=15)
            await worker.settled()
            assert await near.purge() == 3
            assert len(dlq._spilling().spill.waiting()) == 3
            proxy.resume()
            await all_sent(dlq)
            await worker.settled()
    assert runs == list(range(6)) and await near.count() == 3


async def test_queues_and_namespaces_with_dots_are_apart(etcd: EmbeddedEtcd, namespace: str, session: Session) -> None:
    dotted = f"{namespace}.mail"
    async with Session(endpoints=etcd.endpoint, namespace=dotted) as other:
        owners = [
            (session, "mail"),
            (session, "mail.eu"),
            (other, "eu"),
            (session, "."),
            (session, ".."),
            (session, "a/b"),
        ]
        ids = {}
        for owner in owners:
            entry = record.new("x", {}, "bad", None, str)
            Spill(owner[0].settings.namespace, owner[1]).write(entry)
            ids[owner] = [entry.id]
        for at, name in owners:
            async with DeadLetterQueue(name, session=at) as dlq:
                await dlq.count()
                await all_sent(dlq)
        for at, name in owners:
            entries = await DeadLetterQueue(name, session=at).list_entries()
            assert [entry.id for entry in entries] == ids[at, name]


SPILLS = """
import asyncio, sys
from codomyrmex.concurrency import DeadLetterQueue, Session
async def main():
    async with Session(endpoints=sys.argv[1], namespace=sys.argv[2], dial_timeout=0.3, request_timeout=0.3) as session:
        dlq = DeadLetterQueue("q", session=session)
        await dlq.count()
        print("there", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        for number in range(3):
            print((await dlq.route(operation="x", args={}, error=ValueError("bad"), metadata={})).id, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_what_a_killed_process_spilled_is_sent_by_the_next(
    etcd: EmbeddedEtcd, namespace: str, session: Session
) -> None:
    host, _, port = etcd.endpoint.removeprefix("http://").partition(":")
    async with TcpProxy(host, int(port)) as proxy:
        child = subprocess.Popen(
            [sys.executable, "-c", SPILLS, proxy.endpoint, namespace],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        with child:
            assert child.stdin and child.stdout
            assert (await asyncio.to_thread(child.stdout.readline)).strip() == "there"
            go_away(proxy)
            child.stdin.write("\n")
            child.stdin.flush()
            ids = [(await asyncio.to_thread(child.stdout.readline)).strip() for _ in range(3)]
            child.send_signal(signal.SIGKILL)
    async with DeadLetterQueue("q", session=session) as dlq:
        await dlq.count()
        await all_sent(dlq)
        assert [entry.id for entry in await dlq.list_entries()] == ids


async def test_two_members_of_one_host_send_each_record_once(session: Session, other: Session) -> None:
    spill = Spill(session.settings.namespace, "q")
    for number in range(30):
        await asyncio.to_thread(spill.write, record.new("x", {"n": number}, "bad", None, str))
    async with DeadLetterQueue("q", session=session) as one, DeadLetterQueue("q", session=other) as two:
        added: list[str] = []
        for dlq in (one, two):
            _note(dlq, added)
        await asyncio.gather(one.count(), two.count())
        await asyncio.gather(all_sent(one), all_sent(two))
    assert len(added) == 30 and await versions(session, "q") == [1] * 30


def _note(dlq: DeadLetterQueue, added: list[str]) -> None:
    sending = dlq._spilling()
    add = sending._add

    async def noted(entry: DeadLetter) -> str:
        added.append(entry.id)
        return await add(entry)

    sending._add = noted


async def test_a_full_queue_keeps_what_was_spilled_until_there_is_room(session: Session) -> None:
    async with DeadLetterQueue("q", session=session, max_entries=1) as dlq:
        first = await dlq.add(operation="x", args={}, error="e")
        late = record.new("x", {}, "bad", None, str)
        await dlq._spilling().keep(late)
        await eventually(lambda: dlq._spilling()._said)
        assert len(dlq._spilling().spill.waiting()) == 1
        await dlq.discard(first, reason="done")
        await all_sent(dlq)
        assert [entry.id for entry in await dlq.list_entries()] == [late.id]


async def test_a_queue_can_be_used_where_files_cannot_be_written(session: Session, state: Path, tmp_path: Path) -> None:
    (tmp_path / "codomyrmex").write_text("a file, not a folder")
    async with DeadLetterQueue("q", session=session) as dlq:
        assert await dlq.add(operation="x", args={}, error="e") and await dlq.count() == 1


async def test_a_task_whose_dead_letter_can_be_kept_nowhere_says_so(
    etcd: EmbeddedEtcd, namespace: str, state: Path, tmp_path: Path
) -> None:
    def fails() -> None:
        raise ValueError("bad")

    (tmp_path / "codomyrmex").write_text("a file, not a folder")
    async with far(etcd, namespace) as (proxy, here), DeadLetterQueue("q", session=here) as dlq:
        await dlq.count()
        go_away(proxy)
        async with AsyncWorkerPool(max_workers=1, dlq=dlq) as pool:
            result = await pool.submit(fails)
    assert result.error and result.dead_letter_id is None
    assert "no dead letter could be stored" in result.dead_letter_note


async def test_entering_a_queue_sends_what_was_left_there(etcd: EmbeddedEtcd, namespace: str, session: Session) -> None:
    """A fleet that has recovered and fails at nothing calls nothing else."""
    async with far(etcd, namespace) as (proxy, here), DeadLetterQueue("q", session=here) as dlq:
        await dlq.count()
        go_away(proxy)
        entry_id = await route(dlq)
        assert "not in etcd yet" in (await dlq.route(operation="x", args={}, error=ValueError(), metadata={})).note
    async with DeadLetterQueue("q", session=session):
        store = Store(core_of(session), "q", 60)

        async def both() -> bool:
            return await store.count() == 2

        await eventually(both, limit=15)
        assert await store.get(entry_id)


async def test_what_etcd_refuses_is_spilled_too(session: Session, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full database, or a permission that is gone, must lose no failure."""
    async with DeadLetterQueue("q", session=session) as dlq:
        original = Store.add

        async def refused(self: Store, entry: DeadLetter, value: bytes) -> str:
            raise EtcdQuotaExceeded("etcd's database is full")

        monkeypatch.setattr(Store, "add", refused)
        routed = await dlq.route(operation="x", args={}, error=ValueError("bad"), metadata={})
        assert "database is full" in routed.note and size(state) > 0
        monkeypatch.setattr(Store, "add", original)
        await all_sent(dlq)
        assert await dlq.get(routed.id)
