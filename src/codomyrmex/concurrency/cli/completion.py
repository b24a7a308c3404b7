"""Completion of names at a shell prompt, as etcd has them at that moment. Offers nothing if etcd does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from codomyrmex.concurrency.cli.options import settings

if TYPE_CHECKING:
    from codomyrmex.concurrency.names import Kind

Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def lock_names(context: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """A completer of the names of locks, and behind ``--tree`` of those of trees."""
    return names_of("tree" if context.params.get("tree") else "lock")(context, param, incomplete)


def names_of(kind: Kind) -> Complete:
    """A completer of the names of this kind."""

    def complete(context: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        context.ensure_object(dict)
        try:
            from codomyrmex.concurrency import names  # here, for it needs protobuf, and --help must be fast

            return asyncio.run(names.beginning_with(incomplete, kind, settings(context)))
        except Exception:  # a prompt is not the place for an error message
            return []

    return complete
