"""Texts as a record can hold them: shortened, storable, and redacted without a failure."""

from __future__ import annotations

import logging
from collections.abc import Callable

from codomyrmex.concurrency.decode import storable

log = logging.getLogger("codomyrmex.concurrency")

MAX_TEXT = 8 * 1024  # characters of an error, a reason or a traceback; of a traceback the end is kept
_CUT = "... (shortened)"


def brief(text: str, limit: int = MAX_TEXT) -> str:
    """``text`` in a form that can be stored, with at most ``limit`` characters; a shortened one says so."""
    text = storable(text)
    return text if len(text) <= limit else f"{text[: limit - len(_CUT)]}{_CUT}"


def shown(value: object) -> str:
    """The ``repr`` of a value that cannot be stored itself; a text about the failure if ``repr`` raises."""
    try:
        return brief(repr(value))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return f"(a {type(value).__qualname__}, whose repr() raised {type(error).__qualname__})"


def safe_redact(redact: Callable[[str], str]) -> Callable[[str], str]:
    """``redact`` for use where nothing may fail: if it raises, or returns no text, the whole text is withheld."""

    def redacted(text: str) -> str:
        try:
            told = redact(text)
            if isinstance(told, str):
                return told
            problem = f"it returned {type(told).__name__}, not str"
        except Exception as error:
            problem = f"it raised {type(error).__name__}"
        log.error("redact= failed, so the text of an error is withheld: %s", problem)
        return f"(withheld: redact= failed, {problem})"

    return redacted
