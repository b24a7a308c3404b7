"""Values and ends of keys that any client may write under the prefix, and at which naive decoders break."""

from __future__ import annotations

import json
from collections.abc import Iterator

from codomyrmex.concurrency.etcd.transports.protocol import Put

DIGITS = "9" * 5000
DEEP = "[" * 100_000

# As JSON, in place of any field of a record.
FIELDS = (
    *("null", "true", "-1", '""', "[]", "{}", DIGITS, "-" + DIGITS, "1e18", "1e999", "-1e999", "NaN", "Infinity"),
    *('"\\ud800"', '"2026-01-01T00:00:00"', '"0001-01-01T00:00:00+14:00"', '"9999-12-31T23:59:59-14:00"'),
    *('"-999999999999999999"', '"NaN"', "18446744073709551616", "[" * 500 + "]" * 500, '{"a":' * 300 + "1" + "}" * 300),
    *('{"n": NaN}', '{"n": 1e999}', '{"n": ' + DIGITS + "}", '{"\\udfff": 1}', json.dumps("\x1b[2J\u202e[b]" * 20)),
)

VALUES = (
    *(b"", b"\xff\xfe{", b"\xed\xa0\x80", b"null", b"true", b"[]", b"{}", b"{", b'"x"', b"NaN", b"1e999", b"\0"),
    *(DIGITS.encode(), DEEP.encode(), (DEEP + "]" * len(DEEP)).encode(), b'{"a":' * 5000, b'"' + b"x" * 200_000 + b'"'),
)

# Ends of keys, in place of the suffix of an entry or the number of a limit.
NUMBERS = (
    *(DIGITS.encode(), b"9" * 19, b"9223372036854775808", b"0", b"-1", b"+1", b"1_0", b" 1", b"1e3", b"0x1", b"nan"),
    *("٣".encode(), "²".encode(), b"\xff", b"", b"1.5", b"." * 50),
)

OWNER = {"host": '"h"', "pid": "1", "task": '"t"', "since": "1790000000.5", "metadata": '{"a": 1}'}
FORCED = {"name": '"x"', "token": "7", "reason": '"r"', "by": '"b"', "at": '"2026-01-01T00:00:00+00:00"'}
ATTEMPT = {"number": "1", "host": '"h"', "pid": "1", "time": '"2026-01-01T00:00:00Z"', "outcome": '"failed"'}
LETTER = {
    "id": '"{id}"',
    "operation": '"junk"',
    "args": '{"a": 1}',
    "error": '"e"',
    "created_at": '"2026-01-01T00:00:00Z"',
    "metadata": "{}",
    "state": '"waiting"',
    "attempt_count": "1",
    "crash_count": "0",
    "delay": "0.0",
    "next_attempt_at": '"2026-01-01T00:00:00Z"',
    "reason": '""',
}
POOL = {
    **dict.fromkeys(
        ("submitted", "completed", "failed", "running", "queued", "cancelled", "timed_out", "retried"), "1"
    ),
    **dict.fromkeys(("dead_lettered", "max_workers"), "1"),
    **dict.fromkeys(("total_elapsed_ms", "p50_ms", "p95_ms", "p99_ms", "throughput", "loop_lag_ms"), "1.5"),
    "name": '"crew"',
    "host": '"h"',
    "pid": "1",
    "instance": '"i"',
    "started_at": '"2026-01-01T00:00:00Z"',
}


def record(fields: dict[str, str]) -> bytes:
    """The JSON of a record, each of whose fields is given as JSON."""
    return ("{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}").encode()


def broken(fields: dict[str, str]) -> Iterator[bytes]:
    """A record with each of its fields missing, twice there, and replaced by each piece of garbage."""
    for name in fields:
        yield record({other: value for other, value in fields.items() if other != name})
        yield record(fields)[:-1] + f', "{name}": null}}'.encode()
        for value in FIELDS:
            yield record({**fields, name: value})


def under(root: bytes, lease: int) -> Iterator[Put]:
    """Garbage under every prefix of a namespace.

    The lock ``x`` and the semaphore ``s`` get no entry, since an entry would block them. Other names get entries of
    unknown clients, on ``lease``.
    """
    odd = (b"%zz/1", b"%41/1", b"\xff/1", b"/1", b"junk", b"", b"%0A/1", b"a" * 600 + b"/1", b"x/y/z/1")
    for prefix in (b"lease/", b"lock/", b"semaphore/", b"pool/", b"dead/", b"audit/", b"baton/lock/"):
        yield from (Put(root + prefix + key, b"\xff{") for key in odd)
    for number in NUMBERS:
        yield Put(root + b"lease/" + number, DEEP.encode())
        yield Put(root + b"lock/x/%016x-0." % lease + number, b"")
        yield Put(root + b"semaphore/s/limit-" + number, b"")
    for number in (DIGITS.encode(), b"9" * 19, b"0"):
        yield Put(root + b"semaphore/s/%016x-f." % lease + number, b"", lease)
    for n, ending in enumerate((*(b"%016x-0." % lease + number for number in NUMBERS), b"x" * 2000, b"\xff", b"a/b.r")):
        yield Put(root + b"lock/y-%d/" % n + ending, b"", lease)
        yield Put(root + b"semaphore/t-%d/" % n + ending, b"", lease)
        yield Put(root + b"semaphore/t-%d/limit-2" % n, b"", lease)
    records = (
        *((OWNER, b"lock/z-%d/1", lease), (OWNER, b"semaphore/u-%d/1", lease), (FORCED, b"audit/z-%d", 0)),
        *((POOL, b"pool/crew/%d", lease), (LETTER, b"dead/mail/entry/%d", 0), (LETTER, b"dead/mail/claim/%d", 0)),
        *((FORCED, b"dead/mail/dedup/%d", 0), (FORCED, b"baton/lock/x/%d", 0), (OWNER, b"lease/%d", 0)),
    )
    for fields, key, of in records:
        for n, value in enumerate((*VALUES, *broken(fields))):
            yield Put(root + key % n, value.replace(b"{id}", b"%d" % n), of)
    yield Put(root + b"audit/x", DEEP.encode())
