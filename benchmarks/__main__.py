"""Runs the cases in rounds, A B A B, on one etcd: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.cases import CASES, PEERS, Case
from benchmarks.report import Report
from benchmarks.sample import Sample
from codomyrmex.concurrency.etcd.embedded import EmbeddedEtcd

Samples = dict[Case, list[Sample]]
_LATEST = Path(__file__).parent / "results" / "latest.json"


def main() -> None:
    options = _options()
    console = Console()
    wanted = [case for case in CASES if not options.case or case.name in options.case]
    peers = {case.peer: PEERS[case.peer]() for case in wanted if case.peer}
    left_out = {peer: reason for peer, reason in peers.items() if reason}
    cases = [case for case in wanted if case.peer not in left_out]
    samples = asyncio.run(_measure(cases, options.rounds, options.seconds, console))

    report = Report(samples, left_out)
    report.print(console)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report.json(), indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often every case runs (default 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long a case runs (default 2)")
    parser.add_argument("--json", type=Path, default=_LATEST, help="where to write the figures")
    parser.add_argument("--case", nargs="+", choices=[case.name for case in CASES], help="only these cases")
    return parser.parse_args()


async def _measure(cases: Sequence[Case], rounds: int, seconds: float, console: Console) -> Samples:
    samples: Samples = {case: [] for case in cases}
    async with EmbeddedEtcd() as etcd:
        for number in range(1, rounds + 1):
            console.print(f"round {number} of {rounds}")  # no spinner: drawing it would cost what is measured
            for case in cases:
                samples[case].append(await case.run(etcd.endpoint, seconds))
    return samples


if __name__ == "__main__":
    main()
