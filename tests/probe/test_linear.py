import time
import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss as sk_log_loss

from ssl_mednet.errors import DataError
from ssl_mednet.probe import DEFAULT_STRENGTHS, METRICS, bootstrap, fit_linear, fit_path
from ssl_mednet.probe.lbfgs import minimise
from ssl_mednet.probe.linear import _Logistic
from ssl_mednet.probe.metrics import auroc

STRENGTHS = tuple(np.logspace(-5, 2, 20))


def features(n=900, d=40, c=4, seed=0, signal=0.5):
    """Correlated, skewed, on unequal scales and far from zero, as pooled activations are; labels that overlap."""
    rng = np.random.default_rng(seed)
    fixed = np.random.default_rng(77)
    turn, _ = np.linalg.qr(fixed.standard_normal((d, d)))
    spread = np.arange(1, d + 1) ** -0.7
    means = signal * spread * fixed.standard_normal((c, d))
    labels = rng.choice(c, size=n, p=np.arange(c, 0, -1) / np.arange(c, 0, -1).sum())
    x = np.maximum((means[labels] + spread * rng.standard_normal((n, d))) @ turn, -0.2)
    return (x * np.logspace(-2, 2, d) + 3).astype(np.float32), labels


def sklearn_fit(x, y, strength, tol=1e-4):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LogisticRegression(C=strength, max_iter=5000, tol=tol).fit(x, y)


def test_every_strength_has_scikit_learn_s_auroc():
    x, y = features()
    held, held_y = features(seed=1)
    path = fit_path(x, y, STRENGTHS, 4)
    assert path.converged.all()
    spread = []
    for i, strength in enumerate(STRENGTHS):
        theirs = sklearn_fit((x - path.mean) / path.std, y, strength)
        want = auroc(held_y, theirs.predict_proba((held - path.mean) / path.std))
        assert auroc(held_y, path.probe(i).predict_proba(held)) == pytest.approx(want, abs=1e-3)
        spread.append(want)
    assert np.ptp(spread) > 0.01  # the strengths really differ


@pytest.mark.parametrize("classes", [2, 4])
def test_converged_coefficients_are_scikit_learn_s(classes):
    x, y = features(c=classes)
    path = fit_path(x, y, (1e-4, 1e-2, 1.0), classes, tol=1e-8, max_iter=3000, dtype=torch.float64)
    assert path.converged.all()
    for i, strength in enumerate(path.strengths):
        z = (x - path.mean) / path.std
        theirs = sklearn_fit(z, y, strength, tol=1e-8)
        if classes == 2:
            assert path.weight[i, :, 1] * 2 == pytest.approx(theirs.coef_[0], abs=1e-5)
        else:
            assert path.weight[i] == pytest.approx(theirs.coef_.T, abs=1e-5)
        assert path.probe(i).predict_proba(x) == pytest.approx(theirs.predict_proba(z), abs=1e-5)


def test_multilabel_is_one_logistic_regression_a_label():
    x, y = features()
    labels = np.stack([y == 0, y < 2, y == 3], axis=1).astype(int)
    path = fit_path(x, labels, (1e-3, 0.1), 3, multilabel=True, tol=1e-7, max_iter=2000, dtype=torch.float64)
    z = (x - path.mean) / path.std
    for i, strength in enumerate(path.strengths):
        got = path.probe(i).predict_proba(x)
        for label in range(3):
            theirs = sklearn_fit(z, labels[:, label], strength, tol=1e-8)
            assert got[:, label] == pytest.approx(theirs.predict_proba(z)[:, 1], abs=1e-4)


def test_single_precision_is_enough():
    x, y = features()
    single = fit_path(x, y, STRENGTHS, 4)
    double = fit_path(x, y, STRENGTHS, 4, tol=1e-8, max_iter=5000, dtype=torch.float64)
    assert double.converged.all()
    held, held_y = features(seed=1)
    for i in range(len(STRENGTHS)):
        exact = double.probe(i).predict_proba(held)
        assert auroc(held_y, single.probe(i).predict_proba(held)) == pytest.approx(auroc(held_y, exact), abs=5e-4)


