"""A backbone with a linear head: how the head starts, and what the two are trained to minimise."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ssl_mednet.errors import ArtifactError
from ssl_mednet.probe.linear import LinearProbe

Loss = Callable[[Tensor, Tensor], Tensor]

# The bias of a class that the probe saw no row of, for its infinite one: exp(-1000) is 0 in every precision, so such a
# class keeps probability 0 and gets no gradient, but products and differences stay finite, in half precision too.
CERTAIN = 1e3


class Classifier(nn.Module):
    """Normalised images ``[B, C, S, S]`` to logits ``[B, K]``."""

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


def build_classifier(model: nn.Module, example: Tensor, num_classes: int, probe: LinearProbe | None) -> Classifier:
    """A copy of ``model`` under a head that starts as ``probe``, or else at zero: every class as likely as the others.

    Args:
        example: ``[1, C, S, S]``, on the CPU or where ``model`` is; tells how many features there are.

    Raises:
        ArtifactError: a probe of other features than the model's.
    """
    backbone = copy.deepcopy(model).requires_grad_(True).to(example.device).eval()
    with torch.no_grad():
        width = backbone(example).shape[1]
    head = nn.Linear(width, num_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    if probe is not None:
        if probe.weight.shape != (width, num_classes):
            shape = "[{}, {}]".format(*probe.weight.shape)
            raise ArtifactError(f"the probe has weights {shape}, the classifier needs [{width}, {num_classes}]")
        weight, bias = folded(probe)
        head.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    return Classifier(backbone, head.to(example.device))


def folded(probe: LinearProbe) -> tuple[np.ndarray, np.ndarray]:
    """Weight ``[K, D]`` and bias ``[K]`` of the linear map that standardising and the probe amount to, float64.

    The start of fine-tuning in Kumar et al. 2022, section 4.3 (arXiv 2202.10054).
    """
    weight = probe.weight / probe.std[:, None]
    bias = np.nan_to_num(probe.bias, posinf=CERTAIN, neginf=-CERTAIN) - probe.mean @ weight
    return weight.T.copy(), bias


def class_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Inverse frequencies with mean 1 over the classes that there are; 0 for the others.

    Args:
        labels: ``[N]`` class numbers, or ``[N, L]`` of 0 and 1, where each label is a problem of two classes.

    Returns:
        ``[K]``; or ``[2, L]``, the weight of absence and of presence.
    """
    if labels.ndim == 1:
        counts = np.bincount(labels, minlength=num_classes)[:, None]
    else:
        counts = np.stack([(labels == 0).sum(axis=0), (labels == 1).sum(axis=0)])
    inverse = np.divide(1.0, counts, out=np.zeros(counts.shape), where=counts > 0)
    weights = inverse / (inverse.sum(axis=0) / (counts > 0).sum(axis=0))
    return weights[:, 0] if labels.ndim == 1 else weights


def build_loss(weights: np.ndarray | None, multilabel: bool) -> Loss:
    """Logits ``[B, K]`` and targets to the mean loss: cross-entropy, or binary cross-entropy over all labels.

    Args:
        weights: of :func:`class_weights`; the mean is then the weighted one.
    """
    table = None if weights is None else torch.from_numpy(weights).float()

    def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
        weight = None if table is None else table.to(logits.device)
        return nn.functional.cross_entropy(logits.float(), targets, weight)

    def binary(logits: Tensor, targets: Tensor) -> Tensor:
        each = nn.functional.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
        if table is None:
            return each.mean()
        absent, present = table.to(logits.device)
        weight = torch.where(targets == 1, present, absent)
        return (each * weight).sum() / weight.sum()

    return binary if multilabel else cross_entropy


def probabilities(logits: Tensor, multilabel: bool) -> np.ndarray:
    """``[N, K]`` float64 on the CPU: rows sum to 1, or each entry stands alone (multi-label)."""
    z = logits.float().cpu().double()
    return (torch.sigmoid(z) if multilabel else torch.softmax(z, dim=1)).numpy()
