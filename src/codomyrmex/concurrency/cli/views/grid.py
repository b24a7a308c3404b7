"""A table that chooses its columns, rows and order when it is drawn, so that it fits the screen.

On a narrow screen the least important columns are left out first. Then texts are cut between words, and names in their
middle. A text that users type again (an id, a token) is never cut. If the output is no terminal, everything is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from codomyrmex.concurrency.cli.views.text import visible

_GAP = 2
_SPARE = 3  # columns of this rank or a higher one are left out before a name is cut


class Column(NamedTuple):
    """A column of a table.

    ``rank``: the columns of the highest rank are left out first, those of rank 0 never. ``least``: the number of
    characters to which a text may be cut; with 0 it is never cut. ``name``: the text is cut in the middle, because both
    ends of a name are informative.
    """

    title: str
    rank: int = 0
    right: bool = False
    least: int = 0
    name: bool = False


class Cell(NamedTuple):
    """A text in a row. ``by`` is the number that the column is sorted by; without it, the text is."""

    text: str
    by: float | None = None
    style: str = ""


class Order(NamedTuple):
    """The order of the rows: by one column, numbers from the greatest, texts from A. ``reverse`` turns it round."""

    title: str = ""
    reverse: bool = False


@dataclass
class Grid:
    """A table. ``lines`` stand between its title and the heads of the columns. ``foot`` is the line below the rows on a
    terminal, with sums and remarks."""

    columns: Sequence[Column]
    title: str = ""
    lines: Sequence[str] = ()
    foot: str = ""
    rows: list[tuple[tuple[Cell, ...], str]] = field(default_factory=list)
    order: Order = field(default_factory=Order)

    def add(self, *cells: object, style: str = "") -> None:
        """Add a row. A number is sorted by its value, and shown as it is."""
        self.rows.append((tuple(map(_cell, cells)), style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fits = console.is_terminal
        rows = self._ordered()
        if self.title:
            yield _line(visible(self.title), "italic")
        for line in map(visible, self.lines):
            yield _line(cut(line, options.max_width) if fits else line, "")
        foot = [self.foot] if fits and self.foot else []
        around = 1 + bool(self.title) + len(self.lines) + bool(foot)
        room = len(rows) if options.height is None or not fits else options.height - around
        if len(rows) > room:
            room = max(0, room - (not foot))
            foot = [f"+{len(rows) - room} more", *foot]
        shown = rows[:room]
        heads = tuple(Cell(column.title + self._mark(column)) for column in self.columns)
        natural = [
            max(cell_len(cells[n].text) for cells in (heads, *(cells for cells, _ in shown)))
            for n in range(len(self.columns))
        ]
        # The column that the rows are sorted by stays on the screen.
        columns = [column._replace(rank=0) if self._mark(column) else column for column in self.columns]
        widths = fit(columns, natural, options.max_width) if fits else dict(enumerate(natural))
        for cells, style in [(heads, "bold"), *shown]:
            yield self._row(cells, style, widths)
        if foot:
            yield _line(cut("; ".join(foot), options.max_width), "dim")

    def _mark(self, column: Column) -> str:
        return "" if column.title != self.order.title else "↑" if self.order.reverse else "↓"

    def _ordered(self) -> list[tuple[tuple[Cell, ...], str]]:
        titles = [column.title for column in self.columns]
        if self.order.title not in titles:
            return self.rows
        n = titles.index(self.order.title)
        known = [row for row in self.rows if row[0][n].by is not None]
        others = [row for row in self.rows if row[0][n].by is None]
        known.sort(key=lambda row: row[0][n].by or 0.0, reverse=not self.order.reverse)
        others.sort(key=lambda row: row[0][n].text, reverse=self.order.reverse)
        return known + others

    def _row(self, cells: Sequence[Cell], style: str, widths: dict[int, int]) -> Text:
        line = Text(style=style, no_wrap=True, overflow="ignore")
        last = max(widths)
        for n, width in widths.items():
            text = cut(cells[n].text, width, middle=self.columns[n].name)
            blank = " " * (width - cell_len(text))
            if self.columns[n].right:
                line.append(blank)
            line.append(text, style=cells[n].style or None)
            if n != last:
                line.append(" " * _GAP if self.columns[n].right else blank + " " * _GAP)
        return line


def fit(columns: Sequence[Column], natural: Sequence[int], room: int) -> dict[int, int]:
    """The columns to show, each with its width.

    Columns of a spare rank are left out before a name is cut, if that makes enough room.
    """
    order = sorted(range(len(columns)), key=lambda n: (columns[n].rank, n))
    spare = [n for n in order if columns[n].rank >= _SPARE]
    for dropped in range(len(spare) + 1):
        shown = order[: len(order) - dropped]
        if _least(columns, natural, shown, cut_names=False) <= room:
            return _spread(columns, natural, shown, room, cut_names=False)
    shown = order
    while _least(columns, natural, shown) > room and columns[shown[-1]].rank:
        shown = shown[:-1]
    return _spread(columns, natural, shown, room)


def _narrow(column: Column, width: int, *, cut_names: bool) -> int:
    return min(width, column.least or width) if cut_names or not column.name else width


def _least(columns: Sequence[Column], natural: Sequence[int], shown: Sequence[int], *, cut_names: bool = True) -> int:
    """The width that these columns need."""
    return sum(_narrow(columns[n], natural[n], cut_names=cut_names) for n in shown) + _GAP * (len(shown) - 1)


def _spread(
    columns: Sequence[Column], natural: Sequence[int], shown: Sequence[int], room: int, *, cut_names: bool = True
) -> dict[int, int]:
    """The widths of these columns, in the order of the table. The room left over goes to the most important ones."""
    left = max(0, room - _least(columns, natural, shown, cut_names=cut_names))
    widths = {}
    for n in shown:
        narrow = _narrow(columns[n], natural[n], cut_names=cut_names)
        widths[n] = min(natural[n], narrow + left)
        left -= widths[n] - narrow
    return dict(sorted(widths.items()))


def cut(text: str, width: int, *, middle: bool = False) -> str:
    """``text`` in ``width`` cells. A name loses its middle; another text is cut at a word's end where there is one."""
    if cell_len(text) <= width:
        return text
    if middle:
        tail = (width - 1) // 2
        return _head(text, width - 1 - tail) + "…" + _head(text[::-1], tail)[::-1]
    head = _head(text, width - 1)
    words, space, _ = head.rpartition(" ")
    if space and not text[len(head) : len(head) + 1].isspace() and cell_len(words) >= width // 2:
        head = words
    return head.rstrip() + "…"


def _head(text: str, width: int) -> str:
    """The longest beginning of ``text`` that fits into ``width`` cells."""
    if text.isascii():
        return text[: max(0, width)]
    used = 0
    for n, char in enumerate(text):
        used += cell_len(char)
        if used > width:
            return text[:n]
    return text


def _cell(value: object) -> Cell:
    if isinstance(value, Cell):
        return value._replace(text=visible(value.text))
    return Cell(visible(value), value if isinstance(value, int | float) else None)


def _line(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ignore")
