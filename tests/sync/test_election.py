"""The blocking twins of ``Election`` and ``Group``: from threads, interrupted, lost, and followed by iterators."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from codomyrmex.concurrency import EmbeddedEtcd, FencedWriteRejected, LockLost, LockTimeout
from codomyrmex.concurrency.fencing import http
from codomyrmex.concurrency.recipes.election import queues
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.sync import Election, Group, Session
from codomyrmex.concurrency.sync.portal import portal
from codomyrmex.concurrency.waitqueue import shared_values
from tests.helpers import revoke
from tests.sync.test_blocking import run_python, run_threads


@pytest.fixture
def blocking(etcd: EmbeddedEtcd, namespace: str) -> Iterator[Session]:
    with Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=3) as session:
        yield session


@pytest.fixture
def rival(etcd: EmbeddedEtcd, namespace: str) -> Iterator[Session]:
    with Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=3) as session:
        yield session


def until(true: Callable[[], Any], limit: float = 15.0) -> None:
    deadline = time.monotonic() + limit
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def candidates(session: Session) -> int:
    async def count() -> int:
        return len((await shared_values.read(core_of(session._twin), queues("e"))).entries)

    return portal().run(count())


def end(session: Session) -> None:
    portal().run(revoke(session._twin, session.id))


def test_a_leader_leads_proclaims_and_writes(blocking: Session, rival: Session) -> None:
    election = Election("e", blocking, metadata={"agent": "a"})
    assert election.leader() is None and election.name == "e"
    with election.campaign({"url": "http://one"}) as term:
        assert term.grant.put("/elected", "x") > term.token == term.grant.token and term.value == {"url": "http://one"}
        assert http.headers(term) == http.headers(term.grant) and term.key == term.grant.key
        term.proclaim([2])
        found = Election("e", rival).leader()
        assert found and (found.value, found.token, found.owner.agent) == ([2], term.token, "a") and term.value == [2]
        with (
            pytest.raises(LockTimeout, match="the election 'e' was not granted"),
            Election("e", rival).campaign(timeout=0.05),
        ):
            pass
        assert repr(term) == f"<Term of 'e' with token {term.token}>" and repr(election) == "<Election 'e'>"
    assert election.leader() is None


def test_threads_lead_one_after_another(blocking: Session) -> None:
    election = Election("e", blocking)
    leading: list[int] = []
    tokens: list[int] = []

    def lead(number: int) -> None:
        with election.campaign(number, timeout=20) as term:
            leading.append(number)
            assert leading == [number]
            tokens.append(term.token)
            term.proclaim([number])
            leading.clear()

    run_threads(8, lead)
    assert len(tokens) == 8 and tokens == sorted(set(tokens))


def test_observers_and_watchers_are_iterators(blocking: Session, rival: Session) -> None:
    election, group = Election("e", blocking), Group("g", blocking)
    leaders, events = Election("e", rival).observe(), Group("g", rival).watch()
    with election.campaign("one") as term, group.join({"n": 1}) as mine:
        first, joined = next(leaders), next(events)
        assert (first.token, first.value) == (term.token, "one")
        assert (joined.kind, joined.member.token) == ("joined", mine.grant.token)
        term.proclaim("two")
        mine.update({"n": 2})
        assert next(leaders).value == "two" and next(events).member.capabilities == {"n": 2} == mine.capabilities
    assert next(events).kind == "left"
    for following in (leaders, events):
        following.close()  # type: ignore[attr-defined]


def test_members_join_and_leave(blocking: Session, rival: Session) -> None:
    group = Group("g", blocking)
    assert group.members() == () and group.name == "g" and repr(group) == "<Group 'g'>"
    with group.join({"n": 1}) as mine, Group("g", rival).join() as theirs:
        assert [one.capabilities for one in group.members()] == [{"n": 1}, {}] and theirs.capabilities == {}
        assert repr(mine) == "<Membership in 'g'>"
    assert group.members() == ()


def test_a_lost_term_is_told_and_fenced(blocking: Session, rival: Session) -> None:
    with pytest.raises(LockLost), Election("e", rival).campaign() as term:
        end(rival)
        assert term.grant.lost.wait(5)
        with pytest.raises(LockLost):
            term.grant.check()
        with pytest.raises(FencedWriteRejected):
            term.proclaim("late")
        assert term.value is None
    assert Election("e", blocking).leader() is None


def test_a_lost_membership_is_told_and_raised_if_asked_for(blocking: Session, rival: Session) -> None:
    with (
        Group("g", blocking).join() as notified,
        pytest.raises(LockLost),
        Group("g", blocking, on_loss="raise").join() as raised,
    ):
        end(blocking)
        assert notified.grant.lost.wait(5) and raised.grant.lost.wait(5)
        with pytest.raises(FencedWriteRejected):
            notified.update({"n": 1})
    assert Group("g", rival).members() == ()


def test_ctrl_c_ends_a_campaign_and_leaves_no_candidate(etcd: EmbeddedEtcd, namespace: str, blocking: Session) -> None:
    with Election("e", blocking).campaign():
        code = "from codomyrmex.concurrency.sync import Election\nwith Election('e').campaign(): print('led')"
        with run_python(code, etcd, namespace) as process:
            until(lambda: candidates(blocking) == 2)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=10)
        assert "KeyboardInterrupt" in err and out == "" and process.returncode != 0
        assert candidates(blocking) == 1


def test_ctrl_c_ends_an_observation(etcd: EmbeddedEtcd, namespace: str, blocking: Session) -> None:
    code = (
        "from codomyrmex.concurrency.sync import Election, Group\n"
        "for event in Group('g').watch(): print(event.kind, flush=True)"
    )
    with Group("g", blocking).join(), run_python(code, etcd, namespace) as process:
        assert process.stdout and process.stdout.readline() == "joined\n"
        time.sleep(0.5)  # until it waits for the next event
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert "KeyboardInterrupt" in err and "never awaited" not in err


def test_a_process_that_exits_ends_its_term_and_its_membership(
    etcd: EmbeddedEtcd, namespace: str, blocking: Session
) -> None:
    code = (
        "from codomyrmex.concurrency.sync import Election, Group\n"
        "term = Election('e').campaign('mine').__enter__()\n"
        "member = Group('g').join({'n': 1}).__enter__()\n"
        "print(Election('e').leader().value, Group('g').members()[0].capabilities)"
    )
    with run_python(code, etcd, namespace) as process:
        out, err = process.communicate(timeout=15)
    assert (process.returncode, out, err) == (0, "mine {'n': 1}\n", "")
    assert Election("e", blocking).leader() is None and Group("g", blocking).members() == ()
