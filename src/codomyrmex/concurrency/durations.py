"""Checks of the times that users give, in seconds."""

from __future__ import annotations

import math
from numbers import Real


def check_number(what: str, seconds: object) -> None:
    """Raise ``TypeError`` unless ``seconds`` is a number."""
    if isinstance(seconds, bool) or not isinstance(seconds, (float, int, Real)):
        raise TypeError(f"{what} must be a number of seconds, not {seconds!r}")


def check_timeout(timeout: float | None, what: str = "timeout") -> None:
    """Raise ``TypeError`` or ``ValueError`` unless ``timeout`` can be a time limit; None means no limit."""
    if timeout is None:
        return
    check_number(what, timeout)
    if math.isnan(timeout) or timeout < 0:
        raise ValueError(f"{what} must be None or at least 0 seconds, not {timeout}")
