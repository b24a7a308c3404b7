"""Messages of ``sd_notify``: which of them report progress, and with which note."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex.concurrency.cli.notify import note_in
from codomyrmex.concurrency.waitqueue.progress import MAX_NOTE, check_note


@pytest.mark.parametrize(
    ("message", "note"),
    [
        (b"WATCHDOG=1", ""),
        (b"WATCHDOG=1\n", ""),
        (b"STATUS=half done", "half done"),
        (b"READY=1\nSTATUS=a=b\nMAINPID=7", "a=b"),
        (b"STATUS=one\nWATCHDOG=1\nSTATUS=two", "two"),
        (b"STATUS=", ""),
        (b"READY=1", None),
        (b"WATCHDOG=trigger", None),
        (b"XWATCHDOG=1", None),
        (b"", None),
        (b"STATUS=\xff", "\\xff"),
    ],
)
def test_a_message_reports_progress_or_not(message: bytes, note: str | None) -> None:
    assert note_in(message) == note


@given(st.binary(max_size=64), st.integers(0, 3000))
def test_any_note_can_be_stored(text: bytes, more: int) -> None:
    note = note_in(b"STATUS=" + text.replace(b"\n", b" ") + "é".encode() * more)
    assert note is not None and len(note.encode()) <= MAX_NOTE and check_note(note) == note
