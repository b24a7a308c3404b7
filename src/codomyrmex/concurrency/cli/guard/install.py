"""``guard install``: writes a git pre-commit hook that runs ``guard check --staged``."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import click

from codomyrmex.concurrency import ConcurrencyError
from codomyrmex.concurrency.cli.agents.agent import TREE, tree_option
from codomyrmex.concurrency.cli.agents.next_steps import connection_options, next_command
from codomyrmex.concurrency.cli.agents.outcomes import InstallOutcome
from codomyrmex.concurrency.cli.guard import git
from codomyrmex.concurrency.cli.guard.hook import check_line, hook, tree_of
from codomyrmex.concurrency.cli.options import common_options, output_format
from codomyrmex.concurrency.cli.running import EXIT_FAILED, run
from codomyrmex.concurrency.cli.views import output
from codomyrmex.concurrency.cli.views.text import visible


@click.command()
@tree_option
@common_options
@click.pass_context
def install(context: click.Context, tree: str) -> None:
    """Install a git pre-commit hook that runs `guard check`.

    It refuses a commit of paths that the committing agent has not reserved, and every commit while etcd does not
    answer. `git commit --no-verify` commits without it. git runs no pre-commit hook for a merge without conflicts, a
    cherry-pick, a revert, or the commits of a rebase.

    The hook is written where this repository has its hooks (core.hooksPath counts), with the given --endpoints and
    --namespace. A hook that is there already stays as it is, and the exit code is 1 then. The line to add to it is
    shown.

    If core.hooksPath is relative, each work tree has hooks of its own: install the hook in each of them.

    \b
    Example:  codomyrmex concurrency guard install --tree main
    """
    run(_install(context, tree))


async def _install(context: click.Context, tree: str) -> int:
    options = connection_options(context)
    options += ["--tree", tree] if tree != TREE else []
    path, wanted = git.hooks() / "pre-commit", hook(_program(), options)
    try:
        outcome = _written(path, wanted, check_line("codomyrmex", options) + " || exit 1")
    except OSError as error:
        raise ConcurrencyError(f"the hook {path} cannot be written: {error.strerror or error}") from None
    _show(context, outcome)
    if relative := git.relative_hooks():
        again = next_command(context, "guard", "install", *(["--tree", tree] if tree != TREE else []))
        click.echo(
            f"warning: core.hooksPath is {visible(relative)}, a relative path: each work tree of this repository "
            f"has hooks of its own. In each other one, type: {visible(again)}",
            err=True,
        )
    return 0 if outcome.installed else EXIT_FAILED


def _written(path: Path, text: str, line: str) -> InstallOutcome:
    """Write the hook aside and link it: git never runs a half, and a hook that is there is never replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, aside = tempfile.mkstemp(prefix=".pre-commit-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        os.chmod(aside, 0o755)
        os.link(aside, path)
    except FileExistsError:
        return _there(path, text, line)
    finally:
        os.unlink(aside)
    return InstallOutcome(True, str(path), "")


def _there(path: Path, text: str, line: str) -> InstallOutcome:
    """The outcome if a hook is there: the one to install, another one of the guard, or one of the user."""
    there = path.read_bytes().decode(errors="replace") if path.is_file() and os.access(path, os.X_OK) else ""
    if there == text:
        return InstallOutcome(True, str(path), "", already=True)
    other = tree_of(there)
    return InstallOutcome(False, str(path), line if other is None else "", other_tree=other)


def _program() -> str:
    """The path of this program: beside its interpreter, where an environment has it, else on the PATH."""
    beside = Path(sys.executable).parent / "codomyrmex"
    return str(beside) if beside.exists() else shutil.which("codomyrmex") or "codomyrmex"


def _show(context: click.Context, outcome: InstallOutcome) -> None:
    form = output_format(context)
    if form in ("json", "jsonl"):
        output.print_json(outcome, lines=form == "jsonl")
    elif outcome.installed:
        word = "installed already" if outcome.already else "installed"
        click.echo(visible(outcome.hook) if form == "name" else f"{word}: {visible(outcome.hook)}")
    elif outcome.other_tree is not None:
        click.echo(
            f"not installed: another hook of the guard is there, of the tree {visible(outcome.other_tree)}", err=True
        )
        click.echo(f"next: remove it first: {visible(shlex.join(['rm', outcome.hook]))}", err=True)
    else:
        click.echo(f"not installed: there is a hook already, {visible(outcome.hook)}", err=True)
        click.echo(f"next: add this line to it: {visible(outcome.line)}", err=True)
