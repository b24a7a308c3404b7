"""The types that public names return are public too: no user needs a private name to write down a type."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import codomyrmex.concurrency as public
from codomyrmex.concurrency import sync, telemetry

PACKAGE = "codomyrmex.concurrency"
ASYNC = {name: getattr(public, name) for name in public.__all__}
SYNC = {name: getattr(sync, name) for name in sync.__all__}
PUBLIC = {*ASYNC.values(), *SYNC.values(), telemetry.Observer}
# What users are given, and never make themselves.
GIVEN = {"Acquisition", "Attempt", "Grant", "Grants", "Holding", "JointAcquisition", "Loss", "Permit", "Worker"}
GIVEN |= {"Campaign", "Joining", "Membership", "Reservation", "Reserve", "Reserving", "Spend", "Term"}
CLASSES = [
    pytest.param(one, id=f"{one.__module__}.{one.__name__}")
    for one in sorted(PUBLIC, key=lambda one: (one.__module__, one.__name__))
]


def names_for_checkers(module: Any) -> dict[str, Any]:
    """The names that a module's annotations use, those included that are imported for type checkers only."""
    known: dict[str, Any] = {}
    for found in pkgutil.walk_packages(public.__path__, f"{PACKAGE}."):
        if not any(part in found.name for part in (".cli", "rpc_pb2", ".langchain")):
            known |= {k: v for k, v in vars(importlib.import_module(found.name)).items() if inspect.isclass(v)}
    return known | vars(module)


def members(one: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The functions that users call on a class of ours, and those behind its properties."""
    for name in dir(one):
        if name.startswith("_") and name not in ("__init__", "__aenter__", "__enter__", "__await__"):
            continue
        member = inspect.getattr_static(one, name)
        if isinstance(member, property):
            member = member.fget
        elif isinstance(member, staticmethod | classmethod):
            member = member.__func__
        if inspect.isfunction(member) and member.__module__.startswith(PACKAGE):
            yield name, member


def parts(annotation: Any) -> Iterator[Any]:
    """An annotation and everything it is made of."""
    yield annotation
    for part in typing.get_args(annotation):
        if isinstance(part, list):
            for inner in part:
                yield from parts(inner)
        else:
            yield from parts(part)


def hints(member: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a member, resolved where it was written: a blocking method has those of its asyncio twin."""
    return typing.get_type_hints(member, localns=names_for_checkers(inspect.getmodule(member)))


def private(annotation: Any) -> list[str]:
    """The classes of ours in an annotation that users cannot import."""
    found = [typing.get_origin(part) or part for part in parts(annotation)]
    return [
        part.__name__
        for part in found
        if inspect.isclass(part) and part.__module__.startswith(PACKAGE) and part not in PUBLIC
    ]


@pytest.mark.parametrize("one", CLASSES)
def test_whatever_a_public_name_gives_or_takes_is_public(one: type) -> None:
    for name, member in members(one):
        if name == "__init__" and one.__name__ in GIVEN:
            continue
        for what, annotation in hints(member).items():
            assert not private(annotation), f"{one.__name__}.{name}: {what}"


@pytest.mark.parametrize("one", CLASSES)
def test_the_fields_of_a_public_name_are_public(one: type) -> None:
    known = names_for_checkers(inspect.getmodule(one))
    for name, annotation in typing.get_type_hints(one, localns=known).items():
        if not name.startswith("_"):
            assert not private(annotation), f"{one.__name__}.{name}"


@pytest.mark.parametrize("one", CLASSES)
def test_no_public_name_gives_anything_at_all(one: type) -> None:
    for name, member in members(one):
        overloads = typing.get_overloads(member) or [member]
        for variant in overloads:
            assert hints(variant).get("return") is not Any, f"{one.__name__}.{name}"
