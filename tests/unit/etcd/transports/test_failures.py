"""The failure table."""

from __future__ import annotations

import pytest

from codomyrmex.concurrency import EtcdAuthError, EtcdError, EtcdQuotaExceeded, EtcdUnavailable
from codomyrmex.concurrency.etcd.transports.failures import to_error, token_expired, unavailable


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
        ("INVALID_ARGUMENT", "etcdserver: revision of auth store is old", EtcdUnavailable, "no", True),
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
    assert token_expired("etcdserver: revision of auth store is old"), "a token may know that revision"
    assert not token_expired("etcdserver: permission denied")


def test_the_last_word_names_the_endpoints_and_the_next_step() -> None:
    text = str(unavailable(("http://a:1", "http://b:2"), 5, None))
    assert "http://a:1, http://b:2" in text and "CODOMYRMEX_ETCD_ENDPOINTS" in text and "5 s" in text


@pytest.mark.parametrize(
    ("code", "details", "endpoint", "hint"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses; Handshake read failed", "https://a:1", "http://a:1"),
        ("UNAVAILABLE", "failed to connect to all addresses: ssl:default [None]", "https://a:1", "http://a:1"),
        ("UNAVAILABLE", "Ssl handshake failed: WRONG_VERSION_NUMBER", "https://a:1", "http://a:1"),
        ("UNAVAILABLE", "failed to connect to all addresses; Socket closed", "http://a:1", "https://a:1"),
        ("FAILED_PRECONDITION", "etcdserver: authentication is not enabled", "http://a:1", "unset CODOMYRMEX"),
        ("INVALID_ARGUMENT", "etcdserver: user name is empty", "http://a:1", "set CODOMYRMEX_ETCD_USERNAME"),
    ],
)
def test_what_may_be_wrong_is_hinted_at(code: str, details: str, endpoint: str, hint: str) -> None:
    assert hint in str(to_error(code, details, endpoint)).replace(f"etcd at {endpoint}", "")


@pytest.mark.parametrize(
    ("details", "endpoint"),
    [("Socket closed", "http://a:1"), ("failed to connect to all addresses; Connection refused", "https://a:1")],
)
def test_no_hint_is_given_where_nothing_points_to_it(details: str, endpoint: str) -> None:
    assert "TLS" not in str(to_error("UNAVAILABLE", details, endpoint))
