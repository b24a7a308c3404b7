"""The main program of a child process that runs one Python function, which its parent names on stdin.

It runs as a script, so that the process imports nothing of the library before the function's own module does.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import pickle
import sys
from contextlib import suppress
from operator import attrgetter
from types import ModuleType
from typing import Any


def module_of(name: str, file: str) -> ModuleType:
    """The module called ``name``, from its file where an import by name finds another one or none."""
    with suppress(ImportError, ValueError):
        found = importlib.util.find_spec(name)
        if found and found.origin == file:
            return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Run the function, in an event loop if it is a coroutine function."""
    path, name, file, qualname = pickle.load(sys.stdin.buffer)
    sys.path[:] = path
    function: Any = attrgetter(qualname)(module_of(name, file))
    result = function(*pickle.load(sys.stdin.buffer))
    if inspect.iscoroutine(result):
        asyncio.run(result)


if __name__ == "__main__":
    main()
