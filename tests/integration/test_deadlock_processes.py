"""Deadlocks of real processes: one victim, which is named, and the others go on."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from codomyrmex.concurrency import (
    EmbeddedEtcd,
    LockManager,
    Session,
    Waits,
)
from codomyrmex.concurrency.waitqueue.waits import victim
from tests.helpers import eventually
from tests.integration.test_deadlocks import waiters


@asynccontextmanager
async def ring(
    etcd: EmbeddedEtcd, namespace: str, things: list[str], options: list[str]
) -> AsyncIterator[list[Process]]:
    """Processes p1, p2, …: each holds a thing, and waits for that of the next one once it reads a line."""
    processes: list[Process] = []
    try:
        for number, thing in enumerate(things):
            mine = [f"p{number + 1}", thing, things[(number + 1) % len(things)], options[number]]
            command = [sys.executable, "-W", "error", "-m", "tests.integration.requester"]
            processes.append(
                await asyncio.create_subprocess_exec(
                    *command, etcd.endpoint, namespace, *mine, stdin=PIPE, stdout=PIPE, stderr=PIPE
                )
            )
        for process in processes:
            assert (await said(process))["event"] == "holding"
        yield processes
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.communicate()


async def said(process: Process) -> dict[str, Any]:
    assert process.stdout and process.stderr
    line = await asyncio.wait_for(process.stdout.readline(), 20)
    if not line:
        raise AssertionError((await process.stderr.read()).decode())
    found: dict[str, Any] = json.loads(line)
    return found


RINGS = (
    ["lock:a", "lock:b"],
    ["reservation:a", "reservation:b", "reservation:c"],
    ["readers:a", "paths:b", "semaphore:c"],
    ["lock:a", "semaphore:b", "semaphore:c", "paths:d"],
    ["paths:a", "reservation:b", "paths:c", "readers:d", "lock:e"],
    ["lock:a", "readers:b", "paths:c", "semaphore:d", "reservation:e", "lock:f"],
)


@pytest.mark.parametrize("things", RINGS, ids=[f"{len(things)}-{things[0]}" for things in RINGS])
async def test_processes_that_close_a_cycle_have_one_victim_who_is_named(
    things: list[str], etcd: EmbeddedEtcd, namespace: str, session: Session
) -> None:
    async with ring(etcd, namespace, things, ["fail"] * len(things)) as processes:
        for process in processes:
            wait(process)
        await check_the_victim(processes, session)


async def test_an_old_wait_is_the_victim_if_only_it_is_to_fail(
    etcd: EmbeddedEtcd, namespace: str, session: Session
) -> None:
    async with ring(etcd, namespace, ["lock:a", "lock:b", "lock:c"], ["fail", "report", "report"]) as processes:
        for number, process in enumerate(processes):
            await eventually(lambda number=number: waiters(session, number))
            await asyncio.sleep(0.6)  # so that they do not all look at one time
            wait(process)
        await check_the_victim(processes, session, "p1")


async def check_the_victim(processes: list[Process], session: Session, expected: str = "") -> None:
    """One process gives up soon and names the cycle: the ``expected`` one, or the youngest. The others are granted."""
    (cycle,) = (await eventually(lambda: _closed(LockManager(session)), 10)).cycles
    closed = time.monotonic()
    chosen = next(edge.waiter.label for edge in cycle if edge.token == victim(cycle))
    name = chosen.split(" ")[0]
    assert name == (expected or max(cycle, key=lambda edge: edge.token).waiter.label.split(" ")[0])
    outcomes = await asyncio.gather(*map(said, processes))
    print(f"{len(processes)} processes: over {time.monotonic() - closed:.2f} s after the cycle was closed")
    assert time.monotonic() - closed < 10  # 3 s, on a machine that is not busy
    assert [await asyncio.wait_for(process.wait(), 20) for process in processes] == [0] * len(processes)
    names = [f"p{number + 1}" for number in range(len(processes))]
    labels = [edge.waiter.label for edge in cycle]
    assert sorted(label.split(" ")[0] for label in labels) == names
    ((failed, told),) = [one for one in zip(names, outcomes, strict=True) if one[1]["event"] == "deadlock"]
    assert failed == name and told["cycle"] == labels and f"{chosen} waits for" in told["text"]
    assert sum(one["event"] == "granted" for one in outcomes) == len(processes) - 1


def wait(process: Process) -> None:
    """Have a process begin to wait."""
    assert process.stdin
    process.stdin.write(b"\n")


async def _closed(manager: LockManager) -> Waits | None:
    found = await manager.waits()
    return found if found.cycles else None
