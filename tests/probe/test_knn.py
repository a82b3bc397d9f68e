import numpy as np
import pytest
import torch
from lightly.utils.benchmarking import knn_predict

from ssl_mednet.errors import DataError
from ssl_mednet.probe import METRICS, bootstrap, knn_scores, select_k
from ssl_mednet.probe.metrics import accuracy, auroc


def clusters(n, d=16, c=4, seed=0, spread=0.6):
    """Points around c fixed directions."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((c, d))
    labels = rng.integers(c, size=n)
    return (centres[labels] + spread * rng.standard_normal((n, d))).astype(np.float32), labels


def plain(bank, labels, queries, k, c, temperature):
    """The definition in float64, one query at a time."""
    unit = [x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries)]
    out = np.zeros((len(queries), c))
    for i, query in enumerate(unit[1]):
        similarity = unit[0] @ query
        for j in np.argsort(-similarity)[:k]:
            out[i] += np.exp(similarity[j] / temperature) * (np.eye(c)[labels[j]] if labels.ndim == 1 else labels[j])
        out[i] /= np.exp(np.sort(similarity)[::-1][:k] / temperature).sum()
    return out


@pytest.mark.parametrize("k", [1, 7, 150])
def test_votes_are_the_paper_s(k):
    bank, labels = clusters(300)
    queries, _ = clusters(40, seed=1)
    got = knn_scores(bank, labels, queries, k, num_classes=4)
    assert got == pytest.approx(plain(bank, labels, queries, k, 4, 0.07), abs=2e-5)
    assert got.sum(axis=1) == pytest.approx(1.0)


def test_multilabel_votes_are_the_weighted_share():
    bank, labels = clusters(300)
    several = np.stack([labels == 0, labels < 2, labels >= 0, labels > 3], axis=1).astype(int)
    queries, _ = clusters(40, seed=1)
    got = knn_scores(bank, several, queries, 20, num_classes=4)
    assert got == pytest.approx(plain(bank, several, queries, 20, 4, 0.07), abs=2e-5)
    assert (got[:, 2] == 1.0).all()
    assert (got[:, 3] == 0.0).all()


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (20, 0.1), (200, 0.07), (200, 0.5)])
def test_order_of_classes_is_lightly_s(k, temperature):
    bank, labels = clusters(2000, d=64, c=10, spread=3.0)
    queries, _ = clusters(500, d=64, c=10, seed=1, spread=3.0)
    unit = [torch.nn.functional.normalize(torch.tensor(x), dim=1) for x in (bank, queries)]
    theirs = knn_predict(unit[1], unit[0].T.contiguous(), torch.tensor(labels), 10, k, temperature).numpy()
    ours = knn_scores(bank, labels, queries, k, num_classes=10, temperature=temperature)
    in_their_order = np.take_along_axis(ours, theirs, axis=1)
    assert (np.diff(in_their_order, axis=1) <= 1e-5).all()  # falling; equal votes may stand in any order
    assert (ours.argmax(axis=1) == theirs[:, 0]).mean() > 0.99
    assert len(np.unique(theirs[:, 0])) > 5


def test_a_bank_smaller_than_k_votes_as_a_whole():
    bank, labels = clusters(12)
    queries, _ = clusters(9, seed=1)
    assert (
        knn_scores(bank, labels, queries, 200, num_classes=4) == knn_scores(bank, labels, queries, 12, num_classes=4)
    ).all()
    choice = select_k(bank, labels, queries, clusters(9, seed=1)[1], [5, 100, 200], num_classes=4)
    assert list(choice.tried) == [5, 12]
    assert "12 rows" in choice.note


def test_a_class_without_a_bank_row_scores_nothing():
    bank, labels = clusters(100)
    scores = knn_scores(bank[labels != 2], labels[labels != 2], bank, 10, num_classes=6)
    assert (scores[:, [2, 4, 5]] == 0).all()
    assert scores.shape == (100, 6)


def test_length_of_features_does_not_matter():
    bank, labels = clusters(200)
    queries, _ = clusters(30, seed=1)
    want = knn_scores(bank, labels, queries, 10, num_classes=4)
    rng = np.random.default_rng(0)
    for scale in (1e-25, 1.0, 1e25):
        got = knn_scores(
            bank * rng.uniform(1, 9, (200, 1)) * scale, labels, torch.tensor(queries) * scale, 10, num_classes=4
        )
        assert got == pytest.approx(want, abs=1e-5)


def test_rows_of_zeros_and_tiny_temperatures_are_safe():
    bank, labels = clusters(50)
    bank[:3] = 0
    queries = np.concatenate([np.zeros((2, 16), np.float32), bank[10:20]])
    scores = knn_scores(bank, labels, queries, 5, num_classes=4, temperature=1e-6)
    assert np.isfinite(scores).all()
    assert (scores[2:].argmax(axis=1) == labels[10:20]).all()


def test_a_constant_backbone_scores_a_half():
    _, labels = clusters(600)
    constant = np.full((600, 16), 0.3, np.float32)
    interval = bootstrap(
        {"a": auroc}, labels[300:], knn_scores(constant[:300], labels[:300], constant[300:], 20, num_classes=4)
    )
    assert interval["a"].low <= 0.5 <= interval["a"].high


def test_the_sweep_is_the_single_searches_and_keeps_the_best():
    bank, labels = clusters(400, spread=2.5)
    val, val_labels = clusters(300, seed=1, spread=2.5)
    choice = select_k(bank, labels, val, val_labels, [1, 5, 60], num_classes=4)
    for k, value in choice.tried.items():
        assert value == pytest.approx(auroc(val_labels, knn_scores(bank, labels, val, k, num_classes=4)), abs=1e-9)
    assert choice.auroc == max(choice.tried.values()) == choice.tried[choice.k]
    assert choice.k != 1
    assert choice.note == ""


def test_of_equal_ks_the_largest_and_without_val_the_middle():
    bank, labels = clusters(200, spread=0.01)
    assert select_k(bank, labels, *clusters(50, seed=1, spread=0.01), [3, 5, 8], num_classes=4).k == 8
    empty = select_k(bank, labels, bank[:0], labels[:0], [3, 5, 8], num_classes=4)
    assert (empty.k, "no val rows" in empty.note) == (5, True)
    one_class = select_k(bank, labels, bank[labels == 1], labels[labels == 1], [3, 5, 8], num_classes=4)
    assert (one_class.k, "no AUROC" in one_class.note) == (5, True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bank": np.zeros((0, 16)), "bank_labels": np.zeros(0, int)}, "bank"),
        ({"k": 0}, "k >= 1"),
        ({"queries": np.full((2, 16), np.nan)}, "2 of 2 query features"),
        ({"queries": np.zeros((2, 15))}, "shape"),
        ({"num_classes": 3}, "0 .. 2"),
        ({"bank_labels": np.zeros(7, int)}, "7 labels"),
        ({"temperature": 0.0}, "T > 0"),
    ],
)
def test_what_cannot_be_is_refused_in_words(change, words):
    bank, labels = clusters(60)
    asked = {"bank": bank, "bank_labels": labels, "queries": bank, "k": 3, "num_classes": 4} | change
    with pytest.raises(DataError, match=words):
        knn_scores(**asked)


def test_torch_and_faiss_live_in_one_process_at_full_size():
    """Their OpenMP runtimes have clashed elsewhere: threads of both at work, in turn, on 20,000 x 384."""
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 384, generator=g)
    labels = torch.randint(8, (20_000,), generator=g)
    bank = centres[labels] + 4 * torch.randn(20_000, 384, generator=g)
    asked = slice(0, 1000)
    before = (bank @ bank[asked].T).sum()
    scores = knn_scores(bank, labels, bank[asked], 200, num_classes=8)
    assert (bank @ bank[asked].T).sum() == before
    assert accuracy(labels[asked], scores) > 0.9
    assert METRICS["auroc"](labels[asked], scores) > 0.9
