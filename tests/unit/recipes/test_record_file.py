"""The file of a record is whole after a crash at any byte, and a file that is no record is left alone."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from codomyrmex.concurrency.errors import ConcurrencyError
from codomyrmex.concurrency.recipes.record_file import RecordFile, Written, lines_of

BEGIN = {"begin": {"revision": 5, "at": "2026-01-01", "namespace": "fleet", "prefix": ""}}


def step(revision: int) -> dict[str, Any]:
    return {"revision": revision, "kind": "granted"}


LINES = [
    BEGIN,
    step(5),
    step(5),
    step(7),
    step(8),
    step(8),
    {"gap": {"from": 9, "to": 20, "at": ""}},
    step(20),
    step(21),
]
ENDS = [  # after so many lines
    None,
    Written(5, 0, False),
    Written(5, 1, False),
    Written(5, 2, False),
    Written(7, 1, True),
    Written(8, 1, True),
    Written(8, 2, True),
    Written(20, 0, False),
    Written(20, 1, False),
    Written(21, 1, True),
]


def test_a_crash_at_any_byte_leaves_the_whole_lines(tmp_path: Path) -> None:
    file = tmp_path / "record"
    with RecordFile(file, "fleet", "") as opened:
        assert opened.written is None
        opened.append(LINES[:1])
        opened.append(LINES[1:])
    content = file.read_bytes()
    assert [json.loads(line) for line in lines_of(file)] == LINES
    for size in range(len(content) + 1):
        file.write_bytes(content[:size])
        complete = content[:size].count(b"\n")
        with RecordFile(file, "fleet", "") as opened:
            assert opened.written == ENDS[complete]
            opened.append([step(99)])
        assert [json.loads(line) for line in lines_of(file)] == [*LINES[:complete], step(99)]


@pytest.mark.parametrize(
    "content", [b"my notes", b"my notes\n", b"{}\n", b'["begin"]\n', b'{"begin": 1}\n', b"\n", b"\0"]
)
def test_a_file_that_is_no_record_is_left_as_it_is(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "notes"
    file.write_bytes(content)
    with pytest.raises(ConcurrencyError, match="is no record of locks; choose another file"):
        RecordFile(file, "fleet", "")
    assert file.read_bytes() == content


def test_a_record_of_other_locks_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "record"
    with RecordFile(file, "fleet", "") as opened:
        opened.append(LINES)
    for namespace, prefix in (("fleet", "p"), ("other", "")):
        with pytest.raises(ConcurrencyError, match="is a record of the namespace 'fleet' with the prefix ''"):
            RecordFile(file, namespace, prefix)
    file.write_bytes(file.read_bytes() + b"notes\n")
    with pytest.raises(ConcurrencyError, match="has a line that is none of a record"):
        RecordFile(file, "fleet", "")


def test_two_recorders_of_one_file_are_refused(tmp_path: Path) -> None:
    with RecordFile(tmp_path / "record", "fleet", ""), pytest.raises(ConcurrencyError, match="another recorder writes"):
        RecordFile(tmp_path / "record", "fleet", "")
    RecordFile(tmp_path / "record", "fleet", "").__exit__(None, None, None)


def test_a_batch_that_does_not_fit_leaves_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = os.write, []

    def full(descriptor: int, data: bytes) -> int:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(data)
        return write(descriptor, data[:5])

    with RecordFile(tmp_path / "record", "fleet", "") as opened:
        opened.append([BEGIN])
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", full)
            with pytest.raises(ConcurrencyError, match="all earlier lines are in it: No space left on device"):
                opened.append([step(6)])
        opened.append([step(7)])
    assert [json.loads(line) for line in lines_of(tmp_path / "record")] == [BEGIN, step(7)]
