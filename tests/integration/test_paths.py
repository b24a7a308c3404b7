"""Path locks against a real etcd: disjoint paths never wait, overlapping ones are served in order of arrival."""

from __future__ import annotations

import asyncio
import json

import pytest

from codomyrmex.concurrency import (
    FencedWriteRejected,
    InvalidName,
    LockLost,
    LockManager,
    LockTimeout,
    NotHeld,
    Session,
)
from codomyrmex.concurrency.etcd.transports.protocol import Delete, Get, GetResult, Put
from codomyrmex.concurrency.keys import PATH, prefix_end
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue.known import KnownTrees
from codomyrmex.concurrency.waitqueue.local import LocalQueues
from codomyrmex.concurrency.waitqueue.rules import Predecessor, View
from tests.helpers import eventually


async def entries(session: Session, tree: str = "default") -> list[dict[str, object]]:
    queue = core_of(session).layout.queue(tree, PATH)
    found = await core_of(session).transport.get(Get(queue, prefix_end(queue)))
    return [json.loads(kv.value) for kv in found.kvs]


async def test_disjoint_paths_are_held_together_and_each_is_one_entry(session: Session, other: Session) -> None:
    async with (
        LockManager(session).acquire_paths(["./src//parser/", "README.md"], tree="main", timeout=0) as one,
        LockManager(other).acquire_paths(["src/lexer/", "src/parser.py"], tree="main", timeout=0) as two,
    ):
        assert one.paths == ("src/parser/", "README.md") and one.tree == one.name == "main"
        assert one.token < two.token
        assert [entry["paths"] for entry in await entries(session, "main")] == [list(one.paths), list(two.paths)]
        await one.put("file", "text")
        assert await two.get("file") == b"text"
    assert await entries(session, "main") == []


@pytest.mark.parametrize(
    ("held", "wanted"),
    [("src/", "src/a.py"), ("src/a.py", "src/"), ("src", "src/a"), ("a", "a"), ("", "x"), ("x/", "")],
)
async def test_overlapping_paths_wait(session: Session, other: Session, held: str, wanted: str) -> None:
    grant = await LockManager(session).acquire_paths([held, "z/z"])
    with pytest.raises(LockTimeout, match="path lock 'default' was not granted within 0 s: it is held by pid"):
        await LockManager(other).acquire_paths([wanted, "y/y"], timeout=0)
    waiter = asyncio.ensure_future(LockManager(other).acquire_paths([wanted], timeout=5)._first())
    await eventually(lambda: _waiting(session, 2))
    await grant.release()
    await (await waiter).release()


async def _waiting(session: Session, count: int) -> bool:
    return len(await entries(session)) == count


async def test_a_waiting_directory_keeps_later_files_out(session: Session, other: Session) -> None:
    manager, rival = LockManager(session), LockManager(other)
    first = await manager.acquire_paths(["src/a.py"])
    directory = asyncio.ensure_future(rival.acquire_paths(["src/"], timeout=5)._first())
    await eventually(lambda: _waiting(session, 2))
    with pytest.raises(LockTimeout):
        await manager.acquire_paths(["src/b.py"], timeout=0.1)
    async with manager.acquire_paths(["docs/"], timeout=0):
        pass
    await first.release()
    await (await directory).release()


async def test_readers_of_one_path_hold_together(session: Session, other: Session) -> None:
    async with (
        LockManager(session).acquire_paths(["src/"], shared=True),
        LockManager(other).acquire_paths(["src/a"], shared=True, timeout=0),
    ):
        with pytest.raises(LockTimeout):
            await LockManager(other).acquire_paths(["src/a/b"], timeout=0)


async def test_the_reason_of_a_timeout_names_the_holder_whose_paths_overlap(session: Session, other: Session) -> None:
    manager, rival = LockManager(session), LockManager(other)
    async with (
        manager.acquire_paths(["docs/"], metadata={"agent": "writer"}),
        manager.acquire_paths(["src/", "a", "b", "c", "d"], metadata={"agent": "parser"}),
    ):
        with pytest.raises(LockTimeout) as error:
            await rival.acquire_paths(["src/x.py"], timeout=0.1)
    assert "agent 'parser'" in str(error.value) and "'src/', 'a', 'b' and 2 more" in str(error.value)
    assert "writer" not in str(error.value) and "this request was the next in the queue" in str(error.value)


