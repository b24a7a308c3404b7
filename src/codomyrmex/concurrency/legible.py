"""Makes text safe to show: invisible characters, and those that turn the direction, become escapes. Pure."""

from __future__ import annotations

import unicodedata

# Python calls these not printable: control and format characters (zero width, direction, byte order mark, tags), spaces
# other than the plain one, private and unassigned characters. The characters below are hidden as well.
_BLANK = frozenset(
    map(
        chr,
        (
            0x034F,  # combining grapheme joiner
            *(0x115F, 0x1160, 0x3164, 0xFFA0),  # fillers of Hangul
            *(0x17B4, 0x17B5),  # inherent vowels of Khmer
            *(0x180B, 0x180C, 0x180D, 0x180F),  # variation selectors
            *range(0xFE00, 0xFE10),
            *range(0xE0100, 0xE01F0),
            0x2800,  # a braille pattern without dots
        ),
    )
)


def legible(text: str, keep: str = "") -> str:
    """``text`` with visible escapes for its hidden characters, except those to ``keep``.

    Text that is not in NFC looks like its NFC form, so the characters in which the two differ are escaped too.
    """
    if text.isascii() and text.isprintable():
        return text
    other = not unicodedata.is_normalized("NFC", text)
    return "".join(
        char.encode("unicode_escape").decode()
        if char not in keep and (is_hidden(char) or (other and _is_composed(char)))
        else char
        for char in text
    )


def is_hidden(char: str) -> bool:
    """True if a character is invisible, or changes the look of others."""
    return not char.isprintable() or char in _BLANK


def _is_composed(char: str) -> bool:
    """True if NFC may join a character to the one before it, or replace it."""
    jamo = 0x1161 <= ord(char) <= 0x11C2
    return jamo or unicodedata.combining(char) > 0 or not unicodedata.is_normalized("NFC", char)
