"""``fencing.files``."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from codomyrmex.concurrency import fencing
from codomyrmex.concurrency.errors import FencedWriteRejected
from codomyrmex.concurrency.fencing import files
from codomyrmex.concurrency.keys import PATH
from tests.unit.fencing.holds import entry, held, kept, reader


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "report.txt"


def test_a_lower_token_is_refused_and_both_are_named(path: Path) -> None:
    files.replace(path, "by 7", held(7))
    files.replace(path, b"by 9", held(9))
    with pytest.raises(FencedWriteRejected, match=r"token 7 .*'deploy'.* token 9"):
        files.replace(path, "late", held(7))
    assert path.read_text() == "by 9"


def test_without_it_the_late_write_lands(path: Path) -> None:
    files.replace(path, "by 9", held(9))
    path.write_text("late")
    assert path.read_text() == "late"


def test_reading_keeps_earlier_holders_out(path: Path) -> None:
    files.replace(path, "by 7", held(7))
    assert files.read(path, held(9)) == b"by 7"
    with pytest.raises(FencedWriteRejected):
        files.replace(path, "late", held(7))
    with pytest.raises(FencedWriteRejected):
        files.read(path, held(7))


def test_each_lock_has_its_own_tokens(path: Path) -> None:
    files.replace(path, "x", held(9, "other"))
    files.replace(path, "x", held(9, namespace="other"))
    files.replace(path, "by 7", held(7))
    files.replace(path, "by 8", kept(8, entry("deploy"), entry("tree", PATH)))
    with pytest.raises(FencedWriteRejected, match="path lock 'tree'"):
        files.replace(path, "late", held(7, "tree", PATH))


def test_two_files_have_their_own_tokens(path: Path, tmp_path: Path) -> None:
    files.replace(path, "by 9", held(9))
    files.replace(tmp_path / "other.txt", "by 7", held(7))


def test_the_record_is_readable_and_nothing_else_is_left(path: Path) -> None:
    files.replace(path, "by 7", held(7))
    assert sorted(os.listdir(path.parent)) == [".report.txt.fencing", ".report.txt.fencing-lock", "report.txt"]
    assert json.loads((path.parent / ".report.txt.fencing").read_text()) == {"/fleet/v1/lock/deploy/": 7}


def test_a_link_stays_and_shares_the_record(path: Path, tmp_path: Path) -> None:
    files.replace(path, "by 9", held(9))
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(FencedWriteRejected):
        files.replace(link, "late", held(7))
    files.replace(link, "by 10", held(10))
    assert link.is_symlink() and path.read_text() == "by 10"


def test_permissions_stay(path: Path) -> None:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o750)
    files.replace(path, "#!/bin/sh\necho\n", held(7))
    assert path.stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_told(path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def lockf(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with pytest.raises(fencing.FencingUnavailable, match=r"no POSIX locks .*NFSv4"):
        files.replace(path, "x", held(7))
    assert not path.exists()


def test_other_errors_of_the_lock_stay(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lockf(*_: Any) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with pytest.raises(OSError, match="broken"):
        files.replace(path, "x", held(7))


def test_windows_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(fencing.FencingUnavailable, match="Windows"):
        files.replace(path, "x", held(7))
    assert not path.exists()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": "7"}', '{"a": true}', '{"a": -1}', "\udcff"])
def test_a_damaged_record_is_told(path: Path, content: str) -> None:
    (path.parent / ".report.txt.fencing").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(fencing.FencingUnavailable, match="damaged"):
        files.replace(path, "x", held(7))
    assert not path.exists()


def test_other_data_and_other_holds_are_refused(path: Path) -> None:
    with pytest.raises(TypeError, match="not int"):
        files.replace(path, 7, held(7))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reader"):
        files.replace(path, "x", reader(7))
    with pytest.raises(TypeError, match="not str"):
        files.replace(path, "x", "token")  # type: ignore[arg-type]
    assert os.listdir(path.parent) == []


def test_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="regular file"):
        files.replace(tmp_path, "x", held(7))
    with pytest.raises(FileNotFoundError):
        files.replace(tmp_path / "missing" / "file", "x", held(7))


def test_threads_take_turns(path: Path) -> None:
    files.replace(path, "0", held(7))

    def add() -> None:
        for token in range(10, 30):
            try:
                files.replace(path, str(token), held(token))
            except FencedWriteRejected:
                written.append(int(path.read_text()) >= token)

    written: list[bool] = []
    threads = [threading.Thread(target=add) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() == "29" and all(written)


def test_a_thread_waits_for_another_of_its_process(path: Path) -> None:
    with files._locked(path):
        thread = threading.Thread(target=files.replace, args=(path, "x", held(7)))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
    thread.join()
    assert path.read_text() == "x"


def test_a_process_waits_for_another(path: Path) -> None:
    code = "import sys; from tests.unit.fencing.holds import held; from codomyrmex.concurrency.fencing import files\n"
    code += "print('begun', flush=True); files.replace(sys.argv[1], 'x', held(7))"
    with files._locked(path):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        assert process.stdout and process.stdout.readline() == b"begun\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
    with process:
        assert process.wait() == 0
    assert path.read_text() == "x"


def test_a_kill_at_any_step_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.fencing.killed_writer", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kills, old, new = map(int, done.stdout.split())
    assert kills == old + new and kills > 40 and old > 20 and new > 5
