"""ExplicitMLP: accuracy on held-out data, its formula, k-means inside classes, hand-over to torch, errors."""

import copy
import gzip
import os
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from tropigrad.nn import ExplicitMLP, ExplicitSoftmax
from tropigrad.nn.explicit.rows import Scaling, read_rows
from tropigrad.nn.explicit.subclasses import subclasses


def groups(n=300, features=10, seed=0):
    """Two classes of three groups each, of which one layer cannot tell: each feature is as frequent in both."""
    rng = np.random.default_rng(seed)
    y, group = rng.integers(2, size=n), rng.integers(3, size=n)
    rates = np.full((n, features), 0.5)
    for k in range(2):  # a pair of features, of which in class 0 both are high or neither, in class 1 either
        high = rng.random(n) < 0.5
        rates[high, 2 * k] += 6
        rates[high ^ (y == 1), 2 * k + 1] += 6
    rates[np.arange(n), 4 + group] += 4
    return rng.poisson(rates) + 1, y


def digits():
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn carries the data")
    return datasets.load_digits(return_X_y=True)


# ------------------------------------------------------------------------------------------------ accuracy


def test_digits_with_40_hidden_units():
    x, y = digits()
    order = np.random.default_rng(0).permutation(len(y))
    scores = []
    for held in np.array_split(order, 5):
        rest = np.setdiff1d(order, held)
        scores.append(ExplicitMLP(40).fit(x[rest], y[rest]).score(x[held], y[held]))
    assert np.mean(scores) >= 0.95


