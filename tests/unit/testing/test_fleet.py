"""Processes of a fleet: they run functions and commands, tell what they write, and are gone at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from codomyrmex.concurrency.testing import Fleet
from tests.unit.testing import commands


@pytest.fixture
def processes() -> Iterator[Fleet]:
    with Fleet() as fleet:
        yield fleet


def runs(pid: int) -> bool:
    """True if a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(*pids: int) -> bool:
    deadline = time.monotonic() + 10
    while any(runs(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(runs(pid) for pid in pids)


def test_a_function_runs_with_its_arguments(processes: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREETING", "hello")
    process = processes.start(commands.talk, "one", 2)
    assert process.wait() == 0
    assert process.output == "one\n2\n" and process.errors == "hello\n"


def test_a_coroutine_function_runs_in_a_loop(processes: Fleet) -> None:
    assert processes.start(commands.sleep_a_little).wait_for("slept")


def test_a_command_runs(processes: Fleet) -> None:
    process = processes.start([sys.executable, "-c"], "print('up'); print('and on')", ready="up")
    assert process.wait_for("on") == "and on" and process.wait() == 0


def test_a_function_of_a_file_that_cannot_be_imported_by_name_runs(processes: Fleet, tmp_path: Path) -> None:
    from codomyrmex.concurrency.testing.child import module_of

    file = tmp_path / "loose.py"
    file.write_text("def speak():\n    print('spoken')\n")
    try:
        assert processes.start(module_of("loose", str(file)).speak).wait_for("spoken")
    finally:
        del sys.modules["loose"]


def test_each_wait_reads_on(processes: Fleet) -> None:
    process = processes.start(commands.talk, "a 1", "a 2", "b")
    assert [process.wait_for("a"), process.wait_for("a"), process.wait_for("b")] == ["a 1", "a 2", "b"]


def test_a_process_that_fails_says_why(processes: Fleet) -> None:
    with pytest.raises(ChildProcessError, match=r"ended with 1\) has not written 'ready'\n.*broken on purpose"):
        processes.start(commands.fail, ready="ready")


def test_a_last_line_without_its_end_is_read(processes: Fleet) -> None:
    assert processes.start(commands.fail).wait_for("half") == "half"


def test_a_wait_has_a_limit(processes: Fleet) -> None:
    process = processes.start(commands.wait, ready="ready")
    with pytest.raises(TimeoutError, match=r"which runs\) has not written 'never' in 0\.05 s"):
        process.wait_for("never", 0.05)
    with pytest.raises(TimeoutError, match=r"has not ended in 0\.05 s"):
        process.wait(0.05)


def test_a_killed_process_ends_with_its_children(processes: Fleet) -> None:
    process = processes.start(commands.wait_with_child)
    grandchild = int(process.wait_for("ready").split()[1])
    process.kill()
    assert process.returncode == -signal.SIGKILL and gone(process.pid, grandchild)
    process.kill()  # a second time does nothing


def test_a_stopped_process_stands_still_until_it_is_resumed(processes: Fleet) -> None:
    process = processes.start(commands.count, ready="3")
    process.stop()
    time.sleep(0.1)
    before = process.output
    time.sleep(0.1)
    assert process.output == before
    process.resume()
    process.wait_for(str(int(before.split()[-1]) + 5))
    process.terminate()
    assert process.wait() == -signal.SIGTERM


def test_the_end_of_the_block_ends_all() -> None:
    with Fleet() as fleet:
        pids = [fleet.start(commands.wait, ready="ready").pid for _ in range(2)]
        fleet.processes[0].stop()
        assert all(runs(pid) for pid in pids)
    assert not any(runs(pid) for pid in pids) and not fleet.processes


def test_the_end_of_the_block_ends_what_a_process_has_left() -> None:
    with Fleet() as fleet:
        process = fleet.start(commands.leave_child)
        grandchild = int(process.wait_for("left").split()[1])
        assert process.wait() == 0 and runs(grandchild)
    assert gone(grandchild)


def test_a_command_that_is_not_there_is_an_error(processes: Fleet) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-command"):
        processes.start(["no-such-command"])


def test_a_given_environment_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREETING", "hello")
    with Fleet({"PATH": os.environ["PATH"]}) as fleet:
        process = fleet.start(commands.talk, "one")
        assert process.wait() == 0 and process.errors == "\n"


@pytest.mark.parametrize("function", [lambda: None, type("C", (), {})])
def test_a_function_that_no_process_can_find_is_refused(processes: Fleet, function: type) -> None:
    with pytest.raises(ValueError, match="a process runs a function at the top of a module, not "):
        processes.start(function)


def test_a_command_in_one_text_is_refused(processes: Fleet) -> None:
    with pytest.raises(TypeError, match=r"a command is a list of texts, not 'sleep 1'"):
        processes.start("sleep 1")


def test_the_processes_end_with_a_parent_that_is_killed() -> None:
    code = (
        "from codomyrmex.concurrency.testing import Fleet\n"
        "from tests.unit.testing import commands\n"
        "process = Fleet().start(commands.wait_with_child)\n"
        "print(process.pid, process.wait_for('ready').split()[1], flush=True)\n"
        "import time; time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2 and all(runs(pid) for pid in pids)
        parent.kill()
    assert gone(*pids)
