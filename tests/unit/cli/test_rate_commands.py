"""Wrong use of the commands about rate limiters: refused before etcd is asked, with a message that says what to do."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from codomyrmex.concurrency.cli.group import concurrency

RUN = ("run", "--rate", "x")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("rates", "resize", "x"), "Missing argument '[DIMENSION=]N...'"),
        (("rates", "resize", "x", "0"), "give a whole number of at least 1"),
        (("rates", "resize", "x", "-5"), "give a whole number of at least 1"),
        (("rates", "resize", "x", "tokens=0"), "give a whole number of at least 1"),
        (("rates", "resize", "x", "many"), "such as 5 or tokens=400"),
        (("rates", "resize", "x", "tokens=5", "tokens=6"), "the dimension 'tokens' is given twice"),
        (("rates", "pause", "x"), "--for"),
        (("rates", "pause", "x", "--for", "0"), "--for must be more than 0"),
        (("rates", "pause", "x", "--for", "8d"), "at most 7 days"),
        (("rates", "pause", "x", "--for", "soon"), "such as 5s"),
        (("rates", "delete", "x"), "confirm with -y"),
        (("rates", "paus", "x"), "Did you mean 'pause'?"),
        ((*RUN, "--cost", "0", "--", "true"), "give a whole number of at least 1"),
        ((*RUN, "--cost", "tokens=1", "--cost", "tokens=2", "--", "true"), "is given twice"),
        ((*RUN, "--max-hold", "5s", "--", "true"), "a rate is not held"),
        ((*RUN, "--max-idle", "5s", "--", "true"), "a rate is not held"),
        ((*RUN, "--rate-limit", "5", "--", "true"), "such as 100/60s"),
        ((*RUN, "--rate-limit", "5/1s", "--rate-limit", "a=5/1s", "--", "true"), "stands alone"),
        (("run", "--lock", "x", "--cost", "5", "--", "true"), "go with --rate"),
        (("run", "--lock", "x", "--rate-limit", "5/1s", "--", "true"), "go with --rate"),
        (("run", "--", "true"), "give --lock, --semaphore or --rate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_use_says_what_to_do(args: tuple[str, ...], said: str) -> None:
    result = CliRunner().invoke(concurrency, list(args))
    assert result.exit_code == 2 and said in " ".join(result.output.split()), result.output
