"""Blocking pools whose items or functions end in odd ways: the caller is told, and the library's own loop lives on."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from codomyrmex.concurrency.sync import AsyncWorkerPool

LIMIT = 20  # seconds; what hangs fails by it


def within(call: Callable[[], Any]) -> Any:
    """Return the result of ``call``, or raise its error. A thread runs it, because it may hang."""
    answer: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue()

    def run() -> None:
        try:
            answer.put((call(), None))
        except BaseException as error:
            answer.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    value, error = answer.get(timeout=LIMIT)
    if error:
        raise error
    return value


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit, ValueError])
@pytest.mark.parametrize("way", ["map", "imap"])
def test_whatever_the_items_raise_reaches_the_caller(way: str, kind: type[BaseException]) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise kind

    def call() -> Any:
        with AsyncWorkerPool(1) as pool:
            return pool.map(abs, items()) if way == "map" else list(pool.imap(abs, items()))

    with pytest.raises(kind):
        within(call)
    with AsyncWorkerPool(1) as pool:
        assert within(lambda: pool.submit(abs, -1)).result == 1


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_an_async_function_that_exits_does_not_end_the_loop_under_others(kind: type[BaseException]) -> None:
    async def exits(_: int) -> None:
        raise kind

    with AsyncWorkerPool(1) as pool:
        results = within(lambda: pool.map(exits, [1, 2]))
        assert [(result.status, result.error_type) for result in results] == [("failed", kind.__name__)] * 2
        assert within(lambda: pool.submit(abs, -1)).result == 1


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_progress_function_that_exits_is_the_callers_matter(kind: type[BaseException]) -> None:
    def progress(done: int, total: int | None) -> None:
        raise kind

    with AsyncWorkerPool(1, progress=progress) as pool:
        with pytest.raises(kind):
            within(lambda: pool.map(abs, [1, 2]))
        assert within(lambda: pool.submit(abs, -1)).result == 1


def test_a_loop_is_left_although_its_items_never_come() -> None:
    """A thread that waits for the next item cannot be ended; what the items hold is given back once it is there."""
    go_on, given_back = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        try:
            yield 1
            go_on.wait(LIMIT)
            yield 2
        finally:
            given_back.set()

    def call() -> None:
        with AsyncWorkerPool(1) as pool:
            for _ in pool.imap(abs, items()):
                break

    within(call)
    assert not given_back.is_set()
    go_on.set()
    assert given_back.wait(LIMIT)
