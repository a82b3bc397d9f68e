"""Random numbers as a pure function of (seed, step, row, name): nothing to save, the same for every device."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: the increment of SplitMix64
_MASK64 = (1 << 64) - 1


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014, figure 16) on uint64, which wraps as it needs."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _mix_int(x: int) -> int:
    """:func:`_mix` of one unsigned 64-bit integer."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK64
    return x ^ (x >> 31)


def stable_hash(*parts: int | str) -> int:
    """A 63-bit number from integers and strings: the same in every process and on every machine."""
    state = 0
    for part in parts:
        number = zlib.crc32(part.encode()) + (1 << 40) if isinstance(part, str) else part
        state = _mix_int((state + _GOLDEN + number) & _MASK64)
    return state >> 1


@dataclass(frozen=True)
class Draws:
    """Random numbers for the rows of one batch; each row's numbers do not depend on the rows beside it.

    They are made on the CPU, so that they are the same whatever the device, and sent to ``device`` in one piece.

    Args:
        seed: of the run.
        step: number of the batch.
        rows: ``[B]`` int64 on the CPU, what each row is; two equal rows get equal numbers.
        name: prefix of all names, so that one batch holds several independent streams.
        device: where the numbers are wanted.
    """

    seed: int
    step: int
    rows: Tensor
    name: str = ""
    device: torch.device | str = "cpu"

    def uniform(self, name: str, count: int) -> Tensor:
        """``[B, count]`` float32 in [0, 1), multiples of 2^-24."""
        key = np.uint64(stable_hash(self.seed, self.step, f"{self.name}/{name}"))
        golden = np.uint64(_GOLDEN)
        columns = np.arange(1, count + 1, dtype=np.uint64) * golden
        with np.errstate(over="ignore"):
            state = _mix(self.rows.numpy().astype(np.uint64) * golden + key)
            bits = _mix(state[:, None] + columns) >> np.uint64(40)
        return torch.from_numpy(bits.astype(np.float32) * np.float32(2.0**-24)).to(self.device, non_blocking=True)

    def normal(self, name: str, count: int) -> Tensor:
        """``[B, count]`` float32, standard normal (Box and Muller 1958)."""
        u = self.uniform(name, 2 * count)
        radius = torch.sqrt(-2.0 * torch.log1p(-u[:, :count]))
        return radius * torch.cos(2.0 * math.pi * u[:, count:])

    def take(self, index: Tensor) -> Draws:
        """The draws of some of the rows."""
        return replace(self, rows=self.rows[index.cpu()])

    def on(self, device: torch.device | str) -> Draws:
        """The same numbers, delivered to another device."""
        return replace(self, device=device)

    def child(self, name: str) -> Draws:
        """An independent stream for the same rows."""
        return replace(self, name=f"{self.name}/{name}")
