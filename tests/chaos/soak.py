"""A fleet without faults for a long time: do memory, open files and pace stay flat?

    python -m tests.chaos.soak SECONDS

Eight processes take turns at a lock and a semaphore, and add and retry dead letters; every half a minute one line says
what they use. The last line compares the first minutes with the last ones.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from codomyrmex.concurrency import EmbeddedEtcd
from tests.chaos.members import Members, members

_EVERY = 30.0
_ROLES = [("lock", "semaphore")] * 4 + [("add", "lock"), ("add",), ("retry",), ("retry", "semaphore")]


class Sample(NamedTuple):
    resident: float  # MiB, the mean of all processes
    largest: float
    files: int
    done: int


def look(fleet: Members) -> Sample:
    resident = []
    files = 0
    for member in fleet.living:
        process = Path(f"/proc/{member.process.pid}")
        resident.append(int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
        files += len(list((process / "fd").iterdir()))
    done = 0
    for member in fleet.all:
        done += len(member.said)
        member.said.clear()
    return Sample(mean(resident), max(resident), files, done)


async def main(seconds: float) -> None:
    samples: list[Sample] = []
    async with EmbeddedEtcd() as etcd, members(etcd.endpoint, "soak") as fleet:
        for roles in _ROLES:
            await fleet.start(*roles)
        await asyncio.sleep(_EVERY)
        look(fleet)
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            await asyncio.sleep(_EVERY)
            samples.append(sample := look(fleet))
            assert len(fleet.living) == len(_ROLES), "a process has ended"
            print(
                f"{time.monotonic() - began:6.0f} s {sample.resident:5.1f} MiB each, {sample.largest:5.1f} at most, "
                f"{sample.files} open files, {sample.done / _EVERY:6.1f} steps a second",
                flush=True,
            )
    few = max(1, len(samples) // 6)
    for name, values in (("first", samples[:few]), ("last", samples[-few:])):
        print(
            f"{name} {few}: {mean(s.resident for s in values):.1f} MiB each, "
            f"{mean(s.files for s in values):.0f} files, {mean(s.done for s in values) / _EVERY:.1f} steps a second"
        )


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1])))
