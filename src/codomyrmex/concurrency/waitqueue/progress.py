"""A holder's reports of progress: its own entry is put again, with a number that rises and with a note.

The create revision stays, and so does the token. The number tells onlookers of progress; a holder that records its
wait puts the entry again too, but without a higher number. Progress writes every field that a holder adds, so it may
replace any earlier value. The record of a wait (``record_wait.py``) gives way to it.
"""

from __future__ import annotations

import json

from codomyrmex.concurrency import decode

MAX_NOTE = 4096  # bytes in UTF-8


class Progress:
    """The number of reports of one hold, and the note of the last one that had a note."""

    __slots__ = ("note", "number")

    def __init__(self) -> None:
        self.number = 0
        self.note = ""

    def report(self, note: str) -> None:
        """Count one report more."""
        self.number += 1
        self.note = note or self.note

    def record(self, value: bytes, waited: float) -> bytes:
        """An entry's value, a JSON object, with the seconds that it waited and with its progress."""
        added = json.dumps({"waited": round(waited, 3), "progress": self.number, "note": self.note})
        return f"{value[:-1].decode()},{added[1:]}".encode()


def check_note(note: object) -> str:
    """``note`` if it can be one; raises ``TypeError`` or ``ValueError``."""
    if not isinstance(note, str):
        raise TypeError(f"note must be a str, not {type(note).__name__}")
    if not decode.is_plain(note):
        raise ValueError("note must be text without lone surrogates; encode it with errors='backslashreplace'")
    if (size := len(note.encode())) > MAX_NOTE:
        raise ValueError(f"note may have {MAX_NOTE} bytes in UTF-8; this has {size}: shorten it")
    return note