def read_idx(path):
    data = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(data, ">u4", data[3], 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


@pytest.mark.slow
@pytest.mark.parametrize(("hidden", "least"), [(100, 0.93), (1000, 0.96)])
def test_mnist_without_a_gradient_step(hidden, least):
    folder = Path(os.environ.get("TROPIGRAD_DATA", "/no/such/folder")) / "mnist"
    if not folder.is_dir():
        pytest.skip("TROPIGRAD_DATA names no folder with MNIST")
    x, y, test_x, test_y = (
        read_idx(folder / f"{part}-ubyte.gz")
        for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    )
    model = ExplicitMLP(hidden, validation_fraction=1 / 12).fit(x.reshape(len(x), -1), y)
    assert model.score(test_x.reshape(len(test_x), -1), test_y) >= least


def test_subclasses_solve_what_one_layer_cannot():
    x, y = groups(2000)
    train, test = slice(0, 1500), slice(1500, None)
    assert ExplicitSoftmax(temperature="search").fit(x[train], y[train]).score(x[test], y[test]) < 0.6
    assert ExplicitMLP(24, codes="labels").fit(x[train], y[train]).score(x[test], y[test]) < 0.7
    assert ExplicitMLP(24).fit(x[train], y[train]).score(x[test], y[test]) > 0.85
    assert ExplicitMLP((48, 24)).fit(x[train], y[train]).score(x[test], y[test]) > 0.85


# ------------------------------------------------------------------------------------------------ the formula


@pytest.mark.parametrize("codes", ["subclasses", "labels"])
@pytest.mark.parametrize("hidden", [6, (8, 4)], ids=str)
def test_answers_are_softmax_layers_of_what_was_learned(codes, hidden):
    x, y = groups()
    model = ExplicitMLP(hidden, codes=codes, scale=16.0, offset=0.5).fit(x, y)
    sizes = [10, *np.atleast_1d(hidden), 2]
    assert [w.shape for w in model.coefs_] == [(b, a) for a, b in pairwise(sizes)]
    h = 16 * (x + 0.5) / (x + 0.5).sum(1, keepdims=True)
    np.testing.assert_allclose(model.normalized(x.astype(float)), h)
    for weight, bias in zip(model.coefs_, model.intercepts_, strict=True):
        h = np.exp(h @ weight.T + bias)
        h /= h.sum(1, keepdims=True)
    np.testing.assert_allclose(model.predict_proba(x.astype(float)), h, atol=1e-12)
    np.testing.assert_allclose(model.predict_log_proba(x.astype(float)), np.log(h), atol=1e-9)
    assert np.array_equal(model.predict(x.astype(float)), h.argmax(1))


def test_layers_are_solved_from_the_rows_that_are_not_held_out():
    """The weights, temperature taken out, are those of ExplicitSoftmax on the subclasses, and on h with K = 1."""
    x, y = groups()
    x = x.astype(float)
    model = ExplicitMLP(6, smoothing=0.5).fit(x, y)
    T1, T2 = model.temperatures_
    assert model.smoothings_ == (0.5, 0.5)
    hidden = model.coefs_[0] * T1
    code, kept = subclasses_of(model, x, y)
    matching = ExplicitSoftmax(32.0, 0.5).fit(x[kept], code[kept])
    np.testing.assert_allclose(hidden, matching.coef_, atol=1e-12)
    h = torch.softmax(torch.from_numpy(model.normalized(x) @ model.coefs_[0].T), 1)
    output = ExplicitSoftmax(1.0, 0.5).fit(h[kept], y[kept])
    np.testing.assert_allclose(model.coefs_[1] * T2, output.coef_.numpy(), atol=1e-4)  # h is float32 while it learns


def subclasses_of(model, x, y):
    """The subclasses that the model counted by, drawn again, and which rows it counted."""
    from tropigrad.nn.explicit.labels import held_out
    from tropigrad.nn.units import units_by_class

    held = held_out(y, model.validation_fraction, model.seed)
    index = torch.from_numpy(y)
    units = units_by_class(torch.bincount(index[~held]), model.hidden)
    rows, scaling = read_rows("here", x), Scaling(model.scale, model.offset)
    code = subclasses(lambda: scaling.of("here", rows, dtype=torch.float32), index, ~held, units, 10, model.seed)
    return code.numpy(), ~held.numpy()


def test_temperatures_are_chosen_by_rows_that_were_not_counted():
    x, y = groups(1000)
    model = ExplicitMLP(12, seed=3).fit(x, y)
    T1, T2 = model.temperatures_
    assert np.log2(T1 / 32) in range(-9, -1)
    held = ~subclasses_of(model, x, y)[1]
    logits = model.predict_log_proba(x[held].astype(float))

    def loss(T):
        z = torch.from_numpy(logits) * T2 / T
        return torch.nn.functional.cross_entropy(z, torch.from_numpy(y[held])).item()

    assert loss(T2) < min(loss(0.8 * T2), loss(1.25 * T2))
    assert loss(T2) < np.log(2)


def test_the_same_seed_gives_the_same_bits():
    x, y = groups()
    same, again, other = (ExplicitMLP(12, seed=seed).fit(x, y) for seed in (0, 0, 1))
    for one, two in zip(same.coefs_, again.coefs_, strict=True):
        assert np.array_equal(one, two)
    assert not np.array_equal(same.coefs_[0], other.coefs_[0])


def test_labels_that_mean_nothing_are_answered_near_even():
    x, y = groups(1000)
    model = ExplicitMLP(12).fit(x, np.random.default_rng(1).permutation(y))
    assert abs(model.predict_proba(x) - 0.5).mean() < 0.1


def test_units_of_labels_differ():
    x, y = groups()
    model = ExplicitMLP(8, codes="labels").fit(x, y)
    assert len(np.unique(model.coefs_[0], axis=0)) == 8  # or fine-tuning could never tell them apart


# ------------------------------------------------------------------------------------------------ k-means


def clustered(x, y, units, kept=None, iterations=100, seed=0, block=None):
    x, y = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y)
    kept = torch.ones(len(y), dtype=torch.bool) if kept is None else kept

    def blocks():
        size = block or len(x)
        for first in range(0, len(x), size):
            yield slice(first, min(first + size, len(x))), x[first : first + size]

    return subclasses(blocks, y, kept, units, iterations, seed)


