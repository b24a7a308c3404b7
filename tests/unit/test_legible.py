"""Text by others, as it is shown: nothing in it is hidden, and visible characters stay as they are."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex.concurrency import InvalidName, LockTimeout
from codomyrmex.concurrency.legible import is_hidden, legible

HIDDEN = {
    "zero width space": "\u200b",
    "zero width joiner": "\u200d",
    "word joiner": "\u2060",
    "byte order mark": "\ufeff",
    "soft hyphen": "\u00ad",
    "right to left override": "\u202e",
    "isolate": "\u2066",
    "arabic letter mark": "\u061c",
    "tag": "\U000e0041",
    "variation selector": "\ufe0f",
    "variation selector 17": "\U000e0100",
    "mongolian variation selector": "\u180b",
    "grapheme joiner": "\u034f",
    "hangul filler": "\u3164",
    "braille blank": "\u2800",
    "no-break space": "\u00a0",
    "unassigned": "\u0378",
    "noncharacter": "\uffff",
    "private": "\ue000",
    "escape": "\x1b",
    "lone surrogate": "\ud800",
}


@pytest.mark.parametrize("char", HIDDEN.values(), ids=HIDDEN)
def test_what_cannot_be_seen_is_shown_as_an_escape(char: str) -> None:
    shown = legible(f"a{char}b")
    assert shown == "a" + char.encode("unicode_escape").decode() + "b"


@pytest.mark.parametrize("char", HIDDEN.values(), ids=HIDDEN)
def test_no_error_of_ours_hides_anything(char: str) -> None:
    for error in (LockTimeout(f"the lock a{char}b"), InvalidName(f"the lock {f'a{char}b'!r}")):
        assert char not in str(error) and str(error).isprintable()


def test_an_error_keeps_its_lines() -> None:
    assert str(LockTimeout("one\n\ttwo")) == "one\n\ttwo"


@pytest.mark.parametrize(
    "text", ["", "file_edit:src/main.py", "Überprüfung", "锁", "ที่", "हिन्दी", "Tiếng Việt", "a b", "한국어", "🔒"]
)
def test_what_can_be_seen_stays_as_it_is(text: str) -> None:
    assert legible(text) == text


def test_two_names_that_look_the_same_are_shown_apart() -> None:
    assert legible("é") == "é"
    assert legible("e\u0301") == "e\\u0301"
    assert legible("\u212b") == "\\u212b"


@given(st.text(max_size=40))
def test_nothing_hidden_is_left_and_no_two_spellings_look_alike(text: str) -> None:
    shown = legible(text)
    assert not any(map(is_hidden, shown))
    assert unicodedata.is_normalized("NFC", shown)
    if not any(map(is_hidden, text)) and unicodedata.is_normalized("NFC", text):
        assert shown == text


@given(st.text(max_size=20), st.text(max_size=20))
def test_what_differs_is_shown_differently(one: str, two: str) -> None:
    plain = one.replace("\\", "/"), two.replace("\\", "/")
    assert (legible(plain[0]) == legible(plain[1])) == (plain[0] == plain[1])
