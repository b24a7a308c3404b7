"""The one table of what a failed call means."""

from __future__ import annotations

import pytest

from codomyrmex.concurrency import EtcdAuthError, EtcdError, EtcdQuotaExceeded, EtcdUnavailable
from codomyrmex.concurrency.etcd.status import to_error, token_expired, unavailable


@pytest.mark.parametrize(
    ("code", "details", "error", "applied", "retryable"),
    [
        ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded", EtcdQuotaExceeded, "unknown", False),
        ("UNAVAILABLE", "failed to connect to all addresses; last error: refused", EtcdUnavailable, "no", True),
        ("UNAVAILABLE", "Socket closed", EtcdUnavailable, "unknown", True),
        ("UNAVAILABLE", "etcdserver: request timed out", EtcdUnavailable, "unknown", True),
        ("UNAVAILABLE", "etcdserver: no leader", EtcdUnavailable, "no", True),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", EtcdUnavailable, "unknown", True),
        ("UNAUTHENTICATED", "etcdserver: invalid auth token", EtcdAuthError, "no", True),
        ("PERMISSION_DENIED", "etcdserver: permission denied", EtcdAuthError, "no", False),
        ("INVALID_ARGUMENT", "etcdserver: duplicate key given in txn request", EtcdError, "no", False),
    ],
)
def test_a_failure_says_whether_it_was_applied(
    code: str, details: str, error: type[EtcdError], applied: str, retryable: bool
) -> None:
    found = to_error(code, details, "http://here:2379")
    assert type(found) is error
    assert (found.applied, found.retryable) == (applied, retryable)


def test_only_a_stale_token_asks_for_a_new_one() -> None:
    assert token_expired("etcdserver: invalid auth token")
    assert not token_expired("etcdserver: permission denied")


def test_the_last_word_names_the_endpoints_and_the_next_step() -> None:
    text = str(unavailable(("http://a:1", "http://b:2"), 5, None))
    assert "http://a:1, http://b:2" in text and "CODOMYRMEX_ETCD_ENDPOINTS" in text and "5 s" in text
