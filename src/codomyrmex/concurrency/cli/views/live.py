"""Live views: a picture that is redrawn on a terminal, or elsewhere one line per event. A lost session is replaced."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Hashable, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import TypeVar

import click
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.text import Text

from codomyrmex.concurrency import EtcdUnavailable, Session, SessionLost
from codomyrmex.concurrency.cli.options import is_terminal, output_format, settings
from codomyrmex.concurrency.cli.views import output, text
from codomyrmex.concurrency.cli.views.grid import Grid, Order
from codomyrmex.concurrency.cli.views.keyboard import keys
from codomyrmex.concurrency.session import core_of

_REDRAW = 0.25  # seconds
_RETRY = 1.0

T = TypeVar("T")
E = TypeVar("E")


async def watch(
    context: click.Context,
    events: Callable[[Session], AsyncGenerator[E, None]],
    line: Callable[[E], Text],
    pictures: Callable[[Session], AsyncGenerator[T, None]],
    draw: Callable[[T], RenderableType],
) -> int:
    """Show live data until the user interrupts the view or presses ``q``, which is success: returns 0.

    On a terminal, the newest of ``pictures`` is shown by ``draw``. Elsewhere, each of ``events`` is shown by ``line``,
    or as JSON.
    """
    view = _View(context)
    with contextlib.suppress(asyncio.CancelledError, KeyboardInterrupt):
        if is_terminal() and output_format(context) in ("table", "wide"):
            await view.redraw(pictures, draw)
        else:
            await view.lines(events, line)
    return 0


async def watch_changes(
    context: click.Context,
    pictures: Callable[[Session], AsyncGenerator[Sequence[T], None]],
    draw: Callable[[Sequence[T]], RenderableType],
    line: Callable[[T], Text],
    *,
    key: Callable[[T], Hashable],
    gone: Callable[[T], T] | None = None,
) -> int:
    """Show live data whose events are the differences between pictures; returns 0 when the user ends it.

    An event is an item that is new, or that has changed since the picture before. ``key`` identifies an item. ``gone``
    makes the last event of an item that has left the picture.
    """
    known: dict[Hashable, T] = {}

    async def changes(session: Session) -> AsyncGenerator[T, None]:
        async with aclosing(pictures(session)) as newer:
            async for picture in newer:
                items = {key(item): item for item in picture}
                for one, item in items.items():
                    if known.get(one) != item:
                        yield item
                for one in known.keys() - items.keys():
                    if gone:
                        yield gone(known[one])
                known.clear()
                known.update(items)

    return await watch(context, changes, line, pictures, draw)


class _Screen:
    """A head, and under it a body that has the rest of the screen."""

    def __init__(self, head: Sequence[Text], body: Sequence[RenderableType]) -> None:
        self._head = head
        self._body = body

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self._head
        height = (options.height or options.size.height) - len(self._head)
        for part in self._body:
            yield from console.render(part, options.update(height=height))


class _Sorting:
    """The order of the rows, as the user's keys choose it: ``s`` takes the next column, ``r`` reverses the order."""

    def __init__(self) -> None:
        self.ended = False
        self.title = ""
        self._reverse = False
        self._columns: list[str] = []

    def press(self, key: str) -> None:
        """Take a key that the user pressed."""
        if key in "qQ":
            self.ended = True
        elif key in "sS" and self._columns:
            following = self._columns.index(self.title) + 1 if self.title in self._columns else 0
            self.title = (*self._columns, "")[following]
        elif key in "rR":
            self._reverse = not self._reverse

    def of(self, body: RenderableType) -> RenderableType:
        """``body``, sorted by the order that the user chose."""
        if isinstance(body, Grid):
            self._columns = [column.title for column in body.columns]
            body.order = Order(self.title, self._reverse)
        return body


