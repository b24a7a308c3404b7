"""Code without an event loop, as in Celery tasks, Flask views or a notebook: threads edit a file in turn, call a
provider three at a time, and retry what failed. Run it with an etcd around it:

codomyrmex concurrency dev -- python examples/blocking_workers.py
"""

import tempfile
import threading
from pathlib import Path

from codomyrmex.concurrency import DeadLetter
from codomyrmex.concurrency.sync import Attempt, DeadLetterQueue, LockManager, Semaphore

manager = LockManager()
provider = Semaphore("provider", max_concurrent=3)
failures = DeadLetterQueue("edits")


def task(path: Path, number: int) -> None:
    with provider:
        text = f"line {number}\n"  # from the provider
    if number == 3:
        failures.add(operation="append", args={"path": str(path), "text": text}, error="the editor was away")
        return
    append(path, text)


def append(path: Path, text: str) -> None:
    with manager.acquire(f"file_edit:{path}", timeout=30) as grant:
        content = path.read_text() + text
        grant.check()  # still ours? a thread cannot be cancelled
        path.write_text(content)


@failures.handler("append")
def retry(entry: DeadLetter, attempt: Attempt) -> None:
    append(Path(entry.args["path"]), entry.args["text"])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "main.py")
        path.write_text("")
        threads = [threading.Thread(target=task, args=(path, number)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(f"{len(path.read_text().splitlines())} of 8 lines are there, {failures.count()} failed")
        with failures.worker() as worker:
            worker.settled(timeout=30)
        print(f"after the retry {len(path.read_text().splitlines())} are")


if __name__ == "__main__":
    main()
