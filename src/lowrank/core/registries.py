"""Registries: the entries of one kind by name, built in or from installed packages."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from lowrank.errors import UserError, unknown_name

Entry = TypeVar("Entry")

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def entries_in(package: str) -> Iterator[Any]:
    """Yield the objects in `ENTRIES` of each module of a package, in the order of module names.

    `package` ends with a dot, such as "lowrank.factorize.": `graph/code_digests.py` then finds the
    modules, although no source file imports them by name. Modules without `ENTRIES` are helpers.
    """
    folders = importlib.import_module(package.removesuffix(".")).__path__
    for module in sorted(pkgutil.iter_modules(folders), key=lambda module: module.name):
        yield from getattr(importlib.import_module(package + module.name), "ENTRIES", ())


class Registry(Generic[Entry]):
    """The entries of one kind, by name.

    Installed packages add entries by entry points. The name of the entry point is the name of the
    entry. Its object is an instance of `expected`, or a subclass that is created without arguments.
    Such an object is imported only when its name is used. A package that is broken therefore stops
    only the runs that use it.

    Parameters
    ----------
    what
        Kind of the entries for messages, such as "factorization".
    expected
        Class of the entries. Each instance has an attribute `name`.
    group
        Group of the entry points, such as "lowrank.factorizations".
    built_in
        Function that returns the entries of lowrank itself. It is called on the first use.
    mistake_in
        Function that returns what is wrong with an entry, or None. The text continues a sentence
        about the entry: "has no ranks; expected at least one".
    """

    def __init__(
        self,
        what: str,
        expected: type[Entry],
        *,
        group: str,
        built_in: Callable[[], Iterable[Entry]],
        mistake_in: Callable[[Entry], str | None] = lambda _: None,
    ) -> None:
        self.what, self.group = what, group
        self._expected, self._list_built_in, self._mistake_in = expected, built_in, mistake_in
        self._loaded: dict[str, Entry] = {}
        self._broken_because: dict[str, str] = {}
        self._added: dict[str, Entry] = {}

    def names(self) -> list[str]:
        """Return all names, sorted; entries of installed packages are not imported for this."""
        return sorted({*self._built_in, *self._plug_ins, *self._added})

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def get(self, name: str) -> Entry:
        """Return the entry with that name.

        Raises UserError for an unknown name, for a name that is taken twice, and for an entry of an
        installed package that cannot be imported or is not what `expected` says.
        """
        if name in self._added:
            return self._added[name]
        offers = self._plug_ins.get(name, ())
        if len(offers) + (name in self._built_in) > 1:
            raise self._taken_twice(name, offers)
        if name in self._built_in:
            return self._built_in[name]
        if not offers:
            raise unknown_name(self.what, name, self.names())
        if name in self._broken_because:
            raise UserError(self._broken_because[name])
        if name not in self._loaded:
            try:
                self._loaded[name] = self._load(offers[0])
            except UserError as error:
                self._broken_because[name] = str(error)
                raise
        return self._loaded[name]

    def usable(self) -> dict[str, Entry]:
        """Return all entries by name; those for which `get` raises an error are left out."""
        entries = {}
        for name in self.names():
            try:
                entries[name] = self.get(name)
            except UserError:
                continue
        return entries

    @contextmanager
    def added(self, entry: Entry) -> Iterator[None]:
        """Use an entry under its name inside the `with` block, such as one that is checked."""
        name = entry.name  # type: ignore[attr-defined]
        self._added[name] = entry
        try:
            yield
        finally:
            del self._added[name]

    def plug_in(self, name: str) -> EntryPoint | None:
        """Return the entry point that adds this name; None for a built-in or unknown name."""
        return None if name in self._built_in else next(iter(self._plug_ins.get(name, ())), None)

    @cached_property
    def _built_in(self) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        for entry in self._list_built_in():
            name = entry.name  # type: ignore[attr-defined]
            if name in entries:
                raise ValueError(f"two built-in entries have the name {name!r}: {self.what}")
            entries[name] = entry
        return entries

    @cached_property
    def _plug_ins(self) -> dict[str, tuple[EntryPoint, ...]]:
        offers: dict[str, tuple[EntryPoint, ...]] = {}
        for entry_point in entry_points(group=self.group):
            offers[entry_point.name] = (*offers.get(entry_point.name, ()), entry_point)
        return offers

    def _load(self, entry_point: EntryPoint) -> Entry:
        """Import an entry of an installed package. Raises UserError that names the package."""
        name = entry_point.name
        if not _NAME.fullmatch(name):
            raise self._broken(
                entry_point,
                "has a name that is not allowed",
                "a name of letters, digits and underscores, starting with a letter",
            )
        kind = f"{self._expected.__module__}.{self._expected.__qualname__}"
        expected = f"an instance or a subclass of `{kind}`"
        try:
            entry = entry_point.load()
        except Exception as error:  # Importing runs code of another package.
            raise self._broken(
                entry_point, f"cannot be imported ({_described(error)})", expected
            ) from error
        if isinstance(entry, type) and issubclass(entry, self._expected):
            try:
                entry = entry()
            except Exception as error:
                raise self._broken(
                    entry_point,
                    f"is a class that cannot be created ({_described(error)})",
                    "a class that is created without arguments",
                ) from error
        if not isinstance(entry, self._expected):
            found = f"the class `{entry.__qualname__}`" if isinstance(entry, type) else repr(entry)
            raise self._broken(entry_point, f"is {found[:200]}", expected)
        if not hasattr(entry, "name"):
            raise self._broken(entry_point, "has no `name`", f"`name = {name!r}`")
        own_name = getattr(entry, "name", None)
        if own_name != name:
            found = f"has the name {own_name!r}"
            raise self._broken(entry_point, found, f"{name!r}, the name of the entry point")
        if mistake := self._mistake_in(entry):
            raise self._broken(entry_point, mistake)
        return entry

    def _broken(self, entry_point: EntryPoint, found: str, expected: str = "") -> UserError:
        ending = f"{found}; expected {expected}" if expected else found
        package = _package(entry_point)
        return UserError(
            f"{self.what} '{entry_point.name}': the entry point `{entry_point.name} = "
            f"{entry_point.value}` in the group '{self.group}' of the package {package} {ending}. "
            "Correct or update the package, or uninstall it."
        )

    def _taken_twice(self, name: str, offers: Iterable[EntryPoint]) -> UserError:
        owners = ["lowrank itself"] if name in self._built_in else []
        owners += [f"the package {_package(offer)} (`{offer.value}`)" for offer in offers]
        return UserError(
            f"{self.what} '{name}': the name is taken twice, by {' and by '.join(owners)}; "
            f"expected one entry point of this name in the group '{self.group}'. Rename the entry "
            "point and the `name` of its object, or uninstall the package."
        )


def _package(entry_point: EntryPoint) -> str:
    distribution = entry_point.dist
    return f"'{distribution.name}' {distribution.version}" if distribution else "of unknown name"


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
