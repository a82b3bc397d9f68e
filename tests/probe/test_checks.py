import numpy as np
import pytest
import torch

from ssl_mednet.errors import DataError
from ssl_mednet.probe import unit_rows
from ssl_mednet.probe.checks import check_features


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1.0, 1e18, 1e30])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_rows_have_length_one_at_any_scale(scale, kind):
    x = np.random.default_rng(0).standard_normal((50, 12))
    want = x / np.linalg.norm(x, axis=1, keepdims=True)
    got = unit_rows(kind((x * scale).astype(np.float32)))
    assert got == pytest.approx(want, abs=1e-6)
    assert (got.dtype, got.flags.c_contiguous) == (np.float32, True)


def test_a_row_of_zeros_stays_and_changes_no_other():
    x = np.random.default_rng(0).standard_normal((5, 12)).astype(np.float32)
    want = unit_rows(x)
    x[2] = 0
    got = unit_rows(x)
    assert (got[2] == 0).all()
    assert np.delete(got, 2, axis=0) == pytest.approx(np.delete(want, 2, axis=0), abs=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_counted_by_row(bad):
    x = np.ones((6, 3), np.float32)
    x[1, :2] = x[4, 0] = bad
    x[5, 1] = -bad
    with pytest.raises(DataError, match="3 of 6 train features hold NaN or infinity"):
        check_features(x, "train")


def test_finite_values_whose_sum_overflows_pass():
    x = np.full((6, 3), 3e38, np.float32)
    assert (check_features(x, "train").numpy() == x).all()
