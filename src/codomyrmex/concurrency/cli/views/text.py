"""Text for a terminal: made harmless, shortened, counted; and lengths of time as people read them."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.text import Text

from codomyrmex.concurrency.legible import legible

MOST = 512  # characters of a text in a table; JSON has it whole


def visible(text: object) -> str:
    """``text`` with a visible escape for every character that is hidden or could steer a terminal."""
    return legible(str(text))


def safe(text: object) -> Text:
    """The same for rich, which would take markup in a plain ``str`` for its own."""
    return Text(visible(text))


def short(text: str, most: int) -> str:
    """``text``, cut to ``most`` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def count(number: int, noun: str) -> str:
    """A number and its noun: ``1 lock``, ``2 locks``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def seconds_since(moment: datetime) -> float:
    """Seconds from ``moment`` until now, by this host's clock; never below 0."""
    return max(0.0, (datetime.now(UTC) - moment).total_seconds())


def span(length: float) -> str:
    """A number of seconds as ``7s``, ``3m12s``, ``2h05m`` or ``2d03h``."""
    seconds = max(0, int(length))
    hours, minutes = seconds // 3600, seconds // 60
    if hours >= 48:
        return f"{hours // 24}d{hours % 24:02}h"
    if hours:
        return f"{hours}h{minutes % 60:02}m"
    return f"{minutes}m{seconds % 60:02}s" if minutes else f"{seconds}s"


def age(since: datetime | None) -> str:
    """The time from ``since`` until now, as ``span`` shows it; ``?`` for None. ``since`` is by its writer's clock."""
    return "?" if since is None else span(seconds_since(since))


def stamp(at: datetime) -> Text:
    """The time of an event, at the beginning of its line."""
    return Text(f"{at.astimezone():%H:%M:%S.%f}"[:-3] + "  ", style="dim")
