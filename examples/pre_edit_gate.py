"""A gate before each edit of a coding agent. It exits with 2, and says why on stderr, if the agent has not reserved the
path that it is about to change.

Let the program that runs the agent call this before each use of an edit tool: pre_edit_hook.json has the settings. It
gives the use of the tool as JSON on stdin, with the path in ``tool_input``. Only exit code 2 keeps such a program from
using the tool, so everything that goes wrong here ends with 2 too. ``CODOMYRMEX_AGENT`` names the agent, and
``CODOMYRMEX_TREE`` the tree of the paths, if it is another than ``default``.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

REFUSE = 2
PROGRAM = "codomyrmex"
PATHS = ("file_path", "notebook_path")


class CannotCheck(Exception):
    """The reason why an edit cannot be checked, in words."""


def tool_use() -> dict[str, Any]:
    try:
        return dict(json.load(sys.stdin))
    except (TypeError, ValueError):
        raise CannotCheck("the input is not the use of a tool as a JSON object") from None


def edited_path(use: dict[str, Any]) -> Path:
    tool_input = use.get("tool_input", {})
    path = next((tool_input[name] for name in PATHS if name in tool_input), None)
    if not path or "\0" in path:
        raise CannotCheck("the tool's input names no path")
    path = Path(use.get("cwd", "."), path)
    return Path(os.path.realpath(path.parent), path.name)


def repository() -> Path:
    told = run(found("git"), "rev-parse", "--show-toplevel")
    if told.returncode:
        raise CannotCheck(f"git says: {told.stderr.strip()}")
    return Path(told.stdout.removesuffix("\n"))


def guard(path: Path) -> subprocess.CompletedProcess[str]:
    tree = os.environ.get("CODOMYRMEX_TREE")
    options = ["--tree", tree] if tree else []
    return run(program(), "concurrency", "guard", "check", *options, "--", str(path))


def program() -> str:
    """The one beside the Python that runs this, else the one on PATH."""
    return shutil.which(PROGRAM, path=os.path.dirname(sys.executable)) or found(PROGRAM)


def found(name: str) -> str:
    path = shutil.which(name)
    if not path:
        raise CannotCheck(f"{name} was not found on PATH")
    return path


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def main() -> int:
    path = edited_path(tool_use())
    if not path.is_relative_to(repository()):
        return 0  # the guard is for the files of the repository
    done = guard(path)
    sys.stderr.write(done.stderr)
    return REFUSE if done.returncode else 0


if __name__ == "__main__":
    try:
        code = main()
    except Exception as error:
        why = error if isinstance(error, CannotCheck) else repr(error)
        print(f"the edit was refused, for it cannot be checked: {why}", file=sys.stderr)
        code = REFUSE
    sys.exit(code)
