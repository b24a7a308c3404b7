"""Cells that several tables have: a length of time, and a state whose colour stands out."""

from __future__ import annotations

from codomyrmex.concurrency.cli.views.grid import Cell

STYLES = {  # of the states that stand out
    "parked": "bold red",
    "overdue": "bold yellow",
    "stuck": "bold yellow",
    "lost": "bold red",
    "deadlock": "bold red",
    "holds": "green",
    "full": "cyan",
    "paused": "bold yellow",
    "waiting": "cyan",
}


def time_cell(text: str, seconds: float | None) -> Cell:
    """A length of time, sorted by its seconds; one that is unknown comes last."""
    return Cell(text, -1.0 if seconds is None else seconds)


def state_cell(word: str, text: str = "") -> Cell:
    """A state in its colour; with ``text``, that is shown in place of the word."""
    return Cell(text or word, style=STYLES.get(word, ""))
