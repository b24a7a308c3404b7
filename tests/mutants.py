"""Breaks the library in named ways, each in a copy of its own, and shows that the suite notices: ``make mutants``.

A mutant names the file, what is replaced, and the tests that must fail then. One that survives is a missing test; one
whose text is no longer found must be written anew. ``python -m tests.mutants NAME...`` runs only those.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path("src/codomyrmex/concurrency")
_LIMIT = 180  # seconds; a mutant that hangs is noticed too


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    tests: str  # what to give pytest


MUTANTS = (
    Mutant(
        "skip the session compare, so that a straggler commits",
        "etcd/commit.py",
        "return Compare(self._fence.key, Target.VERSION, self._version)",
        'return Compare(b"\\x01nothing", Target.CREATE_REVISION, 0)',
        "tests/integration/test_faults.py",
    ),
    Mutant(
        "repeat a request in doubt without asking whether it was applied",
        "etcd/commit.py",
        "repeat = (request.again or ()) if again else ()",
        "repeat = ()",
        "tests/integration/test_faults.py",
    ),
    Mutant(
        "count the deadline from the answer",
        "etcd/keepalive.py",
        "self._deadline = sent_at + ttl * 2 / 3\n        self._next",
        "self._deadline = clock.now() + ttl * 2 / 3\n        self._next",
        "tests/integration/test_session.py tests/integration/test_faults.py",
    ),
    Mutant(
        "leave a hold that is over to the event loop alone",
        "etcd/keepalive.py",
        "self.overstays.enforce(self._lease.ttl / 6)",
        "pass",
        "tests/integration/test_terms.py",
    ),
    Mutant(
        "let a finished hold's limit strike at the next one",
        "queue/entry.py",
        "self.session.overstays().lift(self.key)",
        "pass",
        "tests/integration/test_terms.py",
    ),
    Mutant(
        "delete an overstaying entry's key whoever has it by now",
        "etcd/calls.py",
        "wire.txn_request((same,), (Delete(key),), ())",
        "wire.txn_request((), (Delete(key),), ())",
        "tests/integration/test_terms.py",
    ),
    Mutant(
        "let the longer lease of a delayed lock run out",
        "etcd/keepalive.py",
        "                self._renew_longer(limit)",
        "                pass",
        "tests/integration/test_terms.py",
    ),
    Mutant(
        "never read the TLS files again",
        "etcd/grpc.py",
        "renewed = self._tls.refresh()",
        "renewed = False",
        "tests/integration/test_security.py",
    ),
    Mutant(
        "trust the lease for a whole TTL and more",
        "etcd/keepalive.py",
        "* 2 / 3",
        "* 3",
        "tests/integration/test_faults.py -k cut_off",
    ),
    Mutant(
        "drop the predecessor watch",
        "queue/waiting.py",
        "step = self._turn.deleted(event.kv.key, event.kv.mod_revision)",
        "step = Action.WAIT",
        "tests/integration/test_locks.py tests/integration/test_processes.py -k 'handoff or order'",
    ),
    Mutant(
        "believe the baton of another life of the key",
        "queue/rules.py",
        'if ahead and baton == b"%d" % ahead.create_revision else',
        "if ahead else",
        "tests/unit/test_rules.py",
    ),
    Mutant(
        "never remove a baton",
        "session.py",
        "for key in self.batons.stale(clock.now()):",
        "for key in ():",
        "tests/integration/test_costs.py -k batons",
    ),
    Mutant(
        "read the queue although the baton says it all",
        "queue/waiting.py",
        "        if isinstance(notice, Changed) and self._baton and self._passed_on",
        "        if False and self._baton and self._passed_on",
        "tests/integration/test_costs.py -k handoff",
    ),
    Mutant(
        "let who joins a queue find what leaves it in the same transaction",
        "etcd/commit.py",
        "            then.extend(request.then)\n",
        "            then = [*request.then, *then]\n",
        "tests/integration",
    ),
    Mutant(
        "ignore the loss of the own key",
        "queue/entry.py",
        "        if self.state in (State.WAITING, State.HELD):\n            self.remove()  # there",
        "        if False:\n            self.remove()  # there",
        "tests/integration/test_locks.py -k 'forced or deleted'",
    ),
    Mutant(
        "write fenced without the fence",
        "queue/entry.py",
        "compares=(holds, *compares)",
        "compares=tuple(compares)",
        "tests/integration/test_locks.py -k fenced",
    ),
    Mutant(
        "leave the entry of a cancelled acquire in the queue",
        "queue/joining.py",
        "    for entry in entries:\n        entry.leave()",
        "    pass",
        "tests/integration/test_faults.py -k 'cancelled or timeout'",
    ),
    Mutant(
        "leave the entry of an acquire that is cancelled as its answer arrives",
        "queue/joining.py",
        "            _remove(entries)\n        raise",
        "            pass\n        raise",
        "tests/integration/test_faults.py -k cancelled",
    ),
    Mutant(
        "let two entries of one lock share a transaction",
        "etcd/commit.py",
        "            if group in self._lines:\n",
        "            if False:\n",
        "tests/integration/test_locks.py -k 'share or order'",
    ),
    Mutant(
        "repeat events after a broken stream",
        "etcd/watch.py",
        "subscription.revision = max(message.revision, events[-1].kv.mod_revision)",
        "pass",
        "tests/integration/test_watch.py",
    ),
    Mutant(
        "begin a watch anew after a broken stream, without saying so",
        "etcd/watch.py",
        "            subscription.watch_id = None\n            subscription.resumed = True",
        "            subscription.watch_id = None\n            subscription.revision = 0",
        "tests/integration/test_watch.py",
    ),
    Mutant(
        "grant one permit too many",
        "queue/rules.py",
        "return Granted() if ahead + self.permits <= view.limit",
        "return Granted() if ahead + self.permits <= view.limit + 1",
        "tests/integration/test_kills.py -k permits",
    ),
    Mutant(
        "let small requests pass a large one",
        "queue/rules.py",
        "ahead = sum(permits_of(entry.key) for entry in view.entries)",
        "ahead = sum(n for entry in view.entries if (n := permits_of(entry.key)) <= self.permits)",
        "tests/integration/test_kills.py -k permits",
    ),
    Mutant(
        "let readers pass a writer that waits",
        "queue/rules.py",
        "for entry in reversed(view.entries):",
        "for entry in list(view.entries)[:1]:",
        "tests/integration/test_shared.py tests/unit/test_rules.py",
    ),
    Mutant(
        "let two workers claim",
        "dead_letters/store.py",
        "(self._same(stored), Compare(claim, Target.CREATE_REVISION, 0)),",
        "(),",
        "tests/integration/test_kills.py tests/integration/test_dead_letters.py -k 'killed or one_worker'",
    ),
    Mutant(
        "finish an attempt whose claim was lost",
        "dead_letters/store.py",
        "        held = Compare(claim_key, Target.CREATE_REVISION, claim.token)\n",
        "        held = Compare(claim_key + b'x', Target.CREATE_REVISION, 0)\n",
        "tests/integration/test_dead_letters.py -k 'claim or dies or ended'",
    ),
    Mutant(
        "forget to count a crash",
        "dead_letters/record.py",
        "crash_count=entry.crash_count + 1",
        "crash_count=entry.crash_count",
        "tests/integration/test_dead_letters.py -k 'dies or kills'",
    ),
    Mutant(
        "run a suspect beside others",
        "dead_letters/schedule.py",
        "return known is not None and known.suspect",
        "return False",
        "tests/integration/test_kills.py -k harms",
    ),
    Mutant(
        "acknowledge a dead letter before etcd has it",
        "dead_letters/queue.py",
        "        return await store.add(entry)",
        "        self._late = asyncio.create_task(store.add(entry))\n        return entry.id",
        "tests/integration/test_dead_letters.py",
    ),
    Mutant(
        "compare wall clocks of hosts",
        "dead_letters/schedule.py",
        "clock + stored.entry.delay)",
        "clock + (stored.entry.next_attempt_at.timestamp() - __import__('time').time() "
        "if stored.entry.next_attempt_at else 0.0))",
        "tests/integration/test_kills.py -k clock",
    ),
    Mutant(
        "escape names so that two are one",
        "keys.py",
        'b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~:@+,="',
        'b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~:@+,=%"',
        "tests/unit/test_keys.py",
    ),
    Mutant(
        "lose count of a task that was cancelled before it began",
        "pool/meter.py",
        '        self._ended["cancelled"] += 1\n',
        "",
        "tests/unit/test_pool.py",
    ),
    Mutant(
        "let all processes of a pool break with one of them",
        "pool/processes.py",
        "return ProcessPoolExecutor(1, mp_context=",
        "self._take = lambda one=ProcessPoolExecutor(1): one\n        return ProcessPoolExecutor(1, mp_context=",
        "tests/unit/test_pool_processes.py -k costs",
    ),
    Mutant(
        "send exceptions between processes as they are",
        "pool/processes.py",
        "    if error is not None:\n        trace",
        "    if error is not None:\n        raise error\n        trace",
        "tests/unit/test_pool_processes.py -k costs",
    ),
    Mutant(
        "raise StopIteration of a thread as it is",
        "pool/runner.py",
        "isinstance(done.error, StopIteration)",
        "False",
        "tests/unit/test_pool_isolation.py -k told_as_python",
    ),
    Mutant(
        "let what a thread raises pass through a future",
        "pool/runner.py",
        "self._threads.submit(outcome, work)",
        "self._threads.submit(lambda: Outcome(work(), None))",
        "tests/unit/test_pool_isolation.py -k thread",
    ),
    Mutant(
        "keep a worker on which a task has waited",
        "pool/course.py",
        "untouched = not steps.suspended and (",
        "untouched = (",
        "tests/unit/test_pool_isolation.py -k whoever_looked_on",
    ),
    Mutant(
        "keep a worker that a task may have kept too",
        "pool/course.py",
        "(sys.getrefcount(worker), getweakrefcount(worker)) == references",
        "True",
        "tests/unit/test_pool_isolation.py -k late_cancel",
    ),
    Mutant(
        "keep a worker that its task has cancelled",
        "pool/course.py",
        "                    if worker.cancelling():\n                        untouched = False",
        "                    if False:\n                        untouched = False",
        "tests/unit/test_pool_isolation.py -k harms_no_other",
    ),
    Mutant(
        "take a pool's exception for none if it cannot be told",
        "pool/course.py",
        "    told = outcome(text)\n    return told.value if told.error is None else",
        "    return text()\n    told = outcome(text)\n    return told.value if told.error is None else",
        "tests/unit/test_pool_isolation.py -k Cancels",
    ),
    Mutant(
        "leave an iterator's odd end to the worker",
        "pool/source.py",
        "            except BaseException as error:  # whatever it is",
        "            except Exception as error:  # whatever it is",
        "tests/unit/test_pool_leaving.py -k BaseException",
    ),
    Mutant(
        "leave an async iterable's cancel to nobody",
        "pool/crew.py",
        "        except BaseException as error:  # whatever it is",
        "        except Exception as error:  # whatever it is",
        "tests/unit/test_pool_leaving.py -k CancelledError",
    ),
    Mutant(
        "leave a pool's tasks running when the leaving is cancelled",
        "pool/pool.py",
        "            except asyncio.CancelledError as error:\n                cancelled = error\n",
        "            except asyncio.CancelledError:\n                raise\n",
        "tests/unit/test_pool_leaving.py -k leaving_that",
    ),
    Mutant(
        "lose a cancel that comes while a pool's tasks are waited for",
        "pool/crew.py",
        "    if cancelled:\n        raise cancelled\n",
        "",
        "tests/unit/test_pool_leaving.py -k not_lost",
    ),
    Mutant(
        "cancel only what a pool has not taken yet",
        "pool/crew.py",
        "{*self._sources, *(job.source for job in self._workers.values())}",
        "{*self._sources}",
        "tests/unit/test_pool_leaving.py -k however_few",
    ),
    Mutant(
        "leave the task of a dead worker to itself",
        "pool/crew.py",
        "                self._lose(job, error)\n            elif",
        "                pass\n            elif",
        "tests/unit/test_pool_supervision.py -k alone",
    ),
    Mutant(
        "replace no dead worker",
        "pool/crew.py",
        "            self.wake()  # another takes its place",
        "            pass",
        "tests/unit/test_pool_supervision.py -k leave_nobody",
    ),
    Mutant(
        "let a pool's reporter die of what it does not know",
        "fleet.py",
        "            except Exception as error:  # whatever it is, the tasks",
        "            except ConcurrencyError as error:  # whatever it is, the tasks",
        "tests/integration/test_fleet_pools.py -k says_why",
    ),
    Mutant(
        "begin no reporter again",
        "fleet.py",
        "            task.get_loop().call_later(self._interval, self._again, task, why)",
        "            pass",
        "tests/integration/test_fleet_pools.py -k begins_again",
    ),
    Mutant(
        "let what exits end the portal's loop",
        "sync/portal.py",
        "    except BaseException as error:\n        task = asyncio",
        "    except Exception as error:\n        task = asyncio",
        "tests/sync/test_pool_endings.py -k progress",
    ),
    Mutant(
        "grant a writer when one of several readers of its process ends",
        "queue/entry.py",
        "alone = self.granted and not keys.is_reader(self.key)",
        "alone = self.granted",
        "tests/integration/test_own_waiters.py",
    ),
    Mutant(
        "take an entry that gave up for one that was served",
        "queue/entry.py",
        "alone = self.granted and not keys.is_reader(self.key)",
        "alone = not keys.is_reader(self.key)",
        "tests/integration/test_own_waiters.py",
    ),
    Mutant(
        "leave those behind a lost entry to themselves",
        "queue/entry.py",
        "self._tell_behind(gone=False)",
        "pass",
        "tests/integration/test_own_waiters.py",
    ),
    Mutant(
        "lose a place that was given to somebody just cancelled",
        "doors.py",
        "self.leave(queue)  # it was given",
        "pass  # it was given",
        "tests/unit/test_doors.py",
    ),
    Mutant(
        "let everybody into the queue",
        "doors.py",
        "PLACES = 64",
        "PLACES = 1 << 30",
        "tests/integration/test_costs.py",
    ),
)


def main() -> None:
    chosen = [mutant for mutant in MUTANTS if not sys.argv[1:] or any(text in mutant.name for text in sys.argv[1:])]
    survivors = [mutant.name for mutant in chosen if not _noticed(mutant)]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants were noticed", flush=True)
    sys.exit(bool(survivors))


def _noticed(mutant: Mutant) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("src", "tests", "pyproject.toml"):
            (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, copy / part)
        target = copy / PACKAGE / mutant.file
        text = target.read_text()
        if mutant.old not in text:
            sys.exit(f"{mutant.name}: its text is no longer in {mutant.file}")
        target.write_text(text.replace(mutant.old, mutant.new))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout=60"]
        environment = {**os.environ, "PYTHONPATH": str(copy / "src")}
        try:
            done = subprocess.run(
                [*command, *shlex.split(mutant.tests)], cwd=copy, env=environment, capture_output=True, text=True,
                check=False, timeout=_LIMIT,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            print(f"noticed    {mutant.name} (hangs)", flush=True)
            return True
    last = done.stdout.strip().splitlines()[-1:] or [done.stderr[-200:]]
    print(f"{'noticed   ' if done.returncode == 1 else 'SURVIVED  '} {mutant.name}: {last[0]}", flush=True)
    return done.returncode == 1


if __name__ == "__main__":
    main()
