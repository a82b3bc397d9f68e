"""The stream of batches: every row once an epoch, the same from any step on, shared evenly, ended cleanly."""

from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest

from ssl_mednet.data.corpus import Corpus, CorpusSpec, Fetched, open_corpus
from ssl_mednet.data.loader import BatchStream, Order, shares
from ssl_mednet.draws import stable_hash
from ssl_mednet.errors import RecipeError


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return open_corpus("phantoms:gray?n=60", CorpusSpec("gray", 64), quiet=True)


def test_every_epoch_has_each_row_once_and_its_own_order() -> None:
    order = Order(np.arange(10, 33), batch_size=4, seed=0)
    seen = np.concatenate([order.at(step) for step in range(23)])  # four epochs of 23 rows
    epochs = seen.reshape(4, 23)
    assert all(sorted(e) == list(range(10, 33)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 4
    assert not np.array_equal(Order(np.arange(10, 33), 4, seed=1).at(0), order.at(0))


@pytest.mark.parametrize("rows", [8, 9, 15, 23, 31])
def test_no_batch_of_few_rows_holds_one_twice_and_all_rows_come_alike(rows: int) -> None:
    order = Order(np.arange(rows), batch_size=8, seed=0)
    batches = [order.at(step) for step in range(4000)]
    assert all(len(set(batch.tolist())) == 8 for batch in batches)
    often = np.bincount(np.concatenate(batches), minlength=rows)
    assert often.min() > 0.9 * often.mean()


def test_a_step_does_not_depend_on_the_steps_before() -> None:
    walked = Order(np.arange(50), 8, seed=3)
    batches = [walked.at(s) for s in range(20)]
    assert np.array_equal(Order(np.arange(50), 8, seed=3).at(17), batches[17])


def test_the_stream_begins_where_it_is_told(corpus: Corpus) -> None:
    stream = BatchStream(corpus, corpus.rows(), 8, seed=0)
    whole = [(step, b.rows.tolist()) for step, b in itertools.islice(stream, 9)]
    stream.start = 5
    assert [(step, b.rows.tolist()) for step, b in itertools.islice(stream, 4)] == whole[5:9]
    assert [step for step, _ in whole] == list(range(9))


def test_batches_are_the_same_however_many_are_read_at_a_time(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    fetch = corpus.fetch
    monkeypatch.setattr(corpus, "fetch", lambda rows: reads.append(len(rows)) or fetch(rows))
    together = [b for _, b in itertools.islice(BatchStream(corpus, corpus.rows(), 8, seed=0), 20)]
    assert len(reads) == 2  # what is used, and what comes after it
    monkeypatch.setattr("ssl_mednet.data.loader._READ_IMAGES", 1)
    alone = [BatchStream(corpus, corpus.rows(), 8, seed=0).fetch(step) for step in range(20)]
    assert len(reads) == 22
    for one, other in zip(together, alone, strict=True):
        assert one.pixels.equal(other.pixels)
        assert one.rows.equal(other.rows)


def test_reading_ahead_changes_no_batch_and_makes_each_order_once(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssl_mednet.data.loader._READ_IMAGES", 20)  # blocks of two steps, 7.5 steps an epoch
    monkeypatch.setattr("ssl_mednet.data.corpus._PART", 3)
    made: list[int] = []
    generator = Order._generator
    monkeypatch.setattr(Order, "_generator", lambda self, *what: made.append(what[0]) or generator(self, *what))
    walked = [b for _, b in itertools.islice(BatchStream(corpus, corpus.rows(), 8, seed=0), 30)]
    assert made == sorted(set(made))
    jumped = BatchStream(corpus, corpus.rows(), 8, seed=0)
    for step in reversed(range(30)):
        assert walked[step].pixels.equal(jumped.fetch(step).pixels)
        assert walked[step].pixels.equal(corpus.batch(walked[step].rows.numpy()).pixels)


def test_the_next_block_is_read_while_this_one_is_used(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_mednet.data.loader._READ_IMAGES", 16)
    second, reads, fetch = threading.Event(), [], corpus.fetch

    def told(rows: np.ndarray) -> Fetched:
        reads.append(rows)
        if len(reads) == 2:
            second.set()
        return fetch(rows)

    monkeypatch.setattr(corpus, "fetch", told)
    stream = BatchStream(corpus, corpus.rows(), 8, seed=0)
    stream.fetch(0, ahead=True)
    assert second.wait(10)
    stream.fetch(1, ahead=True)
    stream.fetch(2)
    assert len(reads) == 2
    stream.fetch(9)  # somewhere else: what was read ahead is of no use
    assert len(reads) == 3


def test_what_goes_wrong_while_reading_ahead_is_raised_where_it_is_wanted(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssl_mednet.data.loader._READ_IMAGES", 16)
    stream, whole = BatchStream(corpus, corpus.rows(), 8, seed=0), corpus.fetch
    bad = stream.order.at(4).tolist()
    monkeypatch.setattr(corpus, "fetch", lambda rows: 1 / 0 if set(bad) <= set(rows.tolist()) else whole(rows))
    batches = iter(stream)
    assert [next(batches)[0] for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ZeroDivisionError):
        next(batches)


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_batch_of_one(corpus: Corpus, world: int) -> None:
    whole = BatchStream(corpus, corpus.rows(), 8, seed=0).fetch(3).rows.tolist()
    parts = [
        BatchStream(corpus, corpus.rows(), 8, seed=0, rank=r, world=world).fetch(3).rows.tolist() for r in range(world)
    ]
    assert list(itertools.chain(*parts)) == whole


def test_a_batch_larger_than_the_data_is_refused_with_one_that_fits(corpus: Corpus) -> None:
    with pytest.raises(RecipeError, match=r"larger than the data: 60 images.*batch_size=32"):
        BatchStream(corpus, corpus.rows(), 64, seed=0)
    with pytest.raises(RecipeError, match="cannot be shared"):
        BatchStream(corpus, corpus.rows(), 9, seed=0, world=2)


def test_the_thread_ends_with_its_consumer_and_passes_errors_on(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = iter(BatchStream(corpus, corpus.rows(), 8, seed=0))
    next(stream)
    assert any(t.name == "batch-stream" for t in threading.enumerate())
    stream.close()
    assert not any(t.name == "batch-stream" for t in threading.enumerate())

    broken = BatchStream(corpus, corpus.rows(), 8, seed=0)
    monkeypatch.setattr(broken, "fetch", lambda step, ahead: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(iter(broken))


def mixed(sizes: dict[tuple[int, int], int]) -> tuple[np.ndarray, np.ndarray]:
    """Modality and source of rows, in no order."""
    pairs = np.array([pair for pair, n in sizes.items() for _ in range(n)])
    return tuple(np.random.default_rng(0).permutation(pairs).T)  # type: ignore[return-value]


SIZES = {(2, 0): 900, (2, 1): 100, (3, 0): 90, (4, 2): 10}


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ("proportional", {(2, 0): 900, (2, 1): 100, (3, 0): 90, (4, 2): 10}),
        ("balanced", {(2, 0): 1100 / 6, (2, 1): 1100 / 6, (3, 0): 1100 / 3, (4, 2): 1100 / 3}),
        # roots of the modalities 31.62, 9.49, 3.16; of the sources of the first 30 and 10
        ("sqrt", {(2, 0): 1100 * 0.71429 * 0.75, (2, 1): 1100 * 0.71429 * 0.25, (3, 0): 235.714, (4, 2): 78.571}),
    ],
)
def test_each_modality_and_source_gets_its_share_of_every_epoch(
    sampling: str, expected: dict[tuple[int, int], float]
) -> None:
    modality, source = mixed(SIZES)
    strata, parts = shares(sampling, modality, source)
    assert sum(parts) == pytest.approx(1)
    order = Order(np.arange(1100), 100, 7, strata, parts)
    drawn = np.concatenate([order.at(step) for step in range(33)])  # three epochs
    for epoch in drawn.reshape(3, 1100):
        for (m, s), count in expected.items():
            assert abs(((modality[epoch] == m) & (source[epoch] == s)).sum() - count) <= 1
    for m, s in SIZES:  # within a stratum no row is favoured
        times = np.bincount(drawn, minlength=1100)[(modality == m) & (source == s)]
        assert times.max() - times.min() <= 1
    again = Order(np.arange(1100), 100, 7, strata, parts)
    assert np.array_equal(again.at(25), drawn[2500:2600])
    assert not np.array_equal(Order(np.arange(1100), 100, 8, strata, parts).at(25), drawn[2500:2600])


def test_stated_weights_are_shares_of_modalities_and_roots_of_patients_within() -> None:
    modality, source = mixed(SIZES)
    group = np.arange(1100) // 10  # ten rows a patient
    group[(modality == 2) & (source == 0)] = 0  # one patient
    weights = {"xray": 0.5, "ct": 0.3, "pet": 0.2}
    strata, parts = shares("weights", modality, source, group, weights)
    assert sum(parts) == pytest.approx(1)
    drawn = Order(np.arange(1100), 1100, 7, strata, parts).at(0)
    present = {name: code for name, code in {"xray": 2, "ct": 3, "pet": 6}.items() if (modality == code).any()}
    stated = sum(weights[name] for name in present)
    for name, code in present.items():
        assert abs((modality[drawn] == code).sum() - 1100 * weights[name] / stated) <= len(SIZES)
        sources = [s for m, s in SIZES if m == code]
        roots = {s: len(np.unique(group[(modality == code) & (source == s)])) ** 0.5 for s in sources}
        for s in sources:
            expected = 1100 * weights[name] / stated * roots[s] / sum(roots.values())
            assert abs(((modality[drawn] == code) & (source[drawn] == s)).sum() - expected) <= 1
    assert set(np.unique(modality[drawn])) == set(present.values()), "what has no weight is never drawn"
    alone, of_rows = shares("weights", modality, source, np.full(1100, -1), weights)
    assert np.array_equal(alone, strata)
    assert of_rows != parts
    with pytest.raises(RecipeError, match="none of oct is in the data"):
        shares("weights", modality, source, group, {"oct": 1.0})


def test_sampling_by_default_is_what_it_always_was(corpus: Corpus) -> None:
    generator = np.random.default_rng(stable_hash(3, 0, "order"))
    expected = corpus.rows()[generator.permutation(60)[16:24]].tolist()
    assert BatchStream(corpus, corpus.rows(), 8, seed=3).fetch(2).rows.tolist() == expected


def test_a_stream_balances_the_modalities_of_its_corpus(corpus: Corpus) -> None:
    few = np.concatenate([np.flatnonzero(corpus.modality == m)[: 2 + 3 * i] for i, m in enumerate((2, 3, 4))])
    stream = BatchStream(corpus, few, 15, seed=0, sampling="balanced")
    assert np.bincount(corpus.modality[stream.fetch(0).rows.numpy()])[2:5].tolist() == [5, 5, 5]


def test_the_order_of_three_million_rows_is_there_in_a_moment() -> None:
    rows, kinds = np.arange(3_000_000), np.arange(3_000_000) % 7
    for order in (Order(rows, 256, 0), Order(rows, 256, 0, *shares("sqrt", kinds, kinds % 2))):
        began = time.process_time()
        order.at(3_000_000 // 256 + 1)
        assert time.process_time() - began < 1