@pytest.mark.parametrize("softmax", [False, True])
def test_probabilities_of_the_solve_are_never_denormal(softmax):
    """Under weak regularisation some are 1e-40 and less; a CPU multiplies such numbers ten times more slowly."""
    z = torch.tensor([[0.0, -20.0, -95.0], [-110.0, 0.0, -70.0]])[..., None]  # exp(-90) is no normal float32
    truth = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])[..., None]
    losses, p = _Logistic(z, truth, z, z, softmax)._loss(z, truth)
    exact, target = z.double(), truth.double()
    log_p = torch.log_softmax(exact, 1) if softmax else torch.nn.functional.logsigmoid(exact)
    want = -target * log_p if softmax else -target * log_p - (1 - target) * torch.nn.functional.logsigmoid(-exact)
    assert losses.numpy() == pytest.approx(want.numpy(), rel=1e-5, abs=1e-7)
    assert p.numpy() == pytest.approx(log_p.exp().numpy(), rel=1e-5, abs=1e-20)
    assert p.min() > 1e-30


def test_the_gradient_at_the_solution_vanishes():
    """The stationarity of C * sum(loss) + 0.5 * ||W||^2 itself, bias free, without anybody's solver."""
    x, y = features()
    path = fit_path(x, y, (0.01,), 4, tol=1e-8, dtype=torch.float64)
    z = (x - path.mean) / path.std
    error = path.probe(0).predict_proba(x) - np.eye(4)[y]
    assert 0.01 * z.T @ error + path.weight[0] == pytest.approx(0, abs=1e-6 * len(x))
    assert error.sum(axis=0) == pytest.approx(0, abs=1e-6 * len(x))


def test_strengths_solved_together_are_the_strengths_solved_alone():
    x, y = features(n=300)
    together = fit_path(x, y, (10.0, 1e-4, 0.1), 4)
    assert together.strengths.tolist() == [1e-4, 0.1, 10.0]
    for i, strength in enumerate(together.strengths):
        alone = fit_path(x, y, (strength,), 4)
        assert alone.weight[0] == pytest.approx(together.weight[i], abs=2e-2 * np.abs(alone.weight).max())


def test_the_same_twice():
    x, y = features(n=300)
    first, second = (fit_path(x, y, STRENGTHS, 4) for _ in range(2))
    assert (first.weight == second.weight).all()
    assert (first.iterations == second.iterations).all()


def test_a_strength_that_did_not_converge_is_reported():
    x, y = features()
    path = fit_path(x, y, (1e-6, 1.0), 4, max_iter=3)
    assert path.converged.tolist() == [True, False]
    assert path.iterations[1] == 3
    assert "did not converge" in path.probe(1).note
    assert not path.probe(1).converged
    assert path.probe(0).note == ""


def test_the_strength_is_chosen_on_val_and_of_equals_by_the_loss():
    x, y = features(n=200)
    val, val_y = features(n=400, seed=1)
    probe = fit_linear(x, y, val, val_y, num_classes=4)
    path = fit_path(x, y, DEFAULT_STRENGTHS, 4)
    values = [auroc(val_y, path.probe(i).predict_proba(val)) for i in range(len(DEFAULT_STRENGTHS))]
    assert probe.strength == path.strengths[np.argmax(values)]
    assert DEFAULT_STRENGTHS[0] < probe.strength < DEFAULT_STRENGTHS[-1]
    easy, easy_y = features(signal=50.0)  # ranked without fault at every strength
    path = fit_path(easy, easy_y, DEFAULT_STRENGTHS, 4)
    losses = [sk_log_loss(easy_y, path.probe(i).predict_proba(easy)) for i in range(len(DEFAULT_STRENGTHS))]
    np.testing.assert_allclose(path.log_loss(easy, easy_y), losses, atol=1e-6)
    chosen = fit_linear(easy, easy_y, easy, easy_y, num_classes=4).strength
    assert chosen == path.strengths[np.argmin(losses)] > DEFAULT_STRENGTHS[0]


def test_a_rare_class_that_is_easy_is_not_given_up():
    """AUROC is 1 at every strength; the most regularised fit would call all images by the most frequent class."""
    x, y = features(n=2000, signal=3.0)
    kept = np.sort(np.concatenate([np.flatnonzero(y == c)[:n] for c, n in enumerate([300, 100, 50, 10])]))
    probe = fit_linear(x[kept], y[kept], x[kept], y[kept], num_classes=4)
    assert METRICS["balanced_accuracy"](y, probe.predict_proba(x)) > 0.95


