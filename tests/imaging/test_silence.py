"""Warnings of decoders reach nobody, whoever else reads at the time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

from ssl_mednet.imaging.readers.silence import SILENCE


def quietly() -> Iterator[None]:
    with SILENCE:
        yield
        warnings.warn("JANE DOE", stacklevel=1)


def test_the_first_to_leave_does_not_end_the_silence_of_the_others(recwarn: pytest.WarningsRecorder) -> None:
    before = list(warnings.filters)
    one, other = quietly(), quietly()
    next(one), next(other)
    assert [*one] == [*other] == []  # they end in the order in which they began, as threads may
    assert not recwarn.list
    assert warnings.filters == before
    warnings.warn("it is over", stacklevel=1)
    assert len(recwarn.list) == 1
