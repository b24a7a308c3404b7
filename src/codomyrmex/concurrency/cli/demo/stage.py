"""The stage of the demo: it starts the agent processes, prints the story, and records failed expectations."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.padding import Padding

from codomyrmex.concurrency.cli.views.text import visible

TTL = 3  # seconds, of every session of the demo


_LOGGER = "codomyrmex.concurrency"


class _Telling(logging.Handler):
    """A log handler that calls ``tell`` with each text."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Call ``tell`` with the text of ``record``."""
        self._tell(record.getMessage())


def logged_by(tell: Callable[[str], None]) -> logging.Handler:
    """Call ``tell`` with the text of each warning that the library logs in this process."""
    handler = _Telling(tell)
    logging.getLogger(_LOGGER).addHandler(handler)
    return handler


class Silent(Exception):
    """An agent ended before it had reported the step that was expected."""


class Agent:
    """An agent process and the steps that it reports. The library's log lines go to ``log``."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Callable[[str, str], None]) -> None:
        self.name = name
        self.process = process
        self._log = log

    async def lines(self) -> AsyncIterator[dict[str, Any]]:
        """The steps that the agent reports."""
        assert self.process.stdout
        async for line in self.process.stdout:
            said = json.loads(line)
            if said["event"] == "logged":
                self._log(self.name, said["text"])
            else:
                yield said

    def go_on(self) -> None:
        """Tell the agent to go on."""
        assert self.process.stdin
        self.process.stdin.write(b"\n")

    async def until(self, event: str) -> dict[str, Any]:
        """The report of the step ``event``. Raises ``Silent`` if the agent ends before it."""
        async for said in self.lines():
            if said["event"] == event:
                return said
        raise Silent(f"{self.name} ended without a word about {event!r}")

    async def end(self) -> None:
        """Read the rest of the agent's lines, until it ends."""
        async for _ in self.lines():
            pass


class Stage:
    """The output of the demo and its agents. ``failures`` has the expectations that were not met."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.endpoint = ""  # of the etcd; empty before it is started
        self._agents: list[Agent] = []
        self._acts = 0
        self.failures: list[str] = []

    def act(self, text: str) -> None:
        """Print the heading of the next act."""
        self._acts += 1
        self.say(f"[bold]{self._acts}. {text}[/]")

    def say(self, text: str) -> None:
        """Print a text, which may have rich markup."""
        self._console.print(text, soft_wrap=True)

    def show(self, picture: RenderableType) -> None:
        """Print a table, indented."""
        self._console.print(Padding(picture, (0, 0, 0, 2), expand=False))

    def log(self, who: str, text: str) -> None:
        """Print a log line of the library, indented, because it belongs to the story and is no error of the demo."""
        self.say(f"    [dim]log of {who}: {escape(visible(text))}[/]")

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Print the library's log lines of this process while the block runs."""
        handler = logged_by(lambda text: self.log("the demo", text))
        try:
            yield
        finally:
            logging.getLogger(_LOGGER).removeHandler(handler)

    def expect(self, true: bool, otherwise: str) -> None:
        """Record ``otherwise`` as a failure unless ``true``."""
        if not true:
            self.failures.append(otherwise)

    @asynccontextmanager
    async def started(
        self, role: str, count: int, *arguments: str | Path, kind: str = "agent"
    ) -> AsyncIterator[list[Agent]]:
        """Start ``count`` agent processes of a role; see ``agent.py``."""
        agents = []
        for _ in range(count):
            name = f"{kind}-{len([one for one in self._agents if one.name.startswith(kind)]) + 1}"
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "codomyrmex.concurrency.cli.demo.agent", name, role, *map(str, arguments)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={
                    **os.environ,
                    "CODOMYRMEX_ETCD_ENDPOINTS": self.endpoint,
                    "CODOMYRMEX_ETCD_SESSION_TTL": str(TTL),
                },
                start_new_session=True,  # the demo handles Ctrl-C and ends its agents itself
            )
            agents.append(Agent(name, process, self.log))
            self._agents.append(agents[-1])
        yield agents

    async def end(self) -> None:
        """End all agents."""
        for agent in self._agents:
            if agent.process.returncode is None:
                agent.process.kill()
            await agent.process.communicate()
