"""The guard: edits and commits of paths without a reservation are refused, in real repositories with a real hook."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from codomyrmex.concurrency import LockManager, Session
from tests.integration.agents import Agent, Agents
from tests.integration.command_line import Cli

_GIT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    **{f"GIT_{who}_{what}": "tester@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}
AWAY = {"CODOMYRMEX_ETCD_ENDPOINTS": "http://127.0.0.1:1", "CODOMYRMEX_ETCD_DIAL_TIMEOUT": "0.5"}

pytestmark = [pytest.mark.long, pytest.mark.timeout(180)]  # each call is a process; there are up to twenty in a test


@pytest.fixture
def agents(cli: Cli, tmp_path: Path) -> Agents:
    repository = tmp_path / "work tree"
    (repository / "src" / "parser").mkdir(parents=True)

    def agent(name: str) -> Agent:
        one = Agent(cli, name, tmp_path / "state", repository)
        one.cli.environment |= _GIT
        return one

    return agent


async def git(agent: Agent, *args: str, code: int = 0, **environment: str) -> str:
    result = await agent.run("git", *args, **environment)
    assert result.code == code, result
    return result.err


async def begun(agent: Agent, *options: str) -> Path:
    """A repository with one commit and the hook; returns the path of the hook."""
    await git(agent, "init", "-q", "-b", "main")
    assert agent.cwd
    for name in ("a.py", "parser/b.py"):
        (agent.cwd / "src" / name).write_text(f"{name}\n" * 20)
    await git(agent, "add", "-A")
    await git(agent, "commit", "-qm", "begin")
    installed = await agent.json("guard", "install", *options)
    assert installed["installed"]
    return Path(installed["hook"])


async def test_a_path_is_checked_wherever_the_agent_is(agents: Agents) -> None:
    agent = agents("agent-7")
    await git(agent, "init", "-q")
    await agent("reserve", "--path", "src/parser/")
    assert agent.cwd
    top, agent.cwd = agent.cwd, agent.cwd / "src"
    assert (await agent("guard", "check", "src/parser/b.py", str(top / "src/parser/c.py"))).code == 0
    refused = await agent("guard", "check", "src/parser/b.py", "parser/b.py", str(top / "src/a.py"))
    assert refused.code == 77 and refused.out == ""
    assert refused.err.splitlines() == [
        "not covered by a reservation of agent-7 in the tree default:",
        "  parser/b.py: not reserved",
        "  src/a.py: not reserved",
        "next: codomyrmex concurrency reserve --path parser/b.py --path src/a.py",
    ]
    outside = await agent("guard", "check", str(top.parent / "x"))
    assert outside.code == 2 and "is outside of the repository" in outside.err


async def test_the_holders_of_a_path_are_told(agents: Agents) -> None:
    await agents("agent-7")("reserve", "--path", "src/", "--note", "renaming")
    told = await agents("agent-8").json("guard", "check", "src/a.py", "doc/x", code=77)
    first, second = told["paths"]
    assert not told["covered"] and first["held_by"][0]["note"] == "renaming" and first["reason"] == "held by others"
    assert second["held_by"] == [] and told["next"] == [
        "codomyrmex concurrency reserve --path src/a.py --path doc/x",
    ]
    words = await agents("agent-8")("guard", "check", "src/a.py")
    assert "    held: src/ in the tree default by agent-7 (" in words.err
    assert (await agents("agent-7").json("guard", "check", "src/a.py"))["covered"]
    assert (await agents("agent-7")("guard", "check", "src/a.py", "--tree", "another")).code == 77


async def test_a_holder_without_a_reservation_is_told_too(agents: Agents, session: Session) -> None:
    async with LockManager(session).acquire_paths(["src/"], metadata={"agent": "agent-7"}):
        for name in ("agent-7", "agent-8"):
            told = await agents(name)("guard", "check", "src/a.py")
            assert told.code == 77 and "held: src/ in the tree default by agent-7 (" in told.err
            assert ", until it releases" in told.err


async def test_a_reader_covers_nothing(agents: Agents) -> None:
    agent = agents("agent-7")
    await agent("reserve", "--path", "src/", "--shared")
    told = await agent("guard", "check", "src/a.py")
    assert told.code == 77 and "src/a.py: this agent has reserved it as a reader only" in told.err
    await agent("reserve", "--path", "doc/a", "--path", "doc/b")
    for path, own in (("src/a.py", "src/"), ("doc/", "doc/a")):
        told = await agent("guard", "check", path)
        assert told.err.splitlines()[-2:] == [
            f"next: codomyrmex concurrency release {own}",
            f"next: codomyrmex concurrency reserve --path {path}",
        ]
        assert (await agent("release", own)).code == 0 and (await agent("reserve", "--path", path)).code == 0
        assert (await agent("guard", "check", path)).code == 0


async def test_a_path_that_was_reserved_as_a_name_is_told(agents: Agents) -> None:
    agent = agents("agent-7")
    made = await agent("reserve", "src/a.py", "deploy")
    assert made.err == "note: src/a.py is reserved as a name; for a path of the tree say --path src/a.py\n"
    told = await agent("guard", "check", "src/a.py", "src/b.py")
    assert "  src/a.py: this agent has reserved it as a name; a path of the tree takes --path\n" in told.err
    assert "  src/b.py: not reserved\n" in told.err


async def test_the_hook_lets_only_reserved_paths_pass(agents: Agents) -> None:
    agent, other = agents("agent-7"), agents("agent-8")
    hook = await begun(agent)
    assert hook == (agent.cwd or Path()).resolve() / ".git/hooks/pre-commit" and os.access(hook, os.X_OK)
    assert agent.cwd
    await git(agent, "mv", "src/parser/b.py", "src/c.py")
    (agent.cwd / "src/a.py").unlink()
    assert (await agent("reserve", "--path", "src/parser/")).code == 0
    told = await git(agent, "commit", "-qam", "change", code=1)
    assert "  src/a.py: not reserved" in told and "  src/c.py: not reserved" in told and "b.py" not in told
    assert "git commit --no-verify" in told
    await agent("reserve", "--path", "src/c.py", "--path", "src/a.py")
    assert "src/parser/b.py: held by others" in await git(other, "commit", "-qam", "change", code=1)
    await git(agent, "commit", "-qam", "change")
    (agent.cwd / "src/new").write_text("")
    await git(agent, "add", "-A")
    await git(agent, "commit", "-qm", "on purpose", "--no-verify")


async def test_where_etcd_is_away_the_hook_refuses_and_says_so(agents: Agents) -> None:
    agent = agents("agent-7")
    await begun(agent)
    await git(agent, "rm", "-q", "src/a.py")
    told = await git(agent, "commit", "-qm", "change", code=1, **AWAY)
    assert "error: no etcd answered" in told and "git commit --no-verify" in told
    await git(agent, "commit", "-qm", "change", "--no-verify", **AWAY)


async def test_where_the_program_is_missing_the_hook_refuses_and_says_so(agents: Agents) -> None:
    agent = agents("agent-7")
    hook = await begun(agent)
    hook.write_text(hook.read_text().replace(os.path.dirname(sys.executable), "/nowhere"))
    await git(agent, "rm", "-q", "src/a.py")
    told = await git(agent, "commit", "-qm", "change", code=1, PATH="/usr/bin:/bin")
    assert "codomyrmex is not installed here" in told and "git commit --no-verify" in told


async def test_the_hook_asks_the_etcd_and_the_tree_that_it_was_given(agents: Agents) -> None:
    agent = agents("agent-7")
    namespace = agent.cli.environment["CODOMYRMEX_ETCD_NAMESPACE"]
    await begun(agent, "--tree", "the main tree", "--namespace", f"{namespace}-other")
    await git(agent, "rm", "-q", "src/a.py")
    tree = ("--path", "src/", "--tree", "the main tree")
    await agent("reserve", *tree)
    told = await git(agent, "commit", "-qm", "change", code=1)
    assert f"reserve --path src/a.py --tree 'the main tree' --namespace {namespace}-other" in told
    await agent("reserve", *tree, "--namespace", f"{namespace}-other")
    await git(agent, "commit", "-qm", "change")


async def test_a_hook_that_is_there_stays_as_it_is(agents: Agents) -> None:
    agent = agents("agent-7")
    hook = await begun(agent)
    again = await agent("guard", "install")
    assert (again.code, again.out) == (0, f"installed already: {hook}\n")
    other = await agent("guard", "install", "--tree", "main")
    assert other.code == 1 and other.err.splitlines() == [
        "not installed: another hook of the guard is there, of the tree default",
        f"next: remove it first: rm '{hook}'",
    ]
    hook.write_text("#!/bin/sh\nexit 0\n")
    told = await agent("guard", "install", "--tree", "it's")
    assert told.code == 1 and hook.read_text() == "#!/bin/sh\nexit 0\n"
    shown = await agent.json("guard", "install", "--tree", "it's", code=1)
    assert shown["line"] in told.err and shown["hook"] == str(hook) and os.listdir(hook.parent).count("pre-commit") == 1
    hook.write_text(f"#!/bin/sh\n{shown['line']}\nexit 0\n")
    await git(agent, "rm", "-q", "src/a.py")
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    assert "in the tree it's" in await git(agent, "commit", "-qm", "change", code=1, PATH=path)
    hook.unlink()
    hook.symlink_to("nowhere")
    assert (await agent("guard", "install")).code == 1 and hook.is_symlink()
    assert not list(hook.parent.glob(".pre-commit-*"))


async def test_hooks_paths_and_work_trees_are_honoured(agents: Agents, tmp_path: Path) -> None:
    agent = agents("agent-7")
    await begun(agent)
    assert agent.cwd
    main = agent.cwd
    await git(agent, "worktree", "add", "-q", "-b", "side", str(tmp_path / "side tree"))
    agent.cwd = tmp_path / "side tree" / "src"
    await git(agent, "rm", "-q", "a.py")
    assert "src/a.py: not reserved" in await git(agent, "commit", "-qm", "change", code=1)
    await agent("reserve", "--path", "src/a.py")
    await git(agent, "commit", "-qm", "change")
    agent.cwd = main
    await git(agent, "config", "core.hooksPath", "my hooks")
    installed = await agent.json("guard", "install")
    assert installed["hook"] == str(main.resolve() / "my hooks" / "pre-commit")
    await git(agent, "rm", "-q", "src/parser/b.py")
    assert "src/parser/b.py: not reserved" in await git(agent, "commit", "-qm", "change", code=1)


async def test_a_relative_hooks_path_is_told_for_other_work_trees_need_the_hook_too(
    agents: Agents, tmp_path: Path
) -> None:
    agent = agents("agent-7")
    await begun(agent)
    await git(agent, "worktree", "add", "-q", "-b", "side", str(tmp_path / "side tree"))
    assert (await agent("guard", "install")).err == ""
    await git(agent, "config", "core.hooksPath", str(tmp_path / "absolute"))
    assert (await agent("guard", "install")).err == ""
    await git(agent, "config", "core.hooksPath", ".hooks")
    told = await agent("guard", "install", "--tree", "main")
    assert told.code == 0 and told.err.startswith("warning: core.hooksPath is .hooks, a relative path: ")
    again = told.err.rpartition("type: ")[2].split()
    assert again == ["codomyrmex", "concurrency", "guard", "install", "--tree", "main"]
    agent.cwd = tmp_path / "side tree"
    await agent(*again[2:])
    await git(agent, "rm", "-q", "src/a.py")
    assert "src/a.py: not reserved" in await git(agent, "commit", "-qm", "change", code=1)


async def test_outside_of_a_repository_the_guard_says_so(agents: Agents, tmp_path: Path) -> None:
    agent = agents("agent-7")
    for call in (("install",), ("check", "--staged"), ("check", "/x")):
        told = await agent("guard", *call, GIT_CEILING_DIRECTORIES=str(tmp_path))
        assert told.code == 1 and told.err.startswith("error: git says: fatal: not a git repository"), told
