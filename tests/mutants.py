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
        "take the header of a message for what a watch has seen",
        "etcd/watch_state.py",
        "watch.revision = events[-1].kv.mod_revision",
        "watch.revision = message.revision",
        "tests/unit/test_watch_state.py",
    ),
    Mutant(
        "close the old connections under the calls on them when TLS files change",
        "etcd/links.py",
        "        for link in old:\n            self._close_if_unused(link)",
        "        for link in old:\n            asyncio.ensure_future(self._close(link.connection))",
        "tests/integration/test_security.py -k under_way",
    ),
    Mutant(
        "let a sink that raises end the watch stream",
        "etcd/watch.py",
        "    except Exception as error:\n        log.exception(",
        "    except ZeroDivisionError as error:\n        log.exception(",
        "tests/integration/test_supervision.py -k sink",
    ),
    Mutant(
        "tell nobody that something in the background has died",
        "etcd/supervision.py",
        "        if error:\n            broken(name, error)",
        "        pass",
        "tests/integration/test_supervision.py",
    ),
    Mutant(
        "let the keepalive's thread die in silence",
        "etcd/keepalive.py",
        'self._tell(partial(self._broken, "the keepalive", error))',
        "pass",
        "tests/integration/test_supervision.py -k keepalive",
    ),
    Mutant(
        "carry out a request after its caller was told that its fate is unknown",
        "etcd/commit.py",
        "if request.again is not None and not request.reply.done():",
        "if request.again is not None:",
        "tests/integration/test_faults.py -k told",
    ),
    Mutant(
        "leave a claim whose worker gave up waiting for it",
        "dead_letters/store.py",
        'undo=lambda: self.session.start(self.give_back(entry.id, mark), "giving back a claim"),',
        "",
        "tests/integration/test_worker_faults.py -k undone",
    ),
    Mutant(
        "never look round for claims that nobody runs",
        "dead_letters/worker.py",
        "if self._store.is_stray(kv) and not self._stopping:",
        "if False:",
        "tests/integration/test_worker_faults.py -k stray",
    ),
    Mutant(
        "let garbage in a claim's place block its entry",
        "dead_letters/store.py",
        "            if not kv.lease:\n                foreign.skip",
        "            if False:\n                foreign.skip",
        "tests/integration/test_worker_faults.py -k claims_place",
    ),
    Mutant(
        "cancel the writing of outcomes together with the leaving of a worker",
        "dead_letters/worker.py",
        "await asyncio.wait(self._tasks, timeout=limit)",
        "await asyncio.wait_for(asyncio.gather(*self._tasks), limit)",
        "tests/integration/test_worker_faults.py -k leaving",
    ),
    Mutant(
        "drop an entry whose claim etcd refused for want of space",
        "dead_letters/worker.py",
        "            self._schedule.again(entry_id, self._resting_until)\n",
        "",
        "tests/integration/test_worker_faults.py -k full_database",
    ),
    Mutant(
        "keep reasons and errors of any length",
        "dead_letters/record.py",
        "return text if len(text) <= limit else",
        "return text if len(text) <= limit or True else",
        "tests/integration/test_worker_faults.py -k 'shortened or whatever_fits'",
    ),
    Mutant(
        "wait for a handler that hangs for as long as it takes",
        "dead_letters/worker_handle.py",
        "self._drain_timeout if kind is None else 0.0",
        "None if kind is None else 0.0",
        "tests/integration/test_worker_faults.py -k hangs",
    ),
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
        "etcd/watch_state.py",
        "watch.revision = events[-1].kv.mod_revision",
        "pass",
        "tests/integration/test_watch.py",
    ),
    Mutant(
        "begin a watch anew after a broken stream, without saying so",
        "etcd/watch_state.py",
        "            watch.watch_id = None\n            watch.resumed = True",
        "            watch.watch_id = None\n            watch.revision = 0",
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
    Mutant(
        "delete a dedup key that names another entry",
        "dead_letters/store.py",
        "return _Rider(Compare(key, Target.VALUE, entry.id.encode()), Delete(key))",
        'return _Rider(Compare(key + b"x", Target.CREATE_REVISION, 0), Delete(key))',
        "tests/integration/test_dead_letter_dedup.py -k leaves",
    ),
    Mutant(
        "believe a dedup key that dangles",
        "dead_letters/store.py",
        'if stored and stored.entry.state != "resolved" and stored.entry.dedup == entry.dedup:',
        "if True:",
        "tests/integration/test_dead_letter_dedup.py -k taken_over",
    ),
    Mutant(
        "take a dangling dedup key over although it was changed",
        "dead_letters/store.py",
        "            Compare(dedup[0].key, Target.MOD_REVISION, dedup[0].mod_revision),\n",
        "",
        "tests/integration/test_dead_letter_dedup.py -k dangling",
    ),
    Mutant(
        "leave a replayed entry without its dedup key",
        "dead_letters/store.py",
        'if before.state != "resolved" or not after.dedup:',
        "if True:",
        "tests/integration/test_dead_letter_dedup.py -k replayed",
    ),
    Mutant(
        "store an entry again over what it has become",
        "dead_letters/store.py",
        "compares = [Compare(key, Target.CREATE_REVISION, 0), *free]",
        "compares = [*free]",
        "tests/integration/test_dead_letter_dedup.py tests/integration/test_spill.py -k 'again or doubt'",
    ),
    Mutant(
        "make room for an entry that is stored already",
        "dead_letters/queue.py",
        "if known := await store.known(entry):",
        "if known := None:",
        "tests/integration/test_dead_letter_dedup.py -k full",
    ),
    Mutant(
        "send a spilled record again and again",
        "dead_letters/spiller.py",
        "self.spill.remove(path)",
        "pass",
        "tests/unit/test_spill.py -k 'sent_in_order or sent_again'",
    ),
    Mutant(
        "send what another queue has spilled",
        "dead_letters/spill.py",
        "if owner and owner != self._owner:",
        "if False:",
        "tests/unit/test_spill.py -k refused",
    ),
    Mutant(
        "spill two queues into one folder",
        "dead_letters/spill.py",
        '_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_")',
        '_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_%")',
        "tests/unit/test_spill.py -k names",
    ),
    Mutant(
        "let two processes send what was spilled at once",
        "dead_letters/spill.py",
        "locked = _locked(descriptor)",
        "locked = True",
        "tests/unit/test_spill.py -k 'one_at_a_time or at_once'",
    ),
    Mutant(
        "let a forked child keep the lock of its dead parent",
        "dead_letters/spill.py",
        "os.register_at_fork(after_in_child=_close_locks)",
        "pass",
        "tests/unit/test_spill.py -k forked",
    ),
    Mutant(
        "drop a spilled record that cannot be stored",
        "dead_letters/spill.py",
        "path.replace(aside)",
        "path.unlink()",
        "tests/unit/test_spill.py -k aside",
    ),
    Mutant(
        "let what sends spilled records die of an unexpected error",
        "dead_letters/spiller.py",
        "if _is_cancelled():",
        "if True:",
        "tests/unit/test_spill.py -k unexpected",
    ),
    Mutant(
        "let one spilled record hold up the others",
        "dead_letters/spiller.py",
        "hindered = hindered or error",
        "raise",
        "tests/unit/test_spill.py -k 'hold_up'",
    ),
    Mutant(
        "wait for what sends in a parent process",
        "dead_letters/spiller.py",
        " and task.get_loop() is asyncio.get_running_loop()",
        "",
        "tests/unit/test_spill.py -k event_loop",
    ),
    Mutant(
        "take over an old file that may be of another queue",
        "dead_letters/old_spill.py",
        'if stem.count(".") > 1:',
        "if False:",
        "tests/unit/test_spill.py -k may_be",
    ),
    Mutant(
        "compare the first key beside a limit in its place",
        "semaphore.py",
        "Compare(kv.key, Target.CREATE_REVISION, kv.create_revision) for kv in old",
        "Compare(found.kvs[0].key, Target.CREATE_REVISION, kv.create_revision) for kv in old",
        "tests/integration/test_semaphore.py -k passes_over",
    ),
    Mutant(
        "read a number of any length in a key",
        "decode.py",
        "len(digits) > _MAX_DIGITS or ",
        "",
        "tests/unit/test_decode.py",
    ),
    Mutant(
        "believe a record without looking at what is in it",
        "decode.py",
        "return found if _is_sound(found) else None",
        "return found",
        "tests/unit/test_decode.py",
    ),
    Mutant(
        "accept arguments that cannot be read back",
        "dead_letters/record.py",
        "if not bounds.is_plain(copy):",
        "if False:",
        "tests/unit/test_decode.py",
    ),
    Mutant(
        "accept metadata that cannot be read back",
        "claim.py",
        "if not decode.is_plain(json.loads(text)):",
        "if False:",
        "tests/unit/test_decode.py",
    ),
    Mutant(
        "let a claim of more than there can be fill the semaphore",
        "keys.py",
        "or 0 if claim.isdigit()",
        "or 2**63 if claim.isdigit()",
        "tests/integration/test_garbage.py -k blocks_nobody",
    ),
    Mutant(
        "go by the highest of several limits",
        "keys.py",
        "return min((limit for key",
        "return max((limit for key",
        "tests/unit/test_decode.py",
    ),
    Mutant(
        "refuse to open a semaphore among limits that are none",
        "semaphore.py",
        "seen = found.revision",
        "seen = 0",
        "tests/integration/test_garbage.py -k limits",
    ),
    Mutant(
        "let two open a semaphore with two limits, among garbage",
        "semaphore.py",
        "compares=(first,)",
        "compares=() if seen else (first,)",
        "tests/integration/test_garbage.py -k opens_a_semaphore_first",
    ),
    Mutant(
        "tell of a skipped key each time",
        "foreign.py",
        "if key in _told or",
        "if",
        "tests/integration/test_garbage.py -k told_of_once",
    ),
    Mutant(
        "release by force by the key as it is shown",
        "queue/observe.py",
        "_delete_entry(session, held.key, holder.token, (audit,))",
        "_delete_entry(session, holder.key.encode(), holder.token, (audit,))",
        "tests/integration/test_garbage.py -k no_text",
    ),
    Mutant(
        "show texts of any length in a table",
        "cli/views.py",
        "return text if len(text) <= most else",
        "return text if True else",
        "tests/unit/test_decode.py -k huge",
    ),
    Mutant(
        "grant on the trust there was before the second write",
        "queue/joining.py",
        "await _outlive_session(entries)\n            await _trusted(entries, patience)",
        "await _outlive_session(entries)",
        "tests/integration/test_trust.py -k lock_delay-False",
    ),
    Mutant(
        "grant without a look at trust",
        "queue/joining.py",
        "if session.alive:",
        "if True:",
        "tests/integration/test_trust.py -k any_await_point",
    ),
    Mutant(
        "let a try wait for trust as long as it takes",
        "queue/joining.py",
        "entries[0].session.settings.request_timeout if only_if_free else None",
        "None",
        "tests/integration/test_trust.py -k a_try_does_not_wait",
    ),
    Mutant(
        "tell of a keepalive only where the thread saw trust end",
        "etcd/keepalive.py",
        "self._tell(self._changed)  # also",
        "pass  # also",
        "tests/integration/test_trust.py -k before_its_end_was_noticed",
    ),
    Mutant(
        "rely on a longer lease that came late",
        "session.py",
        "if clock.now() - asked_at > self.ttl / 3:",
        "if False:",
        "tests/integration/test_trust.py -k came_late",
    ),
    Mutant(
        "wait for etcd at the end of a block whose lock is lost",
        "queue/entry.py",
        "if lost and not self.session.alive:",
        "if False:",
        "tests/integration/test_trust.py -k ends_with_lock_lost_at_once",
    ),
    Mutant(
        "raise the failed release of what was lost",
        "queue/entry.py",
        "if not lost:\n                raise",
        "raise",
        "tests/integration/test_trust.py -k while_etcd_stands_still",
    ),
    Mutant(
        "turn a block's success into an error because its release is not confirmed",
        "hold.py",
        "except EtcdError as failure:\n",
        "except EtcdError as failure:\n            raise\n",
        "tests/integration/test_trust.py tests/sync/test_trust.py -k ends_by_itself",
    ),
    Mutant(
        "hide the loss under a body's error",
        "hold.py",
        "_insert(LockLost(str(lost.lost.reason)), error)",
        "pass",
        "tests/integration/test_trust.py -k trust_ended_under_it",
    ),
    Mutant(
        "cancel the task that acquired a permit, not the one in its block",
        "hold.py",
        "self.task = asyncio.current_task()\n        if self",
        "if self",
        "tests/integration/test_trust.py -k the_task_that_entered_it",
    ),
    Mutant(
        "give up looking for the own key at a refusal",
        "queue/entry.py",
        "except EtcdError:  # it looks",
        "except SessionLost:  # it looks",
        "tests/integration/test_trust.py -k looks_for_its_key",
    ),
    Mutant(
        "cancel whoever waits for a removal when the session closes",
        "etcd/removal.py",
        "if not self._closed:\n            for removal",
        "if True:\n            for removal",
        "tests/integration/test_trust.py -k closes_under_a_release",
    ),
    Mutant(
        "let a block pass that outlived its trust while its process was stopped",
        "hold.py",
        "            entry.notice_loss()",
        "            pass",
        "tests/integration/test_trust.py -k 'unnoticed or beyond_max_hold'",
    ),
    Mutant(
        "notice the end of trust by the keepalive's thread alone",
        "queue/entry.py",
        "        self.notice_loss()",
        "        pass",
        "tests/integration/test_trust.py -k no_thread_tells",
    ),
    Mutant(
        "let a forked child think that it holds",
        "session.py",
        " or not self.home.in_process:\n            return 0.0",
        ":\n            return 0.0",
        "tests/integration/test_elsewhere.py -k nothing_is_held",
    ),
    Mutant(
        "let a grant be used in any event loop",
        "home.py",
        " and (self.loop is None or self.loop is asyncio.get_running_loop())",
        "",
        "tests/integration/test_elsewhere.py -k another_loop",
    ),
    Mutant(
        "refuse a fork as if etcd were away",
        "etcd/grpc.py",
        "raise UsedElsewhere(",
        "raise EtcdUnavailable(",
        "tests/integration/test_elsewhere.py -k refusal_of_a_fork",
    ),
    Mutant(
        "forget what is held before its release is refused",
        "locks.py",
        "        next(iter(self._holds.values())).check_here()\n",
        "",
        "tests/integration/test_elsewhere.py -k another_loop",
    ),
    Mutant(
        "let a pool take tasks in a second event loop",
        "pool/pool.py",
        "        self._crew.check_here()\n        if self._closed:",
        "        if self._closed:",
        "tests/integration/test_elsewhere.py -k pool",
    ),
    Mutant(
        "lose the dead letters of a forked child",
        "dead_letters/queue.py",
        "(EtcdUnavailable, SessionLost, UsedElsewhere)",
        "(EtcdUnavailable, SessionLost)",
        "tests/integration/test_elsewhere.py -k dead_letter",
    ),
    Mutant(
        "say nothing of who holds at a timeout",
        "claim.py",
        ": {await self._why(rules, entries)}",
        "",
        "tests/integration/test_refusals.py -k who_holds",
    ),
    Mutant(
        "wait for etcd's word on who holds for as long as it takes",
        "claim.py",
        "_MOMENT = 0.5",
        "_MOMENT = 60",
        "tests/integration/test_refusals.py -k etcd_away",
    ),
    Mutant(
        "name all names as missing",
        "queue/refusal.py",
        '    if isinstance(rule(view), Granted):\n        return ""\n',
        "",
        "tests/integration/test_refusals.py -k several_names",
    ),
    Mutant(
        "warn nobody who waits for itself",
        "queue/joining.py",
        "                warn_of_itself(entry.session, entry.place, entry.by)\n",
        "",
        "tests/integration/test_warnings.py -k 'that_it_holds or own_lock'",
    ),
    Mutant(
        "warn of a lock that was held once",
        "queue/entry.py",
        "            del self.session.held[mine]",
        "            pass",
        "tests/integration/test_warnings.py -k after_its_release",
    ),
    Mutant(
        "let a grant be dropped in silence",
        "queue/grant.py",
        "        self._entry.forgotten()",
        "        pass",
        "tests/integration/test_warnings.py -k dropped",
    ),
    Mutant(
        "keep a task that failed alive by what it holds",
        "queue/entry.py",
        "cls(weakref.ref(who) if who else None, line)",
        "cls(who, line)  # type: ignore[arg-type]",
        "tests/integration/test_warnings.py -k dropped",
    ),
    Mutant(
        "say nothing of an acquisition that nobody awaits",
        "manager.py",
        "        if not self._begun:",
        "        if False:",
        "tests/integration/test_warnings.py -k nobody_awaits",
    ),
    Mutant(
        "pass over misspelt variables",
        "settings.py",
        "        _warn_of_misspelt()\n        try",
        "        try",
        "tests/unit/test_settings.py -k misspelt_variable",
    ),
    Mutant(
        "let pydantic say what is wrong with a setting",
        "settings.py",
        '            raise ValueError(f"invalid etcd settings: {_in_words(error, values)}") from None',
        "            raise",
        "tests/unit/test_settings.py -k in_our_words",
    ),
    Mutant(
        "delete a semaphore although somebody has joined it meanwhile",
        "semaphore.py",
        "        same.append(Compare(queue,",
        "        [].append(Compare(queue,",
        "tests/integration/test_semaphore.py -k joined_as_it_is_deleted",
    ),
    Mutant(
        "make a semaphore by looking at it",
        "semaphore.py",
        "session = await ready(self._session)\n        info",
        "session = await self._claim.session()\n        info",
        "tests/integration/test_semaphore.py -k does_not_make_one",
    ),
    Mutant(
        "let the reader win of a name given both ways",
        "manager.py",
        " and rules.get(name) is not exclusive",
        "",
        "tests/integration/test_misuse.py -k both_ways",
    ),
    Mutant(
        "tell no manager of a release by the grant",
        "queue/entry.py",
        "        if self.on_release:\n",
        "        if False:\n",
        "tests/integration/test_misuse.py -k shows_its_state_and",
    ),
    Mutant(
        "let Python say what it thinks of `with`",
        "blocks.py",
        "        def __enter__(",
        "        def enter(",
        "tests/integration/test_misuse.py -k with_is_no",
    ),
    Mutant(
        "take any value for a time",
        "seconds.py",
        "    if isinstance(seconds, bool) or not isinstance(seconds, (float, int, Real)):",
        "    if False:",
        "tests/integration/test_misuse.py -k time_is_a_number",
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
