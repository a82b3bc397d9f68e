"""One generic registry: a decorator to add, entry points to extend from other packages, "did you mean" to find."""

from __future__ import annotations

import importlib.metadata
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from ssl_mednet.errors import RecipeError, did_you_mean

T = TypeVar("T")
log = logging.getLogger(__name__)


class Registry(Generic[T]):
    """Named things of one kind.

    Another package adds its own by importing the decorator, or without being imported at all through an entry point
    in the group ``ssl_mednet.<kind>s``; entry points are loaded when a name is first asked for. One that does not load,
    or has a name that is taken, is left out and named among the broken ones.

    Args:
        kind: what is registered, in the singular; used in messages and in the entry-point group.
        builtin: modules of this package whose import registers the built-in ones.
        wanted: whether what an entry point gives is of this kind.
        plural: of ``kind``, where an s alone does not make it.
    """

    def __init__(
        self,
        kind: str,
        builtin: tuple[str, ...] = (),
        wanted: Callable[[Any], bool] = lambda item: True,
        plural: str = "",
    ) -> None:
        self.kind = kind
        self.group = f"ssl_mednet.{plural or kind + 's'}"
        self._builtin, self._wanted = builtin, wanted
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
        """Entry points that are left out, with the reason: one bad plug-in must not stop the rest."""
        self._load()
        return dict(self._broken)

    def _load(self) -> None:
        if self._loaded:
            return
        for module in self._builtin:
            importlib.import_module(module)
        self._loaded = True
        for point in importlib.metadata.entry_points(group=self.group):
            before, fresh = dict(self._items), point.module not in sys.modules
            try:
                try:
                    item = point.load()
                except (Exception, SystemExit):
                    self._items = before  # without what a module registered before it failed
                    raise
                self._add(point.name, item, before, fresh)
            except (Exception, SystemExit) as error:
                said = f"{type(error).__name__}: {error} ({_place(error)}{point.value})"
                self._broken[point.name] = said
                log.warning("%s %r does not load: %s", self.kind, point.name, said)

    def _add(self, name: str, item: Any, before: dict[str, T], fresh: bool) -> None:
        """What an entry point gives, or what its module registered under that name; a name is taken once.

        Args:
            before: what was known before the module was imported, if that is ``fresh``.
        """
        known = self._wanted(item)
        if self._items.get(name) is not before.get(name) or (name in before and not known and not fresh):
            return  # by the decorator, now or earlier; it may stand before a function that makes the thing
        if name in before and _origin(before[name]) != _origin(item):
            raise ValueError(f"{self.kind} {name!r} is already registered by {_origin(before[name])}")
        if not known:
            raise TypeError(
                f"{_origin(item)} is no {self.kind}; where a decorator registers it, name the entry point so"
            )
        self._items[name] = item


def _place(error: BaseException) -> str:
    """File and line in which an error was raised; empty where that is the machinery of imports."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    last = frames[-1] if frames else None
    return f"{last.filename}:{last.lineno}, " if last and last.filename != __file__ else ""


def _origin(item: object) -> str:
    return f"{getattr(item, '__module__', '?')}.{getattr(item, '__qualname__', repr(item))}"
