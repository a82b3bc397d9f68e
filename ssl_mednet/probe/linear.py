"""The linear probe: L2 logistic regression on frozen features, the whole path of strengths in one solve.

For a strength ``C`` the objective is scikit-learn's, ``C * sum_i loss_i + 0.5 * ||W||^2`` with the bias free, on
features standardised with the mean and a moderated deviation of the training rows. The loss is the multinomial one
(multi-class; two classes are one logistic column, as in scikit-learn) or one logistic a label (multi-label). A small
``C`` is a strong regularisation.

The deviation of a feature over a few rows is mostly chance, and dividing by it blows up features that hardly moved.
Each variance is therefore moderated: averaged with the geometric mean of all variances, as if that had been seen in
``PRIOR_ROWS`` more rows (in form the posterior variance of Smyth 2004, doi 10.2202/1544-6115.1027, with fixed prior
degrees of freedom). Over thousands of rows that is the plain deviation.

All strengths share the features, so one matrix product serves all of them in every round of :mod:`.lbfgs`. The features
are rotated to their principal axes first: ``||W||`` does not change, rows fewer than columns cost only their rank, and
the Hessian becomes nearly diagonal, which is what makes ill-conditioned features converge in tens of steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssl_mednet.errors import DataError
from ssl_mednet.probe.calibration import log_loss
from ssl_mednet.probe.checks import Array, ArrayLike, check_features, check_targets
from ssl_mednet.probe.lbfgs import minimise
from ssl_mednet.probe.metrics import auroc

DEFAULT_STRENGTHS = tuple(float(c) for c in np.logspace(-6, 2, 25))
PRIOR_ROWS = 100  # chosen on val splits: eval/README.md
CHUNK = 4096  # rows whose logits are held at once, for the cache and for memory
# exp(-60) is nothing beside a gradient of 1e-8, and its products with features are still normal floats: weak
# regularisation makes probabilities of 1e-40, and a CPU multiplies denormal numbers ten times more slowly.
FLOOR = 60.0


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A fitted probe: ``mean``, ``std`` ``[D]``, ``weight`` ``[D, C]``, ``bias`` ``[C]``, all float64.

    ``strength`` is the chosen C, ``converged`` whether its solve did, and ``note`` what a report must say about the fit
    (empty where there is nothing).
    """

    mean: Array
    std: Array
    weight: Array
    bias: Array
    strength: float
    multilabel: bool
    converged: bool = True
    note: str = ""

    def predict_proba(self, features: ArrayLike) -> Array:
        """``[N, D]`` -> probabilities ``[N, C]``: rows sum to 1 (multi-class) or each entry stands alone (multi-label).

        Raises:
            DataError: features of another width, or NaN.
        """
        z = _standardised(features, self.mean, self.std)
        return _probabilities(z @ self.weight + self.bias, self.multilabel)


@dataclass(frozen=True, eq=False)
class Path:
    """The fits at S strengths (rising): ``weight`` ``[S, D, C]``, ``bias`` ``[S, C]``.

    ``converged``, ``iterations`` and ``gradient`` (largest entry of the gradient of the mean loss) are ``[S]``.
    """

    strengths: Array
    mean: Array
    std: Array
    weight: Array
    bias: Array
    multilabel: bool
    converged: Array
    iterations: Array
    gradient: Array

    def auroc(self, features: ArrayLike, targets: ArrayLike) -> Array:
        """``[S]``: macro AUROC of each fit on these rows; NaN where they have none (no rows, one class only).

        Raises:
            DataError: rows that do not fit those of the training.
        """
        return self._judged(auroc, features, targets)

    def log_loss(self, features: ArrayLike, targets: ArrayLike) -> Array:
        """``[S]``: negative log likelihood of these rows a row, in nats, of multi-label ones a label; NaN without rows.

        A row whose class had no training row is left out: its loss is infinite at every strength.

        Raises:
            DataError: rows that do not fit those of the training.
        """
        return self._judged(log_loss, features, targets)

    def _judged(self, figure: Callable[[Array, Array], float], features: ArrayLike, targets: ArrayLike) -> Array:
        y = check_targets(targets, self.weight.shape[2], "val", rows=len(features))
        if not len(features):
            return np.full(len(self.strengths), np.nan)
        z = _standardised(features, self.mean, self.std)
        logits = (z @ weight + bias for weight, bias in zip(self.weight, self.bias, strict=True))
        return np.array([figure(y, _probabilities(each, self.multilabel)) for each in logits])

    def choose(self, values: Array, losses: Array, rows: int) -> tuple[int, str]:
        """The index of the best of ``values`` ``[S]`` on so many val rows, of equals that of the lowest of ``losses``.

        AUROC does not see how large logits are: where classes are told apart at every strength, the most regularised
        fit knows little more than which class is the most frequent. Where all values are NaN it is the middle one, and
        there is a note.
        """
        if np.isnan(values).all():
            middle, why = len(self.strengths) // 2, "val has no AUROC" if rows else "no val rows"
            return middle, f"{why}: strength {self.strengths[middle]:.2g} is fixed, not chosen"
        best = np.flatnonzero(values >= np.nanmax(values) - 1e-9)
        return int(best[np.argmin(losses[best])]), ""

    def probe(self, index: int, note: str = "") -> LinearProbe:
        """The fit at one strength."""
        if not self.converged[index]:
            slow = f"did not converge (gradient {self.gradient[index]:.1e} after {self.iterations[index]} steps)"
            note = "; ".join(filter(None, [note, slow]))
        fit = self.weight[index], self.bias[index], float(self.strengths[index])
        return LinearProbe(self.mean, self.std, *fit, self.multilabel, bool(self.converged[index]), note)


