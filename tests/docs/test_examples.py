"""Every example runs as written, given an etcd, without a warning, and shows what it says."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest

from codomyrmex.concurrency import EmbeddedEtcd, LockManager, Session
from codomyrmex.concurrency.cli import running
from codomyrmex.concurrency.cli.group import concurrency

pytestmark = pytest.mark.long

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LIMIT = 30


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The handles that an example keeps are not the user's."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def environment(etcd: EmbeddedEtcd, namespace: str) -> dict[str, str]:
    return {
        "PATH": os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"])),
        "PYTHONWARNINGS": "error",
        "XDG_STATE_HOME": os.environ["XDG_STATE_HOME"],
        "CODOMYRMEX_ETCD_ENDPOINTS": etcd.endpoint,
        "CODOMYRMEX_ETCD_NAMESPACE": namespace,
    }


def output_of(name: str, etcd: EmbeddedEtcd, namespace: str, limit: float = LIMIT) -> list[str]:
    """The lines that an example prints; it must end well and without a word on stderr."""
    command = "sh" if name.endswith(".sh") else sys.executable
    run = [command, str(EXAMPLES / name)]
    done = subprocess.run(
        run, capture_output=True, text=True, check=False, env=environment(etcd, namespace), timeout=limit
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout.splitlines()


def test_the_quickstart_runs(etcd: EmbeddedEtcd, namespace: str) -> None:
    lines = output_of("quickstart.py", etcd, namespace)
    assert sum("holds the lock" in line for line in lines) == 6
    assert "total_acquisitions=6" in lines[-1]


def test_file_edits_loses_no_edit(etcd: EmbeddedEtcd, namespace: str) -> None:
    *files, refused = output_of("file_edits.py", etcd, namespace)
    assert [re.sub(r"\d+$", "N", line) for line in files] == [
        "main.py: all 15 edits are there, last fencing token N",
        "tests.py: all 15 edits are there, last fencing token N",
    ]
    assert refused.startswith("a write after the lock was taken away is refused:")
    assert "nothing was written" in refused


def test_the_blocking_workers_lose_no_line(etcd: EmbeddedEtcd, namespace: str) -> None:
    assert output_of("blocking_workers.py", etcd, namespace) == [
        "7 of 8 lines are there, 1 failed",
        "after the retry 8 are",
    ]


def test_the_rate_limited_provider_refuses_no_call(etcd: EmbeddedEtcd, namespace: str) -> None:
    assert output_of("rate_limited_provider.py", etcd, namespace) == [
        "12 calls answered, 0 refused, at most 3 units at once",
        "permits free at the end: 3",
    ]


def test_the_rate_limits_are_kept_and_used(etcd: EmbeddedEtcd, namespace: str) -> None:
    (line,) = output_of(
        "rate_limits.py", etcd, namespace, limit=50
    )  # its own time is 14 s, beside the start of processes
    served, refused, used = map(int, re.findall(r"\d+", line))
    assert served > 32 and refused == 0 and used >= 60, line


def test_redrive_retries_each_once_and_replays_what_was_parked(etcd: EmbeddedEtcd, namespace: str) -> None:
    lines = output_of("redrive.py", etcd, namespace)
    assert [line for line in lines if line.startswith("'12.50'")] == ["'12.50': 12.5"]
    assert lines[5] == "3 dead letters"
    assert sorted(lines[6:9]) == ["retry 1: '0,99' is 0.99", "retry 1: '7,20' is 7.20", "retry 1: 'free' is parked"]
    assert lines[9] == "2 resolved, parked: [\"nobody has said what 'free' costs\"]"
    assert lines[10:12] == ["1 replayed", "retry 1: 'free' is 0.00"]
    assert lines[12:] == [
        "'7,20' is resolved after ['ok']",
        "'0,99' is resolved after ['ok']",
        "'free' is resolved after ['parked', 'ok']",
    ]


def test_the_workflow_engine_keeps_order_and_takes_turns(etcd: EmbeddedEtcd, namespace: str) -> None:
    lines = output_of("workflow_engine.py", etcd, namespace)
    assert [line for line in lines if line.startswith("level:")] == [
        "level: checkout",
        "level: compile, docs, lint",
        "level: release",
    ]
    begins = {line.split()[0]: index for index, line in enumerate(lines) if " begins " in line}
    ends = {line.split()[0]: index for index, line in enumerate(lines) if line.endswith(" ends")}
    first, second = sorted(("compile", "docs"), key=begins.__getitem__)
    assert begins.keys() == ends.keys() == {"checkout", "lint", "compile", "docs", "release"}
    assert ends[first] < begins[second], "two steps touched the cache at once"
    assert max(begins["lint"], begins[first]) < min(ends["lint"], ends[first]), "independent steps took turns"
    assert ends["checkout"] < min(begins[name] for name in ("lint", "compile", "docs"))
    assert begins["release"] > max(ends[name] for name in ("lint", "compile", "docs"))
    assert lines[-1] == "5 steps done"


def test_the_agent_pool_gets_its_agents_back(etcd: EmbeddedEtcd, namespace: str) -> None:
    lines = output_of("agent_pool.py", etcd, namespace)
    assert sorted(lines[:4]) == ["a process that is killed ended with -9", *["a process that works ended with 0"] * 3]
    assert lines[4:] == [
        "13 uses, no agent used twice at once",
        "all agents are back: coder-1, coder-2, reviewer-1",
    ]


def test_the_elected_service_goes_on_with_another_leader(etcd: EmbeddedEtcd, namespace: str) -> None:
    assert output_of("elected_service.py", etcd, namespace) == [
        "3 members",
        "the leader is killed",
        "another one leads, its token is higher: True",
        "2 members",
    ]


def test_ci_deploy_deploys(etcd: EmbeddedEtcd, namespace: str) -> None:
    first = output_of("ci_deploy.sh", etcd, namespace)
    second = output_of("ci_deploy.sh", etcd, namespace)
    assert first[1] == second[1] == "staging is deployed"
    tokens = [int(lines[0].removeprefix("deploying under fencing token ")) for lines in (first, second)]
    assert tokens[0] < tokens[1]


async def deploy(etcd: EmbeddedEtcd, namespace: str, **variables: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        "sh",
        str(EXAMPLES / "ci_deploy.sh"),
        "staging",
        env=environment(etcd, namespace) | variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_ci_deploy_gives_up_waiting(etcd: EmbeddedEtcd, namespace: str, session: Session) -> None:
    async with LockManager(session).acquire("deploy:staging"), asyncio.timeout(LIMIT):
        waiting = await deploy(etcd, namespace, TIMEOUT="100ms")
        output, errors = await waiting.communicate()
    assert (waiting.returncode, output) == (75, b"")
    assert b"staging is still being deployed by another job" in errors


async def test_ci_deploy_ends_when_its_lock_is_lost(etcd: EmbeddedEtcd, namespace: str, session: Session) -> None:
    async with asyncio.timeout(LIMIT):
        running = await deploy(etcd, namespace, DEPLOY="echo begun; sleep 60; echo done")
        assert running.stdout
        assert await running.stdout.readline() == b"begun\n"
        await LockManager(session).force_release("deploy:staging", reason="a test")
        output, errors = await running.communicate()
    assert (running.returncode, output) == (76, b"")
    assert b"staging may be half deployed" in errors


async def test_ci_deploy_passes_on_a_failure(etcd: EmbeddedEtcd, namespace: str) -> None:
    async with asyncio.timeout(LIMIT):
        failing = await deploy(etcd, namespace, DEPLOY="exit 3")
        output, errors = await failing.communicate()
    assert (failing.returncode, output) == (3, b"")
    assert b"the deploy failed with exit code 3" in errors


def test_path_locks_let_no_two_agents_meet(etcd: EmbeddedEtcd, namespace: str) -> None:
    assert output_of("path_locks.py", etcd, namespace) == [
        "beside src/parser/ there is room for docs/",
        "beside src/parser/ there is no room for src/**/*.py, which is taken as src/",
        "5 agents worked 5 times each, and no two of them met",
    ]


def plain(line: str) -> str:
    """A line without the numbers, times and names of this run."""
    line = re.sub(rf"{re.escape(socket.gethostname())}:\d+", "HOST", line)
    return re.sub(r"\b(\d+[hms])+\b", "TIME", re.sub(r"token \d+", "token N", line))


def test_two_agents_take_turns_and_take_over(etcd: EmbeddedEtcd, namespace: str) -> None:
    lines = [plain(line) for line in output_of("two_agents.sh", etcd, namespace)]
    parts = "".join(f"{line}\n" for line in lines).split("== ")[1:]
    reserved, refused, released, _, taken_over, too_late, ended = (part.splitlines()[1:] for part in parts)
    assert reserved[0] == "reserved: src/parser/ in the tree default, by anna for TIME, token N"
    assert refused[:2] == [
        "not reserved: not granted at once",
        "held: src/parser/ in the tree default by anna (HOST) for TIME, TIME left, note: renaming the parser",
    ]
    assert "next: codomyrmex concurrency reserve --path src/parser/lexer.py --timeout TIME" in refused
    assert refused[-1] == "exit code 75"
    assert [line.partition(":")[0] for line in released] == ["renewed", "released"]
    assert "reserved: src/parser/ in the tree default, by anna for TIME, token N" in taken_over
    assert "left by ben, whose reservation expired: moving the tokens" in taken_over
    assert too_late[0].startswith("lost: src/parser/lexer.py in the tree default: ")
    assert too_late[-1] == "exit code 76"
    assert ended == ["released: src/parser/ in the tree default, token N"]


def gate(
    etcd: EmbeddedEtcd, namespace: str, folder: Path, tool_use: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the command of the settings as a coding agent does: in a shell, with the use of a tool on stdin."""
    settings = json.loads(read("pre_edit_hook.json"))
    (hook,) = settings["hooks"]["PreToolUse"][0]["hooks"]
    return subprocess.run(
        ["sh", "-c", hook["command"]],
        cwd=folder,
        input=tool_use,
        capture_output=True,
        text=True,
        check=False,
        env=environment(etcd, namespace) | {"CODOMYRMEX_AGENT": "anna"} | variables,
        timeout=hook["timeout"],
    )


