"""A small results folder as `evaluate` writes it: three tasks, three weights, all protocols; and a pretraining run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ssl_mednet.evaluation.names import file_stem
from ssl_mednet.probe import METRICS, Interval, paired_bootstrap

WEIGHTS = {"runs/gray": 1.6, "random:resnet10t": 0.7, "imagenet:efficientnet_lite0": 1.2}  # how well each tells apart
ALL = ("linear", "finetune", "knn")
CORRUPTIONS = ("gaussian_noise", "blur", "motion")
SHOTS, SHARES = (1, 5, 10, 50), (0.01, 0.1, 1.0)
REPORTED = ("auroc", "average_precision", "accuracy", "balanced_accuracy", "macro_f1", "ece")
Row = dict[str, Any]


class Writer:
    """Writes one results folder; everything in it follows from the seed."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder, self.rng = folder, np.random.default_rng(seed)
        self.rows: list[Row] = []
        self.comparisons: list[dict[str, Any]] = []
        self.scores: dict[str, np.ndarray] = {}
        for name in ("predictions", "gallery"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def task(
        self, name: str, classes: list[str], n: int, side: int, depth: int, protocols: tuple[str, ...], **facts: Any
    ) -> None:
        """These protocols on all labels, and all others, of all weights on one task; and its gallery."""
        multilabel = facts.get("kind") == "multi-label"
        shape = (n, len(classes)) if multilabel else n
        self.targets = self.rng.integers(0, 2 if multilabel else len(classes), shape)
        self.groups = np.arange(n) // 2 if facts.get("grouped") else np.full(n, -1)
        self.ids = np.arange(100, 100 + n)
        self.classes, self.name = classes, name
        self.facts = {"kind": "multi-class", "grouped": False, "splits_made": [], "skipped": 0} | facts
        self._majority()
        for weights, skill in WEIGHTS.items():
            for protocol in protocols:
                self._full(weights, protocol, skill + {"knn": -0.3, "finetune": 0.3}.get(protocol, 0.0))
            for share in SHARES[:-1]:
                self._draws(weights, "linear", skill * (0.5 + share), {"labels": share})
            if not multilabel:
                for shots in SHOTS:
                    for protocol in ("few_shot_linear", "few_shot_centroid"):
                        self._draws(
                            weights, protocol, skill * np.log10(shots + 2) / 2, {"shots": shots, "labels": None}
                        )
            self._robustness(weights, skill)
            self._map(weights, skill)
        self._thumbnails(side, depth)

    def _add(self, weights: str, protocol: str, metrics: dict[str, Any], **more: Any) -> Row:
        key = f"{len(self.rows):020x}"
        setting = {"labels": 1.0, "shots": None, "seed": 0}
        row = {"weights": weights, "task": self.name, "protocol": protocol, **setting, "n": len(self.targets)}
        row |= {"n_train": 400, "n_val": 60, "classes": self.classes, "metrics": metrics, "chosen_on_val": {"note": ""}}
        row |= {"image_size": 64, "channels": "gray", "architecture": "resnet10t", "weights_sha256": f"{weights:0>64}"}
        row |= {"source": f"/home/someone/data/{self.name}.zip", "data_fingerprint": "f" * 64, "key": key}
        row |= {"predictions": f"predictions/{key}.npz", "seconds": 1.0} | self.facts | more
        self.rows.append(row)
        return row

    def _scores(self, skill: float) -> np.ndarray:
        noise = self.rng.normal(size=(len(self.targets), len(self.classes)))
        if self.targets.ndim == 2:
            return 1 / (1 + np.exp(-(noise + skill * (2 * self.targets - 1))))
        noise[np.arange(len(noise)), self.targets] += skill
        scores = np.exp(2 * noise)
        return scores / scores.sum(axis=1, keepdims=True)

    def _interval(self, value: float, width: float = 0.03) -> dict[str, float]:
        return asdict(Interval(float(value), float(max(value - width, 0)), float(min(value + width, 1)), 1000))

    def _write(self, row: Row, scores: np.ndarray) -> None:
        arrays = {"scores": scores.astype(np.float32), "targets": self.targets, "rows": self.ids, "groups": self.groups}
        np.savez_compressed(self.folder / row["predictions"], **arrays)

    def _majority(self) -> None:
        share = self.targets.mean(axis=0) if self.targets.ndim == 2 else np.bincount(self.targets) / len(self.targets)
        scores = np.tile(share, (len(self.targets), 1))
        metrics = {m: self._interval(METRICS[m](self.targets, scores)) for m in REPORTED}
        self._write(self._add("baseline:majority", "majority", metrics), scores)

    def _full(self, weights: str, protocol: str, skill: float) -> None:
        scores = self._scores(skill)
        metrics = {m: self._interval(METRICS[m](self.targets, scores)) for m in REPORTED}
        metrics["ece_calibrated"] = self._interval(0.02)
        more: dict[str, Any] = {"per_class": {"recall": {}, "auroc": {}}}
        for c, name in enumerate(self.classes):
            positive = self.targets[:, c] if self.targets.ndim == 2 else (self.targets == c).astype(int)
            both = np.stack([1 - scores[:, c], scores[:, c]], axis=1)
            more["per_class"]["recall"][name] = float((scores[positive == 1, c] > 0.5).mean())
            more["per_class"]["auroc"][name] = METRICS["auroc"](positive, both)
        if protocol == "finetune":
            more["history"] = [{"epoch": e, "loss": 1 / e, "val_auroc": 1 - 0.4 / e} for e in range(1, 9)]
        if self.targets.ndim == 1 and len(self.classes) == 2:
            found, positive = scores[:, 1] >= 0.4, self.targets == 1
            rates = {"sensitivity": found[positive].mean(), "specificity": (~found)[~positive].mean()}
            more["operating_point"] = {"threshold": 0.4} | {k: float(v) for k, v in rates.items()}
        row = self._add(weights, protocol, metrics, **more)
        self._write(row, scores)
        first = self.scores.setdefault(f"{self.name} {protocol}", scores)
        if first is not scores:
            groups = self.groups if self.facts["grouped"] else None
            found_ = asdict(paired_bootstrap(METRICS["auroc"], self.targets, first, scores, groups, n=200))
            said = {k: row[k] for k in ("task", "protocol", "labels", "shots", "seed")}
            self.comparisons.append(said | {"metric": "auroc", "a": next(iter(WEIGHTS)), "b": weights} | found_)

    def _draws(self, weights: str, protocol: str, skill: float, setting: dict[str, Any]) -> None:
        value = METRICS["auroc"](self.targets, self._scores(skill))
        metrics = {m: self._interval(value) for m in ("auroc", "accuracy", "balanced_accuracy")}
        self._add(weights, protocol, metrics, draws=20, spread={"auroc": 0.02}, **setting)

    def _robustness(self, weights: str, skill: float) -> None:
        errors = {c: [0.5 - 0.3 * skill / (1 + s / 5) / 2 for s in range(1, 6)] for c in CORRUPTIONS}
        metrics = {m: self._interval(0.5 - 0.1 * skill) for m in ("balanced_error", "clean_balanced_error")}
        self._add(weights, "robustness", metrics, corruptions=errors, n=len(self.targets) // 2)

    def _map(self, weights: str, skill: float) -> None:
        sample = self.ids[:80]
        labels = self.targets[:80] if self.targets.ndim == 1 else self.targets[:80].sum(axis=1)
        angle = 2 * np.pi * labels / 3
        xy = 2 * skill * np.stack([np.cos(angle), np.sin(angle)], axis=1) + self.rng.normal(size=(80, 2))
        near = self.rng.integers(0, 40, (4, 6))
        known = self.targets.ndim == 1
        path = self.folder / "gallery" / f"{file_stem(self.name)}--{file_stem(weights)}.npz"
        similarity = np.sort(self.rng.uniform(0.5, 1, near.shape))[:, ::-1]
        arrays = {"sample": sample, "xy": xy.astype(np.float32), "explained": np.array([0.41, 0.123])}
        arrays |= {"queries": sample[:4], "neighbours": near, "similarity": similarity}
        arrays["query_labels"] = labels[:4] if known else np.full(4, -1)
        arrays["neighbour_labels"] = near % len(self.classes) if known else np.full(near.shape, -1)
        np.savez_compressed(path, **arrays)

    def _thumbnails(self, side: int, depth: int) -> None:
        rows = np.concatenate([np.arange(40), self.ids])
        y, x = np.mgrid[:side, :side] / side - 0.5
        pictures = []
        for row in rows:
            dx, dy, r = self.rng.uniform((-0.2, -0.2, 0.1), (0.2, 0.2, 0.5))
            blob = np.exp(-(((x - dx) ** 2 + (y - dy) ** 2) / r**2) * 8)
            tint = np.array([1.0, 0.6, 0.4])[:depth] if depth == 3 else np.ones(1)
            pictures.append((blob[..., None] * tint * 200 + 20 + row % 30).clip(0, 255).astype(np.uint8))
        path = self.folder / "gallery" / f"{file_stem(self.name)}.npz"
        np.savez_compressed(path, rows=rows, thumbnails=np.stack(pictures))

    def finish(self) -> Path:
        """Write the three JSON files."""
        run = {"command": "ssl-mednet evaluate --weights /home/someone/runs/gray random:", "version": "0.1.0"}
        run |= {"suite": {"name": "small", "resamples": 200}, "started": "2026-11-24T10:00:00+00:00", "seconds": 61.5}
        run |= {"platform": "Linux x86_64, Python 3.11", "packages": {"torch": "2.8.0"}}
        for name, content in (("results", self.rows), ("comparisons", self.comparisons), ("run", run)):
            (self.folder / f"{name}.json").write_text(json.dumps(content, indent=1))
        return self.folder


def write_results(folder: Path, tasks: tuple[str, ...] = ("gray", "color", "labels"), seed: int = 0) -> Path:
    """A results folder with some of the three tasks."""
    writer = Writer(folder, seed)
    if "gray" in tasks:
        writer.task("brain_mri", ["glioma", "meningioma", "no tumor"], 150, 48, 1, ALL, splits_made=["val"], skipped=3)
    if "color" in tasks:
        writer.task("skin", ["benign", "malignant"], 120, 56, 3, ALL[:1], grouped=True, channels="color")
    if "labels" in tasks:
        findings = ["effusion", "mass", "cardiomegaly & co <b>"]
        facts = {"kind": "multi-label", "source": "medmnist:chestmnist?size=64"}
        writer.task("medmnist:chestmnist", findings, 120, 28, 1, ALL[:2], **facts)
    return writer.finish()


def write_run(folder: Path) -> Path:
    """A finished pretraining run."""
    (folder / "pictures").mkdir(parents=True)
    (folder / "backbone").mkdir()
    (folder / "recipe.yaml").write_text("name: gray\ndata:\n  source: /home/someone/scans.zip\nmethod:\n  name: mae\n")
    (folder / "environment.json").write_text(json.dumps({"python": "3.11", "packages": {"torch": "2.8.0"}}))
    lines = [f"{s},{2 / s:.4f},0.001,{'' if s == 1 else 0.9}" for s in range(1, 60, 5)]
    (folder / "metrics.csv").write_text("\n".join(["step,loss,lr,feature_std", *lines]) + "\n")
    Image.fromarray(np.arange(64 * 192, dtype=np.uint8).reshape(64, 192)).save(
        folder / "pictures" / "reconstruction.png"
    )
    sha = f"{'runs/gray':0>64}"
    (folder / "backbone" / "config.json").write_text(json.dumps({"ssl_mednet": {"sha256": sha}}))
    card = f"# gray\n\n| | |\n| --- | --- |\n| input | gray, 64 x 64 |\n| sha256 | `{sha}` |\n"
    (folder / "backbone" / "README.md").write_text(card)
    return folder
