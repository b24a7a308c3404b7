"""Reservations from threads and from processes that come and go: each call may be a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from codomyrmex.concurrency import EmbeddedEtcd, InvalidHandle, LockLost, LockTimeout
from codomyrmex.concurrency.sync import LockManager, Session


@pytest.fixture
def blocking(etcd: EmbeddedEtcd, namespace: str) -> Iterator[Session]:
    with Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=3) as session:
        yield session


def test_threads_reserve_renew_write_and_release(blocking: Session) -> None:
    manager = LockManager(blocking)
    with manager.reserve("x", paths=["src/"], ttl=60, note="n", owner="agent-7") as mine:
        assert (mine.names, mine.paths, mine.tree, mine.note, mine.ttl) == (("x",), ("src/",), "default", "n", 60)
        assert mine.expires_in() > 50 and not mine.shared and (mine.left, mine.left_by) == ("", "")
        opened = manager.reservation(mine.handle)
        threads = [threading.Thread(target=opened.renew, args=(f"note {number}",)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert opened.check() > 50 and opened.note.startswith("note ")
        assert opened.put("/app/x", "1") > mine.token and mine.get("/app/x") == b"1" and mine.delete("/app/x")
        assert [info.owner for info in manager.reservations()] == ["agent-7"]
        with pytest.raises(LockTimeout, match="agent-7"):
            manager.reserve("x", ttl=60, timeout=0.1)
    assert manager.reservations() == [] and not mine.lost.is_set()
    with pytest.raises(LockLost):
        opened.renew()
    assert opened.lost.is_set()
    with pytest.raises(InvalidHandle):
        manager.reservation(mine.handle[:-3])


RESERVE = """
manager = LockManager()
print(manager.reserve("x", ttl=10, note="half done", owner="agent-7").handle, flush=True)
time.sleep(60)
"""
RACE = """
reservation = LockManager().reservation(sys.argv[1])
done = []
for number in range(30):
    try:
        if number == int(sys.argv[2]):
            reservation.release()
            done.append("released")
            break
        reservation.renew(note=f"{sys.argv[2]} {number}")
    except LockLost as error:
        done.append("lost")
        break
print(*done)
"""
HEAD = """
import sys, time
from codomyrmex.concurrency import LockLost
from codomyrmex.concurrency.sync import LockManager
"""


def start(etcd: EmbeddedEtcd, namespace: str, program: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "CODOMYRMEX_ETCD_ENDPOINTS": etcd.endpoint,
        "CODOMYRMEX_ETCD_NAMESPACE": namespace,
        "CODOMYRMEX_ETCD_SESSION_TTL": "3",
    }
    command = [sys.executable, "-c", HEAD + program, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.long
def test_it_outlives_the_process_and_tells_the_next_holder_what_was_left(
    etcd: EmbeddedEtcd, namespace: str, blocking: Session
) -> None:
    manager = LockManager(blocking)
    process = start(etcd, namespace, RESERVE)
    assert process.stdout
    with process:
        handle = process.stdout.readline().strip()
        process.send_signal(signal.SIGKILL)
    opened = manager.reservation(handle)
    time.sleep(5)  # its session has expired, and it has not
    assert 0 < opened.renew() <= 10
    begun = time.monotonic()
    after = manager.reserve("x", ttl=60, timeout=30)
    assert time.monotonic() - begun > 8
    assert (after.left, after.left_by) == ("half done", "agent-7") and after.token > opened.token
    for use in (opened.renew, opened.release, lambda: opened.put("/app/x", "late")):
        with pytest.raises(LockLost, match=r"it expired \d+ s ago, at .*'x' is held now by pid"):
            use()
    assert after.get("/app/x") is None
    after.release()


def test_processes_that_renew_and_release_one_handle_at_once_harm_nobody(
    etcd: EmbeddedEtcd, namespace: str, blocking: Session
) -> None:
    manager = LockManager(blocking)
    mine = manager.reserve("x", ttl=60, note="n")
    racers = [start(etcd, namespace, RACE, mine.handle, str(number)) for number in (8, 9, 10)]
    told = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    assert sorted(told) == ["lost", "lost", "released"] and all(racer.returncode == 0 for racer in racers)
    after = manager.reserve("x", ttl=60, timeout=5)
    assert after.left == "" and after.token > mine.token
    after.release()