def fit_linear(
    train: ArrayLike,
    train_targets: ArrayLike,
    val: ArrayLike,
    val_targets: ArrayLike,
    *,
    num_classes: int,
    strengths: tuple[float, ...] = DEFAULT_STRENGTHS,
    multilabel: bool = False,
) -> LinearProbe:
    """Fit on train at every strength; that with the best macro AUROC on val, of equals with the lowest log loss there.

    There is no refit on train and val together. Without val rows, or where val has no AUROC (one class only), the
    middle strength is used and ``note`` says so.

    Raises:
        DataError: as :func:`fit_path`, or val that does not fit train.
    """
    path = fit_path(train, train_targets, strengths, num_classes, multilabel)
    return path.probe(*path.choose(path.auroc(val, val_targets), path.log_loss(val, val_targets), len(val)))


def fit_path(
    features: ArrayLike,
    targets: ArrayLike,
    strengths: tuple[float, ...] | Array,
    num_classes: int,
    multilabel: bool = False,
    max_iter: int = 500,
    tol: float = 1e-4,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Fit all strengths at once, on the device of ``features``.

    A class without a training row gets probability 0; a label that is constant in train gets that constant.

    Args:
        features: ``[N, D]``.
        targets: ``[N]``, or ``[N, C]`` with ``multilabel``.
        strengths: S values of C, above 0, in any order.
        num_classes: C.
        multilabel: one logistic a label in place of the multinomial.
        max_iter: accepted steps of one strength.
        tol: largest entry of the gradient of the mean loss, along the principal axes; the default is scikit-learn's.
        dtype: of the solve; float64 is for checks on a CPU.

    Raises:
        DataError: no rows, NaN, labels out of range, or nothing to tell apart (one class only).
    """
    y = check_targets(targets, num_classes, "train", rows=len(features))
    if (y.ndim == 2) != multilabel:
        raise DataError(f"train labels have shape {list(y.shape)} but multilabel is {multilabel}")
    x = check_features(features, "train").double()
    fitted = _fitted_columns(y, num_classes)
    ordered = np.sort(np.asarray(strengths, dtype=np.float64))
    if not len(ordered) or ordered[0] <= 0:
        raise DataError("strengths of the linear probe must be above 0")

    mean, std = _standard(x)
    x = (x - mean) / std
    axes, spectrum = _principal_axes(x)
    z = torch.cat([x @ axes, x.new_ones(len(x), 1)], dim=1).to(dtype)
    penalty = torch.as_tensor(1.0 / (len(x) * ordered), device=x.device)
    one_hot = y if multilabel else np.eye(num_classes, dtype=np.int64)[y]
    truth = torch.as_tensor(one_hot[:, fitted[1:] if len(fitted) == 2 and not multilabel else fitted]).to(z)
    objective = _Logistic(z, truth, penalty, spectrum, softmax=not multilabel and len(fitted) > 2)
    found = minimise(objective, objective.start(), max_iter, tol, noise=10 * torch.finfo(dtype).eps)

    theta = found.x.reshape(z.shape[1], truth.shape[1], len(ordered)).double()  # [R + 1, K, S]
    weight, bias = torch.einsum("dr,rks->sdk", axes, theta[:-1]), theta[-1].T
    if truth.shape[1] == 1 and not multilabel:  # one logistic column is the softmax of plus and minus its half
        weight, bias = torch.cat([-weight, weight], dim=2) / 2, torch.cat([-bias, bias], dim=1) / 2
    ends = [t.cpu().numpy() for t in (found.converged, found.iterations, found.gradient)]
    parts = _spread(weight.cpu().numpy(), bias.cpu().numpy(), y, fitted, num_classes)
    return Path(ordered, mean.cpu().numpy(), std.cpu().numpy(), *parts, multilabel, *ends)


def _fitted_columns(y: Array, num_classes: int) -> Array:
    """The classes or labels that there is something to learn about."""
    share = y.mean(axis=0) if y.ndim == 2 else np.bincount(y, minlength=num_classes) / max(len(y), 1)
    fitted = np.flatnonzero((share > 0) & (share < 1))
    if not len(fitted):
        what = "every label is constant" if y.ndim == 2 else f"all rows are of class {y[0]}" if len(y) else "no rows"
        raise DataError(f"a linear probe has nothing to learn from train: {what}", "use more labels a class")
    return fitted


def _spread(weight: Array, bias: Array, y: Array, fitted: Array, num_classes: int) -> tuple[Array, Array]:
    """``[S, D, K]``, ``[S, K]`` to all C columns; those not fitted get the bias of a certainty."""
    all_weight = np.zeros((*weight.shape[:2], num_classes))
    present = y.all(axis=0) if y.ndim == 2 else np.zeros(num_classes, bool)
    all_bias = np.tile(np.where(present, np.inf, -np.inf), (len(bias), 1))
    all_weight[..., fitted], all_bias[:, fitted] = weight, bias
    return all_weight, all_bias


def _standard(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and moderated deviation ``[D]`` in float64; a feature that is constant up to rounding has deviation 1."""
    variance, mean = torch.var_mean(x, dim=0, correction=0)
    constant = variance.sqrt() <= 1e-6 * mean.abs().clamp(min=torch.finfo(torch.float32).tiny)
    if constant.all():
        return mean, torch.ones_like(mean)
    typical = variance[~constant].log().mean().exp()
    moderated = (len(x) * variance + PRIOR_ROWS * typical) / (len(x) + PRIOR_ROWS)
    return mean, torch.where(constant, 1.0, moderated.sqrt())


def _principal_axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal axes ``[D, R]`` of centred ``[N, D]`` and the variance ``[R]`` along each, without the empty ones."""
    n, d = x.shape
    if d <= n:
        spectrum, axes = torch.linalg.eigh(x.T @ x / n)
    else:
        spectrum, left = torch.linalg.eigh(x @ x.T / n)
    filled = spectrum > 1e-10 * spectrum[-1].clamp(min=1.0)  # below 1 only where all features are constant
    spectrum = spectrum[filled]
    return (axes[:, filled] if d <= n else x.T @ left[:, filled] / (n * spectrum).sqrt()), spectrum


@dataclass
class _Logistic:
    """Mean loss plus ``penalty / 2 * ||W||^2`` for S penalties; a point is ``[R + 1, K]`` flattened, bias last.

    The approximate Hessian is the spectrum times the mean of ``p (1 - p)`` of each column, plus the penalty: exact but
    for the correlation of ``p (1 - p)`` with the features and between columns.
    """

    x: Tensor  # [N, R + 1], last column 1
    truth: Tensor  # [N, K] in {0, 1}
    penalty: Tensor  # [S] float64
    spectrum: Tensor  # [R]
    softmax: bool

    def start(self) -> Tensor:
        """Zero weights; biases that give the class frequencies."""
        share = self.truth.mean(dim=0)
        theta = self.x.new_zeros(self.x.shape[1], len(share), len(self.penalty))
        theta[-1] = (share.log() if self.softmax else torch.logit(share))[:, None]
        return theta.flatten(0, 1)

    def __call__(self, points: Tensor, problems: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, width = self.x.shape
        k, s = self.truth.shape[1], points.shape[1]
        theta = points.reshape(width, k * s)
        loss = torch.zeros(s, dtype=torch.float64, device=points.device)
        gradient, spread = torch.zeros_like(theta), points.new_zeros(k, s)
        for x, truth in zip(self.x.split(CHUNK), self.truth.split(CHUNK), strict=True):
            z = (x @ theta).view(-1, k, s)
            losses, p = self._loss(z, truth[..., None])
            loss += losses.sum(dim=(0, 1), dtype=torch.float64)
            spread += (p - p * p).sum(dim=0)
            gradient += x.T @ (p - truth[..., None]).view(len(x), k * s)
        penalty = self.penalty[problems].to(points)
        free = theta.view(width, k, s).clone()
        free[-1] = 0.0
        value = loss / n + 0.5 * self.penalty[problems] * free.square().sum(dim=(0, 1), dtype=torch.float64)
        gradient = gradient.view(width, k, s) / n + penalty * free
        hessian = (spread / n).clamp(min=1e-6) * torch.cat([self.spectrum, self.spectrum.new_ones(1)]).to(points)[
            :, None, None
        ]
        hessian[:-1] += penalty
        return value, gradient.flatten(0, 1), hessian.flatten(0, 1)

    def _loss(self, z: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Losses that sum to the whole, and probabilities ``[n, K, S]``, none below ``exp(-FLOOR)``."""
        if not self.softmax:
            return torch.nn.functional.softplus(z) - truth * z, torch.sigmoid(z.clamp(min=-FLOOR))
        log_p = torch.log_softmax(z, dim=1)
        return -truth * log_p, log_p.clamp(min=-FLOOR).exp()


def _standardised(features: ArrayLike, mean: Array, std: Array) -> Array:
    return (check_features(features, "probed", width=len(mean)).double().cpu().numpy() - mean) / std


def _probabilities(logits: Array, multilabel: bool) -> Array:
    z = torch.from_numpy(logits)
    return (torch.sigmoid(z) if multilabel else torch.softmax(z, dim=1)).numpy()
