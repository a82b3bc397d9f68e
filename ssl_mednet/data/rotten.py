"""Rows of a corpus whose bytes have gone bad since they were ingested: named, counted, and stood in for by others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ssl_mednet.data.corpus import Corpus, Fetched
from ssl_mednet.errors import DataError
from ssl_mednet.imaging.batch import ImageBatch

_TRIED = 64  # rows after a bad one, before the corpus as a whole is given up


class Replacements:
    """Reads batches in which a row that cannot be read is stood in for by the next one that can.

    Which one that is depends on the corpus and its rows alone, so every process and every resumed run takes the same.

    Args:
        rows: positions in the corpus to draw from; the next row is the next of these, the first after the last.
        on_rotten: told once of each such row: the row, its replacement, the reason.
    """

    def __init__(self, corpus: Corpus, rows: np.ndarray, on_rotten: Callable[[int, int, str], None]) -> None:
        self.corpus, self.rows, self.on_rotten = corpus, np.sort(rows), on_rotten
        self.known: dict[int, int] = {}

    def fetch(self, rows: np.ndarray) -> Fetched | None:
        """The stored bytes of rows; None where the disk does not give them all."""
        try:
            return self.corpus.fetch(self._mended(rows))
        except (OSError, ValueError):
            return None

    def batch(self, rows: np.ndarray, fetched: Fetched | None) -> ImageBatch:
        """These rows, or those that stand in for them.

        Raises:
            DataError: so many rows after a bad one are bad too that the corpus is.
        """
        rows = self._mended(rows)
        if fetched is not None and np.isin(rows, fetched.rows).all():
            try:
                return self.corpus.batch(rows, fetched)
            except Exception:  # decoders have errors of their own; which row it was is found below
                pass
        return self.corpus.batch(np.array([self._readable(int(row)) for row in rows], np.int64))

    def _mended(self, rows: np.ndarray) -> np.ndarray:
        return np.array([self.known.get(int(row), int(row)) for row in rows], np.int64) if self.known else rows

    def _readable(self, row: int) -> int:
        reason = self._problem(row)
        if not reason:
            return row
        place = int(np.searchsorted(self.rows, row))
        for step in range(1, min(_TRIED, len(self.rows))):
            other = int(self.rows[(place + step) % len(self.rows)])
            if not self._problem(other):
                self.known[row] = other
                self.on_rotten(row, other, reason)
                return other
        hint = "is its disk there? ingest it again if it is damaged"
        raise DataError(f"{self.corpus.folder}: row {row} and those after it cannot be read: {reason}", hint)

    def _problem(self, row: int) -> str:
        """Why a row cannot be read; empty where it can."""
        try:
            self.corpus.batch(np.array([row], np.int64))
        except Exception as error:
            return " ".join(str(error).split()) or type(error).__name__
        return ""
