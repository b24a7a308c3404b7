"""The text of the pre-commit hook. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from codomyrmex.concurrency.cli.agents.agent import TREE

_HOOK = """\
#!/bin/sh
# Refuses a commit of paths that the agent has not reserved. To commit without this check: git commit --no-verify
program={program}
[ -x "$program" ] || program=codomyrmex
{line} && exit 0
code=$?
[ "$code" = 127 ] && echo "codomyrmex is not installed here, so reservations cannot be checked." >&2
echo "The commit is refused. To commit without this check on purpose: git commit --no-verify" >&2
exit 1
"""


def check_line(program: str, options: Sequence[str]) -> str:
    """The shell command of a hook."""
    return f"{program} {shlex.join(['concurrency', 'guard', 'check', '--staged', *options])}"


def tree_of(text: str) -> str | None:
    """The tree of a hook that ``hook`` has made; None if it is another one, or was changed."""
    program, line = (re.search(pattern, text, re.MULTILINE) for pattern in (r"^program=(.*)$", r"^(.*) && exit 0$"))
    if not program or not line or text != _HOOK.format(program=program[1], line=line[1]):
        return None
    words = shlex.split(line[1])
    return words[words.index("--tree") + 1] if "--tree" in words else TREE


def hook(program: str, options: Sequence[str]) -> str:
    """A hook that runs the ``program`` at this path, or where there is none, the one on the PATH.

    A commit goes through only if the check succeeds: where etcd is away, the hook refuses it.
    """
    return _HOOK.format(program=shlex.quote(program), line=check_line('"$program"', options))
