"""The paths that a commit would change, as real repositories have them; and the place of their hooks."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from codomyrmex.concurrency import ConcurrencyError
from codomyrmex.concurrency.cli.guard import git


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "tester")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "tester@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    top = tmp_path / "work tree"
    top.mkdir()
    monkeypatch.chdir(top)
    run("init", "-q", "-b", "main")
    return top


def run(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-c", "protocol.file.allow=always", *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout


def commit(**files: str) -> None:
    for name, text in files.items():
        Path(name).write_text(text)
    run("add", "-A")
    run("commit", "-qm", "change")


def test_before_the_first_commit_all_that_is_staged_counts(repository: Path) -> None:
    Path("a").write_text("a")
    Path("b").write_text("b")
    run("add", "a")
    assert git.staged() == ["a"] and git.root() == repository.resolve()


@pytest.mark.parametrize("setting", ["diff.renames=copies", "diff.relative=true", "core.quotePath=true"])
def test_changes_deletions_and_both_ends_of_renames_count(repository: Path, setting: str) -> None:
    Path("sub").mkdir()
    commit(changed="1", deleted="2", old="a long text\n" * 20, still="3", copied="another text\n" * 20)
    run("config", *setting.split("="))
    Path("changed").write_text("x")
    run("mv", "old", "sub/new")
    run("rm", "-q", "deleted")
    Path("copy").write_text(Path("copied").read_text())
    run("add", "-A")
    Path("still").write_text("not staged")
    os.chdir("sub")
    assert sorted(git.staged()) == ["changed", "copy", "deleted", "old", "sub/new"]


def test_any_file_name_is_told_whole(repository: Path) -> None:
    names = [b"new\nline", b"tab\t", b'quote"', b"caf\xc3\xa9", b"not-utf-8-\xff", b" space ", b"-dash", b"back\\slash"]
    for name in names:
        (repository / os.fsdecode(name)).write_text("x")
    run("add", "-A")
    assert sorted(map(os.fsencode, git.staged())) == sorted(names)


def test_of_a_merge_only_what_differs_from_every_parent_counts(repository: Path) -> None:
    commit(both="base", ours="base", theirs="base", gone="base")
    run("checkout", "-qb", "side")
    commit(both="side", theirs="side", new_there="side")
    run("checkout", "-q", "main")
    commit(both="main", ours="main")
    with pytest.raises(subprocess.CalledProcessError):
        run("merge", "side")
    Path("both").write_text("merged")
    Path("extra").write_text("added in the merge")
    run("rm", "-q", "gone")
    run("add", "-A")
    assert sorted(git.staged()) == ["both", "extra", "gone"]
    run("commit", "-qm", "merge")
    assert git.staged() == []


def test_a_submodule_is_the_path_of_its_directory(repository: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    os.chdir(library)
    run("init", "-q")
    commit(code="1")
    os.chdir(repository)
    run("submodule", "--quiet", "add", "../library", "vendor/library")
    run("config", "-f", ".gitmodules", "submodule.vendor/library.ignore", "all")
    run("add", "-A")
    assert sorted(git.staged()) == [".gitmodules", "vendor/library"]
    run("commit", "-qm", "add")
    os.chdir("vendor/library")
    commit(code="2")
    assert git.root() == (repository / "vendor/library").resolve()
    os.chdir(repository)
    run("config", "diff.ignoreSubmodules", "all")
    run("add", "--force", "vendor/library")
    run(
        "update-index",
        "--cacheinfo",
        f"160000,{run('-C', 'vendor/library', 'rev-parse', 'HEAD').strip()},vendor/library",
    )
    assert git.staged() == ["vendor/library"]


def test_the_hooks_are_where_git_looks_for_them(repository: Path, tmp_path: Path) -> None:
    commit(a="1")
    assert git.hooks() == repository.resolve() / ".git/hooks"
    Path("sub").mkdir()
    run("worktree", "add", "-q", "-b", "side", "../other tree")
    os.chdir("../other tree")
    assert git.root() == (tmp_path / "other tree").resolve() and git.hooks() == repository.resolve() / ".git/hooks"
    os.chdir(repository / "sub")
    for given, directory in (
        ("hooks here", repository.resolve() / "hooks here"),
        (str(tmp_path / "h"), tmp_path / "h"),
    ):
        run("config", "core.hooksPath", given)
        assert git.hooks() == directory


def test_outside_of_a_work_tree_git_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(ConcurrencyError, match="not a git repository"):
        git.staged()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConcurrencyError, match="git is not installed"):
        git.root()
