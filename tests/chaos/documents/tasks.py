"""What the workload's pools are given: functions that a child process can find by name."""

from __future__ import annotations

import asyncio
import os
import signal
import time

POOL_QUEUES = ("pool", "pool.eu")


def fails(task: str) -> None:
    raise ValueError(f"{task} cannot be done")


async def fails_soon(task: str) -> None:
    await asyncio.sleep(0.01)
    raise ValueError(f"{task} cannot be done")


def succeeds(task: str) -> str:
    time.sleep(0.005)
    return task


async def succeeds_soon(task: str) -> str:
    await asyncio.sleep(0.005)
    return task


def kills_its_process(task: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stops(task: str) -> None:
    raise StopIteration(task)


TASKS = (fails, fails_soon, kills_its_process, stops)
