"""Hold options: the conditions of a hold, beyond "until it is released or the session is lost"."""

from __future__ import annotations

import math
from typing import NamedTuple

from codomyrmex.concurrency.durations import check_number

_LONGEST = 366 * 24 * 3600.0


class HoldOptions(NamedTuple):
    """The options of a hold, in seconds. ``max_hold``: a grant lasts so long at most. ``lock_delay``: the name stays
    closed for so long if its holder dies rather than releases (Consul's lock delay). ``max_idle``: a grant lasts so
    long at most without progress."""

    max_hold: float | None = None
    lock_delay: float = 0.0
    max_idle: float | None = None

    @classmethod
    def checked(cls, max_hold: float | None, lock_delay: float = 0.0, max_idle: float | None = None) -> HoldOptions:
        """The options; raises ``TypeError`` or ``ValueError`` for a value that cannot be one."""
        _check_limit("max_hold", max_hold)
        check_number("lock_delay", lock_delay)
        _check_limit("max_idle", max_idle)
        if math.isnan(lock_delay) or not 0 <= lock_delay <= _LONGEST:
            raise ValueError(f"lock_delay must be from 0 seconds to a year, not {lock_delay}")
        return cls(max_hold, lock_delay, max_idle)

    @property
    def has_end(self) -> bool:
        """True if a hold ends by itself."""
        return self.max_hold is not None or self.max_idle is not None


def _check_limit(what: str, seconds: float | None) -> None:
    if seconds is None:
        return
    check_number(what, seconds)
    if not 0 < seconds <= _LONGEST:
        raise ValueError(f"{what} must be None or more than 0 seconds and at most a year, not {seconds}")