def read(name: str) -> str:
    return (EXAMPLES / name).read_text()


def use_of(**tool_input: str) -> str:
    return json.dumps({"tool_name": "Edit", "tool_input": tool_input})


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with the gate in it."""
    found = tmp_path / "repository"
    (found / "examples").mkdir(parents=True)
    (found / "src").mkdir()
    (found / "examples" / "pre_edit_gate.py").write_text(read("pre_edit_gate.py"))
    subprocess.run(["git", "init", "-q", found], check=True)
    return found


async def test_the_gate_is_open_to_an_agent_that_has_reserved(
    etcd: EmbeddedEtcd, namespace: str, session: Session, repository: Path
) -> None:
    reserved = use_of(file_path=str(repository / "src" / "new.py"))
    other = use_of(notebook_path=str(repository / "other.ipynb"))
    async with LockManager(session).reserve(paths=["src/"], ttl=60, owner="anna"):
        assert gate(etcd, namespace, repository, reserved).returncode == 0
        assert gate(etcd, namespace, repository / "src", reserved).returncode == 0
        assert gate(etcd, namespace, repository, use_of(file_path="src/new.py")).returncode == 0
        assert gate(etcd, namespace, repository, other).returncode == 2
        refused = gate(etcd, namespace, repository, reserved, CODOMYRMEX_AGENT="ben")
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "anna" in refused.stderr
        assert "codomyrmex concurrency reserve --path src/new.py" in refused.stderr
    assert gate(etcd, namespace, repository, reserved).returncode == 2


async def test_the_gate_asks_for_the_tree_that_the_environment_names(
    etcd: EmbeddedEtcd, namespace: str, session: Session, repository: Path
) -> None:
    edit = use_of(file_path="src/new.py")
    async with LockManager(session).reserve(paths=["src/"], tree="main", ttl=60, owner="anna"):
        assert gate(etcd, namespace, repository, edit, CODOMYRMEX_TREE="main").returncode == 0
        refused = gate(etcd, namespace, repository, edit, CODOMYRMEX_TREE="")
    assert refused.returncode == 2
    assert "in the tree default" in refused.stderr


@pytest.mark.parametrize(
    ("tool_use", "why"),
    [
        ("", "the input is not the use of a tool"),
        ("[1]", "the input is not the use of a tool"),
        ("[]", "the tool's input names no path"),
        ("{}", "the tool's input names no path"),
        (use_of(command="ls"), "the tool's input names no path"),
        (use_of(file_path=""), "the tool's input names no path"),
        (use_of(file_path="a\0b"), "the tool's input names no path"),
        ('{"tool_input": {"file_path": 1}}', "TypeError"),
    ],
)
def test_the_gate_is_closed_in_doubt(
    etcd: EmbeddedEtcd, namespace: str, repository: Path, tool_use: str, why: str
) -> None:
    refused = gate(etcd, namespace, repository, tool_use)
    assert refused.returncode == 2
    assert f"cannot be checked: {why}" in refused.stderr


def only(folder: Path, python: str, *programs: str) -> str:
    """A PATH with these programs only, and with a ``python3`` that runs ``python`` where that one is."""
    folder.mkdir()
    for name in programs:
        path = shutil.which(name, path=os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"])))
        assert path
        (folder / name).symlink_to(path)
    (folder / "python3").write_text(f'#!/bin/sh\nexec {shlex.quote(python)} "$@"\n')
    (folder / "python3").chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("python", "programs", "why"),
    [
        (os.path.realpath(sys.executable), ("sh", "git"), "cannot be checked: codomyrmex was not found on PATH"),
        (os.path.realpath(sys.executable), ("sh", "git", "codomyrmex"), "not covered by a reservation"),
        (sys.executable, ("sh", "git"), "not covered by a reservation"),
    ],
    ids=["nowhere", "on_path", "beside_its_python"],
)
def test_the_gate_finds_its_program(
    etcd: EmbeddedEtcd, namespace: str, repository: Path, python: str, programs: tuple[str, ...], why: str
) -> None:
    path = only(repository.parent / "bin", python, *programs)
    refused = gate(etcd, namespace, repository, use_of(file_path="a.py"), PATH=path)
    assert refused.returncode == 2
    assert why in refused.stderr


def test_the_gate_is_closed_while_etcd_is_out_of_reach(etcd: EmbeddedEtcd, namespace: str, repository: Path) -> None:
    nowhere = {"CODOMYRMEX_ETCD_ENDPOINTS": "http://127.0.0.1:9"}
    refused = gate(etcd, namespace, repository, use_of(file_path=str(repository / "a.py")), **nowhere)
    assert refused.returncode == 2
    assert "127.0.0.1:9" in refused.stderr


def test_the_gate_leaves_other_files_alone(etcd: EmbeddedEtcd, namespace: str, repository: Path) -> None:
    assert gate(etcd, namespace, repository, use_of(file_path=str(repository.parent / "notes.md"))).returncode == 0


def test_the_prompt_names_commands_and_exit_codes_that_exist() -> None:
    text = read("AGENTS.snippet.md")
    codes = {running.EXIT_UNREACHABLE, running.EXIT_TIMEOUT, running.EXIT_LOST, running.EXIT_NOT_RESERVED}
    assert {int(code) for code in re.findall(r"[Ee]xit code (\d+)", text)} == codes
    for line in re.findall(r"`codomyrmex concurrency ([^`]+)`", text):
        command, *arguments = shlex.split(line)
        found = concurrency.get_command(click.Context(concurrency), command)
        assert found
        found.make_context(command, arguments)  # raises a usage error for an option that it has not


def test_every_example_is_run() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*examples.py"))
    run = re.findall(r'(?:output_of|read)\(\s*"([^"]+)"', tests)
    assert set(run) == {path.name for path in EXAMPLES.iterdir() if path.is_file()}
