"""How far the val and test images of a set are from its training images, to a frozen net.

    python tests/benchmarks/shift.py --data kermany_cxr.zip --weights gray-mednet-tiny imagenet:efficientnet_lite0@96

For each class, a cross-validated logistic regression tells the images of a split from training images of that class
(AUROC; .5 where they are drawn alike). Then macro AUROC of the linear probe (strength chosen on val) on both splits,
the share of each class that it calls right there, and what a probe reaches that is cross-validated within the test
images. This reads the labels of the test split: it explains a figure, and nothing may be chosen by it.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ssl_mednet.classifying.folds import cross_validate
from ssl_mednet.data.corpus import CorpusSpec
from ssl_mednet.data.labelled import open_labelled
from ssl_mednet.evaluation.features import extract
from ssl_mednet.evaluation.weights import load_weights
from ssl_mednet.probe.linear import DEFAULT_STRENGTHS, fit_linear
from ssl_mednet.probe.metrics import auroc

MOST = 4  # training images for each of the split


def told_apart(train: np.ndarray, other: np.ndarray) -> float:
    train = train[np.random.default_rng(0).permutation(len(train))[: MOST * len(other)]]
    origin = np.repeat([0, 1], [len(train), len(other)])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    scores = cross_val_predict(model, np.concatenate([train, other]), origin, cv=5, method="predict_proba")
    return float(roc_auc_score(origin, scores[:, 1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", nargs="+", required=True)
    parser.add_argument("--channels", default="gray")
    args = parser.parse_args()
    task = open_labelled(args.data, CorpusSpec(args.channels, 256), quiet=True)
    for weights in load_weights(args.weights, args.channels, 96, 0):
        rows = {split: np.sort(rows) for split, rows in task.splits.items()}
        x = {split: extract(weights, task.corpus, r, torch.device("cpu"), True) for split, r in rows.items()}
        y = {split: task.labels[r] for split, r in rows.items()}
        probe = fit_linear(x["train"], y["train"], x["val"], y["val"], num_classes=len(task.classes))
        print(weights.name)
        for split in ("val", "test"):
            scores = probe.predict_proba(x[split])
            print(f"  {split}: AUROC {auroc(y[split], scores):.3f}")
            for number, name in enumerate(task.classes):
                of_class = y[split] == number
                apart = told_apart(x["train"][y["train"] == number], x[split][of_class])
                right = (scores.argmax(axis=1) == number)[of_class].mean()
                print(f"    {name}: told from training images {apart:.3f}, called right {right:.3f}")
        within = cross_validate(x["test"], y["test"], task.groups[rows["test"]], DEFAULT_STRENGTHS, task.classes)
        print(f"  cross-validated within test: AUROC {auroc(y['test'], within.scores):.3f}")


if __name__ == "__main__":
    main()
