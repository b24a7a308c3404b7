"""Fencing that reaches the data: a write to a database, a file or an HTTP resource is refused once a later holder of
the lock was seen there.

    sql(connection, grant)               one guarded statement in your own transaction (sqlite3, PostgreSQL by psycopg)
    files.read, files.replace            a file on a shared disk
    http.headers, http.FencingMiddleware a header that a client sends, and the ASGI server that checks it

Each keeps the highest token that it has seen for a lock, and raises ``FencedWriteRejected`` for a lower one. Call it
before you read what you are about to change: from then on no earlier holder can write.
"""

from codomyrmex.concurrency.fencing import files, http
from codomyrmex.concurrency.fencing.fence import Granted, Reserved
from codomyrmex.concurrency.fencing.sql import TABLE, sql
from codomyrmex.concurrency.fencing.unavailable import FencingUnavailable

__all__ = ["TABLE", "FencingUnavailable", "Granted", "Reserved", "files", "http", "sql"]