async def test_a_crowd_for_one_path_keeps_nobody_from_another(session: Session) -> None:
    """More tasks than may stand in one queue wait for ``src/``."""
    manager = LockManager(session)
    held = await manager.acquire_paths(["src/"])
    crowd = [asyncio.ensure_future(manager.acquire_paths(["src/a"])._first()) for _ in range(70)]
    await eventually(lambda: _waiting(session, 65))
    async with manager.acquire_paths(["docs/"], timeout=2):
        pass
    for task in crowd:
        task.cancel()
    await asyncio.gather(*crowd, return_exceptions=True)
    await held.release()
    await eventually(lambda: _waiting(session, 0))


async def test_a_foreign_entry_has_the_whole_tree(session: Session, other: Session) -> None:
    core = core_of(other)
    key = core.layout.queue("default", PATH) + b"foreign"
    await core.transport.txn((), (Put(key, b"", core.id),))
    with pytest.raises(LockTimeout, match=r"does not say who it is .*the whole tree"):
        await LockManager(session).acquire_paths(["a"], timeout=0.1)
    waiter = asyncio.ensure_future(LockManager(session).acquire_paths(["a"], timeout=5)._first())
    await eventually(lambda: _waiting_beside_foreign(session))
    await core.transport.txn((), (Delete(key),))
    await (await waiter).release()


async def _waiting_beside_foreign(session: Session) -> bool:
    queue = core_of(session).layout.queue("default", PATH)
    return len((await core_of(session).transport.get(Get(queue, prefix_end(queue)))).kvs) == 2


async def test_a_lost_path_lock_writes_nothing(session: Session, other: Session) -> None:
    manager = LockManager(session)
    with pytest.raises(LockLost, match="path lock 'main'"):
        async with manager.acquire_paths(["src/"], tree="main", max_hold=0.1) as grant:
            await asyncio.sleep(5)
    with pytest.raises(FencedWriteRejected):
        await grant.put("x", "y")
    with pytest.raises(NotHeld):
        await manager.release(grant)
    async with LockManager(other).acquire_paths(["src/"], tree="main", timeout=5):
        pass


async def test_paths_that_cannot_be_are_refused_before_anything_is_sent(session: Session) -> None:
    manager = LockManager(session)
    for path in ("../x", "/x", "a\0"):
        with pytest.raises(InvalidName):
            manager.acquire_paths([path])
    with pytest.raises(ValueError, match="whole tree"):
        manager.acquire_paths([])
    with pytest.raises(TypeError, match="did you mean"):
        manager.acquire_paths("src/")
    with pytest.raises(InvalidName):
        manager.acquire_paths(["a"], tree="")


async def test_a_task_that_waits_for_itself_is_warned(session: Session) -> None:
    manager = LockManager(session)
    async with manager.acquire_paths(["src/"]):
        with (
            pytest.warns(RuntimeWarning, match="path lock 'default' is waited for by the very task"),
            pytest.raises(LockTimeout),
        ):
            await manager.acquire_paths(["src/a"], timeout=0.1)


async def test_a_tree_and_a_lock_of_one_name_are_apart(session: Session) -> None:
    manager = LockManager(session)
    async with manager.acquire("main", timeout=0), manager.acquire_paths([""], tree="main", timeout=0) as grant:
        assert grant.paths == ("",) and grant.tree == "main"
        assert manager.stats().total_locks == 2


# For onlookers


async def test_trees_are_listed_beside_locks(session: Session, other: Session) -> None:
    manager, rival = LockManager(session), LockManager(other)
    async with (
        manager.acquire("main"),
        manager.acquire_paths(["src/"], tree="main") as src,
        rival.acquire_paths(["docs/"], tree="main") as docs,
    ):
        waiter = asyncio.ensure_future(rival.acquire_paths(["src/a"], tree="main", timeout=5)._first())
        await eventually(lambda: _waiting_in(session, "main", 3))
        lock, tree = await manager.locks("ma")
        assert (lock.kind, lock.name, tree.kind, tree.name) == ("lock", "main", "path", "main")
        assert lock.holders[0].paths == ()
        assert [(one.token, one.paths) for one in tree.holders] == [(src.token, ("src/",)), (docs.token, ("docs/",))]
        assert [one.paths for one in tree.waiters] == [("src/a",)]
        assert await manager.info("main", "path") == tree and await manager.info("main") == lock
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
    assert await manager.info("main", "path") is None


