"""The examples of fencing run as written, given an etcd, and show what they say."""

from __future__ import annotations

import re

import pytest

from codomyrmex.concurrency import EmbeddedEtcd
from tests.docs.test_examples import output_of, own_state

pytestmark = [pytest.mark.long, pytest.mark.usefixtures(own_state.__name__)]
REFUSED = "the token N of the lock '{}' is too old: the token N of a later holder, or of a former etcd, was here; {}"


def plain(lines: list[str]) -> list[str]:
    """The lines without their tokens and folders."""
    return [re.sub(r"'file_edit:.*/", "'file_edit:", re.sub(r"\btoken \d+", "token N", line)) for line in lines]


def test_rows(etcd: EmbeddedEtcd, namespace: str) -> None:
    assert plain(output_of("fenced_rows.py", etcd, namespace)) == [
        "the first worker takes 2 seats, 8 are left",
        "the second worker takes 3 seats, 5 are left",
        f"the first worker is refused: {REFUSED.format('seats', 'roll this transaction back')}",
    ]


def test_files(etcd: EmbeddedEtcd, namespace: str) -> None:
    refused = REFUSED.format("file_edit:main.py", "nothing was written")
    assert plain(output_of("fenced_files.py", etcd, namespace)) == [
        "15 edits are there",
        f"a replacement after the lock was taken away is refused: {refused}",
        "the last line is: # by the next holder",
    ]


def test_http(etcd: EmbeddedEtcd, namespace: str) -> None:
    refused = REFUSED.format("configuration", "this request changed nothing")
    assert plain(output_of("fenced_http.py", etcd, namespace)) == [
        "no headers: 428 this request needs the headers Fencing-Token and Fencing-Names",
        "the first client: 200 stored",
        "the second client: 200 stored",
        f"the first client again: 409 {refused}",
        "the configuration is from the second",
    ]
