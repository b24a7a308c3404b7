"""What is promised of locks and permits, of losses, and of those who look on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from tests.chaos.documents.evidence import FOREVER, Evidence, Violation, entry_key, spans
from tests.chaos.documents.journal import Fact
from tests.chaos.documents.queues import replay

HEARD_LATE = 5.0  # seconds for which a process may grant by a larger limit that was replaced
RUNS_ON = 1.0  # seconds from the end of trust to the end of a cancelled block, on a busy machine


def _name(fact: Fact) -> str:
    return f"/{fact['ns']}/v1/{fact['kind']}/{fact['name']}"


def held_together(evidence: Evidence) -> list[Violation]:
    """Believed holds never overlap beyond what readers and the limit allow; a holder that was stopped is excepted."""
    holds: dict[str, list[tuple[float, float, Fact]]] = defaultdict(list)
    for fact, _, until in spans(evidence, evidence.said("hold"), evidence.said("held"), "hold"):
        if not evidence.stopped_for(fact["process"], float(fact["at"]), until):
            holds[_name(fact)].append((float(fact["at"]), until, fact))
    found = []
    for name, own in holds.items():
        own.sort(key=lambda hold: hold[0])
        living: list[tuple[float, Fact]] = []
        for began, until, fact in own:
            living = [other for other in living if other[0] > began]
            living.append((until, fact))
            if text := _excess(evidence, name, [other for _, other in living], began):
                found.append(Violation("held together", f"{name} at {began:.3f}: {text}"))
    return found


def _excess(evidence: Evidence, name: str, living: list[Fact], at: float) -> str:
    who = ", ".join(f"{fact['process']} with token {fact['token']}" for fact in living)
    if living[0]["kind"] == "semaphore":
        taken, limit = sum(fact["permits"] for fact in living), _limit(evidence, name, at)
        return f"{taken} permits of {limit} are held by {who}" if taken > limit else ""
    if len(living) > 1 and not all(fact["shared"] for fact in living):
        return f"held by {who}"
    return ""


def _limit(evidence: Evidence, name: str, at: float) -> float:
    """The largest limit that may still be known to somebody at a time."""
    limits: list[tuple[float, int]] = []
    for event in evidence.events:
        head, _, number = event.key.rpartition("/limit-")
        if head == name and event.value is not None and number.isdigit() and len(number) < 10:
            limits.append((event.seen, int(number)))
    before = [limit for seen, limit in limits if seen < at - HEARD_LATE]
    return max([*before[-1:], *(limit for seen, limit in limits if at - HEARD_LATE <= seen)], default=FOREVER)


def turns(evidence: Evidence) -> list[Violation]:
    """Whoever believed to hold was, at some revision, among those whom the grant rule lets hold; tokens rise."""
    _, granted = replay(evidence.events)
    found = []
    for fact in evidence.said("hold"):
        if fact["token"] not in granted.get(_name(fact), ()):
            text = f"{fact['process']} held {_name(fact)} with token {fact['token']}, whose turn never came in etcd"
            found.append(Violation("out of turn", text))
    return found


def trust(evidence: Evidence) -> list[Violation]:
    """No block runs on without trust in its grant, from its beginning or once it has ended; it is cancelled by then."""
    found = []
    for fact, end, until in spans(evidence, evidence.said("hold"), evidence.said("held"), "hold"):
        if end is None or evidence.stopped_for(fact["process"], float(fact["at"]) - 5.0, until):
            continue
        who = f"{fact['process']} with token {fact['token']} of {_name(fact)}"
        lasted = float(end["at"]) - float(fact["at"])
        if fact["trust"] <= 0 and lasted > RUNS_ON:
            found.append(
                Violation("no trust", f"{who} was granted without trust, and its block ran for {lasted:.1f} s")
            )
        elif end["overrun"] > RUNS_ON:
            text = f"{who}: its block went on for {end['overrun']:.1f} s after trust had ended"
            found.append(Violation("no trust", text))
    return found


def losses(evidence: Evidence) -> list[Violation]:
    """The end of a block whose lock was lost raises `LockLost`, whatever etcd is doing."""
    found = []
    for fact, end, _ in spans(evidence, evidence.said("hold"), evidence.said("held"), "hold"):
        if end is not None and end["lost"] and end["error"] not in ("LockLost", "SessionLost", "cancelled"):
            raised = end["error"] or "nothing"
            text = f"{fact['process']} lost {_name(fact)}, token {fact['token']}; the block's end raised {raised}"
            found.append(Violation("loss not told", text))
    return found


def followers(evidence: Evidence) -> list[Violation]:
    """What a follower believes at the end equals a fresh reading of etcd."""
    queues, _ = replay(evidence.events)
    found = []
    for fact in evidence.said("belief"):
        if fact["what"] == "locks":
            root = f"/{fact['ns']}/v1/lock/"
            wanted = {
                name.removeprefix(root): sorted(place.token for place in queue.holders())
                for name, queue in queues.items()
                if name.startswith(root + fact["prefix"]) and queue.places
            }
            believed = {name: sorted(tokens) for name, tokens in fact["believed"].items() if tokens}
        else:
            root = entry_key(fact["ns"], fact["queue"], "")
            wanted = {
                key.removeprefix(root): versions[-1].state
                for key, versions in evidence.entries.items()
                if key.startswith(root) and versions[-1].record
            }
            believed = {name: state for name, state in fact["believed"].items() if name in wanted}
        if fact.get("partial"):  # it began in the midst, and speaks of what it saw
            wanted = {name: wanted[name] for name in believed if name in wanted}
        wrong = [name for name in {*wanted, *believed} if wanted.get(name) != believed.get(name)]
        if wrong:
            name = min(wrong)
            text = (
                f"{fact['process']} follows {fact['what']} and is wrong about {len(wrong)} names: "
                f"{name} is {wanted.get(name)}, believed {believed.get(name)}"
            )
            found.append(Violation("follower", text))
    return found


def left_behind(evidence: Evidence) -> list[Violation]:
    """When all processes have ended and their leases too, no queue has an entry of theirs, and nobody a claim."""
    if not evidence.said("quiet"):
        return []
    queues, _ = replay(evidence.events)
    return [
        Violation("left behind", f"{place.key} with token {place.token} is there after all have ended")
        for queue in queues.values()
        for place in queue.places.values()
    ]


HOLDS: tuple[Callable[[Evidence], list[Violation]], ...] = (
    held_together,
    turns,
    trust,
    losses,
    followers,
    left_behind,
)
