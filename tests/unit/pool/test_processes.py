"""``executor="process"``: what dies, or cannot pass between processes, costs its own task alone."""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from codomyrmex.concurrency import AsyncWorkerPool, RetryPolicy, TaskResult
from tests.helpers import eventually
from tests.unit.pool.test_worker_pool import balanced

LIMIT = 40  # seconds; what hangs fails by it


class TwoArguments(Exception):
    """Can be pickled, and not unpickled: the classic."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class NoReduce(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("cannot be reduced")


class Imposter(Exception):
    def __reduce__(self) -> Any:
        return str, ("no exception at all",)


class Exits(Exception):
    """Ends whoever unpickles it."""

    def __reduce__(self) -> Any:
        return exit, (3,)


class OnlyHere:
    """Cannot be unpickled in another process than the one that made it."""

    def __init__(self, pid: int) -> None:
        if pid != os.getpid():
            raise LookupError(f"this is not process {pid}")
        self.pid = pid

    def __reduce__(self) -> Any:
        return OnlyHere, (self.pid,)


def odd(what: str) -> Any:
    match what:
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exits at once":
            os._exit(0)
        case "crash":
            ctypes.string_at(0)
        case "SystemExit":
            raise SystemExit(3)
        case "KeyboardInterrupt":
            raise KeyboardInterrupt
        case "GeneratorExit":
            raise GeneratorExit
        case "StopIteration":
            raise StopIteration
        case "cannot be unpickled":
            raise TwoArguments(1, 2)
        case "cannot be pickled":
            raise NoReduce("told in words")
        case "no exception":
            raise Imposter("told in words")
        case "exits in the parent":
            raise Exits("told in words")
        case "result cannot be pickled":
            return lambda: None
        case "result cannot be unpickled":
            return OnlyHere(os.getpid())
    return what


CASES = {
    "killed": ("BrokenProcessPool", "ended abruptly"),
    "exits at once": ("BrokenProcessPool", "ended abruptly"),
    "crash": ("BrokenProcessPool", "ended abruptly"),
    "SystemExit": ("SystemExit", "3"),
    "KeyboardInterrupt": ("KeyboardInterrupt", "KeyboardInterrupt"),
    "GeneratorExit": ("GeneratorExit", "GeneratorExit"),
    "StopIteration": ("RuntimeError", "odd raised StopIteration"),
    "cannot be unpickled": ("RuntimeError", "TwoArguments: 1 and 2"),
    "cannot be pickled": ("RuntimeError", "NoReduce: told in words"),
    "no exception": ("RuntimeError", "Imposter: told in words"),
    "exits in the parent": ("RuntimeError", "Exits: told in words"),
    "result cannot be pickled": ("PicklingError", "result of tests.unit.pool.test_processes.odd cannot be pickled"),
    "result cannot be unpickled": ("UnpicklingError", "cannot be unpickled: LookupError: this is not process"),
}


async def test_a_process_that_ends_badly_costs_its_own_task_alone() -> None:
    tasks = [task for what in CASES for task in ("fine", what, "well")]
    async with AsyncWorkerPool(2, executor="process") as pool, asyncio.timeout(LIMIT):
        results: list[TaskResult] = await pool.map(odd, tasks)
        for what, result in zip(tasks, results, strict=True):
            if what not in CASES:
                assert result.unwrap() == what
                continue
            kind, text = CASES[what]
            assert (result.status, result.error_type) == ("failed", kind), result
            assert text in result.error
        assert balanced(pool.stats()) and pool.stats().failed == len(CASES)


async def test_the_traceback_of_another_process_is_told() -> None:
    async with AsyncWorkerPool(1, executor="process") as pool, asyncio.timeout(LIMIT):
        plain, lost = await pool.map(odd, ["SystemExit", "cannot be unpickled"])
    assert "raise SystemExit(3)" in plain.traceback and "raise TwoArguments(1, 2)" in lost.traceback


async def test_arguments_that_cannot_pass_fail_and_harm_nobody() -> None:
    async with AsyncWorkerPool(1, executor="process") as pool, asyncio.timeout(LIMIT):
        unpacked, packed, well = await pool.map(odd, [OnlyHere(os.getpid()), lambda: None, "well"])
    assert unpacked.error_type == "UnpicklingError" and "this is not process" in unpacked.error
    assert packed.error_type == "PicklingError" and "arguments of" in packed.error and well.result == "well"


def slow(folder: str, number: int) -> int:
    Path(folder, f"began-{number}").write_text(str(os.getpid()))
    while not Path(folder, "go").exists():
        time.sleep(0.01)
    return number


async def began(folder: Path, *numbers: int) -> list[int]:
    async def all_have() -> bool:
        return all((folder / f"began-{n}").exists() and (folder / f"began-{n}").read_text() for n in numbers)

    await eventually(all_have, LIMIT)
    return [int((folder / f"began-{n}").read_text()) for n in numbers]


async def test_what_runs_beside_a_killed_process_runs_on(tmp_path: Path) -> None:
    async with AsyncWorkerPool(2, executor="process") as pool, asyncio.timeout(LIMIT):
        running = [asyncio.create_task(pool.submit(slow, str(tmp_path), number)) for number in range(3)]
        first, _ = await began(tmp_path, 0, 1)
        os.kill(first, signal.SIGKILL)
        (tmp_path / "go").touch()
        killed, beside, queued = await asyncio.gather(*running)
    assert killed.status == "failed" and "may have run in part" in killed.error
    assert beside.unwrap() == 1 and queued.unwrap() == 2


async def test_a_killed_task_is_tried_again_if_the_policy_says_so(tmp_path: Path) -> None:
    policy = RetryPolicy(max_attempts=2, initial=0)
    async with AsyncWorkerPool(1, executor="process", retry=policy) as pool, asyncio.timeout(LIMIT):
        running = asyncio.create_task(pool.submit(slow, str(tmp_path), 1))
        (child,) = await began(tmp_path, 1)
        os.kill(child, signal.SIGKILL)
        (tmp_path / "go").touch()
        result = await running
    assert result.unwrap() == 1 and result.attempts == 2


def whose(_: int) -> int:
    return os.getpid()


async def test_processes_are_used_again_and_one_that_died_idle_is_replaced() -> None:
    async with AsyncWorkerPool(1, executor="process") as pool, asyncio.timeout(LIMIT):
        first, same = await pool.map(whose, range(2))
        assert first.unwrap() == same.unwrap()
        (child,) = [process for process in multiprocessing.active_children() if process.pid == first.result]
        child.kill()
        child.join()
        other = await pool.submit(whose, 1)
        if not other.success:  # nobody had noticed yet, so it is not certain that it did not begin
            assert "ended abruptly" in other.error
            other = await pool.submit(whose, 1)
        assert other.unwrap() != first.unwrap()


async def test_every_process_ends_with_its_pool() -> None:
    before = {process.pid for process in multiprocessing.active_children()}
    async with AsyncWorkerPool(2, executor="process") as pool:
        results = await pool.map(whose, range(4))
        await pool.map(odd, ["killed", "well"])
    assert all(result.success for result in results)

    async def gone() -> bool:
        return {process.pid for process in multiprocessing.active_children()} <= before

    await eventually(gone, LIMIT)


@pytest.mark.parametrize("value", [ValueError("a value, not raised"), pickle.PicklingError("likewise"), None])
async def test_an_exception_that_is_returned_is_a_result(value: Any) -> None:
    async with AsyncWorkerPool(1, executor="process") as pool, asyncio.timeout(LIMIT):
        result = await pool.submit(odd, value)
    assert result.success and repr(result.result) == repr(value)


def test_a_program_that_forgets_its_pool_ends(tmp_path: Path) -> None:
    code = (
        "import asyncio\n"
        "from codomyrmex.concurrency import AsyncWorkerPool\n"
        "pool = AsyncWorkerPool(2, executor='process')\n"
        "if __name__ == '__main__': print([r.result for r in asyncio.run(pool.map(abs, [-1, -2]))])\n"
    )
    (tmp_path / "program.py").write_text(code)
    command = [sys.executable, str(tmp_path / "program.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT)
    assert done.stdout == "[1, 2]\n" and not done.stderr and done.returncode == 0


def writes_late(path: str, seconds: float) -> None:
    Path(path).with_suffix(".began").touch()
    time.sleep(seconds)
    Path(path).touch()


def answers() -> int:
    """A function of this module, so that a process that has run it has imported the module."""
    return 3


async def runs(pool: AsyncWorkerPool) -> None:
    """Wait until a process of the pool has answered; to start one may take longer than a task's time."""
    while not (result := await pool.submit(answers)).success:
        assert result.status == "timeout"
    assert result.result == 3


async def test_the_process_of_a_task_that_timed_out_is_ended_and_its_place_free(tmp_path: Path) -> None:
    late = tmp_path / "late"
    async with AsyncWorkerPool(1, executor="process", task_timeout=2) as pool, asyncio.timeout(LIMIT):
        await runs(pool)
        assert (await pool.submit(writes_late, str(late), 3.5)).status == "timeout"
        await runs(pool)
        await asyncio.sleep(2)
    assert late.with_suffix(".began").exists() and not late.exists()


async def test_the_process_of_a_task_that_was_cancelled_is_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    late = tmp_path / "late"
    pool = AsyncWorkerPool(1, executor="process")
    task = asyncio.create_task(pool.submit(writes_late, str(late), 1.5))
    await eventually(late.with_suffix(".began").exists, LIMIT)
    task.cancel()
    await asyncio.wait({task})
    await pool.shutdown(drain=False)
    assert not caplog.records  # no thread goes on
    await asyncio.sleep(2)
    assert not late.exists()
