"""A simulated etcd, callers and the I/O around a ledger, driven by a tape of choices, with a checker of the outcome.

The world does what the real one may do: a transaction is applied at once, late or never, its answer is lost, etcd
refuses it, the fence is moved by others, callers are cancelled, time limits pass, the session ends.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field

from codomyrmex.concurrency.errors import (
    ConcurrencyError,
    EtcdError,
    EtcdQuotaExceeded,
    EtcdRegressed,
    EtcdUnavailable,
    SessionLost,
)
from codomyrmex.concurrency.etcd import ledger_actions as act
from codomyrmex.concurrency.etcd.deletion_state import Deletion, found
from codomyrmex.concurrency.etcd.ledger import Ledger
from codomyrmex.concurrency.etcd.ledger_phase import Phase
from codomyrmex.concurrency.etcd.ledger_request import ImpossibleEvent, LedgerRequest, Reply, State
from codomyrmex.concurrency.etcd.ledger_transactions import Fence, Transaction
from codomyrmex.concurrency.etcd.transports.protocol import (
    KV,
    Compare,
    Delete,
    Deleted,
    Done,
    Get,
    GetResult,
    Op,
    OpResult,
    Put,
    Target,
    TxnResult,
)

FENCE = Fence(b"lease", b"", 7)
POISON = b"poison"  # etcd refuses a transaction that writes this key
GROUPS = (b"a", b"b", b"c")


class Etcd:
    """The store, and the order in which requests took effect in it."""

    def __init__(self) -> None:
        self.revision = 1
        self.keys: dict[bytes, KV] = {}
        self.effects: list[int] = []  # numbers of requests
        self._put(FENCE.key)

    def txn(self, transaction: Transaction) -> TxnResult:
        """Carry out a transaction; raises as etcd does for one that cannot be carried out."""
        if any(isinstance(op, Put) and op.key == POISON for op in transaction.then):
            raise EtcdError("refused", applied="no")
        succeeded = all(self._holds(compare) for compare in transaction.compares)
        self.revision += 1
        results = [self._do(op) for op in (transaction.then if succeeded else transaction.otherwise)]
        return TxnResult(succeeded, self.revision, results)

    def move_fence(self) -> None:
        """Another writer moves the fence."""
        if FENCE.key in self.keys:
            self.revision += 1
            self._put(FENCE.key)

    @property
    def fence_version(self) -> int:
        return self.keys[FENCE.key].version if FENCE.key in self.keys else 0

    def _holds(self, compare: Compare) -> bool:
        kv = self.keys.get(compare.key)
        if compare.target is Target.VERSION:
            return (kv.version if kv else 0) == compare.value
        assert compare.target is Target.CREATE_REVISION
        return (kv.create_revision if kv else 0) == compare.value

    def _do(self, op: Op) -> OpResult:
        if isinstance(op, Put):
            self._put(op.key)
            if op.key.startswith(b"request"):
                self.effects.append(int(op.key[7:]))
            return Done()
        if isinstance(op, Delete):
            return Deleted(1 if self.keys.pop(op.key, None) else 0)
        kv = self.keys.get(op.key)
        return GetResult([kv] if kv else [], 1 if kv else 0, self.revision)

    def _put(self, key: bytes) -> None:
        kv = self.keys.get(key)
        created, version = (kv.create_revision, kv.version + 1) if kv else (self.revision, 1)
        self.keys[key] = KV(key, b"", created, self.revision, version, 0)


@dataclass(slots=True, eq=False)
class Caller(LedgerRequest):
    """A request whose caller writes down what it is told."""

    number: int = 0
    problems: list[str] = field(default_factory=list)
    reply: Reply | None = None
    error: ConcurrencyError | None = None
    told_in_doubt: bool = False
    cancelled: bool = False
    sent: int = 0
    repeated: bool = False
    undone: int = 0
    unsent_calls: int = 0

    def is_awaited(self) -> bool:
        return not (self.reply or self.error or self.cancelled)

    def answer(self, reply: Reply) -> None:
        self._told()
        self.reply = reply

    def fail(self, error: ConcurrencyError) -> None:
        self._told()
        self.error = error
        self.told_in_doubt = self.state in (State.IN_DOUBT, State.SENT_AGAIN)

    def forget(self) -> None:
        self.cancelled = True

    def _told(self) -> None:
        if not self.is_awaited():
            self.problems.append(f"{self.number} was told something although its caller does not wait")


@dataclass(slots=True, eq=False)
class Erasure(Deletion):
    """A deletion whose caller writes down what it is told."""

    done: bool = False
    error: ConcurrencyError | None = None

    def answer(self, result: bool) -> None:
        self.done = True

    def fail(self, error: ConcurrencyError) -> None:
        self.error = error


@dataclass(slots=True, eq=False)
class Call:
    """A transaction under way, and the task that waits for its end."""

    task: Generator[Transaction, TxnResult | EtcdError | None, None]
    transaction: Transaction
    own: Caller | None = None  # the caller that sends it itself
    counts: bool = True  # as a batch of the queue
    result: TxnResult | EtcdError | None = None


class Tape:
    """A sequence of choices."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = iter(numbers)
        self.ended = False

    def number(self, below: int) -> int:
        """The next choice; 0 when the tape has ended."""
        number = next(self._numbers, None)
        self.ended = self.ended or number is None
        return (number or 0) % below


