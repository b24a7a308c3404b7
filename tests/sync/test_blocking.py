"""The blocking twin: from many threads, interrupted, inside a running loop, forked, and at exit."""

from __future__ import annotations

import asyncio
import inspect
import os
import pydoc
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from codomyrmex import concurrency as twin
from codomyrmex.concurrency import (
    EmbeddedEtcd,
    FencedWriteRejected,
    LockLost,
    LockTimeout,
    NotHeld,
    Park,
    RetryPolicy,
    SessionLost,
    sync,
)
from codomyrmex.concurrency.sync import (
    AsyncWorkerPool,
    Attempt,
    DeadLetterQueue,
    DistributedLock,
    LockManager,
    Semaphore,
    Session,
)
from codomyrmex.concurrency.sync.portal import portal
from tests.helpers import eventually


@pytest.fixture
def blocking(etcd: EmbeddedEtcd, namespace: str) -> Iterator[Session]:
    with Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=3) as session:
        yield session


def run_threads(count: int, target: Any) -> None:
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            target(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == [] and not any(thread.is_alive() for thread in threads)


# Whole


@pytest.mark.parametrize(
    "name", ["Session", "DistributedLock", "LockManager", "Semaphore", "Permit", "Grant", "RateLimiter"]
)
def test_the_twin_has_all_that_the_asyncio_class_has(name: str) -> None:
    _same(getattr(twin, name), getattr(sync, name))


@pytest.mark.parametrize("name", ["AsyncWorkerPool", "DeadLetterQueue", "Attempt", "RateLimiter"])
def test_the_twin_has_all_of_pools_dead_letters_and_rates(name: str) -> None:
    _same(getattr(twin, name), getattr(sync, name))


_INTERNAL = {
    "join",
    "waits",
    "holds",
    "leave",
    "usable_here",
    "trusted",
    "delayed_lease",
    "hold_limits",
    "member",
    "members",
    "route",
    "lose",
    "keep",
    "start",
    "is_over",
    "notice_distrust",
}


def _same(theirs: type, ours: type) -> None:
    for name, member in inspect.getmembers(theirs):
        if name.startswith("_") or name in _INTERNAL or (name == "lost" and theirs is twin.Grant):
            continue
        assert hasattr(ours, name) or name in inspect.get_annotations(theirs), f"{ours.__name__}.{name} is missing"
        if inspect.isfunction(member):
            expected, found = (list(inspect.signature(f).parameters) for f in (member, getattr(ours, name)))
            assert found == expected, f"{ours.__name__}.{name}"
    if theirs.__name__ not in ("Attempt", "Permit", "Grant"):
        assert list(inspect.signature(theirs).parameters) == list(inspect.signature(ours).parameters)


_ASYNCIO_WORDS = re.compile(r"\b(await|awaits|awaitable|async|coroutine|current task)\b")


@pytest.mark.parametrize("name", [name for name in sync.__all__ if hasattr(twin, name)])
def test_every_text_is_true_of_blocking_code(name: str) -> None:
    """A method may take its text from its asyncio twin; then no word of asyncio may be left in it."""
    for member_name, member in inspect.getmembers(getattr(sync, name)):
        if not member_name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
            assert not _ASYNCIO_WORDS.search(inspect.getdoc(member) or ""), f"{name}.{member_name}"


def test_a_forwarding_method_shows_its_twins_signature_and_text() -> None:
    shown = pydoc.render_doc(LockManager, renderer=pydoc.plaintext)
    assert "force_release(self, name: 'str', *, reason: 'str', token: 'int | None' = None, kind: " in shown
    assert "watch(self, prefix: 'str' = '') -> collections.abc.Iterator[" in shown
    assert "``with manager.acquire(name) as grant``" in shown
    assert inspect.getdoc(LockManager.locks) == inspect.getdoc(twin.LockManager.locks)


# Locks


def test_many_threads_share_one_lock_object_and_exclude_each_other(blocking: Session) -> None:
    lock = DistributedLock("x", blocking)
    inside, tokens = [0], []

    def work(_: int) -> None:
        for _ in range(5):
            with lock as grant:
                inside[0] += 1
                assert inside[0] == 1
                tokens.append(grant.token)
                time.sleep(0.002)
                inside[0] -= 1

    run_threads(8, work)
    assert tokens == sorted(set(tokens)) and len(tokens) == 40
    assert LockManager(blocking).locks() == []


def test_each_thread_releases_its_own_grant(blocking: Session) -> None:
    lock = DistributedLock("x", blocking)
    mine = lock.acquire()
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with lock:
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    lock.release()
    assert entered.wait(5) and mine.deadline() == 0
    [holder] = LockManager(blocking).info("x").holders  # type: ignore[union-attr]
    assert holder.task == thread.name and lock.held
    leave.set()
    thread.join()
    with pytest.raises(NotHeld):
        lock.release()


def test_waits_end_by_a_timeout_and_a_try_waits_for_nobody(blocking: Session) -> None:
    manager = LockManager(blocking)
    with manager.acquire("x", timeout=5) as grant:
        assert grant.get("/nothing") is None and manager.stats().active_locks == 1
        with pytest.raises(LockTimeout), pytest.warns(RuntimeWarning, match="the very task or thread"):
            manager.acquire("x", timeout=0.1)
        assert DistributedLock("x", blocking).try_acquire() is None
        assert [info.name for info in manager.locks()] == ["x"]
    assert manager.locks() == []
    with pytest.raises(NotHeld):
        manager.release(grant)
    grants = manager.acquire_all(["a", "b"])
    assert [grant.name for grant in grants] == ["a", "b"]
    grants.release()
    with manager.acquire_all(["a", "b"], timeout=1), manager.acquire_all([]):
        pass


def test_a_loss_is_told_at_once_and_raised_at_the_end_of_the_block(blocking: Session) -> None:
    manager = LockManager(blocking)
    with pytest.raises(LockLost, match="the reason"), manager.acquire("x") as grant:
        grant.check()
        grant.put("/sync/x", "1")
        manager.force_release("x", reason="the reason")
        assert grant.lost.wait(5) and grant.deadline() == 0
        with pytest.raises(FencedWriteRejected):
            grant.put("/sync/x", "2")
        with pytest.raises(LockLost):
            grant.check()
    with DistributedLock("x", blocking, on_loss="notify") as grant:
        manager.force_release("x", reason="the reason")
        assert grant.lost.wait(5)
    with pytest.raises(KeyError) as caught, manager.acquire("x") as grant:
        manager.force_release("x", reason="the reason")
        grant.lost.wait(5)
        raise KeyError("own")
    assert "was lost while this happened" in caught.value.__notes__[0]
    with pytest.raises(ValueError, match="on_loss must be 'raise' or 'notify'"):
        DistributedLock("x", blocking, on_loss="cancel")  # type: ignore[arg-type]


def test_a_session_closes_and_its_holds_are_told(etcd: EmbeddedEtcd, namespace: str) -> None:
    session = Session(endpoints=etcd.endpoint, namespace=namespace).open()
    assert session.alive and session.deadline() > 0
    grant = DistributedLock("x", session).acquire()
    session.close()
    session.close()
    assert grant.lost.is_set() and session.lost.is_set() and isinstance(session.lost.reason, SessionLost)
    with pytest.raises(TypeError, match=r"sync\.Session"):
        DistributedLock("x", twin.Session())  # type: ignore[arg-type]


def test_a_watch_is_an_iterator_that_may_be_left(blocking: Session) -> None:
    manager = LockManager(blocking)
    with manager.acquire("x"):
        kinds = []
        for event in manager.watch():
            kinds.append(event.kind)
            if event.kind == "granted":
                break
    assert kinds == ["enqueued", "granted"]


def test_permits(blocking: Session) -> None:
    semaphore = Semaphore("s", max_concurrent=2, session=blocking)
    with semaphore, semaphore.hold(permits=1):
        assert semaphore.available() == 0 and semaphore.try_acquire() is None
    permit = semaphore.acquire(2)
    assert len(semaphore.info().holders) == 1
    permit.release()
    with pytest.raises(NotHeld):
        permit.release()
    semaphore.resize(3)
    inside: list[int] = []
    most = [0]

    def work(_: int) -> None:
        with semaphore:
            inside.append(1)
            most[0] = max(most[0], len(inside))
            time.sleep(0.02)
            inside.pop()

    run_threads(9, work)
    assert most == [3]


# Pools and dead letters


def test_a_pool_maps_in_threads_that_may_lock(blocking: Session) -> None:
    manager = LockManager(blocking)

    def work(item: int) -> int:
        with manager.acquire(f"item:{item % 2}"):
            return item * 2

    provider = Semaphore("s", max_concurrent=2, session=blocking)
    with AsyncWorkerPool(4, session=blocking, report=False) as pool:
        results = pool.map(work, range(10), semaphore=provider, lock=lambda item: f"outer:{item}")
        assert [result.unwrap() for result in results] == [item * 2 for item in range(10)]
        assert pool.submit(pow, 2, 3).result == 8
        assert pool.stats().completed == 11
    assert repr(pool)


def test_a_pool_takes_lazy_items_that_lock_and_may_be_left_early(blocking: Session) -> None:
    manager = LockManager(blocking)
    taken = []

    def items() -> Iterator[int]:
        for number in range(1000):
            with manager.acquire("items"):
                taken.append(number)
                yield number

    with AsyncWorkerPool(2) as pool:
        for result in pool.imap(str, items()):
            assert result.success
            break
    assert 0 < len(taken) < 20


async def _blocks(_: int) -> None:
    LockManager().acquire("x")


def test_a_blocking_call_on_the_own_loop_is_refused_not_a_deadlock() -> None:
    with AsyncWorkerPool(1) as pool:
        [result] = pool.map(_blocks, [1])
    assert result.error_type == "UsedElsewhere" and "would wait for itself" in result.error


def test_dead_letters_are_retried_by_plain_functions(blocking: Session) -> None:
    with DeadLetterQueue("q", session=blocking, retry=RetryPolicy(initial=0.01, max_attempts=3)) as queue:
        seen: list[tuple[str, int]] = []

        @queue.handler("flaky")
        def flaky(entry: Any, attempt: Attempt) -> None:
            attempt.checkpoint()
            seen.append((entry.args["id"], attempt.number))
            if attempt.number < 2:
                raise OSError("again")

        @queue.handler("hopeless")
        def hopeless(entry: Any, attempt: Attempt) -> None:
            raise Park("for a person")

        first = queue.add(operation="flaky", args={"id": "a"}, error="e", dedup_key="k")
        assert queue.add(operation="flaky", args={"id": "a"}, error="e", dedup_key="k") == first
        second = queue.add(operation="hopeless", args={}, error=ValueError("no"))
        with queue.worker(concurrency=8) as worker:
            worker.settled(timeout=10)
        assert seen == [("a", 1), ("a", 2)]
        states = {entry.id: entry.state for entry in queue.entries()}
        assert states == {first: "resolved", second: "parked"}
        assert queue.count() == 2 and len(queue.list_entries(state="parked")) == 1
        assert next(iter(queue.watch())).id == first
        assert queue.replay(second).state == "waiting" and queue.get(second) is not None
        assert queue.discard(second, reason="enough").state == "resolved"
        assert queue.replay_all() == 0 and queue.purge() == 2
        with pytest.raises(TypeError, match="must be a plain function"):
            queue.handler("x")(_blocks)  # type: ignore[type-var]


def test_a_block_that_fails_waits_for_the_handlers_that_run(blocking: Session) -> None:
    queue = DeadLetterQueue("q", session=blocking)
    begun, ended = threading.Event(), threading.Event()

    @queue.handler("slow")
    def slow(entry: Any, attempt: Attempt) -> None:
        begun.set()
        time.sleep(0.5)
        ended.set()

    queue.add(operation="slow", args={}, error="e")
    with pytest.raises(KeyError), queue.worker():
        assert begun.wait(10)
        raise KeyError
    assert ended.is_set()
    assert [entry.state for entry in queue.list_entries()] == ["resolved"]


# Where it runs


async def test_inside_a_running_loop_as_in_jupyter(blocking: Session) -> None:
    with LockManager(blocking).acquire("x") as grant:
        assert grant.deadline() > 0
    await asyncio.sleep(0)


def test_an_interrupted_call_undoes_what_it_got_all_the_same() -> None:
    undone = []

    async def too_late() -> str:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            return "granted"
        return "never"

    async def undo(result: str) -> None:
        undone.append(result)

    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        portal().run(too_late(), undo)
    assert undone == ["granted"]


async def test_another_loop_awaits_and_cancels_what_the_portal_runs() -> None:
    steps = []

    async def work(seconds: float) -> str:
        steps.append("begun")
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            steps.append("cancelled")
            raise
        return threading.current_thread().name

    assert await portal().awaited(work(0)) == "codomyrmex-portal"
    waiting = asyncio.create_task(portal().awaited(work(30)))
    await eventually(lambda: len(steps) == 2)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await eventually(lambda: steps == ["begun", "begun", "cancelled"])


def run_python(code: str, etcd: EmbeddedEtcd, namespace: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "CODOMYRMEX_ETCD_ENDPOINTS": etcd.endpoint,
        "CODOMYRMEX_ETCD_NAMESPACE": namespace,
        "CODOMYRMEX_ETCD_SESSION_TTL": "60",
    }
    command = (sys.executable, "-W", "error", "-c", code)
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_ctrl_c_ends_a_wait_and_leaves_nothing(etcd: EmbeddedEtcd, namespace: str, blocking: Session) -> None:
    with LockManager(blocking).acquire("x"):
        code = "from codomyrmex.concurrency.sync import LockManager\nLockManager().acquire('x')"
        with run_python(code, etcd, namespace) as process:
            deadline = time.monotonic() + 15
            while not (info := LockManager(blocking).info("x")) or not info.waiters:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=10)
        assert "KeyboardInterrupt" in err and process.returncode != 0
        assert not LockManager(blocking).info("x").waiters  # type: ignore[union-attr]


