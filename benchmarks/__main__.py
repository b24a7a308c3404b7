"""Runs the cases in rounds, A B A B, on one etcd: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from rich.console import Console

from benchmarks import servers
from benchmarks.cases import CASES, PEERS, Case
from benchmarks.compare import compared
from benchmarks.report import Report
from benchmarks.sample import Sample
from codomyrmex.concurrency.etcd.embedded import EmbeddedEtcd

Samples = dict[Case, list[Sample]]
Left = dict[str, str]
_LATEST = Path(__file__).parent / "results" / "ratios.json"


def main() -> None:
    options = _options()
    console = Console(width=None if sys.stdout.isatty() else 120)
    earlier = json.loads(options.compare.read_text()) if options.compare else None
    wanted = [case for case in CASES if not options.case or case.name in options.case]
    peers = {case.peer: PEERS[case.peer]() for case in wanted if case.peer}
    left_out = {peer: reason for peer, reason in peers.items() if reason}
    cases = [case for case in wanted if case.peer not in left_out]
    samples, failed = asyncio.run(_measure(cases, options.rounds, options.seconds, console))

    report = Report(samples, left_out | failed)
    report.print(console)
    figures = report.json()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if earlier:
        console.print(compared(earlier, figures))
    _draw(figures, options.json.with_suffix(".png"), console)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often every case runs (default 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long a case runs (default 2)")
    parser.add_argument("--json", type=Path, default=_LATEST, help="for the figures; the picture is beside it")
    parser.add_argument("--compare", type=Path, metavar="JSON", help="the figures of an earlier run, to stand beside")
    parser.add_argument("--case", nargs="+", choices=[case.name for case in CASES], help="only these cases")
    return parser.parse_args()


async def _measure(cases: Sequence[Case], rounds: int, seconds: float, console: Console) -> tuple[Samples, Left]:
    """The samples, and the cases of peers that failed, with why."""
    samples: Samples = {case: [] for case in cases}
    failed: Left = {}
    async with AsyncExitStack() as stack:
        endpoints = {"etcd": (await stack.enter_async_context(EmbeddedEtcd())).endpoint}
        for server in {case.server for case in cases} - {"etcd"}:
            endpoints[server] = await stack.enter_async_context(getattr(servers, server)())
        for number in range(1, rounds + 1):
            console.print(f"round {number} of {rounds}")  # no spinner: drawing it would cost what is measured
            for case in cases:
                if case.name not in failed:
                    try:
                        samples[case].append(await case.run(endpoints[case.server], seconds))
                    except RuntimeError as error:
                        if not case.peer:
                            raise
                        failed[case.name] = str(error)
    return {case: own for case, own in samples.items() if case.name not in failed}, failed


def _draw(figures: dict[str, object], target: Path, console: Console) -> None:
    try:
        from benchmarks.plot import draw
    except ImportError:
        console.print("no picture: matplotlib is not installed (extra `bench`)")
    else:
        draw(figures, target)
        console.print(f"picture: {target.name}")


if __name__ == "__main__":
    main()
