"""The writing and the removal of release markers: one step at a time for each key."""

from __future__ import annotations

from codomyrmex.concurrency.waitqueue.handoff import ReleaseMarkers


def test_a_release_marker_expires_a_second_after_it_was_written_and_is_then_forgotten() -> None:
    markers = ReleaseMarkers()
    assert markers.begin(b"a") and not markers.begin(b"a")
    markers.written(b"a", 10.0)
    assert markers.expired(10.9) == [] and markers.expired(11.0) == [b"a"]
    markers.removed(b"a")
    assert not markers


def test_what_is_being_removed_is_not_written_and_what_is_being_written_not_removed() -> None:
    markers = ReleaseMarkers()
    assert markers.begin(b"a")
    assert markers.expired(1e9) == []
    markers.written(b"a", 10.0)
    assert markers.begin(b"a")
    markers.written(b"a", 12.0)
    assert markers.expired(12.5) == []
    assert markers.expired(13.0) == [b"a"] and markers.expired(13.0) == []
    assert not markers.begin(b"a")
    markers.removed(b"a")
    assert markers.begin(b"a")