def test_subclasses_are_of_their_class_and_a_fixed_point():
    x, y = groups(400)
    code = clustered(x, y, [5, 3])
    assert set(code[y == 0].tolist()) == set(range(5))
    assert set(code[y == 1].tolist()) == set(range(5, 8))
    centres = np.stack([x[code == k].mean(0) for k in range(8)])
    distances = ((x[:, None] - centres) ** 2).sum(-1)
    distances[:, :5][y == 1] = distances[:, 5:][y == 0] = np.inf
    np.testing.assert_allclose(distances[np.arange(400), code], distances.min(1), rtol=1e-5)


def test_an_iteration_never_loses():
    x, y = groups(400)

    def inertia(iterations):
        code = clustered(x, y, [6, 6], iterations=iterations)
        return sum(((x[code == k] - x[code == k].mean(0)) ** 2).sum() for k in set(code.tolist()))

    losses = [inertia(i) for i in range(6)]
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(losses))
    assert losses[-1] < losses[0]


def test_clusters_that_are_apart_are_told_apart():
    rng = np.random.default_rng(0)
    group = rng.integers(6, size=600)
    x = 100 * np.eye(6)[group] + rng.random((600, 6))
    code = clustered(x, group // 3, [3, 3])
    assert len({(g, c) for g, c in zip(group.tolist(), code.tolist(), strict=True)}) == 6


def test_rows_that_are_not_kept_move_no_centre():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.random((100, 3)), 1e3 + rng.random((5, 3))])
    kept = torch.arange(105) < 100
    code = clustered(x, np.zeros(105, dtype=int), [4], kept)
    assert torch.equal(code[:100], clustered(x[:100], np.zeros(100, dtype=int), [4]))
    assert set(code[:100].tolist()) == set(range(4))


@pytest.mark.parametrize("block", [1, 7, 64])
def test_blocks_do_not_show(block):
    x, y = groups(200)
    assert torch.equal(clustered(x, y, [4, 4], block=block), clustered(x, y, [4, 4]))


def test_more_units_than_rows():
    x = np.array([[1.0, 2.0], [1.0, 2.0], [3.0, 1.0]])
    code = clustered(x, np.zeros(3, dtype=int), [8])
    assert code[0] == code[1] != code[2]
    x, y = groups(30)
    assert ExplicitMLP(100).fit(x, y).predict(x).shape == (30,)


# ------------------------------------------------------------------------------------------------ kinds, hand-over


@pytest.mark.parametrize("hidden", [6, (8, 4)], ids=str)
def test_sparse_rows_are_dense_rows(hidden):
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy makes the matrices")
    x, y = groups()
    dense = ExplicitMLP(hidden).fit(x.astype(float), y)
    model = ExplicitMLP(hidden).fit(sparse.csr_array(x.astype(float)), y)
    for one, other in zip(model.coefs_, dense.coefs_, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.predict_proba(sparse.csr_array(x)), dense.predict_proba(x), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64], ids=str)
def test_tensors_in_tensors_out(dtype):
    x, y = groups()
    x = torch.from_numpy(x).to(dtype)
    model = ExplicitMLP(6).fit(x, torch.from_numpy(y))
    assert model.predict_proba(x).dtype == (dtype if dtype.is_floating_point else torch.float32)
    assert isinstance(model.predict(x), torch.Tensor)
    assert all(w.dtype == torch.float64 for w in (*model.coefs_, *model.intercepts_))
    assert isinstance(model.predict(x.numpy()), np.ndarray)
    assert model.score(x, torch.from_numpy(y)) == model.score(x.numpy(), y)


