"""Freed memory goes back to the system."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest

from ssl_mednet.data import heap


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_what_lies_free_between_used_blocks_is_given_back() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    blocks = [np.ones(60_000, np.uint8) for _ in range(2000)]
    kept = blocks[::100]  # between them nothing is given back by itself
    del blocks
    before = resident()
    heap.give_back()
    assert before - resident() > 60 * 10**6
    assert all(block.all() for block in kept)


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())
    heap._trim.cache_clear()
    try:
        heap.give_back()
        assert heap._trim() is None
    finally:
        heap._trim.cache_clear()
