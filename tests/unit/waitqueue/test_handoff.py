"""Which batons may be written and removed when."""

from __future__ import annotations

from codomyrmex.concurrency.waitqueue.handoff import Batons


def test_a_baton_is_stale_a_second_after_it_was_written_and_then_no_more_known() -> None:
    batons = Batons()
    assert batons.take(b"a") and not batons.take(b"a")
    batons.written(b"a", 10.0)
    assert batons.stale(10.9) == [] and batons.stale(11.0) == [b"a"]
    batons.gone(b"a")
    assert not batons


def test_what_is_being_removed_is_not_written_and_what_is_being_written_not_removed() -> None:
    batons = Batons()
    assert batons.take(b"a")
    assert batons.stale(1e9) == []
    batons.written(b"a", 10.0)
    assert batons.take(b"a")
    batons.written(b"a", 12.0)
    assert batons.stale(12.5) == []
    assert batons.stale(13.0) == [b"a"] and batons.stale(13.0) == []
    assert not batons.take(b"a")
    batons.gone(b"a")
    assert batons.take(b"a")
