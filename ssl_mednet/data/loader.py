"""The endless stream of batches: which rows come at which step is a pure function of (seed, step, rank)."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ssl_mednet.data.corpus import Corpus
from ssl_mednet.draws import stable_hash
from ssl_mednet.errors import RecipeError
from ssl_mednet.imaging.batch import ImageBatch

_AHEAD = 2  # batches fetched before they are asked for


@dataclass(frozen=True)
class Order:
    """The order of rows: one permutation an epoch, cut into global batches without regard to where epochs end.

    Args:
        rows: positions in the corpus to draw from.
        batch_size: of one step over all processes.
        seed: of the run.
    """

    rows: np.ndarray
    batch_size: int
    seed: int

    def at(self, step: int) -> np.ndarray:
        """The rows of a step, ``[batch_size]``; every epoch has each row exactly once."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(positions, len(self.rows))
        return np.concatenate([self.rows[self._epoch(e)[places[epochs == e]]] for e in np.unique(epochs)])

    def _epoch(self, epoch: int) -> np.ndarray:
        # The last permutation is kept: consecutive steps share it.
        if getattr(self, "_kept", (None,))[0] != epoch:
            generator = np.random.default_rng(stable_hash(self.seed, int(epoch), "order"))
            object.__setattr__(self, "_kept", (epoch, generator.permutation(len(self.rows))))
        return self._kept[1]  # type: ignore[attr-defined]


class BatchStream:
    """Batches from ``start`` on, for ever, fetched ahead by a thread; iterating again starts at ``start`` again.

    Threads and not processes: reading from the corpus releases the GIL, nothing must be pickled, and the first batch
    is there at once.

    Args:
        rows: positions in the corpus to draw from.
        batch_size: of one step over all processes.
        rank, world: this process and how many there are; each gets its contiguous share of every batch.
        pin: put batches into page-locked memory.

    Raises:
        RecipeError: fewer rows than one batch holds.
    """

    def __init__(
        self,
        corpus: Corpus,
        rows: np.ndarray,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        pin: bool = False,
    ) -> None:
        if len(rows) < batch_size:
            raise RecipeError(
                f"optim.batch_size {batch_size} is larger than the data: {len(rows)} images",
                f"optim.batch_size={max(2, 1 << (len(rows).bit_length() - 1))} would fit" if len(rows) > 1 else "",
            )
        if batch_size % world:
            raise RecipeError(f"a batch of {batch_size} images cannot be shared by {world} processes evenly")
        self.corpus, self.order = corpus, Order(rows, batch_size, seed)
        self.share = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self.pin, self.start = pin, 0

    def fetch(self, step: int) -> ImageBatch:
        """The batch of a step."""
        batch = self.corpus.batch(self.order.at(step)[self.share])
        return batch.pin_memory() if self.pin else batch

    def __iter__(self) -> Iterator[tuple[int, ImageBatch]]:
        ready: queue.Queue[tuple[int, ImageBatch] | BaseException] = queue.Queue(maxsize=_AHEAD)
        stop = threading.Event()

        def work() -> None:
            step = self.start
            while not stop.is_set():
                try:
                    item: tuple[int, ImageBatch] | BaseException = (step, self.fetch(step))
                except BaseException as error:
                    item = error
                while not stop.is_set():
                    try:
                        ready.put(item, timeout=0.1)
                        break
                    except queue.Full:
                        continue
                if isinstance(item, BaseException):
                    return
                step += 1

        thread = threading.Thread(target=work, name="batch-stream", daemon=True)
        thread.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join(timeout=5)
