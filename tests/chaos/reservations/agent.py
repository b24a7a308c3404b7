"""An agent of the generated workload: it reserves, and uses handles that it or others have left in a folder.

``python -m tests.chaos.reservations.agent --name … --endpoints … --folder … --seed …``; SIGTERM ends it in order, and
whatever it has reserved goes on without it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import codomyrmex.concurrency as library
from codomyrmex.concurrency import ConcurrencyError, LockManager, Session
from tests.chaos.documents.journal import Journal
from tests.chaos.reservations.calls import note

T = TypeVar("T")
Tell = Callable[[T], dict[str, Any]] | None
NAMESPACE = "reserved"
TREE = "main"
TTLS = (10, 11, 12)
SESSION_TTL = 6
NAMES = [f"file:{number}" for number in range(10)]
SHARED = ["config", "index"]
ABANDONED = 3  # every so many requests, one is left to expire
PATHS = [
    "src/",
    "src/parser/",
    "src/parser/a.py",
    "src/lexer/",
    "docs/",
    "docs/a.md",
    "docs/b.md",
    "README.md",
    "LICENSE",
    "src/lexer/é.py",
    "tests/",
    "tests/a/",
]


class Agent:
    """One process: its journal, its chances, and the folder of handles that all share."""

    namespace, tasks = NAMESPACE, 5

    def __init__(self, given: argparse.Namespace) -> None:
        self.name: str = given.name
        self.chance = random.Random(given.seed)
        self.journal = Journal(Path(given.folder), self.name)
        self.handles = Path(given.folder) / "handles"
        self.endpoints: str = given.endpoints
        self.stopping = asyncio.Event()
        self.numbers = itertools.count()
        self.manager: LockManager

    def until_told(self) -> None:
        """End in order at SIGTERM, which the driver blocked until now."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.stopping.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    async def live(self) -> None:
        """Work in one session after another until told to stop."""
        settings: dict[str, Any] = {
            "endpoints": self.endpoints,
            "namespace": self.namespace,
            "session_ttl": SESSION_TTL,
        }
        while not self.stopping.is_set():
            with contextlib.suppress(ConcurrencyError):
                async with Session(request_timeout=3.0, **settings) as session:
                    self.manager = LockManager(session)
                    async with asyncio.TaskGroup() as group:
                        for _ in range(self.tasks):
                            group.create_task(self._work(session))

    async def _work(self, session: Session) -> None:
        while not self.stopping.is_set() and session.alive:
            await asyncio.sleep(self.chance.expovariate(4))
            act = self.chance.choices(
                (self.reserve, self.block, self.renew, self.write, self.release, self.duel, self.force, self.list),
                (6, 1, 4, 8, 2, 1, 0.3, 0.4),
            )[0]
            await act()

    async def call(self, what: str, ask: str, awaited: Awaitable[T], tell: Tell[T] = None, **about: Any) -> T | None:
        """Await one call; write down that it began, its answer, and what ``tell`` says of the answer."""
        number = next(self.numbers)
        self.journal.say("call", number=number, what=what, ask=ask, **about)
        try:
            result = await awaited
            self._answer(number, **(tell(result) if tell else {}))
            return result
        except ConcurrencyError as error:
            self._answer(number, error)
        except BaseException as error:
            self._answer(number, error)
            raise
        return None

    def _answer(self, number: int, error: BaseException | None = None, **about: Any) -> None:
        kinds = [kind.__name__ for kind in type(error).__mro__] if error else [""]
        known = [kind for kind in kinds if kind in library.__all__ and kind != "ConcurrencyError"]
        kind, documented = (known or kinds)[0], bool(known)
        self.journal.say("answer", number=number, error=kind, text=str(error or ""), documented=documented, **about)

    def _request(self) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """A request: its id, what `reserve` is given, and what is written down of it."""
        ask = f"{self.name}-{next(self.numbers)}"
        names: list[str] = []
        paths: list[str] = []
        match self.chance.randrange(10):
            case 0 | 1 | 2 | 3:
                names = [self.chance.choice(NAMES)]
            case 4:
                names = [self.chance.choice(SHARED)]
            case 5:
                names = self.chance.sample([*NAMES, *SHARED], 3)
            case _:
                paths = self.chance.sample(PATHS, self.chance.randint(1, 3))
        shared = bool(set(names) & set(SHARED) or paths) and len(names) < 2 and self.chance.random() < 0.5
        about = {"names": names, "paths": paths, "tree": TREE, "ttl": self.chance.choice(TTLS), "shared": shared}
        about |= {"note": note(ask, 0)}
        given: dict[str, Any] = {"ttl": about["ttl"], "note": about["note"], "shared": shared, "owner": self.name}
        given |= {"timeout": self.chance.choice((0, 2.0, 6.0)), "metadata": {"ask": ask}}
        given |= {"names": names, "paths": paths, "tree": TREE}
        return ask, given, about

    def _reserving(self, given: dict[str, Any]) -> Any:
        return self.manager.reserve(*given.pop("names"), **given)

    async def reserve(self) -> None:
        """Reserve, and leave the handle to all. Most are never released."""
        ask, given, about = self._request()
        reservation = await self.call("reserve", ask, self._reserving(given), told, **about)
        if reservation is not None:
            self._keep(ask, reservation, about)

    def _keep(self, ask: str, reservation: Any, about: dict[str, Any]) -> None:
        kept = self.handles / f"{ask}.part"
        kept.write_text(json.dumps({"handle": reservation.handle, "token": reservation.token, **about}))
        kept.rename(self.handles / f"{ask}.json")

    async def block(self) -> None:
        """Reserve for a block, which releases at its end."""
        ask, given, about = self._request()
        block = self._reserving(given)
        if await self.call("reserve", ask, block.__aenter__(), told, **about) is not None:
            await asyncio.sleep(self.chance.uniform(0, 1))
            await self.call("release", ask, block.__aexit__(None, None, None), block=True)

    def _any(self, abandoned: bool = False) -> tuple[str, dict[str, Any]] | None:
        """One of the last handles, whoever reserved it, alive or not."""
        paths = sorted(self.handles.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)[-24:]
        paths = [path for path in paths if abandoned or int(path.stem.split("-")[1]) % ABANDONED]
        if not paths:
            return None
        path = self.chance.choice(paths)
        return path.stem, json.loads(path.read_text())

    async def renew(self) -> None:
        if chosen := self._any(self.chance.random() < 0.2):
            await self._renew(*chosen)

    async def _renew(self, ask: str, kept: dict[str, Any]) -> None:
        about = {"note": note(ask, time.monotonic_ns())} if self.chance.random() < 0.5 else {}
        reservation = self.manager.reservation(kept["handle"])
        await self.call("renew", ask, reservation.renew(**about), lambda _: expires(reservation), **about)

    async def write(self) -> None:
        if chosen := self._any(abandoned=True):
            ask, kept = chosen
            file = f"lock/{self.chance.choice(kept['names'])}" if kept["names"] else f"path/{TREE}/{self._below(kept)}"
            value = json.dumps({"ask": ask, "token": kept["token"]})
            reservation = self.manager.reservation(kept["handle"])
            await self.call("write", ask, reservation.put(f"/files/{file}", value), file=file)

    def _below(self, kept: dict[str, Any]) -> str:
        path = self.chance.choice(kept["paths"])
        return f"{path}x.py" if path.endswith("/") else path

    async def release(self) -> None:
        if chosen := self._any():
            ask, kept = chosen
            about = {"note": "done"} if self.chance.random() < 0.5 else {}
            await self.call("release", ask, self.manager.reservation(kept["handle"]).release(**about))

    async def duel(self) -> None:
        """Two uses of one handle at once: renewals and releases, in one process."""
        if chosen := self._any():
            ask, kept = chosen
            one, other = (self.manager.reservation(kept["handle"]) for _ in range(2))
            acts = [self.call("release", ask, one.release())]
            if self.chance.random() < 0.5:
                acts.append(self.call("release", ask, other.release()))
            else:
                acts.append(self._renew(ask, kept))
            await asyncio.gather(*acts)

    async def force(self) -> None:
        """Take a name away, as an operator does."""
        name = self.chance.choice(NAMES)
        await self.call("force", name, self.manager.force_release(name, reason="the judge says so"))

    async def list(self) -> None:
        await self.call("list", "", self.manager.reservations(), lambda all: {"tokens": [one.token for one in all]})


def expires(reservation: Any) -> dict[str, Any]:
    """The time that it promises, and the time before it was asked."""
    asked = time.monotonic()
    return {"asked": asked, "expires_in": reservation.expires_in()}


def told(reservation: Any) -> dict[str, Any]:
    return {"token": reservation.token, "left": str(reservation.left or ""), **expires(reservation)}


async def main(given: argparse.Namespace) -> None:
    agent = Agent(given)
    agent.until_told()
    agent.journal.say("began", pid=os.getpid())
    await agent.live()
    agent.journal.say("over")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("name", "endpoints", "folder"):
        parser.add_argument(f"--{option}")
    parser.add_argument("--seed", type=int)
    asyncio.run(main(parser.parse_args()))
