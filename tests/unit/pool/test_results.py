"""A result that the pool makes is the same as one that its constructor makes."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from codomyrmex.concurrency import TaskResult
from codomyrmex.concurrency.pool.results import succeeded


def test_a_result_of_the_pool_is_like_one_of_the_constructor() -> None:
    made: TaskResult = succeeded("pool-1", [7], 1.5, 2, 0.5)
    expected = TaskResult(task_id="pool-1", success=True, result=[7], elapsed_ms=1.5, attempts=2, wait_ms=0.5)
    assert type(made) is TaskResult and made == expected and repr(made) == repr(expected)
    assert made.unwrap() == [7]
    assert dataclasses.replace(made, task_id="x") == dataclasses.replace(expected, task_id="x")
    assert pickle.loads(pickle.dumps(made)) == made


def test_a_result_of_the_pool_cannot_be_changed() -> None:
    made = succeeded("pool-1", 7, 1.5, 1, 0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.result = 8  # type: ignore[misc]
