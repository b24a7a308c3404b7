"""The past of a lock from code without an event loop."""

from __future__ import annotations

from codomyrmex.concurrency import EmbeddedEtcd
from codomyrmex.concurrency.sync import LockManager, Session


def test_a_thread_is_told_the_past_of_a_lock(etcd: EmbeddedEtcd, namespace: str) -> None:
    with Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=3) as session:
        manager = LockManager(session)
        with manager.acquire("x") as grant:
            found = manager.history("x")
        assert [(one.token, one.how) for one in found.holds] == [(grant.token, "held")]
        assert [one.how for one in manager.history("x").holds] == ["released"]
        assert manager.history("x", kind="path").holds == ()
