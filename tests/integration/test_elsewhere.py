"""Use of an object in another process or event loop than its own: an error says so, and nothing is held there."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from codomyrmex.concurrency import (
    AsyncWorkerPool,
    DeadLetterQueue,
    DistributedLock,
    EmbeddedEtcd,
    EtcdError,
    LockManager,
    Semaphore,
    Session,
    UsedElsewhere,
)
from tests.forks import in_child
from tests.helpers import eventually


def first_step(call: Coroutine[Any, Any, Any]) -> str:
    """The error at a coroutine's first step; it never waits for anything."""
    try:
        call.send(None)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "it went on"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_in_a_forked_child_nothing_is_held_and_each_call_says_why(session: Session) -> None:
    lock, manager = DistributedLock("x", session), LockManager(session)
    grant, managed = await lock.acquire(), await manager.acquire("y")
    permit = await Semaphore("s", max_concurrent=2, session=session).acquire()
    queue = DeadLetterQueue("q", session=session)

    def look() -> dict[str, Any]:
        calls = {
            "put": grant.put("k", "v"),
            "grant": grant.release(),
            "lock": lock.release(),
            "manager": manager.release(managed),
            "permit": permit.release(),
            "acquire": lock.acquire(timeout=1),
            "lost": grant.lost.wait(),
            "count": queue.count(),
            "open": session.open(),
        }
        held = [
            lock.held,
            lock.grant,
            session.alive,
            grant.deadline(),
            session.deadline(),
            manager.stats().active_locks,
        ]
        return {"held": held, "shown": repr(grant), "calls": {name: first_step(call) for name, call in calls.items()}}

    told = in_child(look)
    assert not any(told["held"])
    assert told["shown"] == f"<Grant of 'x' with token {grant.token}, of another process>"
    for call, text in told["calls"].items():
        assert text.startswith("UsedElsewhere: ") and f"belongs to process {os.getpid()}" in text, (call, text)
    assert lock.held and await grant.put("k", "v") > 0  # of all of which its parent knows nothing
    await lock.release()
    await manager.release(managed)
    await permit.release()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_grpcs_refusal_of_a_fork_is_no_error_to_try_again_at(etcd: EmbeddedEtcd, namespace: str) -> None:
    async with Session(endpoints=etcd.endpoint, namespace=namespace, transport="grpc"):
        told = in_child(lambda: first_step(Session(endpoints="http://127.0.0.1:1", transport="grpc").open()))
    assert told.startswith("UsedElsewhere: ") and "'spawn' or 'forkserver'" in told
    assert not issubclass(UsedElsewhere, EtcdError)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_a_block_that_a_fork_has_copied_passes_the_childs_own_error_on(session: Session) -> None:
    lock = DistributedLock("x", session)
    async with lock:

        def leave() -> str:
            return first_step(lock.__aexit__(None, None, None))

        def leave_by_an_error() -> str:
            try:
                lock.__aexit__(SystemExit, SystemExit(), None).send(None)
            except StopIteration:
                return "it passes"
            return "it waits"

        assert in_child(leave).startswith("UsedElsewhere: the lock 'x' belongs to process")
        assert in_child(leave_by_an_error) == "it passes"
        assert lock.held


async def test_a_grant_in_another_loop_is_refused_before_anything_is_forgotten(session: Session) -> None:
    lock, manager = DistributedLock("x", session), LockManager(session)
    grant, managed = await lock.acquire(), await manager.acquire("y")
    permit = await Semaphore("s", max_concurrent=2, session=session).acquire()

    async def use(call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        return await call()

    calls: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
        "put": lambda: grant.put("k", "v"),
        "grant": grant.release,
        "lock": lock.release,
        "manager": lambda: manager.release(managed),
        "permit": permit.release,
        "lost": grant.lost.wait,
        "session": session.close,
    }
    for name, call in calls.items():
        with pytest.raises(UsedElsewhere, match=r"another event loop; .*sync") as caught:
            await asyncio.to_thread(lambda call=call: asyncio.run(use(call)))  # type: ignore[misc]
        assert isinstance(caught.value, RuntimeError), name
    assert session.alive
    await lock.release()
    await manager.release(managed)
    await permit.release()


def test_a_session_is_not_closed_after_its_loop_was(etcd: EmbeddedEtcd, namespace: str) -> None:
    session = Session(endpoints=etcd.endpoint, namespace=namespace)
    asyncio.run(session.open())  # type: ignore[arg-type]
    with pytest.raises(UsedElsewhere, match="an event loop that was closed; close a session before its loop ends"):
        asyncio.run(session.close())


async def test_a_pool_with_tasks_in_one_loop_takes_none_in_another() -> None:
    async with AsyncWorkerPool(2) as pool:
        running = asyncio.create_task(pool.submit(asyncio.sleep, 5))
        await eventually(lambda: pool.stats().running)
        for call in (lambda: pool.submit(asyncio.sleep, 0), pool.shutdown):
            with pytest.raises(UsedElsewhere, match="the pool 'pool' belongs to another event loop"):
                await asyncio.to_thread(lambda call=call: asyncio.run(_run(call)))  # type: ignore[misc]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert pool.stats().submitted == 1


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_a_pool_that_was_used_before_a_fork_says_so_in_the_child() -> None:
    async with AsyncWorkerPool(2) as pool:
        await pool.submit(len, "abc")
        told = in_child(lambda: first_step(pool.submit(len, "abc")))
    assert told.startswith(f"UsedElsewhere: the pool 'pool' belongs to process {os.getpid()}")


async def _run(call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return await call()


def test_a_dead_letter_of_a_forked_child_is_kept_in_a_file(etcd: EmbeddedEtcd, namespace: str, tmp_path: Path) -> None:
    code = (
        "import asyncio, os\n"
        "from codomyrmex.concurrency import DeadLetterQueue, Session\n"
        "async def use():\n"
        "    async with Session():\n"
        "        pass\n"
        "async def fail():\n"
        "    routed = await DeadLetterQueue('q').route(operation='f', args={}, error=ValueError(), metadata={})\n"
        "    print(routed.note, flush=True)\n"
        "asyncio.run(use())\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try:\n"
        "        asyncio.run(fail())\n"
        "    finally:\n"
        "        os._exit(0)\n"
        "os.waitpid(child, 0)\n"
    )
    environment = {
        **os.environ,
        "CODOMYRMEX_ETCD_ENDPOINTS": etcd.endpoint,
        "CODOMYRMEX_ETCD_NAMESPACE": namespace,
        "CODOMYRMEX_ETCD_TRANSPORT": "grpc",
        "XDG_STATE_HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=30, check=True
    )
    assert "kept in" in done.stdout, done.stderr
    assert len(list(tmp_path.rglob("*.json"))) == 1