class World:
    """A ledger with everything around it."""

    def __init__(self, ledger: Callable[[Fence], Ledger], tape: Tape) -> None:
        self.tape = tape
        self.etcd = Etcd()
        self.ledger = ledger(FENCE)
        self.callers: list[Caller] = []
        self.erasures: list[Erasure] = []
        self.calls: list[Call] = []
        self.late: list[Transaction] = []  # they may still arrive, nobody waits for their answers
        self.timers: list[tuple[Caller, EtcdError]] = []
        self.settling = False
        self.problems: list[str] = []

    # The I/O around the ledger, as in commit.py

    def _start(self, batch: Sequence[LedgerRequest | Deletion], own: Caller | None = None) -> None:
        self.ledger.queue.begin(0.0)
        requests = [item for item in batch if isinstance(item, Caller)]
        erasures = [item for item in batch if isinstance(item, Erasure)]
        self._check_that_none_is_in_doubt(requests)
        if not requests:
            task = self._erase(erasures)
        elif len(batch) == 1:
            task = self._send_each(requests)
        else:
            task = self._send_together(requests, erasures)
        self._resume(task, None, own, counts=True)

    def _resume(
        self,
        task: Generator[Transaction, TxnResult | EtcdError | None, None],
        outcome: TxnResult | EtcdError | None,
        own: Caller | None,
        *,
        counts: bool,
    ) -> None:
        try:
            transaction = task.send(outcome)
        except StopIteration:
            if counts:
                self.ledger.queue.end()
            else:
                self.settling = False
            return
        if self.ledger.closed and any(isinstance(op, Put) for op in transaction.then):
            self.problems.append("something was sent after the end of the session")
        self.calls.append(Call(task, transaction, own, counts))

    def _erase(self, erasures: Sequence[Erasure]) -> Generator[Transaction, TxnResult | EtcdError | None, None]:
        outcome = yield Transaction(0, (), [Delete(erasure.key) for erasure in erasures], ())
        if isinstance(outcome, TxnResult):
            self._execute([act.AnswerDeletions(erasures, outcome.results)])
        else:
            self._again(erasures)

    def _again(self, erasures: Sequence[Erasure]) -> None:
        for erasure in erasures:
            erasure.repeated = True
            if self.ledger.closed:
                erasure.fail(self.ledger.closed)
            else:
                self.ledger.queue.items.append(erasure)

    def _send_together(
        self, requests: list[Caller], erasures: list[Erasure]
    ) -> Generator[Transaction, TxnResult | EtcdError | None, None]:
        batch = self.ledger.together(requests, erasures)
        self._count(requests)
        outcome = yield batch.transaction
        if isinstance(outcome, TxnResult):
            yield from self._send_each(self._execute(self.ledger.answered(batch, outcome)))
        elif isinstance(outcome, EtcdError):
            yield from self._send_each(self._execute(self.ledger.failed(requests, outcome)))
            self._again(erasures)
        else:
            self._execute(self.ledger.cancelled(requests))
            self._again(erasures)

    def _send_each(self, requests: list[Caller]) -> Generator[Transaction, TxnResult | EtcdError | None, None]:
        while requests and not self.ledger.closed:
            transaction = self.ledger.alone(requests[0])
            self._count(requests[:1])
            outcome = yield transaction
            if isinstance(outcome, TxnResult):
                actions = self.ledger.answered_alone(requests[0], transaction, outcome)
            elif isinstance(outcome, EtcdError):
                actions = self.ledger.failed(requests[:1], outcome)
            else:
                self._execute(self.ledger.cancelled(requests))
                return
            requests = [*self._execute(actions), *requests[1:]]
        self._execute(self.ledger.cancelled(requests))

    def _settle(self) -> Generator[Transaction, TxnResult | EtcdError | None, None]:
        self.ledger.drained()
        while actions := self.ledger.next_step():
            again = self._execute(actions)
            if isinstance(actions[-1], act.MoveFence):
                outcome = yield actions[-1].transaction
                if isinstance(outcome, TxnResult):
                    self._execute(self.ledger.fence_moved(outcome))
                elif outcome is not None:
                    self._execute(self.ledger.fence_failed(outcome, late=self.tape.number(3) == 0))
            yield from self._send_each(again)

    def _execute(self, actions: Iterable[act.Action]) -> list[Caller]:
        alone: list[Caller] = []
        for action in actions:
            match action:
                case act.Answer(Caller() as caller, reply):
                    caller.answer(reply)
                case act.AnswerDeletions(deletions, results):
                    for deletion, result in zip(deletions, results, strict=False):
                        deletion.answer(found(result))
                case act.Fail(item, error):
                    item.fail(error)
                case act.Undo(Caller() as caller):
                    caller.undone += 1
                    self.erase(b"request%d" % caller.number)
                case act.Unsent(Caller() as caller):
                    caller.unsent_calls += 1
                case act.Forget(Caller() as caller):
                    caller.forget()
                case act.SendAlone(Caller() as caller):
                    alone.append(caller)
                case act.Settle(requests, error):
                    self.timers += [(caller, error) for caller in requests if isinstance(caller, Caller)]
                case act.EndSession(error):
                    self.close(error)
                case act.GiveUpLease(error):
                    self.close(SessionLost(f"given up: {error}"))
                case act.MoveFence():
                    pass
                case _:
                    self.problems.append(f"an action that nobody knows: {action}")
        return alone

    def _count(self, requests: Iterable[Caller]) -> None:
        for caller in requests:
            caller.sent += 1
            caller.repeated = caller.repeated or caller.state is State.SENT_AGAIN
            if caller.error:
                self.problems.append(f"{caller.number} was sent after its caller was told {caller.error}")
            if caller.sent > 1:
                self._check_fenced_off([caller])

    def _check_that_none_is_in_doubt(self, requests: Sequence[Caller]) -> None:
        if requests:
            self._check_fenced_off(self.callers)

    def _check_fenced_off(self, callers: Iterable[Caller]) -> None:
        """No transaction that nobody waits for may still commit a request of ``callers``."""
        keys = {b"request%d" % caller.number for caller in callers}
        for transaction in self.late:
            written = {op.key for op in transaction.then if isinstance(op, Put)}
            if written & keys and transaction.version >= self.etcd.fence_version > 0:
                self.problems.append("something was sent while a late transaction could still commit")

    # Steps, one of which the tape chooses at a time

    def steps(self) -> list[Callable[[], None]]:
        """Everything that may happen next, the usual several times."""
        steps: list[Callable[[], None]] = [self.flush] * 3
        if not self.ledger.closed:
            steps += [self.submit] * 5 + [self.submit_erasure]
        if self.calls:
            steps += [self.arrive] * 3 + [self.answer] * 6 + [self.lose] * 2 + [self.refuse]
        if self.late:
            steps += [self.arrive_late] * 2
        if self.callers:
            steps += [self.cancel]
        if self.timers:
            steps += [self.pass_time_limit]
        if self._may_settle():
            steps += [self.settle] * 3
        if self.tape.number(60) == 0:
            steps += [self.end_session, self.end_lease, self.etcd.move_fence, self.etcd.move_fence]
        return steps

    def step(self) -> None:
        steps = self.steps()
        steps[self.tape.number(len(steps))]()

    def submit(self) -> None:
        number = len(self.callers)
        key = b"request%d" % number
        caller = Caller(
            tuple(group for group in GROUPS if self.tape.number(2)) or GROUPS[:1],
            [Put(key, b""), Get(key)],
            otherwise=(Get(key),),
            number=number,
            problems=self.problems,
            undo=lambda: None,
            unsent=lambda: None,
        )
        absent = (Compare(key, Target.CREATE_REVISION, 0),)
        kind = self.tape.number(7)
        if kind < 3:
            caller.again = absent
        elif kind == 3:
            caller.compares, caller.again, caller.alone = absent, (), True
        elif kind == 4:
            caller.compares, caller.alone = (Compare(b"never", Target.VERSION, 5),), bool(self.tape.number(2))
        elif kind == 5:
            caller.then = [Put(key, b""), Put(POISON, b"")]
        self.callers.append(caller)
        if self.ledger.submitted(caller):
            if self.ledger.queue.is_free:
                self.ledger.sent(caller)
                self._start([caller], caller)
            else:
                self.ledger.queue.items.append(caller)

    def submit_erasure(self) -> None:
        self.erase(b"entry%d" % self.tape.number(3))

    def erase(self, key: bytes) -> None:
        """Delete a key, unless the session is over and the lease takes the key along."""
        erasure = Erasure(key, None, 0.0)
        self.erasures.append(erasure)
        if self.ledger.closed:
            erasure.fail(self.ledger.closed)
        else:
            self.ledger.queue.items.append(erasure)

    def flush(self) -> None:
        queue = self.ledger.queue
        while queue.items and queue.has_room(0.0):
            batch, actions = self.ledger.take()
            self._execute(actions)
            if not batch:
                return
            self._start(batch)

    def arrive(self) -> None:
        """A transaction reaches etcd, and its answer is on the way."""
        call = self._call()
        if call.result is None:
            try:
                call.result = self.etcd.txn(call.transaction)
            except EtcdError as error:
                call.result = error

    def answer(self) -> None:
        call = self._call()
        if call.result is None:
            try:
                call.result = self.etcd.txn(call.transaction)
            except EtcdError as error:
                call.result = error
        self._end(call, call.result)

    def lose(self) -> None:
        """The answer is lost, or the transaction itself is and may arrive late, or not at all."""
        call = self._call()
        if call.result is None and self.tape.number(3):
            self.late.append(call.transaction)
        self._end(call, EtcdUnavailable("lost", applied="unknown", retryable=True))

    def refuse(self) -> None:
        """etcd says that it did not carry a transaction out, or that its database is full or went back."""
        call = self._call()
        kind = self.tape.number(6)
        if kind == 0:
            self._end(call, EtcdQuotaExceeded("full", applied="unknown"))
        elif kind == 1 and not call.counts and self.tape.number(3) == 0:
            self._end(call, EtcdRegressed("went back"))
        elif call.result is None:
            self._end(call, EtcdUnavailable("not sent", applied="no", retryable=kind > 3))

    def arrive_late(self) -> None:
        transaction = self.late.pop(self.tape.number(len(self.late)))
        try:
            self.etcd.txn(transaction)
        except EtcdError:
            return

    def cancel(self) -> None:
        """A caller is cancelled; the one that sends its request itself cancels the sending too."""
        caller = self.callers[-1 - self.tape.number(min(6, len(self.callers)))]
        if not caller.is_awaited():
            return
        own = [call for call in self.calls if call.own is caller]
        if own:
            if own[0].result is None and self.tape.number(3):
                self.late.append(own[0].transaction)
            self._end(own[0], None)
        else:
            caller.cancelled = True

    def pass_time_limit(self) -> None:
        self._execute(self.ledger.overdue(*self.timers.pop(self.tape.number(len(self.timers)))))

    def settle(self) -> None:
        self.settling = True
        self._resume(self._settle(), None, None, counts=False)

    def end_session(self) -> None:
        self.close(SessionLost("closed"))

    def end_lease(self) -> None:
        self.etcd.keys.pop(FENCE.key, None)

    def close(self, error: ConcurrencyError) -> None:
        self._execute(self.ledger.close(error))

    def _may_settle(self) -> bool:
        return not self.settling and self.ledger.phase is Phase.DRAINING and not self.ledger.queue.active

    def _call(self) -> Call:
        return self.calls[self.tape.number(len(self.calls))]

    def _end(self, call: Call, outcome: TxnResult | EtcdError | None) -> None:
        self.calls.remove(call)
        self._resume(call.task, outcome, call.own, counts=call.counts)

    def finish(self) -> None:
        """The faults are over: everything under way comes to its end."""
        for _ in range(3000):
            if self.calls:
                self.answer()
            elif self._may_settle():
                self.settle()
            elif self.ledger.queue.items and self.ledger.queue.has_room(0.0):
                self.flush()
            else:
                break
        while self.late:
            self.arrive_late()


