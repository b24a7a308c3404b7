"""The clock for leases: it runs while the machine is suspended, and never jumps."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

# Linux's CLOCK_MONOTONIC stands still during suspend, while etcd's lease does not.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)

now: Callable[[], float] = time.monotonic if _CLOCK is None else partial(time.clock_gettime, _CLOCK)
"""The time in seconds on this machine's clock; only differences mean anything."""
