"""What the probes cost and whether they agree: linear against scikit-learn, kNN against lightly.

    python tests/benchmarks/evaluate.py [--alternations 3] [--strengths 20] [--rows 12000] [--bank 20000]

Both sides get the same features and threads and alternate in one process; a figure is the median of the ratios. The
linear probe's sweep is ``LogisticRegression(C, max_iter=2000)`` at each of the strengths on standardised features,
as one would write it. The last line is JSON: ``probe_vs_sklearn`` (time of their sweep over ours), ``probe_auroc_gap``
(the largest difference of test AUROC at any strength, both solved to their default tolerance), ``knn_vs_lightly`` (time
of ``knn_predict`` over ours, k 200).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
import warnings

import numpy as np
import torch
from lightly.utils.benchmarking.knn import knn_predict
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ssl_mednet.probe import fit_path, knn_scores
from ssl_mednet.probe.metrics import auroc

CLASSES, WIDTH = 8, 512
KNN_WIDTH, KNN_CLASSES, K, TEMPERATURE, QUERIES = 384, 8, 200, 0.07, 2000


def features(rows: int, width: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features as backbones make them: a decaying spectrum, means of different scale, classes that overlap."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    shared = np.random.default_rng(0)
    rotation = np.linalg.qr(shared.normal(size=(width, width)))[0]
    centres = shared.normal(size=(classes, width)) * 0.6
    spectrum = 1.0 / np.sqrt(1.0 + np.arange(width))
    x = ((rng.normal(size=(rows, width)) + centres[labels]) * spectrum) @ rotation
    return np.maximum(x + 0.1, 0).astype(np.float32), labels


def timed(work: object) -> tuple[float, object]:
    began = time.perf_counter()
    result = work()  # type: ignore[operator]
    return time.perf_counter() - began, result


def linear(rows: int, count: int, alternations: int) -> dict[str, object]:
    x, y = features(rows, WIDTH, CLASSES, seed=1)
    test, truth = features(3000, WIDTH, CLASSES, seed=2)
    strengths = tuple(np.logspace(-5, 1, count))
    scaler = StandardScaler().fit(x)
    standard, standard_test = scaler.transform(x), scaler.transform(test)

    def theirs() -> list[LogisticRegression]:
        return [LogisticRegression(C=c, max_iter=2000).fit(standard, y) for c in strengths]

    ratios, gap = [], 0.0
    for _ in range(alternations):
        seconds, path = timed(lambda: fit_path(x, y, strengths, CLASSES))
        slow, fitted = timed(theirs)
        ratios.append(slow / seconds)
        print(f"linear: ours {seconds:.1f} s, scikit-learn {slow:.1f} s for {count} strengths", flush=True)
        ours = [auroc(truth, path.probe(i).predict_proba(test)) for i in range(count)]  # type: ignore[attr-defined]
        other = [auroc(truth, model.predict_proba(standard_test)) for model in fitted]  # type: ignore[attr-defined]
        gap = max(gap, max(abs(a - b) for a, b in zip(ours, other, strict=True)))
    return {
        "probe_vs_sklearn": round(statistics.median(ratios), 2),
        "probe_vs_sklearn_spread": [round(min(ratios), 2), round(max(ratios), 2)],
        "probe_auroc_gap": round(gap, 6),
    }


def knn(bank_rows: int, alternations: int) -> dict[str, object]:
    bank, labels = features(bank_rows, KNN_WIDTH, KNN_CLASSES, seed=3)
    queries, _ = features(QUERIES, KNN_WIDTH, KNN_CLASSES, seed=4)
    unit = torch.nn.functional.normalize
    theirs_bank = unit(torch.from_numpy(bank), dim=1).T.contiguous()
    theirs_labels, theirs_queries = torch.from_numpy(labels), unit(torch.from_numpy(queries), dim=1)

    def ours() -> np.ndarray:
        return knn_scores(bank, labels, queries, K, num_classes=KNN_CLASSES, temperature=TEMPERATURE)

    def theirs() -> torch.Tensor:
        parts = [
            knn_predict(part, theirs_bank, theirs_labels, KNN_CLASSES, K, TEMPERATURE)
            for part in theirs_queries.split(256)  # as its benchmark callback feeds it, batch by batch
        ]
        return torch.cat(parts)

    agree = (ours().argmax(axis=1) == theirs()[:, 0].numpy()).mean()
    ratios = [timed(theirs)[0] / timed(ours)[0] for _ in range(3 * alternations)]
    print(
        f"kNN: {statistics.median(ratios):.2f} times lightly's speed, {agree:.4f} of the decisions are equal",
        flush=True,
    )
    return {
        "knn_vs_lightly": round(statistics.median(ratios), 2),
        "knn_vs_lightly_spread": [round(min(ratios), 2), round(max(ratios), 2)],
        "knn_agreement": round(float(agree), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alternations", type=int, default=3)
    parser.add_argument("--strengths", type=int, default=20)
    parser.add_argument("--rows", type=int, default=12_000)
    parser.add_argument("--bank", type=int, default=20_000)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    print(f"{machine}, torch {torch.__version__}", flush=True)
    found = knn(args.bank, args.alternations) | linear(args.rows, args.strengths, args.alternations)
    for name, value in found.items():
        print(f"{name:>24}  {value}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
