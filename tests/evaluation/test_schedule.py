"""Which rows fine-tuning sees: all of them, in orders of their own, in batches that batch normalisation can bear."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ssl_mednet.evaluation.finetune import FinetuneSection
from ssl_mednet.evaluation.schedule import Schedule


def schedule(n: int, seed: int = 0, **options: Any) -> Schedule:
    return Schedule.of(np.arange(100, 100 + n), FinetuneSection(**{"min_steps": 0, **options}), seed)


def test_every_epoch_has_every_row_once_in_an_order_of_its_own() -> None:
    plan = schedule(50, epochs=3, batch_size=16)
    assert (plan.steps, plan.epochs, plan.passes) == (12, 3, 1)
    epochs = [list(plan.epoch(e)) for e in (1, 2, 3)]
    assert [step for epoch in epochs for step, _ in epoch] == list(range(12))
    assert [len(rows) for _, rows in epochs[0]] == [16, 16, 16, 2]
    orders = [np.concatenate([rows for _, rows in epoch]) for epoch in epochs]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(100, 150))
    other = np.concatenate([rows for _, rows in schedule(50, seed=1, epochs=3, batch_size=16).epoch(1)])
    assert len({tuple(o) for o in (*orders, other)}) == 4


@pytest.mark.parametrize(("n", "size", "sizes"), [(33, 16, [16, 17]), (17, 16, [17]), (2, 16, [2]), (5, 2, [2, 3])])
def test_no_batch_is_a_single_row(n: int, size: int, sizes: list[int]) -> None:
    assert [len(rows) for _, rows in schedule(n, epochs=1, batch_size=size).epoch(1)] == sizes


def test_few_rows_are_passed_over_often_and_a_cap_is_a_cap() -> None:
    few = schedule(20, epochs=5, batch_size=16, min_steps=100)
    assert (few.passes, few.steps, few.epochs) == (10, 100, 5)
    assert schedule(20, epochs=5, batch_size=16, min_steps=101).steps == 110  # at least
    rows = np.concatenate([rows for _, rows in few.epoch(2)])
    assert set(np.bincount(rows)[100:]) == {10}
    capped = schedule(50, epochs=3, batch_size=16, max_steps=6)
    assert (capped.steps, capped.epochs) == (6, 2)
    assert [step for step, _ in capped.epoch(2)] == [4, 5]


@pytest.mark.parametrize(("n", "size", "mean"), [(64, 16, 16), (100, 64, 50), (33, 16, 16.5), (30, 64, 30)])
def test_rates_count_the_images_that_there_are(n: int, size: int, mean: float) -> None:
    assert schedule(n, batch_size=size).mean_batch == mean
