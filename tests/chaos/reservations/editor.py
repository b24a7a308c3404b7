"""An agent that edits the files of a work tree, each under a path reservation, until it is told to stop.

``python -m tests.chaos.reservations.editor --name … --endpoints … --folder … --seed … --work-tree …``
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from codomyrmex.concurrency import Session
from tests.chaos.reservations.agent import Agent, told
from tests.chaos.reservations.calls import note

NAMESPACE, TREE = "edited", "work"
FILES = [f"src/{part}/{name}.py" for part in ("parser", "lexer", "core") for name in ("a", "b", "c")]
FILES += ["docs/index.md", "docs/how to.md", "README.md", "src/é.py"]
SCOPES = [*FILES, *FILES, "src/parser/", "src/lexer/", "src/", "docs/"]
TTL = 10


def below(scope: str) -> list[str]:
    """The files that a scope covers."""
    return [file for file in FILES if file == scope or (scope.endswith("/") and file.startswith(scope))]


class Editor(Agent):
    """One editor. Each edit is recorded in etcd by a fenced write first, then made on disk."""

    namespace, tasks = NAMESPACE, 1

    def __init__(self, given: argparse.Namespace) -> None:
        super().__init__(given)
        self.root = Path(given.work_tree)

    async def _work(self, session: Session) -> None:
        while not self.stopping.is_set() and session.alive:
            await self._edit_once()

    async def _edit_once(self) -> None:
        ask = f"{self.name}-{next(self.numbers)}"
        paths = self.chance.sample(SCOPES, self.chance.randint(1, 3))
        about = {"names": [], "paths": paths, "tree": TREE, "ttl": TTL, "note": note(ask, 0)}
        given: dict[str, Any] = {"ttl": TTL, "note": about["note"], "owner": self.name, "metadata": {"ask": ask}}
        reserving = self.manager.reserve(paths=paths, tree=TREE, timeout=2.0, **given)
        reservation = await self.call("reserve", ask, reserving, told, **about)
        if reservation is None:
            return
        files = sorted({file for path in paths for file in below(path)})
        for file in self.chance.sample(files, min(2, len(files))):
            await self._edit(ask, reservation, file)
        await self.call("release", ask, reservation.release())

    async def _edit(self, ask: str, reservation: Any, file: str) -> None:
        text = f"{ask} {next(self.numbers)}"
        value = json.dumps({"ask": ask, "token": reservation.token, "text": text})
        recording = reservation.put(f"/files/path/{TREE}/{file}", value)
        if not await self.call("write", ask, _true(recording), file=file, text=text):
            return
        began = time.monotonic()
        (self.root / file).write_text(text)
        await asyncio.sleep(self.chance.uniform(0, 0.02))
        assert (self.root / file).read_text() == text, f"another one wrote {file} while {ask} held it"
        self.journal.say("edited", file=file, ask=ask, token=reservation.token, began=began, text=text)


async def _true(awaited: Awaitable[Any]) -> bool:
    await awaited
    return True


async def main(given: argparse.Namespace) -> None:
    editor = Editor(given)
    editor.until_told()
    await editor.live()
    editor.journal.say("over")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("name", "endpoints", "folder", "work-tree"):
        parser.add_argument(f"--{option}")
    parser.add_argument("--seed", type=int)
    asyncio.run(main(parser.parse_args()))
