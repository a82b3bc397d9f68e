"""A folder in which images lie beside tables or shards of images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ssl_mednet.data.sources.base import Item, Source, named


class MixedSource(Source):
    """Several sources that a user names as one; each is read in its own way, one after the other.

    Args:
        spec: what the user named.
        parts: what is in it, the files that are read one by one last.
    """

    def __init__(self, spec: str | Path, parts: list[Source]) -> None:
        super().__init__(spec)
        self.parts = parts
        kinds = {part.classes for part in parts if part.count() != 0}
        self.classes = kinds.pop() if len(kinds) == 1 else ()

    def fingerprint(self) -> str:
        return hashlib.sha256("\n".join(part.fingerprint() for part in self.parts).encode()).hexdigest()

    def count(self) -> int | None:
        counts = [part.count() for part in self.parts]
        return None if None in counts else sum(count for count in counts if count is not None)

    def prepare(self, quiet: bool = False) -> None:
        for part in self.parts:
            part.prepare(quiet)

    def items(self) -> Iterator[Item]:
        """The items of all parts; a file that a table names is that of the table, which comes before the folder.

        Numbers of classes have become names, unless they mean the same in all parts.
        """
        seen: set[Path] = set()
        for part in self.parts:
            part.labels, part.group_field, part.every = self.labels, self.group_field, self.every
            for item in part.items():
                if isinstance(item.content, Path):
                    if item.content in seen:
                        continue
                    if part is not self.parts[-1]:  # millions may follow, none of them twice
                        seen.add(item.content)
                yield item if self.classes else replace(item, label=named(item.label, part.classes))
            self.remarks += part.remarks
