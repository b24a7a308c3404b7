"""The questions that the guard asks git. Paths are relative to the root of the work tree, and raw: in git's bytes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from codomyrmex.concurrency import ConcurrencyError


def root() -> Path:
    """The root of the work tree that the current directory is in."""
    return Path(_line("rev-parse", "--show-toplevel"))


def hooks() -> Path:
    """The directory of the hooks. The work trees of a repository share it, unless ``relative_hooks``."""
    return _inside("hooks")


def relative_hooks() -> str:
    """``core.hooksPath`` if it is relative: then each work tree has hooks of its own. Else empty."""
    given = _line("config", "--type=path", "--default", "", "--get", "core.hooksPath")
    return "" if os.path.isabs(given) else given


def staged() -> list[str]:
    """Every path that a commit would add, change or delete.

    A rename is two: the old path and the new one. A submodule is the path of its directory. In a merge, a path counts
    only if it differs from every parent: the others come from a commit that was checked when it was made.
    """
    top = str(root())
    changed = [_changed(top, parent) for parent in ((), *([parent] for parent in _merged()))]
    first, *others = changed
    return [os.fsdecode(path) for path in first if all(path in one for one in others)]


def _changed(top: str, parent: Sequence[str]) -> list[bytes]:
    """The paths in which the index differs from a parent, HEAD when left out; from nothing before the first commit."""
    output = _git(
        *("-C", top, "diff", "--cached", "--name-only", "-z", "--no-renames", "--ignore-submodules=none"),
        *("--no-ext-diff", *parent, "--"),
    )
    return [path for path in output.split(b"\0") if path]


def _merged() -> list[str]:
    """The further parents of the commit, in a merge."""
    heads = _inside("MERGE_HEAD")
    return heads.read_text().split() if heads.exists() else []


def _inside(name: str) -> Path:
    """A file of the repository; git tells a relative path as seen from where it runs."""
    top = root()
    return top / _line("-C", str(top), "rev-parse", "--git-path", name)


def _line(*arguments: str) -> str:
    return os.fsdecode(_git(*arguments).removesuffix(b"\n"))


def _git(*arguments: str) -> bytes:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        raise ConcurrencyError("git is not installed, or not on the PATH") from None
    if done.returncode:
        raise ConcurrencyError(f"git says: {done.stderr.decode(errors='backslashreplace').strip()}")
    return done.stdout
