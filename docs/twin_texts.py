"""An extension of griffe for ``make docs``: the texts and signatures that ``sync/`` takes from its asyncio twins.

griffe reads the source, where ``available = blocking(twin.Semaphore.available)`` is an attribute without a text. Here
the running class is asked. Such an attribute becomes a function with the text of the blocking method and the
parameters of the asyncio one; a method under ``@text_of(...)`` receives its text.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import griffe

PACKAGE = "codomyrmex.concurrency.sync"


class TwinTexts(griffe.Extension):
    """Completes the public classes of ``sync/`` after the package was read."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        """Complete every class of the blocking twin."""
        modules = loader.modules_collection
        for module in modules[PACKAGE].modules.values():
            running = importlib.import_module(module.path)
            for found in module.classes.values():
                if not found.is_alias:
                    complete(found, getattr(running, found.name), modules)


def complete(found: griffe.Class, running: type, modules: griffe.ModulesCollection) -> None:
    """Give the members of a class the texts that they have at run time."""
    for name, own in vars(running).items():
        member = found.members.get(name)
        own = own.__func__ if isinstance(own, staticmethod) else own
        if name.startswith("_") or member is None or not (inspect.isfunction(own) or isinstance(own, property)):
            continue
        text = inspect.getdoc(own)
        if member.is_attribute and inspect.isfunction(own):
            member = forwarded(name, own, modules)
            found.set_member(name, member)
        if text and not member.has_docstring:
            member.docstring = griffe.Docstring(text, parent=member, parser="google")


def forwarded(name: str, own: Any, modules: griffe.ModulesCollection) -> griffe.Function:
    """A forwarding method as a function: the parameters of its asyncio twin, the result that a caller gets."""
    method = inspect.unwrap(own)
    twin = modules[f"{method.__module__}.{method.__qualname__}"]
    function = griffe.Function(name, parameters=twin.parameters, returns=twin.returns, lineno=twin.lineno)
    if inspect.isasyncgenfunction(method):
        function.returns = str(twin.returns).replace("AsyncIterator", "Iterator")
    return function
