"""Handles are kept per agent, safely: for parallel calls, killed writers, foreign files and full or read-only disks."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex.concurrency import ConcurrencyError
from codomyrmex.concurrency.cli.agents.handle_store import HandleStore, KeptHandle, file_name

KEPT = KeptHandle("secret-handle", ("deploy",), ("src/",), "main", False)

WRITER = """
import sys
from codomyrmex.concurrency.cli.agents.handle_store import HandleStore, KeptHandle
store, me, rounds = HandleStore("fleet", "agent-7"), sys.argv[1], int(sys.argv[2])
store.open()
print("ready", flush=True)
for n in range(rounds):
    kept = KeptHandle(f"{me}-{n}" + "x" * 20000, (f"{me}-{n}",), (), "default", False)
    store.keep(kept)
    assert kept in store.all()
    if n % 2:
        store.drop(kept)
"""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def opened(agent: str = "agent-7") -> HandleStore:
    store = HandleStore("fleet", agent)
    store.open()
    return store


def writer(name: str, rounds: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITER, name, str(rounds)], stdout=subprocess.PIPE, text=True)


def test_it_is_where_the_state_of_a_user_belongs(state: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert opened().directory == state / "codomyrmex" / "reservations" / "fleet" / "agent-7"
    monkeypatch.setenv("HOME", str(tmp_path))
    for useless in ("", "relative/path"):
        monkeypatch.setenv("XDG_STATE_HOME", useless)
        assert HandleStore("a", "b").directory == tmp_path / ".local/state/codomyrmex/reservations/a/b"


def test_only_its_user_can_read_it() -> None:
    before = os.umask(0)
    try:
        store = opened()
        store.keep(KEPT)
        os.chmod(store.directory, 0o755)
        store.open()
    finally:
        os.umask(before)
    (file,) = store.directory.iterdir()
    assert stat.S_IMODE(store.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "secret" not in file.name and "secret" not in repr(KEPT)


def test_a_handle_is_kept_until_it_is_dropped() -> None:
    store, other = opened(), replace(KEPT, handle="another", names=("b", "c"))
    assert HandleStore("nobody", "here").all() == []
    for kept in (other, KEPT, other):
        store.keep(kept)
    assert store.all() == [other, KEPT] and opened("agent-8").all() == []
    store.drop(KEPT)
    store.drop(KEPT)
    assert store.all() == [other]


def test_a_copy_of_a_file_is_one_reservation_and_dropped_with_it() -> None:
    store, other = opened(), replace(KEPT, handle="another")
    store.keep(KEPT)
    (whole,) = store.directory.iterdir()
    (store.directory / "copy of it.json").write_text(whole.read_text())
    store.keep(other)
    assert len(store.all()) == 2
    store.drop(KEPT)
    assert store.all() == [other] and len(list(store.directory.iterdir())) == 1


def test_files_that_are_damaged_or_foreign_are_named_and_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    store = opened()
    store.keep(KEPT)
    (whole,) = store.directory.iterdir()
    text = whole.read_text()
    strangers = {
        "cut": text[: len(text) // 2],
        "empty": "",
        "newer": text.replace('"version": 1', '"version": 2'),
        "other-agent": text.replace('"agent": "agent-7"', '"agent": "agent-8"'),
        "other-namespace": text.replace('"namespace": "fleet"', '"namespace": "x"'),
        "list": "[]",
    }
    for name, content in strangers.items():
        (store.directory / f"{name}.json").write_text(content)
    (store.directory / "bytes.json").write_bytes(b"\xff\x00")
    (store.directory / "folder.json").mkdir()
    (store.directory / "dangling.json").symlink_to("nowhere")
    os.mkfifo(store.directory / "pipe.json")
    (store.directory / ".hidden").write_text("a file manager's")
    assert store.all() == [KEPT]
    warned = capsys.readouterr().err
    for name in (*strangers, "bytes", "folder", "pipe", "dangling"):
        assert f"/{name}.json is left out" in warned
    assert warned.count("warning: ") == len(strangers) + 4


@pytest.mark.parametrize("obstacle", ["file", "read-only"])
def test_a_directory_that_cannot_be_written_is_a_clear_error(
    state: Path, obstacle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if obstacle == "file":
        state.write_text("")
    else:

        def refuse(*args: object, **options: object) -> None:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(ConcurrencyError, match=r"cannot be kept in .*XDG_STATE_HOME"):
        opened()


def test_a_write_that_fails_leaves_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened()

    def refuse(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(ConcurrencyError, match="No space left"):
        store.keep(KEPT)
    assert list(store.directory.iterdir()) == []


def test_parallel_calls_lose_nothing_and_see_no_half() -> None:
    writers = [writer(name, 10) for name in "abcd"]
    assert [one.wait(30) for one in writers] == [0] * 4
    for one in writers:
        assert one.stdout
        one.stdout.close()
    store = HandleStore("fleet", "agent-7")
    assert len(store.all()) == 4 * 5
    assert not list(store.directory.glob(".new-*"))


def test_killed_writers_leave_whole_files_alone(capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(4):
        one = writer("killed", 1_000_000)
        assert one.stdout and one.stdout.readline() == "ready\n"
        time.sleep(0.02)
        one.send_signal(signal.SIGKILL)
        one.wait(10)
        one.stdout.close()
        for kept in HandleStore("fleet", "agent-7").all():
            assert kept.handle.startswith(kept.names[0])
    assert "warning" not in capfd.readouterr().err


def test_what_a_killed_writer_left_is_removed_later() -> None:
    store = opened()
    for name, age in (("old", 120.0), ("young", 0.0)):
        aside = store.directory / f".new-{name}"
        aside.write_text("")
        os.utime(aside, (time.time() - age,) * 2)
    store.open()
    assert [path.name for path in store.directory.iterdir()] == [".new-young"]


@given(st.text(min_size=1), st.text(min_size=1))
def test_each_text_has_a_file_name_of_its_own(one: str, other: str) -> None:
    name = file_name(one)
    assert 0 < len(name.encode()) < 200 and "/" not in name and not name.startswith(".")
    assert (name == file_name(other)) == (one == other)


def test_plain_names_stay_readable_and_long_ones_apart() -> None:
    assert file_name("user@host-1.lan") == "user@host-1.lan"
    assert (file_name(".."), file_name("a/b")) == ("%2E.", "a%2Fb")
    assert file_name("x" * 300) != file_name("x" * 301)
