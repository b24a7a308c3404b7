"""Errors that several callers raise."""

from __future__ import annotations

import traceback

import pytest

import codomyrmex.concurrency as public
from codomyrmex.concurrency.errors import ConcurrencyError, EtcdUnavailable, SessionLost, fresh

NAMED = [getattr(public, name) for name in public.__all__]
ERRORS = [one for one in NAMED if isinstance(one, type) and issubclass(one, ConcurrencyError)]


@pytest.mark.parametrize("kind", ERRORS)
def test_a_fresh_error_says_the_same(kind: type[Exception]) -> None:
    error = kind("the reason")
    again = fresh(error)
    assert type(again) is kind and again is not error and str(again) == "the reason"


def test_a_fresh_error_keeps_its_facts_and_its_cause() -> None:
    error = EtcdUnavailable("away", applied="unknown", retryable=True)
    error.__cause__ = ValueError("why")
    again = fresh(error)
    assert again.applied == "unknown" and again.retryable and again.__cause__ is error.__cause__


def test_errors_that_many_raise_do_not_collect_their_tracebacks() -> None:
    reason = SessionLost("the end")
    for _ in range(100):
        with pytest.raises(SessionLost) as raised:
            raise fresh(reason)
    assert len(traceback.extract_tb(raised.tb)) == 1 and reason.__traceback__ is None
