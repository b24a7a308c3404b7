"""Every example runs as written, given an etcd, without a warning, and shows what it says."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

from codomyrmex.concurrency import EmbeddedEtcd, LockManager, Session

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LIMIT = 30


def environment(etcd: EmbeddedEtcd, namespace: str) -> dict[str, str]:
    return {
        "PATH": os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"])),
        "PYTHONWARNINGS": "error",
        "CODOMYRMEX_ETCD_ENDPOINTS": etcd.endpoint,
        "CODOMYRMEX_ETCD_NAMESPACE": namespace,
    }


def output_of(name: str, etcd: EmbeddedEtcd, namespace: str) -> list[str]:
    """The lines that an example prints; it must end well and without a word on stderr."""
    command = "sh" if name.endswith(".sh") else sys.executable
    run = [command, str(EXAMPLES / name)]
    done = subprocess.run(
        run, capture_output=True, text=True, check=False, env=environment(etcd, namespace), timeout=LIMIT
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


def test_every_example_is_run_here() -> None:
    run = re.findall(r'output_of\("([^"]+)"', Path(__file__).read_text())
    assert set(run) == {path.name for path in EXAMPLES.iterdir() if path.is_file()}
