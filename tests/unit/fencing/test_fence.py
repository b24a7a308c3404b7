"""The names and the token of a hold, and the holds that cannot fence."""

from __future__ import annotations

import subprocess
import sys

import pytest

from codomyrmex.concurrency import telemetry
from codomyrmex.concurrency.errors import InvalidHandle
from codomyrmex.concurrency.fencing.fence import Fence, fence_of, fence_with_paths, is_name, rejected
from codomyrmex.concurrency.keys import ELECTION, GROUP, PATH, READER_SUFFIX
from tests.unit.fencing.holds import Kept, entry, held, kept, permit, reader

DEPLOY = "/fleet/v1/lock/deploy/"


def test_a_grant_has_one_name() -> None:
    assert fence_of(held(8)) == Fence((DEPLOY,), 8)


def test_two_namespaces_never_meet() -> None:
    one, two = fence_of(held(1, namespace="a")), fence_of(held(1, namespace="b"))
    assert set(one.names).isdisjoint(two.names)


def test_two_names_never_meet() -> None:
    names = ["a", "a/b", "a%2Fb", "a b", "é", "a/"]
    assert len({fence_of(held(1, name)).names for name in names}) == len(names)
    assert all(name.isascii() and " " not in name for text in names for name in fence_of(held(1, text)).names)


def test_a_reservation_has_the_names_that_it_holds_in_order() -> None:
    reservation = kept(9, entry("b"), entry("a"), entry("tree", PATH))
    assert fence_of(reservation) == Fence(("/fleet/v1/lock/a/", "/fleet/v1/lock/b/"), 9)
    assert fence_with_paths(reservation).names == (*fence_of(reservation).names, "/fleet/v1/path/tree/")


def test_paths_fence_only_what_is_a_path() -> None:
    assert fence_with_paths(held(3, "tree", PATH)).token == 3
    for hold in (held(3, "tree", PATH), kept(3, entry("tree", PATH))):
        with pytest.raises(ValueError, match="paths alone"):
            fence_of(hold)


def test_a_permit_is_refused() -> None:
    for fence in (fence_of, fence_with_paths):
        with pytest.raises(ValueError, match="semaphore"):
            fence(permit(3))


def test_a_term_fences_as_a_lock_does() -> None:
    for fence in (fence_of, fence_with_paths):
        assert fence(held(5, kind=ELECTION)) == Fence(("/fleet/v1/election/deploy/",), 5)
    assert is_name("/fleet/v1/election/deploy/")


def test_a_member_is_refused_and_called_so() -> None:
    for fence in (fence_of, fence_with_paths):
        with pytest.raises(ValueError, match=r"^a member's grant cannot fence a write: other members"):
            fence(held(3, kind=GROUP, suffix=READER_SUFFIX))
    assert not is_name("/fleet/v1/group/deploy/")


def test_a_tuple_of_grants_is_refused() -> None:
    with pytest.raises(TypeError, match="give one of the grants"):
        fence_of((held(1), held(1, "b")))  # type: ignore[arg-type]


def test_a_reader_is_refused() -> None:
    for hold in (reader(3), kept(3, entry("a", suffix=b".r"), entry("b", suffix=b".r"))):
        with pytest.raises(ValueError, match="reader"):
            fence_of(hold)


@pytest.mark.parametrize("other", [None, 7, "deploy", object(), DEPLOY.encode()])
def test_other_objects_are_refused(other: object) -> None:
    with pytest.raises(TypeError, match=f"not {type(other).__name__}"):
        fence_of(other)  # type: ignore[arg-type]


def test_a_handle_that_was_cut_is_refused() -> None:
    with pytest.raises(InvalidHandle):
        fence_of(Kept(kept(3, entry("a")).handle[:-3], 3))


@pytest.mark.parametrize(
    "text", ["", "deploy", "/fleet/v1/lock/deploy", "/fleet/v1/path/t/", f"{DEPLOY}7-0", "\udcff/"]
)
def test_other_texts_are_no_names(text: str) -> None:
    assert not is_name(text)
    assert is_name(DEPLOY)


def test_observers_are_told_of_a_refusal() -> None:
    class Refusals(telemetry.Observer):
        def write_rejected(self, kind: str, name: str) -> None:
            told.append((kind, name))

    told: list[tuple[str, str]] = []
    observer = Refusals()
    telemetry.observe(observer)
    try:
        error = rejected("/fleet/v1/lock/a%2Fb/", 7, 9, "nothing was written")
    finally:
        telemetry.ignore(observer)
    assert told == [("lock", "a/b")]
    assert str(error) == (
        "the token 7 of the lock 'a/b' is too old: the token 9 of a later holder, or of a former etcd, was here; "
        "nothing was written"
    )


def test_importing_it_loads_no_database_and_no_protocol() -> None:
    code = (
        "import sys, codomyrmex.concurrency.fencing\n"
        "assert not {'google.protobuf', 'grpc', 'psycopg', 'pydantic', 'sqlite3'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
