"""What several tests of evaluation look at."""

from __future__ import annotations

import pytest

from ssl_mednet.data.corpus import CorpusSpec
from ssl_mednet.data.labelled import LabelledSet, open_labelled


@pytest.fixture(scope="module")
def task() -> LabelledSet:
    return open_labelled("phantoms:gray?n=200&size=32&label=modality", CorpusSpec("gray", 64), quiet=True)
