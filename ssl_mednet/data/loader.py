"""The endless stream of batches: which rows come at which step is a pure function of (seed, step, rank)."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ssl_mednet.data.corpus import Corpus, Fetched
from ssl_mednet.data.heap import give_back
from ssl_mednet.data.rotten import Replacements
from ssl_mednet.draws import stable_hash
from ssl_mednet.errors import Hung, RecipeError
from ssl_mednet.imaging.batch import ImageBatch
from ssl_mednet.imaging.modality import BY_CODE

_BLOCK = 65536  # draws of a small stratum that one generator makes
_READ_IMAGES, _READ_BYTES = 6144, 64 * 2**20  # what is read at a time
_AHEAD = 2  # batches fetched before they are asked for
_NAMED = 8  # rows of a batch that a message names
FEW = 4  # batches; of more rows than that at most 2 % of a batch comes twice in it


@dataclass(frozen=True)
class Order:
    """The order of rows: one permutation an epoch, cut into global batches without regard to where epochs end.

    An epoch is as many draws as there are rows; of few rows (``FEW`` batches) as many as fill whole batches, so that no
    batch holds an image twice, which contrastive losses would take for two. Without shares each row comes once in it.
    With shares each stratum gets its part of the epoch, exact to one draw; its own rows come in permutations of their
    own that go on from epoch to epoch, so within a stratum no row comes a second time more often than another.

    Args:
        rows: positions in the corpus to draw from.
        batch_size: of one step over all processes.
        seed: of the run.
        strata: ``[len(rows)]``, number of each row's stratum, 0 upwards; None: rows come in proportion.
        shares: of each stratum in the draws, summing to 1.
    """

    rows: np.ndarray
    batch_size: int
    seed: int
    strata: np.ndarray | None = None
    shares: tuple[float, ...] = ()

    @property
    def epoch(self) -> int:
        """Draws of an epoch."""
        batches = len(self.rows) // self.batch_size
        return batches * self.batch_size if self.strata is None and 0 < batches < FEW else len(self.rows)

    def at(self, step: int) -> np.ndarray:
        """The rows of a step, ``[batch_size]``: a pure function of the seed and the step."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(positions, self.epoch)
        return np.concatenate([self.rows[self._epoch(e)[places[epochs == e]]] for e in np.unique(epochs)])

    def _epoch(self, epoch: int) -> np.ndarray:
        # The last permutation is kept: consecutive steps share it.
        if getattr(self, "_kept", (None,))[0] != epoch:
            order = self._generator(epoch, "order").permutation(len(self.rows))
            if self.strata is not None:
                order = self._drawn(int(epoch))[order]
            order = order.astype(np.min_scalar_type(len(order)))  # half of the memory, for millions of rows
            object.__setattr__(self, "_kept", (epoch, order))
        return self._kept[1]  # type: ignore[attr-defined]

    def _generator(self, *what: int | str) -> np.random.Generator:
        return np.random.default_rng(stable_hash(self.seed, *(w if isinstance(w, str) else int(w) for w in what)))

    def _drawn(self, epoch: int) -> np.ndarray:
        """Positions in ``rows`` that an epoch draws, stratum by stratum."""
        parts = []
        for number, (members, count) in enumerate(zip(self._members, self._quotas, strict=True)):
            turns = max(1, _BLOCK // len(members))  # permutations that are made at a time
            block, begin, end = turns * len(members), epoch * count, (epoch + 1) * count
            for index in range(begin // block, -(-end // block)):
                every = np.tile(np.arange(len(members)), (turns, 1))
                order = self._generator(index, f"stratum {number}").permuted(every, axis=1).ravel()
                parts.append(members[order[max(0, begin - index * block) : end - index * block]])
        return np.concatenate(parts)

    @cached_property
    def _members(self) -> list[np.ndarray]:
        assert self.strata is not None
        order = np.argsort(self.strata, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.strata, minlength=len(self.shares)))[:-1])

    @cached_property
    def _quotas(self) -> list[int]:
        """Draws of each stratum an epoch: the largest remainders are rounded up (Hamilton's method)."""
        exact = np.array(self.shares) * len(self.rows)
        counts = np.floor(exact).astype(int)
        short = len(self.rows) - int(counts.sum())
        counts[np.argsort(counts - exact, kind="stable")[:short]] += 1
        return [int(c) for c in counts]


