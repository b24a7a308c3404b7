"""Failed tasks of a pool wait in a dead letter queue until the code is mended. Run it with an etcd around it:

codomyrmex concurrency dev -- python examples/redrive.py

The first version of the code reads only prices such as 12.50. The second reads 12,50 too. What neither can read is
parked for a person, whose decision is followed by a replay.
"""

import asyncio
from contextlib import aclosing

from codomyrmex.concurrency import AsyncWorkerPool, Attempt, DeadLetter, DeadLetterQueue, Park

PRICES = ("12.50", "7,20", "3", "0,99", "free")

dlq = DeadLetterQueue("prices")
decided: dict[str, float] = {}


def read_price(text: str) -> float:
    return float(text)


@dlq.handler("__main__.read_price")
async def read_price_again(entry: DeadLetter, attempt: Attempt) -> None:
    text = entry.args["args"][0]
    try:
        price = decided[text] if text in decided else float(text.replace(",", "."))
    except ValueError:
        print(f"retry {attempt.number}: {text!r} is parked")
        raise Park(f"nobody has said what {text!r} costs") from None
    print(f"retry {attempt.number}: {text!r} is {price:.2f}")


async def settled(ids: set[str]) -> list[DeadLetter]:
    """Wait until each of these dead letters is resolved or parked."""
    found: dict[str, DeadLetter] = {}
    async with aclosing(dlq.watch()) as changes:
        while len(found) < len(ids):
            entry = await anext(changes)
            if entry.id in ids and entry.state in ("resolved", "parked"):
                found[entry.id] = entry
    return list(found.values())


async def main() -> None:
    async with AsyncWorkerPool(max_workers=2, dlq=dlq) as pool:
        results = await pool.map(read_price, PRICES)
    for text, result in zip(PRICES, results, strict=True):
        print(f"{text!r}: {result.result if result.success else result.error}")
    ids = {result.dead_letter_id for result in results if result.dead_letter_id}
    print(f"{len(ids)} dead letters")

    async with dlq.worker():
        entries = await settled(ids)
        parked = [entry for entry in entries if entry.state == "parked"]
        print(f"{len(entries) - len(parked)} resolved, parked: {[entry.reason for entry in parked]}")

        decided["free"] = 0.0
        print(f"{await dlq.replay_all('__main__.read_price')} replayed")
        for entry in await settled({entry.id for entry in parked}):
            print(f"{entry.args['args'][0]!r} is {entry.state} after {[past.outcome for past in entry.attempts]}")


if __name__ == "__main__":
    asyncio.run(main())
