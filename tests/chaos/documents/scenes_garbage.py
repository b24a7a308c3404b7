"""Scenario 13: garbage of all kinds under the prefix, and everything that reads it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from codomyrmex.concurrency import DeadLetterQueue, LockManager, Semaphore
from tests.chaos.documents.rig import NAMESPACE, Rig
from tests.chaos.documents.scenes_watches import nothing

DIGITS = "9" * 5000
RECORD: dict[str, Any] = {
    "id": "066129bcb7256316486097f4",
    "operation": "work",
    "args": {},
    "error": "e",
    "created_at": "2026-11-26T08:29:07.936646Z",
    "state": "waiting",
    "attempts": [],
    "attempt_count": 0,
    "crash_count": 0,
    "next_attempt_at": "2026-11-26T08:29:07.937076Z",
    "delay": 0.0,
    "reason": "",
    "dedup": "",
}
VALUES: list[bytes] = [
    b"",
    b"\xff\xfe",
    b"null",
    b"[]",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    DIGITS.encode(),
    b'{"host": "h", "pid": ' + DIGITS.encode() + b', "task": "t", "since": 1}',
    b'{"host": "h", "pid": 1, "task": "t", "since": Infinity}',
    b'{"host": "h", "pid": 1, "task": "t", "since": NaN}',
    b'{"host": "h", "pid": 1, "task": "t", "since": 1e400}',
    b'{"host": "h", "pid": 1, "task": "t", "since": -1e300}',
    b'{"host": "h", "pid": 1, "task": "t", "since": ' + DIGITS.encode() + b"}",
    b'{"host": "h", "pid": 1, "task": "t", "since": 1, "metadata": ' + b'{"a":' * 3000 + b"1" + b"}" * 3000 + b"}",
    b'{"host": "\\ud800", "pid": true, "task": null, "since": "now", "metadata": []}',
]


def strange_records() -> list[bytes]:
    """Records of dead letters, each with one field that is not as it should be."""
    changes: list[dict[str, Any]] = [
        {"created_at": "2026-11-26T08:29:07"},
        {"next_attempt_at": "2026-11-26T08:29:07"},
        {"created_at": "0001-01-01T00:00:00+23:59"},
        {"next_attempt_at": "9999-12-31T23:59:59-23:59"},
        {"delay": float("inf")},
        {"delay": float("nan")},
        {"delay": -1e308},
        {"attempt_count": -5, "crash_count": 10**300},
        {"next_attempt_at": None},
        {"state": "running", "next_attempt_at": None},
        {
            "attempts": [
                {"number": 1, "host": "h", "pid": 1, "time": "2026-11-26T08:29:07", "outcome": "failed", "error": ""}
            ]
        },
        {"state": "nonsense"},
        {"id": "../../x"},
        {"args": {"x": "\ud800"}},
        {"created_at": 1e18},
    ]
    records = [json.dumps({**RECORD, **change}).encode() for change in changes]
    deep = b'{"a":' * 3000 + b"1" + b"}" * 3000
    records.append(json.dumps(RECORD).encode().replace(b'"args": {}', b'"args": ' + deep))
    records.append(json.dumps(RECORD).encode().replace(b'"attempt_count": 0', b'"attempt_count": ' + DIGITS.encode()))
    return records


def strew(rig: Rig, lease: int) -> None:
    """Put garbage under each kind of key that SPEC names, with a lease and without."""
    root = f"/{NAMESPACE}/v1"
    places = [
        "lock/door",
        "semaphore/gate",
        "pool/p",
        "lease",
        "audit",
        "baton/lock/door",
        "lock",
        "nonsense",
        "dead/work",
    ]
    for number, value in enumerate(VALUES):
        for place in places:
            for leased in (0, lease):
                rig.gateway.put(f"{root}/{place}/{lease + number:016x}-{int(bool(leased))}", value, leased)
        for kind in ("entry", "claim", "dedup"):
            rig.gateway.put(f"{root}/dead/work/{kind}/{number:024x}", value)
    for number, value in enumerate(strange_records()):
        own = f"{number + 1000:024x}"
        rig.gateway.put(f"{root}/dead/work/entry/{own}", value.replace(RECORD["id"].encode(), own.encode()))
    for key in (f"semaphore/gate/limit-{DIGITS}", "semaphore/gate/limit-x", f"semaphore/{DIGITS[:600]}/limit-1"):
        rig.gateway.put(f"{root}/{key}")
    for permits in (DIGITS, "0", "-1", "x", "1e9", "\u0663"):
        rig.gateway.put(f"{root}/semaphore/gate/{lease:016x}-{permits[:3]}.{permits}", b"{}", lease)
    rig.gateway.put(f"{root}/lock/%zz/x", b"", lease)
    rig.gateway.put(f"{root}/lock//x", b"", lease)


async def command(rig: Rig, *arguments: str) -> None:
    """A command of the command line; how it ended is judged as that of any process."""
    process = await rig.command(*arguments)
    said = await rig.does.within(15, " ".join(arguments), process.communicate())
    if said is None:
        process.kill()
        await process.wait()
    elif process.returncode:
        rig.does.say("exit", of=" ".join(arguments), code=process.returncode, stderr=said[1].decode(errors="replace"))


async def garbage(rig: Rig) -> None:
    """A worker, followers and waiters live on while garbage comes, and every view reads what there is."""
    session, other = await rig.session(request_timeout=5.0), await rig.session(request_timeout=5.0)
    queue, adder = DeadLetterQueue("work", session=session), DeadLetterQueue("work", session=other)
    manager = LockManager(session)
    rig.does.handle(queue, fine=nothing)
    following = asyncio.create_task(rig.does.believe_locks(manager, {}))
    async with queue.worker():
        await rig.does.add(adder, "fine")
        await Semaphore("gate", max_concurrent=3, session=other).available()
        lease = int(rig.gateway.call("lease/grant", TTL="120")["ID"])
        await asyncio.to_thread(strew, rig, lease)
        for _ in range(5):
            await rig.does.add(adder, "fine")
        seen = {
            "LockManager.info": manager.info("door"),
            "LockManager.locks": manager.locks(),
            "Semaphore.info": Semaphore("gate", max_concurrent=3, session=other).info(),
            "DeadLetterQueue.list_entries": queue.list_entries(),
            "DeadLetterQueue.count": queue.count(),
        }
        for what, looking in seen.items():
            await rig.does.within(6, f"{what} of garbage", looking)
        for arguments in (
            ("semaphores",),
            ("semaphores", "-o", "json"),
            ("locks", "-o", "wide"),
            ("locks", "-o", "json"),
            ("locks", "show", "door"),
            ("pools",),
            ("dlq", "stats"),
            ("dlq", "list", "--queue", "work", "-o", "wide"),
            ("dlq", "list", "--queue", "work", "-o", "json"),
        ):
            await command(rig, *arguments)
        await asyncio.sleep(1)
        if following.done():
            rig.does.raised("LockManager.watch", following.exception() or RuntimeError("ended"))
        await rig.mark()
        following.cancel()
        await asyncio.wait([following])


SCENES = {"13-garbage": garbage}
