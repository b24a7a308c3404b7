"""The files of spilled dead letters, and the task that sends them; what it calls to send is the test's own."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex.concurrency.dead_letters import old_spill, record, spiller
from codomyrmex.concurrency.dead_letters.record import DeadLetter
from codomyrmex.concurrency.dead_letters.spill import Spill, segment
from codomyrmex.concurrency.dead_letters.spiller import Spiller
from codomyrmex.concurrency.errors import EtcdError, EtcdUnavailable, PayloadTooLarge, SessionLost
from tests.helpers import eventually


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(spiller, "SEND_EVERY", 0.02)
    monkeypatch.setattr(old_spill, "_warned", set())
    return tmp_path / "codomyrmex" / "dead-letters"


def letter(number: int = 0) -> DeadLetter:
    return record.new("x", {"n": number}, "bad", None, str)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != "sending.lock")


class Etcd:
    """Remembers what was added; ``refuse`` says what to raise instead."""

    def __init__(self, refuse: Callable[[DeadLetter], BaseException | None] = lambda _: None) -> None:
        self.added: list[str] = []
        self.asked = 0
        self.refuse = refuse

    async def add(self, entry: DeadLetter) -> str:
        self.asked += 1
        await asyncio.sleep(0)
        if error := self.refuse(entry):
            raise error
        self.added.append(entry.id)
        return entry.id


def sender(etcd: Etcd, queue: str = "q", over: Callable[[], bool] = lambda: False) -> Spiller:
    return Spiller("ns", queue, etcd.add, over)


# Names


@given(st.lists(st.text(min_size=1, max_size=200), min_size=2, max_size=2, unique=True))
def test_no_two_names_share_a_folder_and_none_leaves_its_own(names: list[str]) -> None:
    one, two = (segment(name) for name in names)
    assert one.casefold() != two.casefold()
    for part in (one, two):
        assert 1 <= len(part) <= 255 and part.isascii() and "/" not in part and not part.startswith(".")


def test_names_that_were_one_are_apart() -> None:
    long = "x" * 512
    pairs = [
        ("a", "b.c"),
        ("a.b", "c"),
        ("a", "b_c"),
        ("a", "b/c"),
        ("a", "b%2fc"),
        ("a", ".."),
        ("a", "."),
        ("a", "B.C"),
    ]
    pairs += [("a", "mail"), ("a", "mail.eu"), ("a", long), ("a", long[:-1] + "y"), ("a", segment(long))]
    assert len({Spill(*pair).folder for pair in pairs}) == len(pairs)
    for pair in pairs:
        path = Spill(*pair).write(letter())
        assert path.parents[2].name == "dead-letters"


# Files


def test_a_record_is_kept_for_this_user_alone_and_read_again(state: Path) -> None:
    spill, entry = Spill("ns", "q"), letter()
    path = spill.write(entry)
    assert spill.waiting() == [path] and spill.read(path) == entry
    assert path.stat().st_mode & 0o777 == 0o600
    assert {part.stat().st_mode & 0o777 for part in (state, *path.parents[:2])} == {0o700}
    assert json.loads(path.read_bytes().splitlines()[0]) == {"namespace": "ns", "queue": "q"}


def test_a_record_of_another_queue_is_refused_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    mine, other = Spill("ns", "mine"), Spill("ns", "other")
    strayed = other.write(letter())
    path = mine.write(letter()).with_name("strayed.json")
    strayed.rename(path)
    assert mine.read(path) is None and "'other'" in caplog.text
    assert path.exists() and path not in mine.waiting()


@pytest.mark.parametrize("content", [b"", b"{", b'{"namespace": "ns", "queue": "q"}\n{"id":', b"\xff\n\xff", b"[]\n[]"])
def test_what_cannot_be_read_is_kept_aside(content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    spill = Spill("ns", "q")
    path = spill.write(letter())
    path.write_bytes(content)
    assert spill.read(path) is None and spill.waiting() == []
    assert path.with_suffix(".rejected").read_bytes() == content and str(path.with_suffix(".rejected")) in caplog.text


def test_what_is_too_large_is_kept_aside(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    spill = Spill("ns", "q")
    path = spill.write(letter())
    monkeypatch.setattr(record, "MAX_RECORD", 10)
    assert spill.read(path) is None and files(spill.folder) == [path.with_suffix(".rejected").name]
    assert "10 fit" in caplog.text


def test_a_file_that_cannot_be_opened_is_left_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    spill = Spill("ns", "q")
    good = spill.write(letter())
    bad = spill.folder / "0.json"
    bad.mkdir()
    assert spill.read(bad) is None and str(bad) in caplog.text and spill.waiting() == [good]


def test_a_file_that_a_crash_left_half_written_is_kept_aside_some_day() -> None:
    spill = Spill("ns", "q")
    whole = spill.write(letter())
    half = spill.folder / "0123.writing"
    half.write_bytes(whole.read_bytes()[:-20])
    assert spill.waiting() == [whole]  # its writer may be at work
    assert whole.rename(whole.with_suffix(".x")) and spill.is_empty()
    os.utime(half, (1.0, 1.0))
    assert not spill.is_empty() and whole.with_suffix(".x").rename(whole)
    assert [path.name for path in spill.waiting()] == sorted([whole.name, "0123.json"])
    assert spill.read(spill.folder / "0123.json") is None
    assert files(spill.folder) == sorted([whole.name, "0123.rejected"])


def run(script: str, *args: str) -> str:
    done = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, timeout=30, check=True)
    return done.stdout


def test_a_full_disk_raises_and_leaves_no_file() -> None:
    said = run("""
