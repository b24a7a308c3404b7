"""Rules for a work tree that processes edit under path reservations: what is on disk against what etcd recorded."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

from tests.chaos.documents.evidence import Violation
from tests.chaos.documents.journal import Fact, of
from tests.chaos.reservations.run import Run


def edits(run: Run, tree: str) -> list[Violation]:
    """Each edit has a holder that covers it, its end comes before the next edit begins, and tokens rise."""
    found = []
    files: dict[str, list[Fact]] = defaultdict(list)
    for fact in of(run.facts, "edited"):
        files[fact["file"]].append(fact)
        covering = [entry for entry in run.entries_of[fact["ask"]] if entry.covers(f"path/{tree}/{fact['file']}")]
        if not any(entry.granted and fact["at"] < entry.ended_at for entry in covering):
            found.append(Violation("edit not covered", f"{fact['ask']} edited {fact['file']}"))
    for file, own in files.items():
        for one, other in pairwise(sorted(own, key=lambda fact: float(fact["began"]))):
            if other["began"] < one["at"]:
                found.append(Violation("edits overlap", f"{one['ask']} and {other['ask']} edited {file}"))
            if other["token"] < one["token"]:
                found.append(Violation("token falls", f"{file}: {other['token']} after {one['token']}"))
    return found


def contents(run: Run, tree: str, root: Path) -> list[Violation]:
    """A file is as the last fenced write says, unless its writer was killed before it had edited."""
    found = []
    done = {fact["text"] for fact in of(run.facts, "edited")}
    prefix = f"{run.root}path/{tree}/"
    for key, event in run.final.items():
        if key.startswith(prefix) and event.value is not None:
            text, file = json.loads(event.value)["text"], key.removeprefix(prefix)
            if text in done and (root / file).read_text() != text:
                found.append(Violation("contents", f"{file} is {(root / file).read_text()!r}, recorded was {text!r}"))
    return found
