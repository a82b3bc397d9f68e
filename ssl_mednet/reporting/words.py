"""How the report says things: names of protocols and metrics, numbers, intervals; one wording for page and tables."""

from __future__ import annotations

import math
from collections.abc import Iterable

PROTOCOLS = {
    "linear": "linear probe",
    "knn": "nearest neighbours",
    "few_shot_linear": "few-shot, linear",
    "few_shot_knn": "few-shot, nearest neighbours",
    "few_shot_centroid": "few-shot, nearest centroid",
    "few_shot_finetune": "few-shot, linear probe, then fine-tuning",
    "finetune": "fine-tuning",
    "linear_then_finetune": "linear probe, then fine-tuning",
    "robustness": "robustness",
    "majority": "always the largest class",
}
"""In the order in which the report shows them."""

METRICS = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "quadratic_kappa": "quadratic kappa",
    "ece": "ECE",
    "ece_calibrated": "ECE, calibrated",
    "balanced_error": "balanced error",
    "clean_balanced_error": "balanced error, clean",
}
LOWER_IS_BETTER = {"ece", "ece_calibrated", "balanced_error", "clean_balanced_error"}
NOTHING = "n/a"


def protocol_name(protocol: str) -> str:
    """``"linear probe"``; a protocol not known here is named as it is."""
    return PROTOCOLS.get(protocol, protocol.replace("_", " "))


def protocol_rank(protocol: str) -> int:
    """Place in the report; protocols not known here come last."""
    return list(PROTOCOLS).index(protocol) if protocol in PROTOCOLS else len(PROTOCOLS)


def metric_name(metric: str) -> str:
    """``"balanced accuracy"``; a metric not known here is named as it is."""
    return METRICS.get(metric, metric.replace("_", " "))


def number(value: float | None, digits: int = 3) -> str:
    """``"0.912"``, or ``"n/a"`` for what is not defined."""
    return NOTHING if value is None or math.isnan(value) else f"{value:.{digits}f}"


def signed(value: float) -> str:
    """``"+0.021"``, with a true minus sign."""
    return NOTHING if math.isnan(value) else f"{value:+.3f}".replace("-", "−")


def share(value: float) -> str:
    """A fraction as per cent: ``"1 %"``, ``"12.5 %"``, with a space that does not break."""
    return NOTHING if math.isnan(value) else f"{100 * value:.3g}\u00a0%"


def p_value(p: float) -> str:
    """``"p = 0.012"``, never 0."""
    if math.isnan(p):
        return f"p {NOTHING}"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def count(n: int, one: str, several: str = "") -> str:
    """``"1 image"``, ``"1,092 images"``."""
    return f"{n:,} {one if n == 1 else several or one + 's'}"


def join(words: Iterable[str]) -> str:
    """``"a, b and c"``."""
    *rest, last = list(words) or [""]
    return f"{', '.join(rest)} and {last}" if rest else last


def labels_used(labels: float | None, shots: int | None) -> str:
    """How many training labels a row was allowed: ``"all"``, ``"10 %"``, ``"5 a class"``."""
    if shots is not None:
        return f"{shots} a class"
    return NOTHING if labels is None else "all" if labels == 1 else share(labels)