import resource
from codomyrmex.concurrency.dead_letters import record
from codomyrmex.concurrency.dead_letters.spill import Spill
spill = Spill("ns", "q")
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    spill.write(record.new("x", {}, "bad", None, str))
except OSError as error:
    print("OSError", len(list(spill.folder.iterdir())))
""")
    assert said.split() == ["OSError", "0"]


def test_only_one_at_a_time_sends() -> None:
    one, two, other = Spill("ns", "q"), Spill("ns", "q"), Spill("ns", "other")
    with one.lock() as ours:
        assert ours
        with two.lock() as too, other.lock() as apart:
            assert not too and apart
    with two.lock() as ours:
        assert ours


@pytest.mark.parametrize("released", [True, False])
def test_a_forked_child_does_not_keep_its_parents_lock(released: bool) -> None:
    pid = run(
        """
import os, sys, time
from codomyrmex.concurrency.dead_letters.spill import Spill
with Spill("ns", "q").lock() as ours:
    assert ours
    child = os.fork()
    if not child:
        os.close(1), os.close(2)
        time.sleep(30)
        os._exit(0)
    print(child, flush=True)
    if sys.argv[1] == "False":
        os._exit(0)  # dies with the lock
os._exit(0)
""",
        str(released),
    )
    try:
        with Spill("ns", "q").lock() as ours:
            assert ours
    finally:
        os.kill(int(pid), 9)


def test_without_a_home_there_is_an_error_that_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setattr(Path, "home", staticmethod(homeless))
    with pytest.raises(OSError, match="XDG_STATE_HOME"):
        Spill("ns", "q").write(letter())


# Sending


async def test_everything_is_sent_in_order_and_the_task_ends() -> None:
    etcd = Etcd()
    sending = sender(etcd)
    entries = [letter(n) for n in range(5)]
    for entry in reversed(entries):
        sending.spill.write(entry)
    sending.wake()
    await eventually(lambda: sending._task and sending._task.done())
    assert etcd.added == [entry.id for entry in entries] and files(sending.spill.folder) == []


async def test_the_event_loop_writes_no_file_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    write = Spill.write

    def noted(self: Spill, entry: DeadLetter) -> Path:
        threads.append(threading.get_ident())
        return write(self, entry)

    monkeypatch.setattr(Spill, "write", noted)
    sending = sender(Etcd())
    await sending.keep(letter())
    await sending.close()
    assert threads and threading.get_ident() not in threads


async def test_what_is_sent_is_not_sent_again_when_the_rest_fails() -> None:
    etcd = Etcd()
    etcd.refuse = lambda _: EtcdUnavailable("away") if len(etcd.added) == 2 else None
    sending = sender(etcd)
    entries = [letter(n) for n in range(4)]
    for entry in entries:
        sending.spill.write(entry)
    sending.wake()
    await eventually(lambda: etcd.asked >= 5)
    assert [path.stem for path in sending.spill.waiting()] == [entry.id for entry in entries[2:]]
    etcd.refuse = lambda _: None
    await eventually(lambda: sending._task and sending._task.done())
    assert etcd.added == [entry.id for entry in entries]


async def test_tries_leave_the_files_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    etcd = Etcd(lambda _: EtcdUnavailable("away"))
    sending = sender(etcd)
    for number in range(3):
        sending.spill.write(letter(number))
    before = {path: path.read_bytes() for path in sending.spill.waiting()}
    sending.wake()
    await eventually(lambda: etcd.asked >= 8)
    assert {path: path.read_bytes() for path in sending.spill.waiting()} == before
    await sending.close()
    assert sum("cannot be sent yet" in one.message for one in caplog.records if one.levelno == logging.WARNING) == 1


async def test_two_who_send_at_once_send_each_record_once() -> None:
    etcd = Etcd()
    one, two = sender(etcd), sender(etcd)
    for number in range(20):
        one.spill.write(letter(number))
    one.wake()
    two.wake()
    await eventually(lambda: all(each._task and each._task.done() for each in (one, two)))
    assert len(etcd.added) == len(set(etcd.added)) == 20


async def test_a_record_that_etcd_refuses_is_kept_aside_and_holds_up_nobody() -> None:
    bad = letter()
    etcd = Etcd(lambda entry: PayloadTooLarge("too large") if entry.id == bad.id else None)
    sending = sender(etcd)
    for entry in (bad, letter(1)):
        sending.spill.write(entry)
    sending.wake()
    await eventually(lambda: sending._task and sending._task.done())
    assert len(etcd.added) == 1 and files(sending.spill.folder) == [f"{bad.id}.rejected"]


async def test_trouble_with_one_record_does_not_hold_up_the_others() -> None:
    bad = letter()
    etcd = Etcd(lambda entry: EtcdError("request is too large") if entry.id == bad.id else None)
    sending = sender(etcd)
    for entry in (bad, letter(1), letter(2)):
        sending.spill.write(entry)
    sending.wake()
    await eventually(lambda: len(etcd.added) == 2)
    await sending.close()
    assert files(sending.spill.folder) == [f"{bad.id}.json"]


@pytest.mark.parametrize("error", [RuntimeError("a bug"), asyncio.CancelledError()])
async def test_an_unexpected_error_is_told_and_tried_again(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    etcd = Etcd()
    etcd.refuse = lambda _: error if etcd.asked < 3 else None
    sending = sender(etcd)
    await sending.keep(letter())
    await eventually(lambda: sending._task and sending._task.done())
    assert len(etcd.added) == 1 and "not expected" in caplog.text


async def test_too_many_unexpected_errors_end_it_with_a_word_and_the_next_record_begins_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    etcd = Etcd(lambda _: RuntimeError("a bug"))
    sending = sender(etcd)
    await sending.keep(letter())
    await eventually(lambda: sending._task and sending._task.done())
    assert etcd.asked == spiller.FAILURES and "no more tries" in caplog.text
    etcd.refuse = lambda _: None
    await sending.keep(letter())
    await eventually(lambda: len(etcd.added) == 2)
    await sending.close()


async def test_a_task_that_a_stranger_cancels_is_missed(caplog: pytest.LogCaptureFixture) -> None:
    etcd = Etcd(lambda _: EtcdUnavailable("away"))
    sending = sender(etcd)
    await sending.keep(letter())
    await eventually(lambda: etcd.asked)
    assert sending._task
    sending._task.cancel()
    await eventually(lambda: "was cancelled" in caplog.text)
    etcd.refuse = lambda _: None
    await sending.keep(letter())
    await eventually(lambda: len(etcd.added) == 2)
    await sending.close()


async def test_close_ends_it_for_good_until_it_is_opened_again() -> None:
    etcd = Etcd(lambda _: EtcdUnavailable("away"))
    sending = sender(etcd)
    await sending.keep(letter())
    await sending.close()
    assert sending._task and sending._task.done()
    etcd.refuse = lambda _: None
    await sending.keep(letter())
    assert sending._task.done() and len(sending.spill.waiting()) == 2
    sending.open()
    await eventually(lambda: len(etcd.added) == 2)
    await sending.close()


async def test_a_queue_whose_session_is_over_stops_trying(caplog: pytest.LogCaptureFixture) -> None:
    etcd = Etcd(lambda _: SessionLost("the session is over"))
    sending = sender(etcd, over=lambda: True)
    await sending.keep(letter())
    await eventually(lambda: sending._task and sending._task.done())
    assert etcd.asked == 1 and "the session is over" in caplog.text and len(sending.spill.waiting()) == 1


def test_a_task_of_another_event_loop_is_not_waited_for() -> None:
    etcd = Etcd()
    sending = sender(etcd)
    sending.spill.write(letter())
    first = asyncio.new_event_loop()

    async def begin() -> None:
        sending.wake()

    first.run_until_complete(begin())  # the task has not even begun, and its loop runs no more
    assert sending._task and not sending._task.done()

    async def anew() -> None:
        sending.wake()
        await eventually(lambda: etcd.added)
        await sending.close()

    left = sending._task
    asyncio.run(anew())
    left.cancel()
    first.run_until_complete(asyncio.gather(left, return_exceptions=True))
    first.close()


# Files of the earlier release


def old_file(state: Path, name: str, *lines: bytes) -> Path:
    state.mkdir(parents=True, exist_ok=True)
    path = state / name
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


DEAD = 4_000_000_000  # no process has that number


async def _sent(queue: str) -> list[str]:
    etcd = Etcd()
    sending = sender(etcd, queue)
    sending.wake()
    await eventually(lambda: sending._task and sending._task.done())
    return etcd.added


@pytest.mark.parametrize("kind", ["jsonl", "sending"])
async def test_an_old_file_is_sent_once_however_often_it_has_a_record(state: Path, kind: str) -> None:
    entries = [letter(n) for n in range(3)]
    path = old_file(state, f"ns.q.{DEAD}.{kind}", *[record.encode(entry) for entry in entries] * 100)
    assert await _sent("q") == [entry.id for entry in entries]
    assert not path.exists() and files(state) == []


async def test_an_old_file_that_may_be_of_another_queue_is_left_with_one_warning(
    state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = old_file(state, f"ns.mail.eu.{DEAD}.jsonl", record.encode(letter()))
    for queue in ("mail", "eu", "mail.eu", "mail.eu"):
        assert await _sent(queue) == []
    assert path.exists() and caplog.text.count(str(path)) == 1


async def test_half_a_line_of_an_old_file_is_kept_aside(state: Path) -> None:
    entry = letter()
    path = old_file(state, f"ns.q.{DEAD}.jsonl", record.encode(entry))
    with open(path, "ab") as file:
        file.write(record.encode(letter())[:-30])
    assert await _sent("q") == [entry.id] and not path.exists()
    (aside,) = Spill("ns", "q").folder.glob("*.rejected")
    assert aside.read_bytes().startswith(b'{"id":')


async def test_an_old_file_of_a_process_that_lives_is_left_until_nobody_looks_after_it(state: Path) -> None:
    path = old_file(state, f"ns.q.{os.getppid()}.jsonl", record.encode(letter()))
    assert await _sent("q") == []
    os.utime(path, (1.0, 1.0))  # the number is that of another process by now
    assert len(await _sent("q")) == 1 and not path.exists()


async def test_what_is_no_old_file_is_let_alone(state: Path) -> None:
    names = ["ns.q.jsonl", "ns.q.²3.jsonl", "ns.q.12.txt", "ns.q..jsonl", "ns.qq.12.jsonl", "x"]
    for name in names:
        old_file(state, name, record.encode(letter()))
    (state / f"ns.q.{DEAD}.jsonl").mkdir()
    assert await _sent("q") == [] and files(state) == sorted(names)
