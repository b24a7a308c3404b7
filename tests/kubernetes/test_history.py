"""The judge of the clients' histories accepts a good one and rejects broken ones. It needs no cluster."""

from __future__ import annotations

from tests.kubernetes import history


def _hold(lock: str, token: int, since: float, until: float, lost: bool = False) -> history.Line:
    return {"kind": "hold", "lock": lock, "token": token, "since": since, "until": until, "lost": lost}


GOOD = [_hold("a", 1, 0, 1), _hold("b", 3, 0.5, 4), _hold("a", 2, 1.5, 3), _hold("a", 9, 3.5, 4)]


def test_a_good_history_passes() -> None:
    assert history.violations(GOOD) == []


def test_holds_that_overlap_are_found() -> None:
    assert history.violations([*GOOD, _hold("a", 10, 3.9, 5)])


def test_a_token_that_falls_is_found() -> None:
    assert history.violations([*GOOD, _hold("a", 8, 5, 6)])
    assert history.violations([*GOOD, _hold("a", 9, 5, 6)]), "a token came twice"


def test_the_figures_count_what_was_told() -> None:
    told = [
        *GOOD,
        _hold("c", 20, 0, 1, lost=True),
        {"kind": "granted", "waited": 2.5},
        {"kind": "gap", "seconds": 1.5, "error": ""},
        {"kind": "gap", "seconds": 0.7, "error": "EtcdUnavailable: nobody"},
    ]
    found = history.figures(told)
    assert (found.holds, found.gaps, found.longest_gap, found.longest_wait, found.lost) == (5, 2, 1.5, 2.5, 1)
    assert found.errors == ("EtcdUnavailable: nobody",)


def test_a_line_that_is_no_json_is_kept_as_text() -> None:
    assert history.lines('{"kind": "ended"}\nTraceback\n') == [{"kind": "ended"}, {"kind": "text", "text": "Traceback"}]
