"""Functions that tests run as processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time


def talk(*words: object) -> None:
    for word in words:
        print(word)
    print(os.environ.get("GREETING", ""), file=sys.stderr)


def wait() -> None:
    print("ready", os.getpid())
    time.sleep(60)


def wait_with_child() -> None:
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print("ready", grandchild.pid)
    time.sleep(60)


def leave_child() -> None:
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print("left", grandchild.pid)
    grandchild.returncode = 0  # no warning of a child that runs on


def count() -> None:
    for number in range(100_000):
        print(number)
        time.sleep(0.01)


async def sleep_a_little() -> None:
    await asyncio.sleep(0)
    print("slept")


def fail() -> None:
    print("half", end="")
    raise SystemExit("broken on purpose")
