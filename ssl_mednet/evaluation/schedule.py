"""Which rows fine-tuning sees at which step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ssl_mednet.draws import stable_hash

if TYPE_CHECKING:
    from ssl_mednet.evaluation.finetune import FinetuneSection


@dataclass(frozen=True)
class Schedule:
    """Which rows come at which step: one permutation a pass, one or several passes an epoch.

    Args:
        rows: positions in the corpus to draw from, two or more.
        batch_size: the last batch of a pass may be smaller; where it would be one row, on which batch normalisation
            fails, it joins the one before.
        passes: of an epoch.
        steps: of the whole run; the last epoch may be cut short.
        seed: of the order.
    """

    rows: np.ndarray
    batch_size: int
    passes: int
    steps: int
    seed: int

    @classmethod
    def of(cls, rows: np.ndarray, options: FinetuneSection, seed: int) -> Schedule:
        """The schedule that the options amount to for these rows."""
        once = len(_batches(rows, options.batch_size))
        passes = max(1, math.ceil(options.min_steps / (options.epochs * once)))
        steps = options.epochs * passes * once
        return cls(rows, options.batch_size, passes, min(steps, options.max_steps or steps), seed)

    @property
    def epochs(self) -> int:
        return math.ceil(self.steps / self._per_epoch)

    @property
    def mean_batch(self) -> float:
        """Images an update, of the batches of a pass."""
        return len(self.rows) / len(_batches(self.rows, self.batch_size))

    @property
    def _per_epoch(self) -> int:
        return self.passes * len(_batches(self.rows, self.batch_size))

    def steps_of(self, epochs: int) -> int:
        """How many steps so many epochs have."""
        return min(self.steps, epochs * self._per_epoch)

    def epoch(self, number: int) -> Iterator[tuple[int, np.ndarray]]:
        """The steps of an epoch (from 1): number of each step (from 0) and its rows, ``[B]``."""
        step = (number - 1) * self._per_epoch
        for turn in range((number - 1) * self.passes, number * self.passes):
            order = np.random.default_rng(stable_hash(self.seed, turn, "finetune order")).permutation(self.rows)
            for batch in _batches(order, self.batch_size):
                if step == self.steps:
                    return
                yield step, batch
                step += 1


def _batches(rows: np.ndarray, size: int) -> list[np.ndarray]:
    cuts = [c for c in range(size, len(rows), size) if c != len(rows) - 1]
    return np.split(rows, cuts)
