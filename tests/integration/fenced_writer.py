"""A holder that is stopped past its lease and writes then.

python -m tests.integration.fenced_writer ENDPOINT NAMESPACE HOLD MEDIUM TARGET, with HOLD one of ``lock`` and
``reservation``, both blocking, and MEDIUM one of ``MEDIA``. It prints the token once it holds. For each line ``fenced``
or ``plain`` on standard input it writes, with the kit or without, and prints ``written`` or the error.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from codomyrmex.concurrency import FencedWriteRejected, fencing, sync

Hold = fencing.Granted | fencing.Reserved


def sqlite(target: str, value: str, hold: Hold | None) -> None:
    with closing(sqlite3.connect(target)) as connection:
        _sql(connection, value, hold)


def postgres(target: str, value: str, hold: Hold | None) -> None:
    import psycopg

    with closing(psycopg.connect(target)) as connection:
        _sql(connection, value, hold)


def _sql(connection: Any, value: str, hold: Hold | None) -> None:
    if hold:
        fencing.sql(connection, hold)
    connection.execute(f"UPDATE data SET value = '{value}'")
    connection.commit()


def file(target: str, value: str, hold: Hold | None) -> None:
    if hold:
        fencing.files.replace(target, value, hold)
    else:
        Path(target).write_text(value)


def http(target: str, value: str, hold: Hold | None) -> None:
    headers = fencing.http.headers(hold) if hold else {}
    try:
        urllib.request.urlopen(urllib.request.Request(target, value.encode(), headers, method="PUT"), timeout=5).close()
    except HTTPError as error:
        with error:
            raise FencedWriteRejected(f"HTTP {error.code}: {json.load(error)['detail']}") from None


MEDIA: dict[str, Callable[[str, str, Hold | None], None]] = {
    "sqlite": sqlite,
    "postgres": postgres,
    "file": file,
    "http": http,
}


def main(endpoint: str, namespace: str, kind: str, medium: str, target: str) -> None:
    with sync.Session(endpoints=endpoint, namespace=namespace, session_ttl=2) as session:
        if kind == "lock":
            hold: Hold = sync.DistributedLock("data", session, on_loss="notify").acquire()
        else:
            hold = sync.LockManager(session).reserve("data", ttl=60)
        print(hold.token, flush=True)
        for line in sys.stdin:
            try:
                MEDIA[medium](target, f"late, {line.strip()}", hold if line.strip() == "fenced" else None)
                print("written", flush=True)
            except FencedWriteRejected as error:
                print(error, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