@pytest.mark.parametrize("hidden", [6, (8, 4)], ids=str)
def test_the_modules_are_the_model(hidden):
    x, y = groups()
    model = ExplicitMLP(hidden).fit(x, y)
    state = torch.get_rng_state()
    network = model.to_sequential(dtype=torch.float64)
    assert torch.equal(torch.get_rng_state(), state)
    rows = torch.from_numpy(x).double()
    answer = network(model.normalized(rows))
    torch.testing.assert_close(answer.softmax(1), model.predict_proba(rows))
    loss = torch.nn.functional.cross_entropy(answer, torch.from_numpy(y))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    loss.backward()
    optimizer.step()
    assert torch.nn.functional.cross_entropy(network(model.normalized(rows)), torch.from_numpy(y)) < loss
    assert np.array_equal(model.predict_proba(x), ExplicitMLP(hidden).fit(x, y).predict_proba(x))  # as it was


def test_copies_and_pickles():
    x, y = groups()
    model = ExplicitMLP(6).fit(x, y)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(other.predict_proba(x), model.predict_proba(x))


def test_random_numbers_and_the_default_device_of_others_are_left_alone():
    x, y = groups()
    state = torch.get_rng_state()
    models = {codes: ExplicitMLP(6, codes=codes).fit(x, y) for codes in ("subclasses", "labels")}
    assert torch.equal(torch.get_rng_state(), state)
    with torch.device("meta"):
        for codes, model in models.items():
            assert np.array_equal(ExplicitMLP(6, codes=codes).fit(x, y).predict_proba(x), model.predict_proba(x))


# ------------------------------------------------------------------------------------------------ bad input

X, Y = groups(60)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        pytest.param({"hidden": 1}, ValueError, "hidden is 1 and y has 2 classes", id="H < C"),
        pytest.param({"hidden": (6, 1)}, ValueError, r"hidden is \(6, 1\) and y has 2 classes", id="second H < C"),
        pytest.param({"hidden": 0}, ValueError, "hidden is 0; expected at least 1", id="H = 0"),
        pytest.param({"hidden": ()}, ValueError, r"hidden is \(\); expected a number of units", id="no layer"),
        pytest.param({"hidden": 6.0}, TypeError, "hidden is 6.0; expected an integer", id="H of float"),
        pytest.param({"codes": "random"}, ValueError, "codes is 'random'; expected 'subclasses' or", id="codes"),
        pytest.param({"scale": -1.0}, ValueError, "scale is -1.0", id="K < 0"),
        pytest.param({"smoothing": -1.0}, ValueError, "smoothing is -1.0", id="ε < 0"),
        pytest.param({"iterations": -1}, ValueError, "iterations is -1; expected an integer", id="iterations"),
        pytest.param({"validation_fraction": 0.001}, ValueError, "which holds nothing out of 60", id="nothing held"),
        pytest.param({"validation_fraction": 0}, ValueError, "validation_fraction is 0; expected", id="no fraction"),
    ],
)
def test_bad_arguments_are_named_and_change_nothing(options, error, match):
    model = ExplicitMLP(6).fit(X, Y)
    before = model.predict_proba(X)
    model.set_params(**options)
    with pytest.raises(error, match=f"ExplicitMLP: .*{match}"):
        model.fit(X, Y)
    assert np.array_equal(model.predict_proba(X), before)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_bad_rows_are_named_and_change_nothing(value):
    model = ExplicitMLP(6).fit(X, Y)
    before = model.predict_proba(X)
    x = X.astype(float)
    x[17, 3] = value
    for call in (lambda: model.fit(x, Y), lambda: model.predict(x)):
        with pytest.raises(ValueError, match="row 17 has"):
            call()
    x[17] = 0
    for call in (lambda: model.fit(x, Y), lambda: model.predict(x)):
        with pytest.raises(ValueError, match="row 17 of x"):
            call()
    assert np.array_equal(model.predict_proba(X), before)


def test_before_fitting():
    with pytest.raises(ValueError, match="This ExplicitMLP instance is not fitted yet"):
        ExplicitMLP().predict(X)
    assert not hasattr(ExplicitMLP(), "coefs_")
    assert repr(ExplicitMLP((6, 4), codes="labels")) == "ExplicitMLP(hidden=(6, 4), codes='labels')"
