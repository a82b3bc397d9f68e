"""A folder in which images lie beside tables or shards of images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from ssl_mednet.data.sources.base import Item, Source


class MixedSource(Source):
    """Several sources that a user names as one; each is read in its own way, one after the other.

    Args:
        spec: what the user named.
        parts: what is in it.
    """

    def __init__(self, spec: str | Path, parts: list[Source]) -> None:
        super().__init__(spec)
        self.parts = parts

    def fingerprint(self) -> str:
        return hashlib.sha256("\n".join(part.fingerprint() for part in self.parts).encode()).hexdigest()

    def count(self) -> int | None:
        counts = [part.count() for part in self.parts]
        return None if None in counts else sum(count for count in counts if count is not None)

    def items(self) -> Iterator[Item]:
        """The items of all parts; a file that a table names is that of the table, which comes before the folder."""
        seen: set[Path] = set()
        for part in self.parts:
            part.labels, part.group_field = self.labels, self.group_field
            for item in part.items():
                if isinstance(item.content, Path):
                    if item.content in seen:
                        continue
                    seen.add(item.content)
                yield item
            self.remarks += part.remarks