def play(ledger: Callable[[Fence], Ledger], numbers: Iterable[int]) -> list[str]:
    """Play a history to its end; returns everything that went wrong in it."""
    tape = Tape(numbers)
    world = World(ledger, tape)
    try:
        while not tape.ended:
            world.step()
        world.finish()
    except ImpossibleEvent as error:
        return [f"impossible: {error}"]
    return [*world.problems, *_judged(world)]


def _judged(world: World) -> list[str]:
    problems = []
    for caller in world.callers:
        problems += [f"{caller.number} ({caller.state.name}): {problem}" for problem in _of_caller(world, caller)]
    for group in GROUPS:
        order = [number for number in world.etcd.effects if group in world.callers[number].groups]
        if order != sorted(order):
            problems.append(f"the requests of {group!r} took effect in the order {order}")
    if not world.ledger.closed and world.ledger.phase is not Phase.OPEN:
        problems.append(f"at the end the ledger is {world.ledger.phase.name}")
    problems += [
        f"the deletion of {erasure.key!r} never ended"
        for erasure in world.erasures
        if not (erasure.done or (world.ledger.closed and erasure.error))
    ]
    return problems


def _of_caller(world: World, caller: Caller) -> list[str]:
    problems = []
    effects = world.etcd.effects.count(caller.number)
    if effects > 1:
        problems.append(f"took effect {effects} times")
    if caller.is_awaited():
        problems.append("was never answered")
    if caller.state is not State.SETTLED:
        problems.append("was never settled")
    if effects and not caller.sent:
        problems.append("took effect without being sent")
    problems += _told_the_truth(caller, effects)
    problems += _undone_rightly(caller, effects, over=bool(world.ledger.closed) or not world.etcd.fence_version)
    return problems


