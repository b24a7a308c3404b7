"""The JSON that each command prints with ``-o json``, as JSON schemas made from the library's own types.

``-o jsonl`` prints one item a line in place of a list. A command that is not listed prints no JSON.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import TypeAdapter

from codomyrmex.concurrency import (
    ClusterPoolStats,
    DeadLetter,
    Leader,
    LockEvent,
    LockInfo,
    Member,
    MemberEvent,
    PastHold,
    RateLimitInfo,
    ReservationInfo,
    SemaphoreInfo,
    Waits,
)
from codomyrmex.concurrency.cli.agents.outcomes import GuardOutcome, InstallOutcome, KeptOutcome, ReserveOutcome
from codomyrmex.concurrency.cli.agents.reservation_events import ReservationEvent
from codomyrmex.concurrency.cli.description import Capabilities
from codomyrmex.concurrency.cli.election_rows import ElectionRow
from codomyrmex.concurrency.cli.rate_rows import RateRow
from codomyrmex.concurrency.dead_letters.stats import OperationSummary
from codomyrmex.concurrency.models import ClusterStatus
from codomyrmex.concurrency.waitqueue.idle_times import StuckHolder

_AT = "#/schemas/"


class Output(NamedTuple):
    """The type of a command's output: of each item if it prints a list. ``event`` is that of a line of ``--watch``.
    With some option, ``also`` takes the place of both."""

    model: type
    many: bool = False
    event: type | None = None
    also: type | None = None


OUTPUTS = {
    "capabilities": Output(Capabilities),
    "dlq list": Output(DeadLetter, True, DeadLetter),
    "dlq show": Output(DeadLetter),
    "dlq stats": Output(OperationSummary, True, OperationSummary),
    "elections": Output(ElectionRow, True, Leader),
    "elections show": Output(ElectionRow, event=Leader),
    "guard check": Output(GuardOutcome),
    "guard install": Output(InstallOutcome),
    "locks": Output(LockInfo, True, LockEvent, also=StuckHolder),
    "locks graph": Output(Waits),
    "locks history": Output(PastHold, True),
    "locks show": Output(LockInfo),
    "members": Output(Member, True, MemberEvent),
    "members show": Output(Member, True, MemberEvent),
    "pools": Output(ClusterPoolStats, True, ClusterPoolStats),
    "rates": Output(RateRow, True, RateRow),
    "rates show": Output(RateLimitInfo, event=RateLimitInfo),
    "release": Output(KeptOutcome, True),
    "renew": Output(KeptOutcome, True),
    "reservations": Output(ReservationInfo, True, ReservationEvent),
    "reserve": Output(ReserveOutcome),
    "semaphores": Output(SemaphoreInfo, True, SemaphoreInfo),
    "semaphores show": Output(SemaphoreInfo, event=SemaphoreInfo),
    "status": Output(ClusterStatus),
}


def output_schema(command: str) -> dict[str, Any] | None:
    """The schema of what a command prints, with references to ``schemas``; None if it prints no JSON."""
    output = OUTPUTS.get(command)
    if output is None:
        return None
    one = _any(output.model, output.also)
    return {"type": "array", "items": one} if output.many else one


def event_schema(command: str) -> dict[str, Any] | None:
    """The schema of each line that a command prints with ``--watch``; None if it does not watch."""
    output = OUTPUTS.get(command)
    return _any(output.event, output.also) if output and output.event else None


def schemas() -> dict[str, Any]:
    """The schemas by name. Every field is always there; a later version may add some."""
    types = dict.fromkeys(
        one for output in OUTPUTS.values() for one in (output.model, output.event, output.also) if one
    )
    # The other mode leaves out the fields that etcd does not store, and users are shown.
    adapters: list[Any] = [(one.__name__, "validation", TypeAdapter(one)) for one in types]
    made, shared = TypeAdapter.json_schemas(adapters, ref_template=_AT + "{model}")
    found = {**shared.get("$defs", {})}
    for (name, _), schema in made.items():
        found.setdefault(name, schema)
    for schema in found.values():
        if "properties" in schema:
            schema["required"] = list(schema["properties"])
    return dict(sorted(found.items()))


def _any(one: type, other: type | None) -> dict[str, Any]:
    """The schema of a value that is of one of these types."""
    references = [{"$ref": _AT + each.__name__} for each in (one, other) if each]
    return references[0] if len(references) == 1 else {"anyOf": references}
