"""The resident memory and the threads of a new process with an open session: ``python -m benchmarks.memory``."""

from __future__ import annotations

import subprocess
import sys
from statistics import median

from codomyrmex.concurrency.etcd.embedded import EmbeddedEtcd

_ROUNDS = 5
_PROCESS = """
import asyncio, sys
from pathlib import Path
from codomyrmex.concurrency import Session

async def main():
    async with Session(endpoints=sys.argv[1], transport=sys.argv[2]):
        await asyncio.sleep(0.5)
        lines = Path("/proc/self/status").read_text().splitlines()
        found = dict(line.split(":", 1) for line in lines)
        print(found["VmRSS"].split()[0], found["Threads"])

asyncio.run(main())
"""


def main() -> None:
    etcd = EmbeddedEtcd()
    etcd.start_sync()
    try:
        for transport in ("native", "grpc"):
            rounds = [_measure(etcd.endpoint, transport) for _ in range(_ROUNDS)]
            mebibytes = median(kibibytes for kibibytes, _ in rounds) / 1024
            print(f"{transport}: {mebibytes:.1f} MiB, {max(threads for _, threads in rounds)} threads")
    finally:
        etcd.stop_sync()


def _measure(endpoint: str, transport: str) -> tuple[int, int]:
    """The kibibytes and the threads of one process."""
    command = (sys.executable, "-c", _PROCESS, endpoint, transport)
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kibibytes, threads = told.split()
    return int(kibibytes), int(threads)


if __name__ == "__main__":
    main()
