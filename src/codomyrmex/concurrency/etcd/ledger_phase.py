"""The phases of the ledger as a transition table. Pure."""

from __future__ import annotations

from enum import IntEnum


class Phase(IntEnum):
    """The state of the whole ledger."""

    OPEN = 0  # nothing is in doubt
    DRAINING = 1  # something is in doubt, and transactions are under way
    FENCING = 2  # the fence is to be moved
    SETTLING = 3  # the requests in doubt are settled one by one
    HOPELESS = 4  # the fence cannot be moved, and the session ends
    CLOSED = 5  # the session is over


class Step(IntEnum):
    """The events that change the phase."""

    LOST = 0
    DRAINED = 1
    FENCE_MOVED = 2
    STILL_IN_DOUBT = 3
    ALL_SETTLED = 4
    GIVEN_UP = 5
    CLOSED = 6


PHASES: dict[tuple[int, int], Phase] = {
    (Phase.OPEN, Step.LOST): Phase.DRAINING,
    (Phase.DRAINING, Step.LOST): Phase.DRAINING,
    (Phase.DRAINING, Step.DRAINED): Phase.FENCING,
    (Phase.FENCING, Step.FENCE_MOVED): Phase.SETTLING,
    (Phase.FENCING, Step.GIVEN_UP): Phase.HOPELESS,
    (Phase.SETTLING, Step.LOST): Phase.SETTLING,  # it is settled behind the next fence
    (Phase.SETTLING, Step.STILL_IN_DOUBT): Phase.FENCING,
    (Phase.SETTLING, Step.ALL_SETTLED): Phase.OPEN,
    **{(phase, Step.CLOSED): Phase.CLOSED for phase in Phase},
}
