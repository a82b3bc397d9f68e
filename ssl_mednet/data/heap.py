"""Memory that was freed and that the C library keeps."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

__all__ = ["give_back"]


def give_back() -> None:
    """Give the system what is free in the heap; where the C library is not glibc, nothing is done.

    Glibc keeps a heap for every few threads. Those that read a corpus allocate in one and free in another, and what is
    kept grows by hundreds of megabytes (malloc_trim(3)). It takes some milliseconds, in which the GIL is free.
    """
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # TypeError: a library without a name, on Windows
        return None
