"""Sixteen processes edit one git work tree under path reservations; its hook refuses commits without one."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.chaos.documents.history import Follower
from tests.chaos.documents.journal import of, read
from tests.chaos.documents.judge import report
from tests.chaos.documents.servers import Servers, servers
from tests.chaos.reservations.drive import begin
from tests.chaos.reservations.editor import NAMESPACE, TREE
from tests.chaos.reservations.judge import judge
from tests.chaos.reservations.judge_disk import contents, edits
from tests.chaos.reservations.repository import Repository
from tests.chaos.reservations.run import Run

EDITORS = 16
SECONDS = int(os.environ.get("CHAOS_SECONDS", "60"))

pytestmark = pytest.mark.timeout(240 + SECONDS)


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[Servers]:
    with servers(1, request.config.getoption("--etcd-binary")) as started:
        yield started


@pytest.fixture
async def repository(cluster: Servers, tmp_path: Path) -> AsyncIterator[Repository]:
    made = Repository(tmp_path / "tree", tmp_path / "state", cluster.endpoints)
    await made.create()
    yield made


@pytest.mark.parametrize("seconds", [4, pytest.param(SECONDS, marks=pytest.mark.chaos)])
async def test_each_write_has_one_covering_holder(
    cluster: Servers, repository: Repository, tmp_path: Path, seconds: int
) -> None:
    seed = random.randrange(1 << 30)
    follower = Follower([member.endpoint for member in cluster.members])
    follower.start()
    facts = tmp_path / "facts"
    facts.mkdir()
    editors = [_editor(cluster, facts, repository.root, number, seed) for number in range(EDITORS)]
    try:
        assert (await repository.cli("guard", "install", "--tree", TREE)).code == 0
        await _until_all_edit(facts)
        await asyncio.sleep(seconds)
        await repository.git("add", "-A")
        refused = await repository.commit("Refused")
        assert refused.code != 0 and await repository.commits() == ["Begin"], refused.told
    finally:
        for editor in editors:
            editor.terminate()
        for editor in editors:
            editor.wait(30)
    events = await asyncio.to_thread(follower.caught_up, cluster.gateway())
    follower.end()
    run = Run(NAMESPACE, events, read(facts))
    made = of(run.facts, "edited")
    print(f"\n{len(made)} edits, {len(run.entries)} entries, by {len({fact['process'] for fact in made})} processes")
    assert [editor.returncode for editor in editors] == [0] * EDITORS
    violations = [*judge(run), *edits(run, TREE), *contents(run, TREE, repository.root)]
    assert not violations, f"seed {seed}\n{report(violations)}"
    assert len(made) > 5 * seconds


def _editor(cluster: Servers, facts: Path, root: Path, number: int, seed: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.chaos.reservations.editor", f"--name=editor{number}"]
    command += [f"--endpoints={cluster.endpoints}", f"--folder={facts}", f"--work-tree={root}"]
    return subprocess.Popen([*command, f"--seed={seed + number}"], preexec_fn=begin)


async def _until_all_edit(facts: Path) -> None:
    deadline = time.monotonic() + 60
    while len({fact["process"] for fact in of(read(facts), "call")}) < EDITORS:
        assert time.monotonic() < deadline, "not every editor has begun within 60 s"
        await asyncio.sleep(0.5)


async def test_a_commit_without_a_reservation_is_refused(repository: Repository) -> None:
    installed = await repository.cli("guard", "install", "--tree", TREE)
    assert installed.code == 0, installed.told
    changed = repository.root / "vault" / "a.txt"

    changed.write_text("without a reservation")
    await repository.git("add", "vault/a.txt")
    refused = await repository.commit("Refused")
    assert refused.code != 0 and "vault/a.txt" in refused.told and "reserve" in refused.told, refused.told

    reserved = await repository.cli("reserve", "--path", "vault/", "--tree", TREE, "--for", "60s", "--note", "new text")
    assert reserved.code == 0, reserved.told
    foreign = await repository.commit("Refused", agent="another")
    assert foreign.code != 0 and "judge" in foreign.told, foreign.told
    allowed = await repository.commit("Allowed")
    assert allowed.code == 0, allowed.told

    odd = repository.root / "vault" / 'ü "q" \\ x y.txt'
    odd.write_text("x")
    await repository.git("add", "-A", "vault")
    allowed = await repository.commit("Odd names")
    assert allowed.code == 0, allowed.told

    await repository.git("mv", "vault/b.txt", "docs/b.txt")
    renamed = await repository.commit("Refused")
    assert renamed.code != 0 and "docs/b.txt" in renamed.told, renamed.told
    await repository.git("mv", "docs/b.txt", "vault/b.txt")
    await repository.git("mv", "README.md", "vault/README.md")
    renamed = await repository.commit("Refused")
    assert renamed.code != 0 and "README.md" in renamed.told, renamed.told
    await repository.git("reset", "-q", "--hard")

    released = await repository.cli("release", "--all")
    assert released.code == 0, released.told
    changed.write_text("after the release")
    await repository.git("add", "vault/a.txt")
    assert (await repository.commit("Refused")).code != 0
    assert await repository.commits() == ["Odd names", "Allowed", "Begin"]


@pytest.mark.long
async def test_the_hook_of_an_agent_whose_reservation_expired_refuses(repository: Repository) -> None:
    assert (await repository.cli("guard", "install", "--tree", TREE)).code == 0
    reserved = await repository.cli("reserve", "--path", "vault/a.txt", "--tree", TREE, "--for", "10s")
    assert reserved.code == 0, reserved.told
    (repository.root / "vault" / "a.txt").write_text("too late")
    await repository.git("add", "vault/a.txt")
    await asyncio.sleep(12)
    refused = await repository.commit("Refused")
    assert refused.code != 0 and "vault/a.txt" in refused.told, refused.told
    lost = await repository.cli("renew", "--all")
    assert lost.code == 76, lost.told


async def test_without_etcd_a_commit_is_refused(repository: Repository, cluster: Servers) -> None:
    assert (await repository.cli("guard", "install", "--tree", TREE)).code == 0
    (repository.root / "vault" / "a.txt").write_text("nobody can tell")
    await repository.git("add", "vault/a.txt")
    cluster.members[0].kill()
    refused = await repository.commit("Refused")
    assert refused.code != 0, refused.told
    assert await repository.commits() == ["Begin"]


async def test_a_hook_that_is_there_stays(repository: Repository) -> None:
    hook = repository.root / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho mine\n")
    refused = await repository.cli("guard", "install", "--tree", TREE)
    assert refused.code == 1 and hook.read_text() == "#!/bin/sh\necho mine\n", refused.told
    assert "guard check --staged" in refused.told, "the message says what to add to the hook"


async def test_other_ways_to_commit_are_refused_too(repository: Repository, tmp_path: Path) -> None:
    assert (await repository.cli("guard", "install", "--tree", TREE)).code == 0
    assert (await repository.cli("reserve", "--path", "docs/", "--tree", TREE, "--for", "60s")).code == 0
    (repository.root / "vault" / "a.txt").write_text("changed")
    (repository.root / "docs" / "index.md").write_text("changed")
    for command in (("-a",), ("--only", "vault/a.txt"), ("--include", "vault/a.txt"), ("-a", "--amend")):
        refused = await repository.git("commit", "-m", "Refused", *command)
        assert refused.code != 0 and "vault/a.txt" in refused.told, (command, refused.told)
    assert (await repository.git("commit", "-m", "Docs", "--only", "docs/index.md")).code == 0
    (repository.root / "vault" / "b.txt").unlink()
    refused = await repository.git("commit", "-m", "Refused", "--only", "vault/b.txt")
    assert refused.code != 0 and "vault/b.txt" in refused.told, refused.told
    linked = Repository(tmp_path / "linked", tmp_path / "state", repository.environment["CODOMYRMEX_ETCD_ENDPOINTS"])
    assert (await repository.git("worktree", "add", "-q", "-b", "side", str(linked.root))).code == 0
    (linked.root / "vault" / "a.txt").write_text("elsewhere")
    refused = await linked.git("commit", "-m", "Refused", "-a")
    assert refused.code != 0 and "vault/a.txt" in refused.told, refused.told
    assert await repository.commits() == ["Docs", "Begin"]
