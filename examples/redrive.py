"""Failed tasks of a pool wait in a dead letter queue until the code is mended. Run it with an etcd around it:

codomyrmex concurrency dev -- python examples/redrive.py

The first version of the code reads only prices such as 12.50. The second reads 12,50 too. What neither can read is
parked for a person, whose decision is followed by a replay.
"""

import asyncio

from codomyrmex.concurrency import AsyncWorkerPool, Attempt, DeadLetter, DeadLetterQueue, Park

PRICES = ("12.50", "7,20", "3", "0,99", "free")

dlq = DeadLetterQueue("prices")
decided: dict[str, float] = {}


def read_price(text: str) -> float:
    return float(text)


OPERATION = AsyncWorkerPool.operation_of(read_price)


@dlq.handler(OPERATION)
async def read_price_again(entry: DeadLetter, attempt: Attempt) -> None:
    text = entry.args["args"][0]
    try:
        price = decided[text] if text in decided else float(text.replace(",", "."))
    except ValueError:
        print(f"retry {attempt.number}: {text!r} is parked")
        raise Park(f"nobody has said what {text!r} costs") from None
    print(f"retry {attempt.number}: {text!r} is {price:.2f}")


async def main() -> None:
    async with AsyncWorkerPool(max_workers=2, dlq=dlq) as pool:
        results = await pool.map(read_price, PRICES)
    for text, result in zip(PRICES, results, strict=True):
        print(f"{text!r}: {result.result if result.success else result.error}")
    print(f"{await dlq.count()} dead letters")

    async with dlq.worker() as worker:
        await worker.settled()
        parked = await dlq.list_entries(state="parked")
        print(f"{await dlq.count() - len(parked)} resolved, parked: {[entry.reason for entry in parked]}")

        decided["free"] = 0.0
        print(f"{await dlq.replay_all(OPERATION, state='parked')} replayed")
        await worker.settled()
    for entry in await dlq.list_entries():
        print(f"{entry.args['args'][0]!r} is {entry.state} after {[past.outcome for past in entry.attempts]}")


if __name__ == "__main__":
    asyncio.run(main())
