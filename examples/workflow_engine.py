"""A tiny workflow engine: it runs the steps of a graph level by level. Run it with an etcd around it:

codomyrmex concurrency dev -- python examples/workflow_engine.py

Steps that are independent run in parallel. Steps that touch the same resource take turns, here and on every other host
that runs a workflow on it.
"""

import asyncio
from dataclasses import dataclass
from graphlib import TopologicalSorter

from codomyrmex.concurrency import AsyncWorkerPool


@dataclass(frozen=True)
class Step:
    name: str
    resource: str
    after: tuple[str, ...] = ()

    async def run(self) -> None:
        print(f"{self.name} begins with {self.resource}")
        await asyncio.sleep(0.2)
        print(f"{self.name} ends")


class Workflow:
    """Runs steps in levels: each level is what can run once the level before it is done."""

    def __init__(self, steps: list[Step]) -> None:
        self._steps = {step.name: step for step in steps}

    async def run(self, max_workers: int = 4) -> None:
        """Run all steps; raises what a step raised, once the others of its level have ended."""
        sorter = TopologicalSorter({step.name: step.after for step in self._steps.values()})
        sorter.prepare()
        async with AsyncWorkerPool(max_workers, name="workflow") as pool:
            while sorter.is_active():
                level = [self._steps[name] for name in sorter.get_ready()]
                print("level:", ", ".join(sorted(step.name for step in level)))
                results = await pool.map(Step.run, level, lock=lambda step: f"resource:{step.resource}")
                for step, result in zip(level, results, strict=True):
                    result.unwrap()
                    sorter.done(step.name)
        print(f"{pool.stats().completed} steps done")


async def main() -> None:
    steps = [
        Step("checkout", "sources"),
        Step("lint", "sources", after=("checkout",)),
        Step("compile", "cache", after=("checkout",)),
        Step("docs", "cache", after=("checkout",)),
        Step("release", "registry", after=("lint", "compile", "docs")),
    ]
    await Workflow(steps).run()


if __name__ == "__main__":
    asyncio.run(main())