async def _waiting_in(session: Session, tree: str, count: int) -> bool:
    return len(await entries(session, tree)) == count


async def test_every_step_in_a_tree_is_told(session: Session, other: Session) -> None:
    told = LockManager(other).watch("main")
    manager = LockManager(session)
    first = await manager.acquire_paths(["src/"], tree="main")
    events = [await anext(told), await anext(told)]
    second = asyncio.ensure_future(manager.acquire_paths(["src/a"], tree="main", timeout=5)._first())
    third = await manager.acquire_paths(["docs/"], tree="main")
    events += [await anext(told) for _ in range(3)]
    await first.release()
    events += [await anext(told) for _ in range(2)]
    assert {event.queue_kind for event in events} == {"path"} and {event.name for event in events} == {"main"}
    assert sorted((event.kind, event.owner.paths) for event in events[2:5]) == [
        ("enqueued", ("docs/",)),
        ("enqueued", ("src/a",)),
        ("granted", ("docs/",)),
    ]
    assert [(event.kind, event.owner.paths) for event in [*events[:2], *events[5:]]] == [
        ("enqueued", ("src/",)),
        ("granted", ("src/",)),
        ("released", ("src/",)),
        ("granted", ("src/a",)),
    ]
    await (await second).release()
    await third.release()


async def test_a_holder_of_paths_is_released_by_force_by_its_token(session: Session, other: Session) -> None:
    manager, rival = LockManager(session), LockManager(other)
    async with manager.acquire_paths(["docs/"], tree="main", timeout=1):
        with pytest.raises(LockLost, match=r"released by force by .*: the agent is gone"):
            async with manager.acquire_paths(["src/"], tree="main") as grant:
                with pytest.raises(ValueError, match="by its token"):
                    await rival.force_release("main", reason="x", kind="path")
                with pytest.raises(NotHeld, match="look again"):
                    await rival.force_release("main", reason="x", kind="path", token=1)
                with pytest.raises(NotHeld, match="nobody holds the lock"):
                    await rival.force_release("main", reason="x")
                released = await rival.force_release("main", reason="the agent is gone", kind="path", token=grant.token)
                assert released.paths == ("src/",)
                await asyncio.sleep(10)
        info = await manager.info("main", "path")
        assert info and [one.paths for one in info.holders] == [("docs/",)]
        assert info.last_forced_release and info.last_forced_release.reason == "the agent is gone"


# Its cost


async def test_later_joins_read_only_what_is_new(
    session: Session, other: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager, rival = LockManager(session), LockManager(other)
    held = [await rival.acquire_paths([f"src/{n}"]) for n in range(20)]
    trees = core_of(session).member(LocalQueues).trees
    read: list[int] = []

    def counted(queue: bytes, end: bytes, own: Predecessor, found: GetResult, after: int) -> View:
        read.append(len(found.kvs))
        return KnownTrees.joined(trees, queue, end, own, found, after)

    monkeypatch.setattr(trees, "joined", counted)
    for _ in range(3):
        async with manager.acquire_paths(["docs/"], timeout=5):
            await asyncio.sleep(0.05)
    newer = await rival.acquire_paths(["new/"])
    async with manager.acquire_paths(["docs/"], timeout=5):
        pass
    assert read[0] == 20 and read[2:] == [0, 1]
    with pytest.raises(LockTimeout, match="'new/'"):
        await manager.acquire_paths(["new/a"], timeout=0.2)
    waiter = asyncio.ensure_future(manager.acquire_paths(["src/7", "new/"], timeout=5)._first())
    await eventually(lambda: _waiting(session, 22))
    await newer.release()
    await held[7].release()
    await (await waiter).release()
    async with manager.acquire_paths(["src/7/x", "new/a"], timeout=2):
        pass
    for grant in held:
        await grant.release()


async def test_one_session_takes_one_path_again_and_again(session: Session) -> None:
    manager = LockManager(session)

    async def cycle() -> None:
        for _ in range(30):
            async with manager.acquire_paths(["src/"], timeout=10):
                pass

    began = asyncio.get_running_loop().time()
    await asyncio.gather(*(cycle() for _ in range(4)))
    assert asyncio.get_running_loop().time() - began < 9  # no wait ended only by the look after ten seconds
