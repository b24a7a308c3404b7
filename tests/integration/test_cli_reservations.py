"""Agents at the command line: each call is a process of its own, and each host has a state directory of its own."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from codomyrmex.concurrency import (
    ConcurrencyError,
    DeadLetterQueue,
    LockManager,
    ReservationInfo,
    Semaphore,
    Session,
)
from codomyrmex.concurrency.cli.agents.handle_store import HandleStore
from codomyrmex.concurrency.cli.agents.reserving import keep
from codomyrmex.concurrency.cli.agents.wanted import Wanted
from codomyrmex.concurrency.cli.schemas import event_schema, schemas
from tests.helpers import eventually, queue_of, revoke
from tests.integration.agents import Agent, Agents
from tests.integration.command_line import Cli, line
from tests.json_schema import faults

pytestmark = [pytest.mark.long, pytest.mark.timeout(180)]  # each call is a process; there are up to twenty in a test


@pytest.fixture
def agents(cli: Cli, tmp_path: Path) -> Agents:
    def agent(name: str, host: str = "here") -> Agent:
        return Agent(cli, name, tmp_path / host)

    return agent


async def reserved(session: Session, count: int) -> list[ReservationInfo]:
    found = await LockManager(session).reservations()
    assert len(found) == count, found
    return found


async def expire(session: Session) -> None:
    """End the lease of the one reservation, as its time does."""
    (one,) = await reserved(session, 1)
    await revoke(session, int(one.lease, 16))


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "here").rglob("*.json"))


# Names, from call to call


async def test_a_reservation_goes_on_from_call_to_call(agents: Agents, session: Session, tmp_path: Path) -> None:
    agent = agents("agent-7")
    made = await agent.json("reserve", "deploy", "db", "--for", "20s", "--note", "migrating")
    (one,) = made["reservations"]
    assert made["acquired"] and one["names"] == ["deploy", "db"] and not one["renewed"] and one["ttl"] == 20
    (info,) = await reserved(session, 1)
    assert (info.owner, info.note, info.token, info.ttl) == ("agent-7", "migrating", one["token"], 20)
    (file,) = files(tmp_path)
    assert file.parent == tmp_path / "here/codomyrmex/reservations" / session.settings.namespace / "agent-7"
    (renewed,) = await agent.json("renew", "db", "--for", "1h", "--note", "half done")
    assert renewed["state"] == "renewed" and 3590 < renewed["expires_in"] <= 3600
    assert (await reserved(session, 1))[0].note == "half done"
    (released,) = await agent.json("release", "--all")
    assert released["state"] == "released" and released["token"] == one["token"]
    assert await reserved(session, 0) == [] and files(tmp_path) == []
    assert await agent.json("release", "--all") == []
    again = await agent("release", "deploy")
    assert again.code == 1 and "keeps no reservation of 'deploy'" in again.err


async def test_what_an_agent_holds_already_is_renewed_and_only_the_rest_is_reserved(
    agents: Agents, session: Session
) -> None:
    agent = agents("agent-7")
    await agent.json("reserve", "a", "b", "--for", "1h")
    (same,) = (await agent.json("reserve", "a"))["reservations"]
    assert same["renewed"] and same["names"] == ["a", "b"] and same["expires_in"] > 3590  # never shortened
    words = await agent("reserve", "b")
    assert words.code == 0 and words.out.startswith("renewed, as held already: a, b, by agent-7 for 1h00m")
    old, new = (await agent.json("reserve", "b", "c", "--for", "2h"))["reservations"]
    assert old["renewed"] and old["ttl"] == 7200 and new["names"] == ["c"] and not new["renewed"]
    await reserved(session, 2)
    (reader,) = (await agent.json("reserve", "c", "--shared"))["reservations"]
    assert reader["renewed"] and not reader["shared"]
    other = await agents("agent-8")("reserve", "c", "--timeout", "0")
    assert other.code == 75


async def test_a_hold_that_was_renewed_for_longer_is_not_shortened_by_a_reserve(
    agents: Agents, session: Session
) -> None:
    agent = agents("agent-7")
    await agent.json("reserve", "x")
    await agent.json("renew", "x", "--for", "2h")
    old, _ = (await agent.json("reserve", "x", "y"))["reservations"]
    assert old["renewed"] and old["ttl"] == 7200 and old["expires_in"] > 7190
    assert sorted(one.ttl for one in await reserved(session, 2)) == [900, 7200]


async def test_parallel_calls_of_one_agent_share_one_reservation(
    agents: Agents, session: Session, tmp_path: Path
) -> None:
    agent = agents("agent-7")
    made = await asyncio.gather(*(agent("reserve", "a", "--timeout", "2s") for _ in range(4)))
    assert [one.code for one in made] == [0] * 4, made
    await reserved(session, 1)
    calls = [agent("renew", "--all"), agent("release", "a"), agent("release", "--all"), agent("renew", "a")]
    ended = await asyncio.gather(*calls)
    assert all(one.code in (0, 1, 76) and "Traceback" not in one.err for one in ended), ended
    assert await reserved(session, 0) == [] and files(tmp_path) == []


async def test_a_call_that_waited_in_vain_finds_what_a_parallel_one_has_reserved(
    agents: Agents, session: Session
) -> None:
    agent = agents("agent-7")
    async with LockManager(session).acquire("a"):
        first = asyncio.ensure_future(agent("reserve", "a", "--timeout", "20s"))
        await queue_of(session, "a", 2, 15)
        second = asyncio.ensure_future(agent("reserve", "a", "--timeout", "3s"))
        await queue_of(session, "a", 3, 15)
    assert (await first).out.startswith("reserved: a")
    assert (await second).out.startswith("renewed, as held already: a")
    await reserved(session, 1)


async def test_an_agent_that_waits_is_told_the_holder_and_its_own_position(agents: Agents, session: Session) -> None:
    await agents("agent-7")("reserve", "deploy", "--note", "migrating the schema")
    async with agents("agent-8", "elsewhere").cli.started("reserve", "deploy", "--timeout", "20s"):
        await queue_of(session, "deploy", 2)
        told = await agents("agent-9")("reserve", "deploy", "--timeout", "1500ms")
        busy = await agents("agent-9").json("reserve", "deploy", "--timeout", "0", code=75)
    assert told.code == 75 and told.out == ""
    first, refused, held, queued, following, _ = told.err.splitlines()
    assert first.startswith("waiting for deploy, number 2 in the queue; held by agent-7 (")
    assert refused == "not reserved: not granted within 1.5 s"
    assert held.startswith("held: deploy by agent-7 (") and held.endswith(" left, note: migrating the schema")
    assert queued == "place in the queue: 2; this call has left it"
    assert following == "next: codomyrmex concurrency reserve --timeout 15m deploy"
    later = await agents("agent-9").json(
        "reserve", "deploy", "--for", "20s", "--note", "a b", "--timeout", "0", code=75
    )
    assert later["next"][0] == "codomyrmex concurrency reserve --for 20s --note 'a b' --timeout 15m deploy"
    (holder,) = busy["held_by"]
    assert (holder["agent"], holder["note"], busy["position"]) == ("agent-7", "migrating the schema", 2)
    assert holder["since"] and 800 < holder["expires_in"] <= 900


async def test_a_holder_without_a_reservation_is_told_too(agents: Agents, session: Session) -> None:
    async with LockManager(session).acquire("deploy", metadata={"agent": "runner"}):
        told = await agents("agent-7")("reserve", "deploy", "--timeout", "0")
    assert told.code == 75 and "held: deploy by runner (" in told.err and ", until it releases" in told.err


async def test_a_reservation_whose_handle_is_elsewhere_is_said_to_be_the_agents_own(agents: Agents) -> None:
    await agents("agent-7", "one-host")("reserve", "deploy")
    told = await agents("agent-7", "another")("reserve", "deploy", "--timeout", "0")
    assert told.code == 75 and "agent-7 reserved deploy elsewhere, and its handle is not kept here" in told.err


# Loss


@pytest.mark.parametrize("word", ["renew", "release"])
async def test_a_lost_reservation_is_told_once_with_its_present_holder(
    agents: Agents, session: Session, tmp_path: Path, word: str
) -> None:
    agent = agents("agent-7")
    await agent("reserve", "deploy", "--note", "half done")
    await expire(session)
    taken = await agents("agent-8", "elsewhere")("reserve", "deploy")
    assert "left by agent-7, whose reservation expired: half done" in taken.out
    lost = await agent(word, "deploy")
    assert lost.code == 76 and lost.err.startswith("lost: deploy: "), lost
    assert "held: deploy by agent-8 (" in lost.err and "next: codomyrmex concurrency reserve deploy" in lost.err
    assert files(tmp_path) == []
    assert (await agent(word, "deploy")).code == 1


async def test_of_several_the_lost_one_is_told_and_the_others_are_renewed(agents: Agents, session: Session) -> None:
    agent = agents("agent-7")
    await agent("reserve", "a")
    await expire(session)
    await agent("reserve", "b")
    outcomes = await agent.json("renew", "--all", code=76)
    assert [(one["names"], one["state"]) for one in outcomes] == [(["a"], "lost"), (["b"], "renewed")]
    assert outcomes[0]["held_by"] == [] and outcomes[0]["reason"]


async def test_what_was_lost_is_reserved_again(agents: Agents, session: Session, tmp_path: Path) -> None:
    agent = agents("agent-7")
    await agent("reserve", "a", "--note", "interrupted")
    await expire(session)
    again = await agent("reserve", "a")
    assert again.code == 0 and again.out.startswith("reserved: a, by agent-7")
    assert "warning: the reservation of a was lost" in again.err and len(files(tmp_path)) == 1


# Handles


async def test_where_no_handle_can_be_kept_nothing_is_reserved(
    agents: Agents, session: Session, tmp_path: Path
) -> None:
    (tmp_path / "here").write_text("in the way")
    refused = await agents("agent-7")("reserve", "a")
    assert refused.code == 1 and "handles of reservations cannot be kept in" in refused.err
    await reserved(session, 0)


async def test_what_cannot_be_kept_is_released_again(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    store = HandleStore("fleet", "agent-7")
    store.open()
    reservation = await LockManager(session).reserve("a", ttl=60)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(ConcurrencyError, match=r"No space left.*released again"):
        await keep(store, reservation, Wanted(("a",), (), "default", False))
    await reserved(session, 0)


async def test_a_damaged_handle_stops_no_other(agents: Agents, session: Session, tmp_path: Path) -> None:
    agent = agents("agent-7")
    for name in ("a", "b"):
        await agent("reserve", name)
    whole = files(tmp_path)[0]
    whole.write_text(whole.read_text().replace('"handle": "cdx', '"handle": "cut'))
    (whole.parent / "foreign.json").write_text("{}")
    renewed = await agent("renew", "--all")
    assert renewed.code == 0 and renewed.out.count("renewed: ") == 1
    assert renewed.err.count("is left out") == 2 and "Traceback" not in renewed.err


# All reservations


async def test_all_reservations_are_listed_with_notes_and_time_left(agents: Agents) -> None:
    await agents("agent-7")("reserve", "a", "--note", "first", "--for", "2h")
    await agents("agent-8")("reserve", "b", "--shared")
    one, other = await agents("nobody").json("reservations")
    assert (one["owner"], one["names"], one["note"], other["owner"], other["shared"]) == (
        *("agent-7", ["a"], "first", "agent-8"),
        True,
    )
    assert not any("handle" in key for key in one)
    (mine,) = await agents("agent-8").json("reservations", "--mine")
    assert mine["owner"] == "agent-8"
    table = (await agents("agent-7")("reservations", "--as", "agent-7")).out.splitlines()
    assert len(table) == 2 and table[1].split()[:2] == ["agent-7", "a"] and "1h59m" in table[1]
    nothing = await agents("agent-9")("reservations", "--mine")
    assert nothing.code == 0 and "nothing is reserved by agent-9" in nothing.err


async def test_changes_are_followed_line_by_line(agents: Agents, session: Session) -> None:
    agent = agents("agent-7")
    async with agents("watcher").cli.started("reservations", "--watch", "-o", "json") as watching:
        await agent("reserve", "a")
        told = [json.loads(await line(watching))]
        await agent("renew", "a", "--note", "half done")
        told.append(json.loads(await line(watching)))
        await agent("release", "a")
        while told[-1]["kind"] != "ended":
            told.append(json.loads(await line(watching)))
    # Its time and its note may change between two readings.
    assert list(dict.fromkeys(one["kind"] for one in told)) == ["reserved", "renewed", "ended"]
    assert not [fault for one in told for fault in faults(one, event_schema("reservations"), schemas())]
    assert told[-1]["reservation"]["note"] == "half done"


async def test_the_note_of_a_release_is_shown_to_those_who_watch_the_locks(agents: Agents, session: Session) -> None:
    agent = agents("agent-7")
    async with agents("watcher").cli.started("locks", "--watch") as watching:
        await agent("reserve", "a", "--note", "begun")
        while "granted" not in await line(watching):
            pass
        await agent("release", "a", "--note", "done, tests pass")
        while "released" not in (told := await line(watching)):
            pass
    assert told.endswith("note: done, tests pass")


async def test_the_other_commands_print_what_is_described_too(agents: Agents, session: Session) -> None:
    agent = agents("agent-7")
    await agent("reserve", "b", "--path", "src/")
    await DeadLetterQueue(session=session).add(operation="send", args={"to": [1]}, error="no")
    async with LockManager(session).acquire("a"), Semaphore("gpu", max_concurrent=2, session=session):
        for call in ("locks", "locks show a", "semaphores", "semaphores show gpu", "dlq stats", "dlq list", "status"):
            assert await agent.json(*call.split())
        assert len(await agent.json("locks", "--stuck", "1s")) == 3
        for call, names in {
            "locks": {"a", "b", "default"},
            "locks --stuck 1s": {"a", "b", "default"},
            "reservations": {"b", "src/"},
            "semaphores": {"gpu"},
            "dlq stats": {"default"},
        }.items():
            listed = await agent(*call.split(), "-o", "name")
            assert listed.code == 0 and set(listed.out.split()) == names, (call, listed)
        assert await agent.json("pools") == [] and (await agent.json("capabilities"))["version"]


async def test_the_time_of_a_reservation_counts_from_its_grant(agents: Agents, session: Session) -> None:
    async with LockManager(session).acquire("a"):
        waiting = asyncio.create_task(agents("agent-7")("reserve", "a"))
        await queue_of(session, "a", 2)
        await asyncio.sleep(2)
    assert (await waiting).code == 0
    (one,) = await reserved(session, 1)
    assert one.since and one.granted_at and (one.granted_at - one.since).total_seconds() >= 2
    refused = await agents("agent-8").json("reserve", "a", "--timeout", "0", code=75)
    assert refused["held_by"][0]["since"] == one.granted_at.isoformat()


# Paths


async def test_paths_are_reserved_from_call_to_call(agents: Agents, session: Session) -> None:
    agent, other = agents("agent-7"), agents("agent-8", "elsewhere")
    made = await agent("reserve", "--path", "src/parser/", "--path", "doc/*.md", "--note", "renaming")
    assert made.code == 0 and "src/parser/, doc/ in the tree default" in made.out
    assert "note: 'doc/*.md' is taken as the directory 'doc/'" in made.err
    busy = await other("reserve", "--path", "./src//parser/a.py", "--timeout", "0")
    assert busy.code == 75
    assert "held: src/parser/, doc/ in the tree default by agent-7 (" in busy.err and "note: renaming" in busy.err
    assert "next: codomyrmex concurrency reserve --path src/parser/a.py --timeout 15m" in busy.err
    disjoint = [("--path", "src/main.py"), ("--path", "src/parser/a.py", "--tree", "another")]
    for paths in disjoint:
        assert (await other("reserve", *paths, "--timeout", "0")).code == 0
    await reserved(session, 3)
    for name in ("doc/", "src/main.py"):
        (renewed,) = await (agent if name == "doc/" else other).json("renew", name)
        assert renewed["state"] == "renewed" and renewed["tree"] == "default"
    assert (await agent("release", "src/parser/")).code == 0
    assert (await other("reserve", "--path", "src/parser/a.py", "--timeout", "0")).code == 0


async def test_an_agent_is_told_when_it_is_in_its_own_way(agents: Agents, session: Session) -> None:
    agent = agents("agent-7")
    await agent("reserve", "--path", "src/parser/")
    inside = await agent.json("reserve", "--path", "src/parser/a.py")
    assert inside["reservations"][0]["renewed"] and inside["reservations"][0]["paths"] == ["src/parser/"]
    wider = await agent("reserve", "--path", "src/")
    assert wider.code == 75 and "agent-7 holds src/parser/ in the tree default itself" in wider.err
    assert "next: codomyrmex concurrency release src/parser/" in wider.err
    await reserved(session, 1)


async def test_waiters_for_paths_are_counted_where_they_overlap(agents: Agents, session: Session) -> None:
    await agents("agent-1")("reserve", "--path", "src/")
    async with (
        agents("agent-2").cli.started("reserve", "--path", "src/a.py", "--timeout", "20s"),
        agents("agent-3").cli.started("reserve", "--path", "src/b.py", "--timeout", "20s"),
    ):
        manager = LockManager(session)
        await eventually(lambda: waiting(manager, 2))
        (one, several) = [
            await agents("agent-4").json("reserve", "--path", path, "--timeout", "0", code=75)
            for path in ("src/b.py", "src/")
        ]
    assert (one["position"], several["position"]) == (2, 3)


async def waiting(manager: LockManager, count: int) -> bool:
    info = await manager.info("default", kind="path")
    return info is not None and len(info.waiters) == count


async def test_two_agents_share_a_tree(agents: Agents, session: Session, tmp_path: Path) -> None:
    """The story of a reservation: reserved in one call, renewed in later ones, asked for, lost, and taken over."""
    first, second = agents("parser-agent", "one-host"), agents("test-agent", "another-host")
    assert (await first("reserve", "--path", "src/parser/", "--note", "renaming the parser")).code == 0
    for done in ("a.py", "b.py"):
        assert (await first("guard", "check", f"src/parser/{done}")).code == 0
        assert (await first("renew", "src/parser/", "--note", f"{done} is renamed")).code == 0
    told = await second.json("reserve", "--path", "src/parser/a.py", "--timeout", "0", code=75)
    (holder,) = told["held_by"]
    assert (holder["agent"], holder["note"], told["position"]) == ("parser-agent", "b.py is renamed", 1)
    assert told["next"][0] == "codomyrmex concurrency reserve --path src/parser/a.py --timeout 15m"
    assert (await second("guard", "check", "src/parser/a.py")).code == 77
    await expire(session)
    taken = await second("reserve", "--path", "src/parser/a.py")
    assert taken.code == 0 and "left by parser-agent, whose reservation expired: b.py is renamed" in taken.out
    assert (await first("guard", "check", "src/parser/a.py")).code == 77
    lost = await first("renew", "--all")
    assert lost.code == 76 and "held: src/parser/a.py in the tree default by test-agent" in lost.err
    assert (await second("release", "--all", "--note", "tested")).code == 0
    assert (await first("reserve", "--path", "src/parser/", "--timeout", "0")).code == 0
    assert (await first("release", "--all")).code == 0
    await reserved(session, 0)


# Usage


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("reserve",), "what to reserve"),
        (("reserve", "x", "--for", "9s"), "10 seconds"),
        (("reserve", "x", "--for", "25h"), "24 hours"),
        (("reserve", ""), "name"),
        (("reserve", "--path", "../x"), "'..'"),
        (("reserve", "--path", "/x"), "begins with a slash"),
        (("reserve", "x", "--note", "y" * 5000), "4096"),
        (("reserve", "x", "--as", " "), "--as must name an agent"),
        (("reserve", "x", "--endpoints", "embedded"), "start one with `dev`"),
        (("renew",), "--all"),
        (("release", "x", "--all"), "--all"),
        (("guard", "check"), "--staged"),
        (("guard", "check", "../x"), "'..'"),
    ],
)
async def test_a_wrong_use_is_told_before_etcd_is_asked(agents: Agents, args: tuple[str, ...], told: str) -> None:
    result = await agents("agent-7")(*args, CODOMYRMEX_ETCD_ENDPOINTS="http://127.0.0.1:1")
    assert result.code == 2 and told in result.err, result


async def test_more_names_than_fit_one_reservation_are_a_wrong_use(agents: Agents) -> None:
    result = await agents("agent-7")("reserve", *(f"name-{n}" for n in range(100)))
    assert result.code == 2 and "names fit one reservation" in result.err, result


async def test_where_etcd_is_away_it_is_said(agents: Agents, tmp_path: Path) -> None:
    await agents("agent-7")("reserve", "a")
    calls = [("reserve", "b"), ("renew", "a"), ("release", "--all"), ("reservations",), ("guard", "check", "x")]
    away = {"CODOMYRMEX_ETCD_ENDPOINTS": "http://127.0.0.1:1", "CODOMYRMEX_ETCD_DIAL_TIMEOUT": "0.5"}
    results = await asyncio.gather(*(agents("agent-7")(*call, **away) for call in calls))
    assert [one.code for one in results] == [69] * len(calls), results
    assert len(files(tmp_path)) == 1


async def test_the_agent_is_named_by_the_user_and_the_host_if_by_nothing_else(agents: Agents) -> None:
    agent = agents("")
    await agent.json("reserve", "a")
    info = (await agent.json("reservations"))[0]
    assert "@" in info["owner"] and info["owner"].endswith(os.uname().nodename)
    named = await agent.json("reserve", "b", "--as", "given")
    assert named["agent"] == "given" and named["next"][0] == "codomyrmex concurrency renew --as given b"
