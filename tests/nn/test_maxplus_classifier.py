"""MaxPlusClassifier: scikit-learn's checks of its conventions, what it learns, and what it refuses."""

import pickle
import warnings

import numpy as np
import pytest
import torch

from tropigrad.nn import MaxPlusClassifier

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

try:
    from sklearn.utils.estimator_checks import parametrize_with_checks

    with warnings.catch_warnings(action="ignore"):
        all_checks = parametrize_with_checks([MaxPlusClassifier(8, epochs=3)])
except ImportError:  # nothing of theirs is needed
    all_checks = pytest.mark.skip(reason="scikit-learn's checks of estimators")


@all_checks
def test_scikit_learn_s_checks(estimator, check):
    check(estimator)


def rings(n: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """Two rings, which no line separates, far from the origin and in unlike units."""
    generator = np.random.default_rng(0)
    y = np.arange(n) % 2
    angle, radius = generator.uniform(0, 2 * np.pi, n), 1 + y + generator.normal(0, 0.1, n)
    return np.stack([1000 + radius * np.cos(angle), radius * np.sin(angle) / 1000], 1), y


def test_it_learns_what_no_line_separates():
    x, y = rings()
    model = MaxPlusClassifier(16, epochs=60, batch_size=32, learning_rate=0.02).fit(x[:160], y[:160])
    assert model.score(x[160:], y[160:]) > 0.95
    assert model.loss_curve_[-1] < 0.6 * model.loss_curve_[0]
    assert len(model.loss_curve_) == 60


def test_digits_in_a_pipeline():
    datasets = pytest.importorskip("sklearn.datasets")
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline

    x, y = datasets.load_digits(return_X_y=True)
    pipeline = make_pipeline(PCA(32), MaxPlusClassifier(epochs=8)).fit(x[:1200], y[:1200])
    assert pipeline.score(x[1200:], y[1200:]) > 0.88


def test_the_module_gives_the_same_logits():
    x, y = rings(60)
    model = MaxPlusClassifier((8, 6), epochs=2).fit(x, y)
    module = model.to_module(dtype=torch.float64)
    assert all(parameter.requires_grad for parameter in module.parameters())
    expected = torch.from_numpy(model.predict_log_proba(x))
    torch.testing.assert_close(module(torch.from_numpy(x)).log_softmax(1).detach(), expected, rtol=1e-6, atol=1e-6)


def test_a_seed_gives_the_same_network_and_leaves_torch_s_generator():
    x, y = rings(60)
    before = torch.random.get_rng_state()
    models = [MaxPlusClassifier(8, epochs=2, seed=seed).fit(x, y) for seed in (1, 1, 2)]
    assert torch.equal(before, torch.random.get_rng_state())
    first, again, other = (model.predict_proba(x) for model in models)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(pickle.loads(pickle.dumps(models[0])).predict_proba(x), first)


def test_tensors_and_names():
    x, y = rings(60)
    model = MaxPlusClassifier(8, epochs=2).fit(torch.from_numpy(x), np.array(["in", "out"])[y])
    assert model.classes_.tolist() == ["in", "out"]
    assert model.predict_proba(torch.from_numpy(x)).dtype == torch.float64
    constant = MaxPlusClassifier(4, epochs=1).fit([[0.1, 1], [0.1, 2], [0.1, 3]], [0, 1, 1])
    assert np.isfinite(constant.predict_proba([[0.1, 2], [0.2, 2]])).all()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"hidden": 0}, ValueError, "hidden is 0"),
        ({"epochs": 1.5}, TypeError, "epochs is 1.5"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"learning_rate": 0}, ValueError, "learning_rate is 0"),
        ({"seed": "a"}, TypeError, "seed is 'a'"),
    ],
)
def test_arguments_are_named(options, error, words):
    model = MaxPlusClassifier(4, epochs=1)
    fitted = model.fit([[0.0], [1.0]], [0, 1])._fitted
    with pytest.raises(error, match=words):
        model.set_params(**options).fit([[0.0], [1.0]], [0, 1])
    assert model._fitted is fitted
