"""Hold options: the conditions of a hold, beyond "until it is released or the session is lost"."""

from __future__ import annotations

import math
from typing import NamedTuple

from codomyrmex.concurrency.durations import check_number

_LONGEST = 366 * 24 * 3600.0


class HoldOptions(NamedTuple):
    """The options of a hold, in seconds. ``max_hold``: a grant lasts so long at most. ``lock_delay``: the name stays
    closed for so long if its holder dies rather than releases (Consul's lock delay)."""

    max_hold: float | None = None
    lock_delay: float = 0.0

    @classmethod
    def checked(cls, max_hold: float | None, lock_delay: float = 0.0) -> HoldOptions:
        """The options; raises ``TypeError`` or ``ValueError`` for a value that cannot be one."""
        if max_hold is not None:
            check_number("max_hold", max_hold)
        check_number("lock_delay", lock_delay)
        if max_hold is not None and not 0 < max_hold <= _LONGEST:
            raise ValueError(f"max_hold must be None or more than 0 seconds and at most a year, not {max_hold}")
        if math.isnan(lock_delay) or not 0 <= lock_delay <= _LONGEST:
            raise ValueError(f"lock_delay must be from 0 seconds to a year, not {lock_delay}")
        return cls(max_hold, lock_delay)
