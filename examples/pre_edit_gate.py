"""A gate before each edit of a coding agent. It exits with 2, and says why on stderr, if the agent has not reserved the
path that it is about to change.

Let the program that runs the agent call this before each use of an edit tool: pre_edit_hook.json has the settings. It
gives the use of the tool as JSON on stdin, with the path in ``tool_input``. Only exit code 2 keeps such a program from
using the tool, so everything that goes wrong here ends with 2 too.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REFUSE = 2
GUARD = ("codomyrmex", "concurrency", "guard", "check")
PATHS = ("file_path", "notebook_path")


def edited_path(tool_use: dict[str, Any]) -> Path:
    tool_input = tool_use["tool_input"]
    path = next(tool_input[name] for name in PATHS if name in tool_input)
    path = Path(tool_use.get("cwd", "."), path)
    return Path(os.path.realpath(path.parent), path.name)


def repository() -> Path:
    told = subprocess.run(["git", "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=True)
    return Path(told.stdout.removesuffix("\n"))


def main() -> int:
    path = edited_path(json.load(sys.stdin))
    if not path.is_relative_to(repository()):
        return 0  # the guard is for the files of the repository
    done = subprocess.run([*GUARD, "--", str(path)], capture_output=True, text=True, check=False)
    sys.stderr.write(done.stderr)
    return REFUSE if done.returncode else 0


if __name__ == "__main__":
    try:
        code = main()
    except Exception as error:
        print(f"the edit was refused, for it cannot be checked: {error!r}", file=sys.stderr)
        code = REFUSE
    sys.exit(code)
