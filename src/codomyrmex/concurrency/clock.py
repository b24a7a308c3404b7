"""The clock for leases: it runs while the machine is suspended, and never jumps."""

from __future__ import annotations

import time

# Linux's CLOCK_MONOTONIC stands still during suspend, while etcd's lease does not.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)


def now() -> float:
    """The time in seconds on this machine's clock; only differences mean anything."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)