def shares(
    sampling: str,
    modality: np.ndarray,
    source: np.ndarray,
    group: np.ndarray | None = None,
    weights: Mapping[str, float] | None = None,
) -> tuple[np.ndarray, tuple[float, ...]]:
    """Strata of rows by modality and source, and the share of the draws that each gets.

    A modality gets a share in proportion to the number n of its rows (``proportional``), to its root (``sqrt``), or as
    much as any other (``balanced``); within a modality its sources share in the same way. With ``weights`` a modality
    gets the share that is stated, of what is stated for those that are there, and none where nothing is; within it a
    source gets a share in proportion to the root of the number of its groups (patients), where a row without a group
    counts as one of its own: so neither a source of many slices a patient nor one of many patients takes over.

    Args:
        modality, source: ``[N]``, numbers of the rows' modalities and sources.
        group: ``[N]``, numbers of the rows' groups, -1 for none; for ``weights``.
        weights: of modalities, by name.

    Returns:
        ``[N]`` numbers of strata, and their shares.

    Raises:
        RecipeError: weights, and none of their modalities is there.
    """
    width = int(source.max(initial=0)) + 1
    pairs, strata, counts = np.unique(
        modality.astype(np.int64) * width + source, return_inverse=True, return_counts=True
    )
    kinds, kind_of = np.unique(pairs // width, return_inverse=True)
    if sampling == "weights":
        assert group is not None
        assert weights is not None
        stated = [weights.get(BY_CODE[int(code)].name, 0.0) for code in kinds]
        of_kind, within = np.array(stated), _groups(strata, group) ** 0.5
        if not of_kind.sum():
            there = ", ".join(BY_CODE[int(code)].name for code in kinds)
            raise RecipeError(f"data.weights: none of {', '.join(weights)} is in the data", f"it holds {there}")
    else:
        power = {"proportional": 1.0, "sqrt": 0.5, "balanced": 0.0}[sampling]
        of_kind, within = np.bincount(kind_of, counts) ** power, counts.astype(float) ** power
    within /= np.bincount(kind_of, within)[kind_of]
    share = (of_kind / of_kind.sum())[kind_of] * within
    return strata, tuple(float(s) for s in share)


def _groups(strata: np.ndarray, group: np.ndarray) -> np.ndarray:
    """How many groups each stratum has, and rows without one, ``[S]`` float64."""
    known = group >= 0
    width = int(group.max(initial=0)) + 1
    distinct = np.unique(strata[known].astype(np.int64) * width + group[known]) // width
    size = int(strata.max()) + 1
    return np.bincount(distinct, minlength=size) + np.bincount(strata[~known], minlength=size).astype(float)


class _Block(threading.Thread):
    """Some steps whose stored bytes are read at a time, by a thread of its own.

    Args:
        steps: consecutive ones.
        rows: of each step, ``[steps, images]``.
        read: gives the stored bytes of rows.
    """

    def __init__(self, steps: range, rows: np.ndarray, read: Callable[[np.ndarray], Fetched | None]) -> None:
        super().__init__(name="read-block", daemon=True)  # a disk that hangs does not keep the process
        self.steps, self.rows, self._read = steps, rows, read
        self._fetched: Fetched | None = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._fetched = self._read(self.rows.ravel())
            give_back()  # of the block before; the next one is a long way off where memory is used for other things
        except BaseException as error:
            self._error = error

    def fetched(self) -> Fetched | None:
        """What was read; waits for it, and raises what reading it raised."""
        self.join()
        if self._error is not None:
            raise self._error
        return self._fetched


class BatchStream:
    """Batches from ``start`` on, for ever, fetched ahead by a thread; iterating again starts at ``start`` again.

    Threads and not processes: reading from the corpus releases the GIL, nothing must be pickled, and the first batch
    is there at once.

    Args:
        rows: positions in the corpus to draw from.
        batch_size: of one step over all processes.
        rank, world: this process and how many there are; each gets its contiguous share of every batch.
        pin: put batches into page-locked memory.
        sampling, weights: how often modalities and sources come; see :func:`shares`.
        timeout: seconds that the consumer waits for a batch.
        on_rotten: told of each row that cannot be read any more: the row, its replacement, the reason.

    Raises:
        RecipeError: fewer rows than one batch holds.
        Hung: while iterating: a batch did not come in time.
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
        sampling: str = "proportional",
        weights: Mapping[str, float] | None = None,
        timeout: float = 300.0,
        on_rotten: Callable[[int, int, str], None] = lambda row, other, reason: None,
    ) -> None:
        if len(rows) < batch_size:
            raise RecipeError(
                f"optim.batch_size {batch_size} is larger than the data: {len(rows)} images",
                f"optim.batch_size={max(2, 1 << (len(rows).bit_length() - 1))} would fit" if len(rows) > 1 else "",
            )
        if batch_size % world:
            raise RecipeError(f"a batch of {batch_size} images cannot be shared by {world} processes evenly")
        strata: tuple[Any, ...] = ()
        if sampling != "proportional":
            group = corpus.group[rows] if sampling == "weights" else None
            strata = shares(sampling, corpus.modality[rows], corpus.source[rows], group, weights)
        self.corpus, self.order = corpus, Order(rows, batch_size, seed, *strata)
        self.share = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self.pin, self.start, self.timeout = pin, 0, timeout
        self.replacements = Replacements(corpus, rows, on_rotten)
        images = min(_READ_IMAGES, _READ_BYTES // corpus.canvas_bytes)
        self._together = max(1, images * world // batch_size)
        self._block: _Block | None = None
        self._next: _Block | None = None

    def fetch(self, step: int, ahead: bool = False) -> ImageBatch:
        """The batch of a step; what small batches hold is read for several steps at a time.

        Args:
            ahead: the steps after it will be wanted next: what they need is read while this one is decoded. In a large
                corpus, whose rows lie far apart, reading costs as much as decoding, and they use different cores.
        """
        if self._block is None or step not in self._block.steps:
            block, self._block, self._next = self._next, None, None  # what was read before need not stay
            self._block = block if block and step in block.steps else self._begin(step)
            self._next = self._begin(self._block.steps.stop) if ahead else None
        rows = self._block.rows[step - self._block.steps.start]
        batch = self.replacements.batch(rows, self._block.fetched())
        return batch.pin_memory() if self.pin else batch

    def _begin(self, step: int) -> _Block:
        steps = range(step, step + self._together)
        return _Block(steps, np.stack([self.order.at(s)[self.share] for s in steps]), self.replacements.fetch)

    def __iter__(self) -> Iterator[tuple[int, ImageBatch]]:
        ready: queue.Queue[tuple[int, ImageBatch] | BaseException] = queue.Queue(maxsize=_AHEAD)
        stop = threading.Event()

        def work() -> None:
            step = self.start
            while not stop.is_set():
                try:
                    item: tuple[int, ImageBatch] | BaseException = (step, self.fetch(step, ahead=True))
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
        step = self.start
        try:
            while True:
                try:
                    item = ready.get(timeout=self.timeout)
                except queue.Empty:
                    raise self._hung(step) from None
                step += 1
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join(timeout=min(5.0, self.timeout))
            if self._next is not None:
                self._next.join(timeout=min(5.0, self.timeout))

    def _hung(self, step: int) -> Hung:
        rows = self.order.at(step)[self.share].tolist()
        named = ", ".join(map(str, rows[:_NAMED])) + (", ..." if len(rows) > _NAMED else "")
        return Hung(
            f"{self.corpus.folder}: batch {step} (rows {named}) did not come within {self.timeout:g} s",
            "is the disk there and answering? --resume goes on from the last checkpoint; data.timeout=S waits longer",
        )
