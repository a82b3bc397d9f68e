"""Random numbers as a pure function of (seed, step, row, name): nothing to save, the same on every device."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: the increment of SplitMix64
_MASK64 = (1 << 64) - 1


def _signed(value: int) -> int:
    """A 64-bit pattern as the signed integer torch wants."""
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical (not arithmetic) right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014, figure 16) on int64 tensors, which wrap as it needs."""
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


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

    Args:
        seed: of the run.
        step: number of the batch.
        rows: ``[B]`` int64, what each row is; two equal rows get equal numbers.
        name: prefix of all names, so that one batch holds several independent streams.
    """

    seed: int
    step: int
    rows: Tensor
    name: str = ""

    def uniform(self, name: str, count: int) -> Tensor:
        """``[B, count]`` float32 in [0, 1), multiples of 2^-24."""
        key = stable_hash(self.seed, self.step, f"{self.name}/{name}")
        columns = torch.arange(1, count + 1, device=self.rows.device, dtype=torch.int64) * _signed(_GOLDEN)
        state = _mix(self.rows * _signed(_GOLDEN) + _signed(key))
        return _shift_right(_mix(state[:, None] + columns), 40).to(torch.float32) * 2.0**-24

    def normal(self, name: str, count: int) -> Tensor:
        """``[B, count]`` float32, standard normal (Box and Muller 1958)."""
        u = self.uniform(name, 2 * count)
        radius = torch.sqrt(-2.0 * torch.log1p(-u[:, :count]))
        return radius * torch.cos(2.0 * math.pi * u[:, count:])

    def take(self, index: Tensor) -> Draws:
        """The draws of some of the rows."""
        return Draws(self.seed, self.step, self.rows[index], self.name)

    def child(self, name: str) -> Draws:
        """An independent stream for the same rows."""
        return Draws(self.seed, self.step, self.rows, f"{self.name}/{name}")