@pytest.mark.parametrize(("keep", "words"), [(lambda y: y < 0, "no val rows"), (lambda y: y == 1, "no AUROC")])
def test_without_a_usable_val_the_middle_strength_stands_and_is_noted(keep, words):
    x, y = features(n=200)
    probe = fit_linear(x, y, x[keep(y)], y[keep(y)], num_classes=4)
    assert probe.strength == DEFAULT_STRENGTHS[len(DEFAULT_STRENGTHS) // 2]
    assert words in probe.note


def test_standardisation_is_of_train_alone():
    x, y = features(n=200)
    x[:, 5] = 7.3
    val, val_y = features(n=100, seed=1)
    probe = fit_linear(x, y, val * 5 + 1, val_y, num_classes=4)
    assert probe.mean == pytest.approx(x.mean(axis=0, dtype=np.float64))
    assert probe.std[5] == 1.0
    variance = np.delete(x.var(axis=0, dtype=np.float64), 5)
    moderated = (200 * variance + 100 * np.exp(np.log(variance).mean())) / 300
    assert np.delete(probe.std, 5) == pytest.approx(np.sqrt(moderated))
    assert probe.weight[5] == pytest.approx(0.0)


def test_features_that_hardly_moved_in_a_few_rows_do_not_drown_the_others():
    """ReLU features are often near zero: over a few rows their deviation is chance, divided by it they are noise."""
    rng = np.random.default_rng(0)

    def drawn(n):
        y = np.arange(n) % 2
        quiet = np.where(rng.random((n, 1000)) < 0.1, rng.exponential(1.0, (n, 1000)), 1e-3 * rng.random((n, 1000)))
        return np.concatenate([y[:, None] + 0.7 * rng.standard_normal((n, 20)), quiet], axis=1), y

    values = {"moderated": [], "plain": []}
    for _ in range(5):
        (x, y), (held, held_y) = drawn(10), drawn(400)
        values["moderated"].append(fit_path(x, y, (1.0,), 2).auroc(held, held_y)[0])
        plain = sklearn_fit((x - x.mean(axis=0)) / x.std(axis=0), y, 1.0)
        values["plain"].append(auroc(held_y, plain.predict_proba((held - x.mean(axis=0)) / x.std(axis=0))))
    assert np.mean(values["moderated"]) > np.mean(values["plain"]) + 0.05


def test_many_rows_have_their_plain_deviation():
    x, y = features(n=20_000)
    probe = fit_linear(x, y, x[:500], y[:500], num_classes=4)
    usual = x.std(axis=0, dtype=np.float64)
    wide = usual > np.median(usual)
    assert probe.std[wide] == pytest.approx(usual[wide], rel=0.01)


def test_units_of_features_do_not_matter():
    x, y = features(n=300)
    want = fit_path(x, y, (0.01,), 4).probe(0).predict_proba(x)
    moved = x.astype(np.float64) * 1e6 - 4e5
    assert fit_path(moved, y, (0.01,), 4).probe(0).predict_proba(moved) == pytest.approx(want, abs=1e-3)


def test_fewer_rows_than_features_or_classes():
    x, y = features(n=30, d=200, c=4)
    path = fit_path(x, y, (1e-3, 1.0), 4, tol=1e-7, max_iter=2000, dtype=torch.float64)
    z = (x - path.mean) / path.std
    held = features(n=50, d=200, c=4, seed=1)[0]
    for i, strength in enumerate(path.strengths):
        theirs = sklearn_fit(z, y, strength, tol=1e-8).predict_proba((held - path.mean) / path.std)
        assert path.probe(i).predict_proba(held) == pytest.approx(theirs, abs=1e-3)
    two = fit_path(x[:2], np.array([0, 6]), (1.0,), 8).probe(0).predict_proba(x[:2])
    assert two.argmax(axis=1).tolist() == [0, 6]


def test_a_class_without_a_training_row_has_probability_zero():
    x, y = features()
    assert (fit_linear(x[y != 1], y[y != 1], x, y, num_classes=5).predict_proba(x)[:, [1, 4]] == 0).all()
    probe = fit_path(x[y != 1], y[y != 1], (0.1,), 5, tol=1e-7, max_iter=2000, dtype=torch.float64).probe(0)
    p = probe.predict_proba(x)
    assert (p[:, [1, 4]] == 0).all()
    assert p.sum(axis=1) == pytest.approx(1.0)
    theirs = sklearn_fit((x[y != 1] - probe.mean) / probe.std, y[y != 1], 0.1, tol=1e-8)
    assert p[:, [0, 2, 3]] == pytest.approx(theirs.predict_proba((x - probe.mean) / probe.std), abs=1e-4)


def test_a_label_that_is_constant_in_train_keeps_its_constant():
    x, y = features(n=200)
    labels = np.stack([y == 0, y >= 0, y > 9], axis=1).astype(int)
    p = fit_linear(x, labels, x, labels, num_classes=3, multilabel=True).predict_proba(x)
    assert (p[:, 1] == 1).all()
    assert (p[:, 2] == 0).all()
    assert auroc(labels[:, :1], p[:, :1]) > 0.7


def test_shuffled_labels_are_a_coin_and_separable_ones_perfect():
    x, y = features(n=1200)
    y = np.random.default_rng(3).permutation(y)
    probe = fit_linear(x[:600], y[:600], x[600:900], y[600:900], num_classes=4)
    interval = bootstrap({"a": auroc}, y[900:], probe.predict_proba(x[900:]))["a"]
    assert interval.low < 0.5 < interval.high
    easy, easy_y = features(signal=50.0)
    probe = fit_linear(easy[:600], easy_y[:600], easy[600:700], easy_y[600:700], num_classes=4)
    assert auroc(easy_y[700:], probe.predict_proba(easy[700:])) == 1.0


def test_a_constant_backbone_is_a_coin():
    _, y = features(n=300)
    constant = 0.3 + 1e-9 * np.random.default_rng(0).standard_normal((300, 8))  # but for rounding
    probe = fit_linear(constant, y, constant, y, num_classes=4)
    assert auroc(y, probe.predict_proba(constant)) == 0.5
    assert probe.predict_proba(constant)[0] == pytest.approx(np.bincount(y) / 300, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": np.full((6, 3), np.nan)}, "6 of 6 train features hold NaN"),
        ({"train_targets": np.ones(6, int)}, "all rows are of class 1"),
        ({"train": np.zeros((0, 3)), "train_targets": np.zeros(0, int)}, "no rows"),
        ({"train_targets": np.array([0, 1, 2, 3, 4, 5])}, "0 .. 1"),
        ({"train_targets": np.array([0, 1])}, "6 rows but 2"),
        ({"train_targets": np.ones((6, 2), int), "multilabel": True}, "every label is constant"),
        ({"multilabel": True}, "multilabel is True"),
        ({"val": np.zeros((6, 4))}, r"\[N, 3\]"),
        ({"strengths": (0.0, 1.0)}, "above 0"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_words(change, words):
    x, y = np.random.default_rng(0).standard_normal((6, 3)), np.array([0, 1, 0, 1, 0, 1])
    asked = {"train": x, "train_targets": y, "val": x, "val_targets": y, "num_classes": 2} | change
    with pytest.raises(DataError, match=words):
        fit_linear(**asked)


def test_the_minimiser_finds_known_minima_each_on_its_own():
    """Quadratics of very different stiffness, one of them with a wrong preconditioner, and one that has no minimum."""
    stiff = torch.logspace(-2, 3, 6, dtype=torch.float64)[:, None] * torch.tensor([1.0, 10.0, 0.1, 0.0]).double()
    goal = torch.arange(24, dtype=torch.float64).view(6, 4) / 5
    pull = torch.tensor([0.0, 0.0, 0.0, 1.0]).double()

    def objective(x, problems):
        a, g, b = stiff[:, problems], goal[:, problems], pull[problems]
        wrong = torch.tensor([1.0, 0.1, 30.0, 1.0]).double()[problems]
        return (a * (x - g) ** 2 / 2 + b * x).sum(0), a * (x - g) + b, wrong * torch.ones_like(x)

    found = minimise(objective, torch.zeros(6, 4).double(), max_iter=200, tol=1e-9, noise=1e-14)
    assert found.converged.tolist() == [True, True, True, False]
    assert found.x[:, :3].numpy() == pytest.approx(goal[:, :3].numpy(), abs=1e-5)
    assert found.iterations[3] == 200


def test_the_whole_path_is_quick():
    """Eight times the work of one strength would be no batched solve."""
    x, y = features(n=4000, d=128, c=8)
    start = time.process_time()
    path = fit_path(x, y, DEFAULT_STRENGTHS, 8)
    assert time.process_time() - start < 20
    assert path.converged.all()
    assert len(DEFAULT_STRENGTHS) >= 20
