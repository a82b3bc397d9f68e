"""One generic registry: a decorator to add, entry points to extend from other packages, "did you mean" to find."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from ssl_mednet.errors import RecipeError, did_you_mean

T = TypeVar("T")
log = logging.getLogger(__name__)


class Registry(Generic[T]):
    """Named things of one kind.

    Another package adds its own by importing the decorator, or without being imported at all through an entry point
    in the group ``ssl_mednet.<kind>s``; entry points are loaded when a name is first asked for.

    Args:
        kind: what is registered, in the singular; used in messages and in the entry-point group.
        builtin: modules of this package whose import registers the built-in ones.
    """

    def __init__(self, kind: str, builtin: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self.group = f"ssl_mednet.{kind.replace(' ', '_')}s"
        self._builtin = builtin
        self._items: dict[str, T] = {}
        self._broken: dict[str, str] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: make the decorated thing known as ``name``.

        Raises:
            ValueError: the name is taken by something else (the same module imported twice is fine).
        """

        def add(item: T) -> T:
            old = self._items.get(name)
            if old is not None and _origin(old) != _origin(item):
                raise ValueError(f"{self.kind} {name!r} is already registered by {_origin(old)}")
            self._items[name] = item
            return item

        return add

    def get(self, name: str) -> T:
        """The thing registered as ``name``.

        Raises:
            RecipeError: no such name; the message has the nearest right one and lists all.
        """
        self._load()
        if name in self._items:
            return self._items[name]
        if name in self._broken:
            raise RecipeError(f"{self.kind} {name!r} is installed but does not load: {self._broken[name]}")
        near = did_you_mean(name, self._items)
        raise RecipeError(f"unknown {self.kind} {name!r}", f"{near} known: {', '.join(self)}".strip())

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._items))

    def __contains__(self, name: str) -> bool:
        self._load()
        return name in self._items

    @property
    def broken(self) -> dict[str, str]:
        """Entry points that failed to load, with the reason: one bad plug-in must not stop the rest."""
        self._load()
        return dict(self._broken)

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for module in self._builtin:
            importlib.import_module(module)
        for point in importlib.metadata.entry_points(group=self.group):
            try:
                item = point.load()
            except Exception as error:
                self._broken[point.name] = f"{type(error).__name__}: {error}"
                log.warning("%s %r from %s does not load: %s", self.kind, point.name, point.value, error)
                continue
            self._items.setdefault(point.name, item)


def _origin(item: object) -> str:
    return f"{getattr(item, '__module__', '?')}.{getattr(item, '__qualname__', repr(item))}"
