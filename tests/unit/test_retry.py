"""The retry policy: it ends, grows, is spread, and refuses what makes no sense."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex.concurrency import RetryPolicy


def test_delays_grow_to_their_maximum() -> None:
    policy = RetryPolicy(initial=1, multiplier=2, maximum=5, jitter=0)
    assert [policy.delay(n) for n in (1, 2, 3, 4, 5000)] == [1, 2, 4, 5, 5]


@given(st.floats(0, 1), st.integers(1, 10_000), st.floats(1, 1e9))
def test_a_delay_stays_within_its_jitter(jitter: float, attempts: int, multiplier: float) -> None:
    delay = RetryPolicy(initial=2, maximum=60, multiplier=multiplier, jitter=jitter).delay(attempts)
    assert 2 * (1 - jitter) - 1e-9 <= delay <= 60 * (1 + jitter) + 1e-9


def test_what_is_tried_again() -> None:
    policy = RetryPolicy(max_attempts=3, retry_on=OSError, give_up_on=(FileNotFoundError,))  # type: ignore[arg-type]
    assert policy.again(OSError(), 1) and policy.again(TimeoutError(), 2)
    assert not policy.again(OSError(), 3)
    assert not policy.again(FileNotFoundError(), 1)
    assert not policy.again(ValueError(), 1)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"max_attempts": 0}, "retries must end"),
        ({"max_attempts": None}, "retries must end"),
        ({"max_attempts": float("inf")}, "retries must end"),
        ({"max_attempts": True}, "retries must end"),
        ({"initial": -1}, "initial must be"),
        ({"maximum": float("nan")}, "maximum must be"),
        ({"maximum": 0.5}, "must not be less than initial"),
        ({"multiplier": 0.5}, "multiplier must be at least 1"),
        ({"jitter": 2}, "jitter is a share"),
    ],
)
def test_what_cannot_be_meant_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RetryPolicy(**wrong)


def test_only_exception_types_are_taken() -> None:
    with pytest.raises(TypeError, match="exception types"):
        RetryPolicy(retry_on=(42,))  # type: ignore[arg-type]
