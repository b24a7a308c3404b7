"""The batcher alone: what meets travels together, in order, at most so many batches at a time."""

from __future__ import annotations

import asyncio

from codomyrmex.concurrency.etcd.batching import Batcher
from codomyrmex.concurrency.etcd.send_queue import SendQueue
from tests.helpers import eventually


class Sender:
    """Takes up to three items a batch; each batch is under way until it is let go."""

    def __init__(self, depth: int = 2, enough: int = 1, late: float = 60.0) -> None:
        self.sent: list[list[int]] = []
        self.under_way: list[asyncio.Event] = []
        self.failures: list[tuple[str, BaseException]] = []
        self.queue: SendQueue[int] = SendQueue(depth, enough, late)
        self.batcher: Batcher[int] = Batcher(self.queue, self._take, self._send, self._broken)

    def _broken(self, name: str, error: BaseException) -> None:
        self.failures.append((name, error))

    def _take(self) -> list[int]:
        items = self.queue.items
        return [items.popleft() for _ in range(min(3, len(items)))]

    async def _send(self, batch: list[int]) -> None:
        self.sent.append(batch)
        done = asyncio.Event()
        self.under_way.append(done)
        await done.wait()

    async def let_go(self) -> None:
        for done in self.under_way:
            done.set()
        self.under_way.clear()
        for _ in range(5):
            await asyncio.sleep(0)


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_meets_in_one_turn_travels_together() -> None:
    sender = Sender()
    for item in range(3):
        sender.batcher.submit(item)
    await turns()
    assert sender.sent == [[0, 1, 2]]
    await sender.let_go()
    await sender.batcher.close()


async def test_no_more_than_depth_batches_are_under_way_and_order_holds() -> None:
    sender = Sender()
    for item in range(10):
        sender.batcher.submit(item)
    await turns()
    assert sender.sent == [[0, 1, 2], [3, 4, 5]]
    await sender.let_go()
    await sender.let_go()
    await sender.batcher.idle()
    assert [item for batch in sender.sent for item in batch] == list(range(10))
    await sender.batcher.close()


async def test_few_items_wait_for_the_batch_under_way_and_enough_do_not() -> None:
    sender = Sender(enough=2)
    sender.batcher.submit(0)
    await turns()
    sender.batcher.submit(1)
    await turns()
    assert sender.sent == [[0]]
    sender.batcher.submit(2)
    await turns()
    assert sender.sent == [[0], [1, 2]]
    sender.batcher.submit(3)
    await sender.let_go()
    assert sender.sent == [[0], [1, 2], [3]]
    await sender.let_go()
    await sender.batcher.close()


async def test_few_items_do_not_wait_for_an_answer_that_takes_long() -> None:
    sender = Sender(enough=2, late=0.01)
    sender.batcher.submit(0)
    await turns()
    sender.batcher.submit(1)
    await turns()
    assert sender.sent == [[0]]
    await eventually(lambda: sender.sent == [[0], [1]])
    sender.batcher.submit(2)
    await asyncio.sleep(0.03)
    assert sender.sent == [[0], [1]], "two are under way"
    await sender.let_go()
    assert sender.sent == [[0], [1], [2]]
    await sender.let_go()
    await sender.batcher.close()


async def test_a_wake_without_items_takes_nothing() -> None:
    sender = Sender()
    sender.batcher.wake()
    await turns()
    assert not sender.sent and sender.batcher.free
    await sender.batcher.close()


async def test_a_pause_keeps_what_waits_and_resume_sends_it() -> None:
    sender = Sender()
    sender.queue.paused = True
    sender.batcher.submit(1)
    await turns()
    assert not sender.sent and not sender.batcher.free
    sender.queue.paused = False
    sender.batcher.wake()
    await turns()
    assert sender.sent == [[1]]
    sender.queue.paused = True
    sender.batcher.submit(2)
    assert sender.queue.empty() == [2]
    quiet = asyncio.create_task(sender.batcher.quiet())
    await turns()
    assert not quiet.done()
    await sender.let_go()
    assert quiet.done()
    await sender.batcher.close()


async def test_one_sent_at_once_counts_as_under_way() -> None:
    sender = Sender(depth=1)
    assert sender.batcher.free
    sending = asyncio.create_task(sender.batcher.send_now(7))
    await turns()
    assert not sender.batcher.free
    sender.batcher.submit(8)
    await turns()
    assert sender.sent == [[7]]
    await sender.let_go()
    await sending
    assert sender.sent == [[7], [8]]
    await sender.let_go()
    assert sender.batcher.free
    await sender.batcher.close()


async def test_closing_cancels_what_is_under_way() -> None:
    sender = Sender()
    sender.batcher.submit(1)
    await turns()
    await asyncio.wait_for(sender.batcher.close(), 1)
    await asyncio.wait_for(sender.batcher.quiet(), 1)