def test_a_process_that_exits_gives_back_what_it_holds_and_says_nothing(
    etcd: EmbeddedEtcd, namespace: str, blocking: Session
) -> None:
    code = "from codomyrmex.concurrency.sync import LockManager\nprint(LockManager().acquire('x').token)"
    with run_python(code, etcd, namespace) as process:
        out, err = process.communicate(timeout=15)
    assert process.returncode == 0 and int(out) > 0 and err == ""
    assert LockManager(blocking).info("x") is None


def test_prefork_workers_have_sessions_of_their_own(etcd: EmbeddedEtcd, namespace: str, blocking: Session) -> None:
    code = (
        "import multiprocessing as mp\n"
        "from codomyrmex.concurrency.sync import LockManager\n"
        "manager = LockManager()\n"
        "def work(n):\n"
        "    with manager.acquire('x') as grant:\n"
        "        return grant.token\n"
        "with mp.get_context('fork').Pool(3) as pool:\n"
        "    print(*sorted(set(pool.map(work, range(12)))))\n"
    )
    with run_python(code, etcd, namespace) as process:
        out, err = process.communicate(timeout=30)
    assert len(out.split()) == 12, err


def test_prefork_workers_of_a_parent_that_holds_a_lock_have_sessions_of_their_own(
    etcd: EmbeddedEtcd, namespace: str, blocking: Session
) -> None:
    if blocking.settings.transport == "grpc":
        pytest.skip("not run: grpcio does not survive a fork")
    code = (
        "import multiprocessing as mp, warnings\n"
        "from codomyrmex.concurrency.sync import LockManager\n"
        "warnings.simplefilter('ignore', DeprecationWarning)\n"  # Python's own, of a fork beside threads
        "manager = LockManager()\n"
        "def work(n):\n"
        "    with manager.acquire('x') as grant:\n"
        "        return grant.token\n"
        "def look(n):\n"
        "    try:\n"
        "        held.check()\n"
        "    except RuntimeError as error:\n"
        "        return type(error).__name__\n"
        "with manager.acquire('parents') as held:\n"
        "    with mp.get_context('fork').Pool(3) as pool:\n"
        "        tokens = sorted(set(pool.map(work, range(12))))\n"
        "        assert pool.map(look, range(3)) == ['UsedElsewhere'] * 3\n"
        "    held.check()\n"
        "    held.put('/codomyrmex/file', 'x')\n"
        "print(*tokens)\n"
    )
    with run_python(code, etcd, namespace) as process:
        out, err = process.communicate(timeout=30)
    assert len(out.split()) == 12 and err == "", err


def test_the_first_snippet_with_the_default_session(
    etcd: EmbeddedEtcd, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODOMYRMEX_ETCD_ENDPOINTS", etcd.endpoint)
    monkeypatch.setenv("CODOMYRMEX_ETCD_NAMESPACE", namespace)
    with LockManager().acquire("x") as grant:
        assert grant.name == "x"
    portal().close_default_session()


def test_paths_are_held_and_given_back(blocking: Session) -> None:
    manager = LockManager(blocking)
    with manager.acquire_paths(["src/", "*.md"], tree="main", timeout=5) as grant:
        assert grant.paths == ("src/", "") and grant.tree == "main"
        with pytest.raises(LockTimeout, match="the whole tree"):
            manager.acquire_paths(["docs/"], tree="main", timeout=0)
        manager.acquire_paths(["src/"], timeout=0).release()
    with manager.acquire_paths(["src/a"], tree="main", timeout=0, shared=True):
        pass
