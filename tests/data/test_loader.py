"""The stream of batches: every row once an epoch, the same from any step on, shared evenly, ended cleanly."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest

from ssl_mednet.data.corpus import Corpus, CorpusSpec, open_corpus
from ssl_mednet.data.loader import BatchStream, Order
from ssl_mednet.errors import RecipeError


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return open_corpus("phantoms:gray?n=60", CorpusSpec("gray", 64), quiet=True)


def test_every_epoch_has_each_row_once_and_its_own_order() -> None:
    order = Order(np.arange(10, 33), batch_size=7, seed=0)
    seen = np.concatenate([order.at(step) for step in range(23)])  # seven epochs of 23 rows
    epochs = seen.reshape(7, 23)
    assert all(sorted(e) == list(range(10, 33)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 7
    assert not np.array_equal(Order(np.arange(10, 33), 7, seed=1).at(0), order.at(0))


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
    monkeypatch.setattr(broken, "fetch", lambda step: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(iter(broken))
