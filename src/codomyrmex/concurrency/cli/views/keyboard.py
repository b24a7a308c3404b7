"""The keys that a user presses in a live view: read one by one, without an echo, and only in the foreground."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
import tty
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def keys(pressed: Callable[[str], object]) -> Iterator[bool]:
    """``pressed`` is called with each key while the block runs, on the event loop; False where there is no keyboard.

    A process in the background leaves the terminal as it is, for changing it would stop the process.
    """
    try:
        keyboard = sys.stdin.fileno()
        ours = os.isatty(keyboard) and os.tcgetpgrp(keyboard) == os.getpgrp()
    except (AttributeError, OSError, ValueError):  # there is no stdin, or it is no terminal of ours
        ours = False
    if not ours:
        yield False
        return
    loop = asyncio.get_running_loop()

    def read() -> None:
        typed = os.read(keyboard, 64)
        if not typed:
            loop.remove_reader(keyboard)  # the terminal is gone
        for key in typed.decode(errors="ignore"):
            pressed(key)

    before = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)
    loop.add_reader(keyboard, read)
    try:
        yield True
    finally:
        loop.remove_reader(keyboard)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
