"""Classes by name: the built-in ones of a kind, and those that installed packages add through entry points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .. import UserError
from .names import check_name
from .words import first_line


@dataclass(frozen=True)
class Plugins:
    """The classes of one kind. The module of a class is imported when the class is asked for.

    Attributes:
        what: The kind, such as "backend". Packages register their classes in the group ``isotrain.backends``.
        base: The class that all of them inherit from.
        built_in: ``module:Class`` by name. A package can't replace a built-in class.
    """

    what: str
    base: type
    built_in: Mapping[str, str]

    def names(self) -> list[str]:
        """Every known name, built-in ones first."""
        return [*self.built_in, *sorted(entry.name for entry in self._installed() if entry.name not in self.built_in)]

    def find(self, name: str) -> Any:
        """The class called `name`.

        Raises:
            UserError: The name is unknown, or what its package registers can't be loaded or is no such class.
        """
        if name in self.built_in:
            module, _, attribute = self.built_in[name].partition(":")
            return getattr(import_module(module), attribute)
        for entry in self._installed():
            if entry.name == name:
                return self._load(entry)
        check_name(self.what, name, self.names())
        raise AssertionError("a name that is listed is found")

    def _installed(self) -> Iterator[EntryPoint]:
        return iter(entry_points(group=f"isotrain.{self.what}s"))

    def _load(self, entry: EntryPoint) -> Any:
        registered = f"{self.what} {entry.name!r} is registered as {entry.value!r}"
        fix = "repair or uninstall the package that registers it"
        try:
            loaded = entry.load()
        except Exception as error:  # What a package's module does when it is imported is not known.
            raise UserError(f"{registered}, which can't be loaded ({first_line(error)}); {fix}") from error
        if not (isinstance(loaded, type) and issubclass(loaded, self.base)):
            raise UserError(f"{registered}, which is no isotrain {self.base.__name__} class; {fix}")
        return loaded
