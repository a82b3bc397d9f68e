"""What a report shows of a set besides figures: thumbnails, a map of the features, neighbours of some images."""

from __future__ import annotations

import glob
from pathlib import Path

import faiss
import numpy as np
from sklearn.decomposition import PCA

from ssl_mednet.augment.views import resize
from ssl_mednet.data.labelled import LabelledSet
from ssl_mednet.evaluation.bench import Bench
from ssl_mednet.evaluation.names import file_stem
from ssl_mednet.evaluation.results import Row
from ssl_mednet.evaluation.subsets import balanced
from ssl_mednet.probe import unit_rows

FOLDER = "gallery"
SIDE = 56  # of a thumbnail, pixels
QUERIES, NEIGHBOURS = 8, 6
MISTAKES = 24  # of each row of results, the most confident first
_BATCH = 256


def map_features(bench: Bench, folder: Path) -> tuple[Path, np.ndarray]:
    """Write the map and the neighbours of one backbone; also return the ids of the images that they show.

    The map is the plane of the two largest principal components of the test features: linear, so that distances on it
    are at most those of the features.
    """
    task, test = bench.task, bench.task.splits["test"]
    features = bench.features("test").astype(np.float64)
    sample = np.sort(balanced(task.labels[test], bench.suite.gallery))
    with np.errstate(invalid="ignore"):  # a constant backbone has no variance to explain
        pca = PCA(min(2, *features.shape), svd_solver="full").fit(features)
    plane = np.zeros((len(sample), 2), np.float32)
    plane[:, : pca.n_components_] = pca.transform(features[sample])
    explained = np.zeros(2)
    explained[: pca.n_components_] = np.nan_to_num(pca.explained_variance_ratio_)

    queries = sample[balanced(task.labels[test[sample]], QUERIES)]
    index = faiss.IndexFlatIP(features.shape[1])
    index.add(unit_rows(bench.features("train")))
    similarity, neighbours = index.search(unit_rows(bench.features("test")[queries]), min(NEIGHBOURS, index.ntotal))
    neighbours = task.splits["train"][neighbours]
    path = folder / FOLDER / f"{file_stem(task.name)}--{file_stem(bench.weights.name)}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        sample=test[sample],
        xy=plane,
        explained=explained,
        queries=test[queries],
        neighbours=neighbours,
        similarity=similarity,
        query_labels=_numbers(task, test[queries]),
        neighbour_labels=_numbers(task, neighbours),
    )
    return path, np.unique(np.concatenate([test[sample], neighbours.ravel()]))


def write_thumbnails(task: LabelledSet, folder: Path, ids: np.ndarray) -> None:
    """``rows`` and ``thumbnails`` ``[M, 56, 56, C]`` uint8 of these images, once for all backbones."""
    pictures = []
    for start in range(0, len(ids), _BATCH):
        small = resize(task.corpus.batch(ids[start : start + _BATCH]), SIDE)
        pictures.append((small * 255).round().byte().permute(0, 2, 3, 1).numpy())
    np.savez_compressed(folder / FOLDER / f"{file_stem(task.name)}.npz", rows=ids, thumbnails=np.concatenate(pictures))


def forget_pictures(task: LabelledSet, folder: Path) -> None:
    """Take away what an earlier run kept of a set's images, which a report would show."""
    stem = file_stem(task.name)
    for path in (folder / FOLDER).glob(f"{glob.escape(stem)}*.npz"):
        if path.stem.partition("--")[0] == stem:
            path.unlink()


def worst_mistakes(row: Row, folder: Path) -> np.ndarray:
    """Ids of the test images that a row of results is most wrongly sure of, the worst first.

    Of several findings an image has, the one that it is furthest off counts.
    """
    with np.load(folder / row["predictions"], allow_pickle=False) as arrays:
        scores, targets, rows = arrays["scores"], arrays["targets"], arrays["rows"]
    if scores.ndim == 3:
        return rows[:0]
    if targets.ndim == 2:
        sure = np.abs(scores - targets).max(axis=1)
        wrong = np.flatnonzero(sure > 0.5)
    else:
        sure = scores.max(axis=1)
        wrong = np.flatnonzero(scores.argmax(axis=1) != targets)
    return np.asarray(rows[wrong[np.argsort(-sure[wrong], kind="stable")]][:MISTAKES])


def _numbers(task: LabelledSet, ids: np.ndarray) -> np.ndarray:
    """Class numbers; -1 where an image may have several findings."""
    return np.full(ids.shape, -1) if task.multilabel else task.labels[ids]