class _View:
    """One live view, on one session after another."""

    def __init__(self, context: click.Context) -> None:
        self._context = context
        self._session: Session | None = None
        self._answered: datetime | None = None

    async def lines(self, events: Callable[[Session], AsyncGenerator[E, None]], line: Callable[[E], Text]) -> None:
        """Print a line, or a JSON object, for each event."""
        console = output.console(self._context)
        json = output_format(self._context) in ("json", "jsonl")
        telling = asyncio.create_task(self._tell_silence())
        try:
            async for event in self._over_sessions(events):
                if json:
                    output.print_json(event, lines=True)
                else:
                    console.print(line(event), soft_wrap=True)
        finally:
            telling.cancel()

    async def redraw(
        self, pictures: Callable[[Session], AsyncGenerator[T, None]], draw: Callable[[T], RenderableType]
    ) -> None:
        """Draw the newest picture again and again, until the user ends it."""
        newest: list[T] = []
        pressed = asyncio.Event()
        sorting = _Sorting()

        async def follow() -> None:
            async for picture in self._over_sessions(pictures):
                newest[:] = [picture]
                self._answered = datetime.now()

        def press(key: str) -> None:
            sorting.press(key)
            pressed.set()

        def screen() -> RenderableType:
            body = [sorting.of(draw(picture)) for picture in newest]
            return _Screen(self._head(sorting), body)

        following = asyncio.create_task(follow())
        try:
            with (
                keys(press),
                Live(screen(), console=output.console(self._context), auto_refresh=False, screen=True) as live,
            ):
                while not (following.done() or sorting.ended):
                    live.update(screen(), refresh=True)
                    pressed.clear()
                    waiting = asyncio.create_task(pressed.wait())
                    await asyncio.wait([following, waiting], timeout=_REDRAW, return_when=asyncio.FIRST_COMPLETED)
                    waiting.cancel()
            if following.done():
                await following
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    def _head(self, sorting: _Sorting) -> list[Text]:
        """The head of a live view: the subject, the endpoint, the time of the last answer, and the keys."""
        where = settings(self._context)
        command = self._context.command_path.partition("concurrency ")[2]
        searched = f"namespace {where.namespace} at {', '.join(where.endpoints)}"
        answered = self._last_answer()
        at = f"{answered:%H:%M:%S}" if answered else "never"
        if self._silent():
            silence = f"etcd does not answer; this is what was known before ({at})"
            second = Text(silence, style="bold red", no_wrap=True, overflow="ellipsis")
        else:
            told = f"etcd answered {at}" if answered else "etcd has not answered yet"
            second = Text(f"{told}; q ends, s sorts, r reverses", style="dim", no_wrap=True)
            if sorting.title:
                second.append(f"; by {sorting.title}")
        first = Text(f"{command}  ", style="bold", no_wrap=True, overflow="ellipsis")
        return [first.append(text.visible(searched), style="none"), second]

    def _last_answer(self) -> datetime | None:
        """The time of etcd's last answer, to a reading or a keepalive."""
        session = core_of(self._session) if self._session else None
        if session and session.is_open and session.alive:
            kept = datetime.now() - timedelta(seconds=max(0.0, session.ttl * 2 / 3 - session.deadline()))
            self._answered = max(self._answered or kept, kept)
        return self._answered

    async def _over_sessions(self, stream: Callable[[Session], AsyncGenerator[E, None]]) -> AsyncIterator[E]:
        """The items of ``stream``. When the session is lost, ``stream`` begins again on a new one."""
        connected = False
        while True:
            try:
                async with Session(settings(self._context)) as session:
                    self._session, connected = session, True
                    async with aclosing(stream(session)) as items:
                        async for item in items:
                            yield item
            except SessionLost as error:
                click.echo(f"reconnecting: {error}", err=True)
            except EtcdUnavailable as error:
                if not connected:
                    raise
                click.echo(f"waiting for etcd: {error}", err=True)
            await asyncio.sleep(_RETRY)

    def _silent(self) -> bool:
        """True if etcd has stopped answering, so that the picture may be old."""
        return self._session is not None and core_of(self._session).is_open and not self._session.alive

    async def _tell_silence(self) -> None:
        """Say on stderr when etcd falls silent, and when it is back."""
        silent = False
        while True:
            await asyncio.sleep(_REDRAW)
            if silent != self._silent():
                silent = not silent
                click.echo(
                    "etcd does not answer; the last lines may be old" if silent else "etcd answers again", err=True
                )
