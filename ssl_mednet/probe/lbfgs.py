"""Many smooth convex problems of one shape minimised at once by L-BFGS (Nocedal and Wright 2006, algorithm 7.4).

All problems are evaluated together at their trial points, which is where the time goes. Each has its own step length
and its own memory of curvature: after a round, one whose trial point is accepted takes a new direction, one whose point
is rejected halves its step, and one that has converged leaves the batch. None waits for another or changes another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# (points [P, S], problem numbers [S])
# -> values [S] float64, gradients [P, S], diagonal of an approximate Hessian [P, S]
Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]

SUFFICIENT = 1e-4  # c1 of the Armijo condition (Nocedal and Wright, equation 3.4)
MAX_HALVINGS = 20


@dataclass(frozen=True)
class Solution:
    """Where each problem ended, ``x [P, S]``, and of each ``[S]``: whether it converged, steps, largest gradient."""

    x: Tensor
    converged: Tensor
    iterations: Tensor
    gradient: Tensor


@dataclass
class _State:
    """The problems still running; the last axis of every tensor is the problem."""

    problem: Tensor  # [S] its number
    x: Tensor  # [P, S]
    value: Tensor  # [S]
    gradient: Tensor  # [P, S]
    hessian: Tensor  # [P, S]
    direction: Tensor  # [P, S]
    slope: Tensor  # [S] gradient . direction
    length: Tensor  # [S] step length of the trial
    halvings: Tensor  # [S]
    iterations: Tensor  # [S]
    steps: Tensor  # [M, P, S] past x differences, newest last
    bends: Tensor  # [M, P, S] past gradient differences
    rho: Tensor  # [M, S] 1 / (step . bend), 0 where the memory is empty

    def keep(self, mask: Tensor) -> None:
        for name, tensor in vars(self).items():
            setattr(self, name, tensor[..., mask])


def minimise(
    objective: Objective, start: Tensor, max_iter: int, tol: float, noise: float, memory: int = 10
) -> Solution:
    """Minimise each of S problems from ``start [P, S]``.

    Args:
        objective: of the points of some of the problems; must treat each on its own.
        start: first points; its dtype and device are used throughout.
        max_iter: accepted steps a problem may take.
        tol: converged when no entry of the gradient is larger.
        noise: relative rounding error of the values; a rise below it is no reason to reject a step (Hager and Zhang
            2005, section 4).
        memory: number of past steps each problem remembers.

    Returns:
        the last accepted points. A problem that ran out of steps, or along whose direction the value no longer falls,
        is returned where it is, with ``converged`` false.
    """
    size, count = start.shape
    every = torch.arange(count, device=start.device)
    value, gradient, hessian = objective(start, every)
    end = Solution(start.clone(), every < 0, torch.zeros_like(every), gradient.abs().amax(0))
    blank, past = torch.zeros_like(start), start.new_zeros(memory, size, count)
    zero = torch.zeros_like(every)
    s = _State(
        every,
        start,
        value,
        gradient,
        hessian,
        blank,
        blank[0],
        blank[0],
        zero,
        zero,
        past,
        past.clone(),
        past[:, 0].clone(),
    )
    _aim(s, every >= 0)
    while True:
        steepness = s.gradient.abs().amax(0)
        done = steepness <= tol
        stop = done | (s.iterations >= max_iter) | (s.halvings > MAX_HALVINGS)
        if stop.any():
            gone = s.problem[stop]
            end.x[:, gone], end.converged[gone] = s.x[:, stop], done[stop]
            end.iterations[gone], end.gradient[gone] = s.iterations[stop], steepness[stop]
            s.keep(~stop)
        if not len(s.problem):
            return end
        _round(s, objective, noise)


def _round(s: _State, objective: Objective, noise: float) -> None:
    """Try one point for every problem; accept or halve."""
    trial = s.x + s.length * s.direction
    value, gradient, hessian = objective(trial, s.problem)
    falls = value <= s.value + SUFFICIENT * s.length * s.slope
    # Within rounding the value says nothing; the slope still does: it must not have turned steeply uphill.
    flat = (value - s.value).abs() <= noise * s.value.abs()
    level = (gradient * s.direction).sum(0) <= (1 - 2 * SUFFICIENT) * s.slope.abs()
    accept = (falls | (flat & level)) & torch.isfinite(value)
    _remember(s, trial - s.x, gradient - s.gradient, accept)
    s.x, s.value = torch.where(accept, trial, s.x), torch.where(accept, value, s.value)
    s.gradient, s.hessian = torch.where(accept, gradient, s.gradient), torch.where(accept, hessian, s.hessian)
    s.iterations = s.iterations + accept
    s.length, s.halvings = s.length * 0.5, s.halvings + 1
    _aim(s, accept)


def _remember(s: _State, step: Tensor, bend: Tensor, accept: Tensor) -> None:
    """Push the newest pair of the accepted problems; one without positive curvature is not worth remembering."""
    curvature = (step * bend).sum(0)
    push = accept & (curvature > torch.finfo(step.dtype).tiny)
    for past, new in ((s.steps, step), (s.bends, bend), (s.rho, 1.0 / curvature)):
        past.copy_(torch.where(push, torch.cat([past[1:], new[None]]), past))


def _aim(s: _State, fresh: Tensor) -> None:
    """New directions for the ``fresh`` problems: the two loops, around the inverse of the approximate Hessian."""
    q, alphas = s.gradient, []
    for step, bend, rho in zip(s.steps.flip(0), s.bends.flip(0), s.rho.flip(0), strict=True):
        alphas.append(rho * (step * q).sum(0))
        q = q - alphas[-1] * bend
    scaled = s.bends[-1] / s.hessian
    scale = 1.0 / (s.rho[-1] * (s.bends[-1] * scaled).sum(0))
    q = q / s.hessian * torch.where(torch.isfinite(scale), scale, 1.0)
    for step, bend, rho, alpha in zip(s.steps, s.bends, s.rho, reversed(alphas), strict=True):
        q = q + (alpha - rho * (bend * q).sum(0)) * step
    slope = -(s.gradient * q).sum(0)
    # Rounding can spoil the memory of one problem; its preconditioned gradient always points down.
    spoilt = ~(slope < 0)
    q = torch.where(spoilt, s.gradient / s.hessian, q)
    slope = torch.where(spoilt, -(s.gradient * q).sum(0), slope)
    s.direction, s.slope = torch.where(fresh, -q, s.direction), torch.where(fresh, slope, s.slope)
    s.length = torch.where(fresh, 1.0, s.length)
    s.halvings = torch.where(fresh, 0, s.halvings)