def _told_the_truth(caller: Caller, effects: int) -> list[str]:
    key = b"request%d" % caller.number
    if caller.reply and caller.reply.succeeded:
        result = caller.reply.results[1]
        if not effects:
            return ["was told of a success that there was not"]
        if not isinstance(result, GetResult) or [kv.key for kv in result.kvs] != [key]:
            return [f"was given the results of another request: {result}"]
    elif caller.reply:
        result = caller.reply.results[0]
        if not isinstance(result, GetResult) or bool(result.kvs) != bool(effects):
            return [f"was refused, and the reading {result} does not say if it took effect"]
        if not effects and all(compare.key == key for compare in caller.compares):
            return ["was refused although its own compares held"]
    elif isinstance(caller.error, EtcdError) and caller.error.applied == "no" and effects:
        return ["was told that it had no effect, and it had one"]
    return []


def _undone_rightly(caller: Caller, effects: int, *, over: bool) -> list[str]:
    if caller.unsent_calls > (caller.cancelled and not caller.sent):
        return ["was said to be unsent, and was sent or not cancelled"]
    if caller.undone > 1:
        return [f"was undone {caller.undone} times"]
    if caller.undone and (caller.reply or not caller.sent):
        return ["was undone although its caller has the answer, or it was never sent"]
    if over:
        return []  # the lease takes along what is left
    if caller.cancelled and not caller.sent and not caller.unsent_calls:
        return ["was cancelled before it was sent, and nobody was told"]
    told_in_vain = caller.told_in_doubt or (caller.repeated and isinstance(caller.error, EtcdError))
    nobody_waits = caller.cancelled or told_in_vain or isinstance(caller.error, EtcdQuotaExceeded)
    if effects and nobody_waits and not caller.undone:
        return ["took effect for nobody, and was not undone"]
    return []
