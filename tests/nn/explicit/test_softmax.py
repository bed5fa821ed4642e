"""ExplicitSoftmax: naive Bayes' identities, counting that adds up, searches against refits, kinds of rows, errors."""

import copy
import math
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn import functional

from tropigrad.nn import ExplicitSoftmax
from tropigrad.nn.explicit.labels import held_out
from tropigrad.nn.explicit.solution import SMOOTHINGS, best_temperature, moments

RNG = np.random.default_rng


def counts(n=200, features=12, classes=4, seed=0, rate=2.0):
    """Poisson rows of integers, whose rates differ by class, of classes of different sizes; no row is empty."""
    rng = RNG(seed)
    y = rng.choice(classes, size=n, p=np.arange(1, classes + 1) / sum(range(1, classes + 1)))
    y[:classes] = range(classes)
    x = rng.poisson(rate * rng.gamma(1.0, size=(classes, features))[y])
    x[np.arange(n), rng.integers(features, size=n)] += 1
    return x, y


def cross_entropy(model, x, y):
    return -model.predict_log_proba(x)[np.arange(len(y)), np.searchsorted(model.classes_, y)].mean()


# ------------------------------------------------------------------------------------------------ identities


@pytest.mark.parametrize("smoothing", [1e-3, 0.5, 1.0, 30.0])
def test_it_is_multinomial_naive_bayes(smoothing):
    bayes = pytest.importorskip("sklearn.naive_bayes", reason="scikit-learn is the reference")
    x, y = counts()
    model = ExplicitSoftmax(normalize=False, prior="count", smoothing=smoothing).fit(x, y)
    theirs = bayes.MultinomialNB(alpha=smoothing).fit(x.astype(float), y)
    np.testing.assert_allclose(
        model.predict_log_proba(x.astype(float)), theirs.predict_log_proba(x), rtol=0, atol=1e-10
    )
    np.testing.assert_allclose(model.coef_, theirs.feature_log_prob_, rtol=0, atol=1e-10)
    assert (model.feature_count_ == theirs.feature_count_).all()
    assert (model.class_count_ == theirs.class_count_).all()


@pytest.mark.parametrize("normalize", [True, False], ids=["rows of sum K", "rows of any sums"])
def test_its_own_prior_is_the_mass(normalize):
    bayes = pytest.importorskip("sklearn.naive_bayes", reason="scikit-learn is the reference")
    x, y = counts()
    x = x.astype(float)
    model = ExplicitSoftmax(7.0, 0.3, normalize=normalize).fit(x, y)
    seen = model.normalized(x)
    mass = (model.feature_count_ + 0.3).sum(1)
    theirs = bayes.MultinomialNB(alpha=0.3, class_prior=mass / mass.sum()).fit(seen, y)
    np.testing.assert_allclose(model.predict_log_proba(x), theirs.predict_log_proba(seen), rtol=0, atol=1e-10)
    if normalize:
        np.testing.assert_allclose(seen.sum(1), 7.0)
        assert not model.intercept_.any()


def test_a_class_prior_of_counts_holds_for_scaled_rows_too():
    x, y = counts()
    scaled = ExplicitSoftmax(5.0, prior="count").fit(x, y)
    taken = ExplicitSoftmax(normalize=False, prior="count").fit(scaled.normalized(x.astype(float)), y)
    np.testing.assert_allclose(scaled.coef_, taken.coef_, atol=1e-12)
    np.testing.assert_allclose(scaled.intercept_, taken.intercept_)


def test_smoothing_is_part_of_the_mass():
    x, y = counts()
    model = ExplicitSoftmax(normalize=False, smoothing=2.0).fit(x, y)
    np.testing.assert_allclose(np.exp(model.coef_).sum(1), 1.0)
    np.testing.assert_allclose(np.exp(model.intercept_), model.feature_count_.sum(1) + 2.0 * x.shape[1])


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_counts_are_proportional_to_the_scale(offset):
    x, y = counts()
    one, many = (ExplicitSoftmax(K, offset=offset).fit(x, y).feature_count_ for K in (1.0, 64.0))
    np.testing.assert_allclose(many, 64 * one, rtol=1e-14)
    np.testing.assert_allclose(one.sum(), len(x))


def test_one_hot_rows_reach_the_optimum():
    """At K = 1 the gradient of the cross-entropy is 0: no step could better it."""
    rng = RNG(0)
    tokens, y = rng.integers(6, size=500), rng.integers(3, size=500) ** 2
    x = torch.eye(6, dtype=torch.float64)[torch.from_numpy(tokens)]
    layer = ExplicitSoftmax(1.0, 0.0).fit(x, y).to_linear(dtype=torch.float64)
    functional.cross_entropy(layer(x), torch.from_numpy(np.searchsorted([0, 1, 4], y))).backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().max() < 1e-15


def test_the_sign_before_the_mass_shows_on_skewed_classes():
    """Rows of K independent draws: minus (K − 1)/K log S is right, its absence and plus are not."""
    rng = RNG(1)
    y = (rng.random(4000) < 0.05).astype(int)
    rates = rng.dirichlet(np.ones(10), size=2)
    x = np.stack([rng.multinomial(8, rates[c]) for c in y]).astype(float)
    model = ExplicitSoftmax(8.0, 0.1).fit(x, y)
    F = torch.from_numpy(model.feature_count_ + 0.1)
    losses = [
        functional.cross_entropy(torch.from_numpy(x) @ (F.log() + sign * 7 / 8 * F.sum(1, keepdim=True).log()).t(),
                                 torch.from_numpy(y)).item()
        for sign in (-1, 0, 1)
    ]  # fmt: skip
    assert losses[0] == pytest.approx(cross_entropy(model, x, y))
    assert losses[0] < losses[1] < losses[2]


def test_unigram_smoothing_is_its_formula():
    x, y = counts()
    model = ExplicitSoftmax(normalize=False, smoothing=2.0, smoothing_prior="unigram").fit(x, y)
    N = np.bincount(y)
    eps = 2.0 * 4 * (N + 0.5) / (len(y) + 2)
    F = model.feature_count_ + eps[:, None]
    np.testing.assert_allclose(model.coef_, np.log(F / F.sum(1, keepdims=True)), rtol=0, atol=1e-13)


def test_temperature_divides_logits():
    x, y = counts()
    for normalize in (True, False):
        one, hot = (ExplicitSoftmax(temperature=T, normalize=normalize).fit(x, y) for T in (1.0, 4.0))
        np.testing.assert_allclose(hot.coef_, one.coef_ / 4)
        np.testing.assert_allclose(hot.intercept_, one.intercept_ / 4)


# ------------------------------------------------------------------------------------------------ counts add up


@pytest.mark.parametrize("sizes", [(200,), (1, 199), (70, 70, 60), (5,) * 40], ids=str)
def test_partial_fits_of_integers_are_one_fit_to_the_bit(sizes):
    x, y = counts()
    whole = ExplicitSoftmax(normalize=False).fit(x, y)
    parts = ExplicitSoftmax(normalize=False)
    for rows, labels in zip(np.split(x, np.cumsum(sizes)[:-1]), np.split(y, np.cumsum(sizes)[:-1]), strict=True):
        assert parts.partial_fit(rows, labels, classes=range(4)) is parts
    assert parts.feature_count_.dtype == np.int64
    assert np.array_equal(parts.feature_count_, whole.feature_count_)
    assert np.array_equal(parts.coef_, whole.coef_)
    assert np.array_equal(parts.predict_proba(x), whole.predict_proba(x))


@pytest.mark.parametrize("normalize", [True, False])
def test_shards_add_up(normalize):
    x, y = counts()
    whole = ExplicitSoftmax(normalize=normalize).fit(x, y)
    order = np.argsort(y, kind="stable")  # the shards know different classes
    shards = [ExplicitSoftmax(normalize=normalize).fit(x[rows], y[rows]) for rows in np.array_split(order, 3)]
    assert len(shards[0].classes_) < 4
    merged = ExplicitSoftmax(normalize=normalize)
    for shard in shards:
        assert merged.merge(shard) is merged
    assert np.array_equal(merged.classes_, whole.classes_)
    assert np.array_equal(merged.class_count_, whole.class_count_)
    if normalize:
        np.testing.assert_allclose(merged.feature_count_, whole.feature_count_, rtol=1e-14)
    else:
        assert np.array_equal(merged.feature_count_, whole.feature_count_)


def test_integers_and_floats_meet_in_float64():
    x, y = counts()
    model = ExplicitSoftmax(normalize=False).partial_fit(x, y, range(4))
    model.partial_fit(0.5 * x, y)
    assert model.feature_count_.dtype == np.float64
    np.testing.assert_allclose(model.feature_count_, 1.5 * ExplicitSoftmax(normalize=False).fit(x, y).feature_count_)


def test_fit_forgets_and_partial_fit_does_not():
    x, y = counts()
    model = ExplicitSoftmax(normalize=False).fit(x, y).fit(x, y)
    assert model.class_count_.sum() == len(y)
    model.partial_fit(x, y)
    assert model.class_count_.sum() == 2 * len(y)


RANK = """
import pickle, sys
from datetime import timedelta
import numpy as np
import torch.distributed as dist
from tropigrad.nn import ExplicitSoftmax

folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", f"file://{folder}/meeting", timedelta(seconds=90), 2, rank)
group = dist.group.WORLD
x, y = np.load(f"{folder}/x.npy"), np.load(f"{folder}/y.npy")
mine = slice(0, 150) if rank else slice(150, None)
model = ExplicitSoftmax(normalize=False, temperature="search").fit(x[mine], y[mine], group=group)
later = ExplicitSoftmax(normalize=False).partial_fit(x[mine], y[mine], range(4), group=group)
bad = x[mine].copy()
bad[3, 0] = -1 if rank else 0
try:
    model.fit(bad, y[mine], group=group)
    message = "none"
except ValueError as error:
    message = str(error)
try:
    ExplicitSoftmax(scale=1 + rank).fit(x[mine], y[mine], group=group)
    differing = "none"
except ValueError as error:
    differing = str(error)
results = model.feature_count_, later.feature_count_, later.coef_, model.temperature_, message, differing
with open(f"{folder}/rank{rank}", "wb") as file:
    pickle.dump(results, file)
dist.destroy_process_group()
"""


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo")
def test_ranks_learn_what_one_process_does(tmp_path):
    x, y = counts()
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(tmp_path), str(rank)]) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    first, second = (pickle.loads((tmp_path / f"rank{rank}").read_bytes()) for rank in range(2))
    alone = ExplicitSoftmax(normalize=False).fit(x, y)
    for searched, later, coef, temperature, *_ in (first, second):
        assert np.array_equal(searched, alone.feature_count_)
        assert np.array_equal(later, alone.feature_count_)
        assert np.array_equal(coef, alone.coef_)
        assert temperature == first[3] != 1.0
    assert "rank 1 refused its rows: Negative values in data passed to ExplicitSoftmax: row 3 has -1" in first[4]
    assert second[4].startswith("Negative values in data passed to ExplicitSoftmax: row 3 has -1")
    assert "expected the same on all" in first[5]
    assert first[5] == second[5]


# ------------------------------------------------------------------------------------------------ searches


def test_cross_entropy_is_convex_in_the_inverse_of_temperature():
    torch.manual_seed(3)
    z, targets = 3 * torch.randn(50, 5, dtype=torch.float64), torch.randint(5, (50,))
    for beta in (0.01, 0.3, 1.0, 5.0):
        at = torch.tensor(beta, dtype=torch.float64, requires_grad=True)
        loss = functional.cross_entropy(z * at, targets)
        (slope,) = torch.autograd.grad(loss, at, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, at)
        assert moments(z, targets, beta) == pytest.approx((loss.item(), slope.item(), curvature.item()), rel=1e-9)
        assert curvature > 0


@pytest.mark.parametrize("true", [0.02, 0.5, 1.0, 5.0])
def test_the_best_temperature_is_the_best(true):
    z = 3 * torch.randn(4000, 5, dtype=torch.float64)
    targets = torch.multinomial((z / true).softmax(1), 1)[:, 0]
    T, loss = best_temperature(z, targets)
    assert loss == pytest.approx(functional.cross_entropy(z / T, targets).item())
    assert abs(T / true - 1) < 0.2
    assert abs(moments(z, targets, 1 / T)[1]) < 1e-9
    for other in (T * 0.99, T * 1.01):
        assert functional.cross_entropy(z / other, targets) >= loss


def test_temperature_is_bounded():
    z = torch.eye(3, dtype=torch.float64)
    T, _ = best_temperature(z, torch.arange(3))  # all right: one row more, of any class, keeps it from being certain
    p = (z / T).softmax(1)
    assert p.diagonal().min() < 0.95
    torch.testing.assert_close(3 * p.diagonal() + p.diagonal(), torch.full((3,), 3 + 1 / 3, dtype=torch.float64))
    assert best_temperature(z, torch.tensor([1, 2, 0]))[0] == pytest.approx(1e4)  # worse than no knowledge


@pytest.mark.parametrize("options", [{}, {"normalize": False}, {"smoothing_prior": "unigram"}], ids=str)
def test_tuning_equals_a_grid_search_that_refits(options):
    x, y = counts(n=300, rate=0.3)
    (x, y), (held_x, held_y) = (x[:200], y[:200]), (x[200:].astype(float), y[200:])
    model = ExplicitSoftmax(smoothing="search", temperature=2.0, **options).partial_fit(x, y, range(4))
    model.tune(held_x, held_y)
    refits = {
        smoothing: cross_entropy(
            ExplicitSoftmax(smoothing=smoothing, temperature=2.0, **options).fit(x, y), held_x, held_y
        )
        for smoothing in SMOOTHINGS
    }
    assert model.smoothing_ == min(refits, key=lambda smoothing: refits[smoothing])
    assert cross_entropy(model, held_x, held_y) == pytest.approx(min(refits.values()))


def test_each_smoothing_has_its_own_temperature():
    x, y = counts(n=300, rate=0.3)
    (x, y), (held_x, held_y) = (x[:200], y[:200]), (x[200:].astype(float), y[200:])
    model = ExplicitSoftmax(smoothing="search", temperature="search").partial_fit(x, y, range(4)).tune(held_x, held_y)
    loss = cross_entropy(model, held_x, held_y)
    for smoothing in SMOOTHINGS:
        rival = ExplicitSoftmax(smoothing=smoothing, temperature="search").partial_fit(x, y, range(4))
        rival.tune(held_x, held_y)
        assert loss <= cross_entropy(rival, held_x, held_y) + 1e-12
        for factor in (0.9, 1.1):
            other = ExplicitSoftmax(smoothing=smoothing, temperature=factor * rival.temperature_).fit(x, y)
            assert cross_entropy(other, held_x, held_y) > cross_entropy(rival, held_x, held_y)


def test_what_was_held_out_is_counted_in_the_end():
    x, y = counts()
    plain = ExplicitSoftmax(normalize=False).fit(x, y)
    model = ExplicitSoftmax(normalize=False, smoothing="search", temperature="search").fit(x, y)
    assert np.array_equal(model.feature_count_, plain.feature_count_)
    assert np.array_equal(model.class_count_, plain.class_count_)


def test_searches_are_seeded():
    x, y = counts()
    same, again, other = (ExplicitSoftmax(temperature="search", seed=seed).fit(x, y).temperature_ for seed in (0, 0, 1))
    assert same == again != other


def test_a_tuned_model_goes_on_counting_and_stays_tuned():
    x, y = counts()
    model = ExplicitSoftmax(smoothing="search", temperature="search").partial_fit(x, y, range(4))
    for method in (model.predict, model.predict_proba, model.predict_log_proba):
        with pytest.raises(
            ValueError, match=r"smoothing is 'search' and temperature is 'search', .* call tune\(x, y\)"
        ):
            method(x)
    assert not hasattr(model, "smoothing_")
    model.tune(x, y)
    tuned = model.smoothing_, model.temperature_
    model.partial_fit(x, y)
    assert (model.smoothing_, model.temperature_) == tuned
    assert model.predict(x).shape == y.shape


# ------------------------------------------------------------------------------------------------ kinds of rows


@pytest.mark.parametrize(
    "options", [{}, {"normalize": False}, {"temperature": "search", "smoothing": "search"}], ids=str
)
def test_sparse_rows_are_dense_rows(options):
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy makes the matrices")
    x, y = counts(rate=0.3)
    x = x.astype(float)
    dense = ExplicitSoftmax(**options).fit(x, y)
    for kind in (sparse.csr_matrix, sparse.csr_array, sparse.coo_array, sparse.csc_matrix):
        model = ExplicitSoftmax(**options).fit(kind(x), y)
        np.testing.assert_allclose(model.coef_, dense.coef_, rtol=0, atol=1e-9)
        answer = model.predict_proba(kind(x))
        assert isinstance(answer, np.ndarray)
        np.testing.assert_allclose(answer, dense.predict_proba(x), atol=1e-9)
        assert np.array_equal(model.predict(kind(x)), dense.predict(x))
        np.testing.assert_allclose(model.normalized(kind(x)).toarray(), dense.normalized(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's remark that sparse_csr is in beta
        tensor = torch.from_numpy(x).to_sparse_csr()
    model = ExplicitSoftmax(**options).fit(tensor, y)
    np.testing.assert_allclose(model.predict_proba(tensor).numpy(), dense.predict_proba(x), atol=1e-9)
    torch.testing.assert_close(model.normalized(tensor).to_dense(), torch.from_numpy(dense.normalized(x)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.uint32, np.int64, np.uint64, np.float16,
                                   np.float32, ">f4", ">i4", np.longdouble, object], ids=str)  # fmt: skip
@pytest.mark.parametrize("normalize", [True, False])
def test_numpy_s_dtypes(dtype, normalize):
    x, y = counts()
    model = ExplicitSoftmax(4.0, normalize=normalize).fit(x.astype(dtype), y)
    expected = ExplicitSoftmax(4.0, normalize=normalize).fit(x, y)
    np.testing.assert_allclose(model.coef_, expected.coef_, atol=1e-12)
    kind = np.dtype(dtype).kind
    assert model.feature_count_.dtype == (np.int64 if kind in "iu" and not normalize else np.float64)
    answer = model.predict_proba(x.astype(dtype))
    assert answer.dtype == {"f": np.dtype(dtype).newbyteorder("="), "O": float}.get(kind, np.float32) or (
        dtype is np.longdouble and answer.dtype == float
    )
    np.testing.assert_allclose(answer, expected.predict_proba(x), atol=2e-3 if dtype is np.float16 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.float16, torch.bfloat16, torch.float64],
                         ids=str)  # fmt: skip
def test_tensors_in_tensors_out(dtype):
    x, y = counts()
    x = torch.from_numpy(np.minimum(x, 1)).to(dtype)
    model = ExplicitSoftmax().fit(x, torch.from_numpy(y))
    answers = model.predict_proba(x), model.predict_log_proba(x), model.normalized(x)
    for answer in answers:
        assert isinstance(answer, torch.Tensor)
        assert answer.dtype == (dtype if dtype.is_floating_point else torch.float32)
    assert model.predict(x).dtype == torch.int64
    assert model.coef_.dtype == model.intercept_.dtype == torch.float64
    assert torch.equal(model.predict(x), answers[0].float().argmax(1)) or dtype.itemsize == 2
    assert isinstance(model.predict(x.float().numpy()), np.ndarray)


@pytest.mark.parametrize("view", [
    pytest.param(lambda x: np.asfortranarray(x), id="Fortran's order"),
    pytest.param(lambda x: np.repeat(x, 2, axis=1)[:, ::2], id="every other column"),
    pytest.param(lambda x: x[::-1][::-1], id="as it is"),
    pytest.param(lambda x: np.flip(np.flip(x).copy()), id="negative strides"),
    pytest.param(lambda x: x.tolist(), id="lists"),
])  # fmt: skip
def test_views_hold_what_they_show(view):
    x, y = counts()
    assert np.array_equal(ExplicitSoftmax().fit(view(x), y).coef_, ExplicitSoftmax().fit(x, y).coef_)


def test_read_only_and_memory_mapped_rows(tmp_path):
    x, y = counts()
    np.save(tmp_path / "x.npy", x.astype(np.uint8))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    model = ExplicitSoftmax(temperature="search").fit(mapped, y)
    assert np.array_equal(model.coef_, ExplicitSoftmax(temperature="search").fit(x.astype(np.uint8), y).coef_)
    assert np.array_equal(model.predict(mapped), model.predict(x))


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(["d", "a", "c", "b"], id="strings"),
        pytest.param([True, False], id="bools"),
        pytest.param([-3, 10**12, 7, 0], id="wide integers"),
        pytest.param([2.0, -1.0, 5.0], id="floats"),
        pytest.param(np.array(["z", "y", "x", "w"], dtype=object), id="objects"),
        pytest.param(np.array([250, 3, 7, 128], dtype=np.uint8), id="uint8"),
        pytest.param(np.array([-128, 127, 0, 5], dtype=np.int8), id="int8"),
        pytest.param(np.array([2**64 - 1, 2**64 - 5], dtype=np.uint64), id="uint64"),
    ],
)
def test_labels_of_any_type(labels):
    x, y = counts()
    named = np.asarray(labels)[y % len(labels)]
    model = ExplicitSoftmax().fit(x, named)
    assert np.array_equal(model.classes_, np.unique(named))
    assert model.classes_.dtype == named.dtype
    assert model.predict(x).dtype == named.dtype
    assert set(model.predict(x).tolist()) <= set(named.tolist())
    assert model.score(x, named) == np.mean(model.predict(x) == named)
    parts = ExplicitSoftmax().partial_fit(x, named, classes=labels)
    np.testing.assert_allclose(parts.coef_, model.coef_)


def test_names_are_numpy_s_even_for_tensors():
    x, y = counts()
    predicted = ExplicitSoftmax().fit(torch.from_numpy(x), np.array(list("abcd"))[y]).predict(torch.from_numpy(x))
    assert isinstance(predicted, np.ndarray)
    assert predicted.dtype.kind == "U"


@pytest.mark.parametrize("exponent", [-1000, -120, 100, 980])
def test_rescaled_rows_are_the_same_rows(exponent):
    x, y = counts()
    one = ExplicitSoftmax().fit(x.astype(float), y)
    scaled = np.ldexp(x.astype(float), exponent)
    np.testing.assert_allclose(ExplicitSoftmax().fit(scaled, y).coef_, one.coef_, rtol=1e-13)
    np.testing.assert_allclose(one.predict_log_proba(scaled), one.predict_log_proba(x.astype(float)), rtol=1e-9)
    if abs(exponent) <= 120:
        narrow = scaled.astype(np.float32)
        np.testing.assert_allclose(one.predict_proba(narrow), one.predict_proba(x.astype(np.float32)), atol=1e-5)


def test_blocks_do_not_show(monkeypatch):
    x, y = counts()
    whole = ExplicitSoftmax().fit(x, y)
    expected = whole.predict(x), whole.predict_proba(x.astype(float))
    monkeypatch.setattr("tropigrad.nn.explicit.rows._BLOCK", 40)
    assert np.array_equal(whole.predict(x), expected[0])
    np.testing.assert_allclose(whole.predict_proba(x.astype(float)), expected[1], rtol=1e-12)


def test_no_row_is_answered_by_none():
    x, y = counts()
    model = ExplicitSoftmax().fit(x, y)
    assert model.predict(x[:0]).shape == (0,)
    assert model.predict_proba(x[:0]).shape == (0, 4)


# ------------------------------------------------------------------------------------------------ hand-over, copies


@pytest.mark.parametrize("options", [{}, {"normalize": False}, {"offset": 2.0, "temperature": 3.0}], ids=str)
def test_the_linear_layer_is_the_model(options):
    x, y = counts()
    model = ExplicitSoftmax(**options).fit(torch.from_numpy(x), y)
    state = torch.get_rng_state()
    layer = model.to_linear(dtype=torch.float64)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(layer.weight, model.coef_)
    assert torch.equal(layer.bias, model.intercept_)
    rows = torch.from_numpy(x).double()
    torch.testing.assert_close(layer(model.normalized(rows)).softmax(1), model.predict_proba(rows))
    assert model.to_linear().weight.dtype == torch.float32


def test_a_linear_layer_is_its_own():
    x, y = counts()
    model = ExplicitSoftmax().fit(x, y)
    before = model.coef_.copy()
    with torch.no_grad():
        model.to_linear(dtype=torch.float64).weight.zero_()
    assert np.array_equal(model.coef_, before)


def test_copies_and_pickles():
    x, y = counts()
    model = ExplicitSoftmax(temperature="search").fit(x, y)
    model.predict(x)
    for other in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(other.predict_proba(x), model.predict_proba(x))
        other.partial_fit(x, y)
        assert other.class_count_.sum() == 2 * model.class_count_.sum()


def test_random_numbers_and_the_default_device_of_others_are_left_alone():
    x, y = counts()
    state = torch.get_rng_state()
    expected = ExplicitSoftmax(temperature="search").fit(x, y).predict_proba(x)
    assert torch.equal(torch.get_rng_state(), state)
    sparse = torch.from_numpy(x).to_sparse_csr()
    with torch.device("meta"):
        model = ExplicitSoftmax(temperature="search").fit(x, y)
        assert np.array_equal(model.predict_proba(x), expected)
        assert model.to_linear().weight.device.type == "cpu"
        np.testing.assert_allclose(
            ExplicitSoftmax().fit(sparse, y).predict_proba(sparse),
            ExplicitSoftmax().fit(x, y).predict_proba(x),
            rtol=1e-5,
        )


def test_repr_and_parameters():
    model = ExplicitSoftmax(64, temperature="search")
    assert repr(model) == "ExplicitSoftmax(scale=64, temperature='search')"
    assert repr(ExplicitSoftmax()) == "ExplicitSoftmax()"
    assert model.set_params(scale=8.0).get_params()["scale"] == 8.0
    with pytest.raises(ValueError, match="ExplicitSoftmax: no parameter 'alpha'; expected one of normalize, "):
        model.set_params(offset=1.0, alpha=1.0)
    assert model.offset == 0.0


# ------------------------------------------------------------------------------------------------ bad input

X, Y = counts()
FLOAT = X.astype(float)


def at(row, value, x=FLOAT):
    x = x.copy()
    x[row] = value
    return x


@pytest.mark.parametrize(
    ("x", "y", "match"),
    [
        pytest.param(at((17, 3), -2), Y, "Negative values in data passed to ExplicitSoftmax: row 17 has -2", id="< 0"),
        pytest.param(at((17, 3), -2, X), Y, "row 17 has -2 at feature 3", id="negative integer"),
        pytest.param(at((17, 3), np.nan), Y, "Input X contains NaN: row 17 has nan at feature 3", id="NaN"),
        pytest.param(at((17, 3), np.inf), Y, "Input X contains infinity: row 17 has inf at feature 3", id="infinity"),
        pytest.param(at((17, 3), -np.inf), Y, "Input X contains infinity: row 17 has -inf", id="minus infinity"),
        pytest.param(at(17, 0), Y, r"row 17 of x, of 12 feature\(s\), sums to 0, and cannot be scaled", id="zero row"),
        pytest.param(FLOAT[0], Y[:12], r"Expected 2D array, got 1D array instead: x has shape \(12,\)", id="1D"),
        pytest.param(FLOAT[:, :0], Y, r"0 feature\(s\) \(shape=\(200, 0\)\) while a minimum of 1", id="no feature"),
        pytest.param(FLOAT[:0], Y[:0], r"0 sample\(s\) \(shape=\(0, 12\)\)", id="no row"),
        pytest.param(FLOAT, Y[:-1], "y has 199 labels and x 200 rows", id="lengths"),
        pytest.param(FLOAT, None, "requires y to be passed", id="no labels"),
        pytest.param(FLOAT, Y + 0.5, r"Unknown label type: continuous. Row 0 of y is 0.5", id="fractions"),
        pytest.param(FLOAT, at(5, np.nan, Y.astype(float)), "Input y contains NaN: row 5", id="NaN label"),
        pytest.param(FLOAT, np.array([1, "a"] * 100, dtype=object), "Unknown label type", id="mixed labels"),
        pytest.param(FLOAT, np.stack([Y, Y], 1), r"y should be a 1d array, got an array of shape \(200", id="2D"),
        pytest.param(FLOAT + 0j, Y, "Complex data not supported", id="complex"),
        pytest.param(FLOAT.astype(str), Y, "x holds <U32; expected numbers", id="strings"),
        pytest.param(torch.zeros(200, 12, device="meta"), Y, "x is on meta", id="meta"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_bad_rows_and_labels_are_named_and_change_nothing(x, y, match, method):
    model = ExplicitSoftmax().fit(FLOAT, Y)
    before = pickle.dumps(model)
    with pytest.raises(ValueError, match=match):
        getattr(model, method)(x, y)
    assert pickle.dumps(model) == before
    with pytest.raises(ValueError, match=match):
        ExplicitSoftmax().fit(x, y)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, 0.0])
def test_rows_to_predict_are_checked_too(kind, value):
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy makes the matrices")
    model = ExplicitSoftmax().fit(FLOAT, Y)
    x = at(17, value) if value == 0 else at((17, 3), value)
    for method in (model.predict, model.predict_proba, model.normalized):
        with pytest.raises(ValueError, match="row 17 "):
            method(sparse.csr_array(x) if kind == "sparse" else x)
    with pytest.raises(ValueError, match="X has 5 features, but ExplicitSoftmax is expecting 12 features"):
        model.predict(FLOAT[:, :5])


def test_empty_rows_are_taken_as_they_are():
    model = ExplicitSoftmax(normalize=False).fit(at(17, 0), Y)
    mass = np.exp(model.intercept_)
    np.testing.assert_allclose(model.predict_proba(np.zeros((1, 12)))[0], mass / mass.sum())


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        pytest.param({"scale": 0}, ValueError, "scale is 0; expected a finite number of more than 0", id="K = 0"),
        pytest.param({"scale": math.inf}, ValueError, "scale is inf", id="K infinite"),
        pytest.param({"scale": "8"}, TypeError, "scale is '8'; expected a number", id="K of text"),
        pytest.param({"smoothing": -1}, ValueError, "smoothing is -1; expected a finite number of at", id="ε < 0"),
        pytest.param({"smoothing": "serach"}, ValueError, "smoothing is 'serach'; expected a number, or", id="ε"),
        pytest.param({"temperature": 0.0}, ValueError, "temperature is 0.0; expected a finite number of", id="T = 0"),
        pytest.param({"temperature": math.nan}, ValueError, "temperature is nan", id="T NaN"),
        pytest.param({"offset": -1.0}, ValueError, "offset is -1.0", id="offset < 0"),
        pytest.param({"offset": 1.0, "normalize": False}, ValueError, "offset is 1 and normalize False", id="offset"),
        pytest.param({"prior": "uniform"}, ValueError, "prior is 'uniform'; expected 'mass' or 'count'", id="prior"),
        pytest.param({"smoothing_prior": "bigram"}, ValueError, "smoothing_prior is 'bigram'", id="smoothing prior"),
        pytest.param({"normalize": 1}, TypeError, "normalize is 1; expected True or False", id="normalize"),
        pytest.param({"validation_fraction": 1.0}, ValueError, "validation_fraction is 1.0", id="all held out"),
        pytest.param({"seed": 0.5}, TypeError, "seed is 0.5; expected an integer", id="seed"),
        pytest.param({"temperature": "search", "validation_fraction": 1e-3}, ValueError,
                     r"validation_fraction is 0.001, which holds nothing out of 200 sample", id="nothing held out"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named_when_it_learns(options, error, match):
    model = ExplicitSoftmax().fit(FLOAT, Y)
    before = model.coef_.copy()
    model.set_params(**options)
    with pytest.raises(error, match=f"ExplicitSoftmax: {match}"):
        model.fit(FLOAT, Y)
    assert np.array_equal(model.coef_, before)


def test_no_smoothing_needs_every_count():
    x = FLOAT + 1
    assert ExplicitSoftmax(smoothing=0).fit(x, Y).score(x, Y) > 0.5
    x[Y == 2, 4] = 0
    model = ExplicitSoftmax(smoothing=0)
    match = "smoothing is 0 and feature 4 never occurs in class 2; expected smoothing > 0"
    with pytest.raises(ValueError, match=match):
        model.fit(x, Y)
    assert not hasattr(model, "classes_")
    model.partial_fit(x, Y, range(4))  # where later rows may mend it
    with pytest.raises(ValueError, match=match):
        model.predict(x)
    assert model.partial_fit(FLOAT + 1, Y).predict(x).shape == Y.shape


def test_sparse_rows_have_no_offset():
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy makes the matrices")
    model = ExplicitSoftmax(offset=1.0)
    for call in (model.fit, lambda x, y: model.fit(FLOAT, y).predict(x)):
        with pytest.raises(ValueError, match="offset is 1 and x is sparse"):
            call(sparse.csr_array(FLOAT), Y)


def test_partial_fits_must_fit_together():
    model = ExplicitSoftmax()
    with pytest.raises(ValueError, match="classes must be passed on the first call to partial_fit"):
        model.partial_fit(FLOAT, Y)
    with pytest.raises(ValueError, match=r"row 3 of y is 3; expected one of the classes 0, 1, 2"):
        model.partial_fit(FLOAT, Y, classes=[0, 1, 2])
    model.partial_fit(FLOAT, Y, classes=[3, 2, 1, 0])
    before = model.coef_.copy()
    for call, match in [
        (lambda: model.partial_fit(FLOAT[:, :5], Y), "X has 5 features, but ExplicitSoftmax is expecting 12"),
        (lambda: model.partial_fit(FLOAT, Y, range(5)), r"classes are \[0, 1, 2, 3, 4\]; expected those of"),
        (lambda: model.partial_fit(FLOAT, Y + 1), r"of y is 4; expected one of the classes 0, 1, 2, 3"),
        (lambda: model.partial_fit(FLOAT, np.array(list("abcd"))[Y]), "of y is 'a'"),
        (lambda: model.set_params(scale=1).partial_fit(FLOAT, Y), "so far: scale 32 and offset 0; now: scale 1"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            call()
        assert np.array_equal(model.coef_, before)


def test_merging_what_does_not_fit():
    model = ExplicitSoftmax().fit(FLOAT, Y)
    before = model.coef_.copy()
    for other, error, match in [
        (3, TypeError, "other is a int; expected an ExplicitSoftmax"),
        (ExplicitSoftmax(), ValueError, "other has learned nothing"),
        (ExplicitSoftmax().fit(FLOAT[:, :5], Y), ValueError, "other has 5 features; expected 12"),
        (ExplicitSoftmax(1.0).fit(FLOAT, Y), ValueError, "counted so far: scale 1 and offset 0; now: scale 32"),
        (ExplicitSoftmax().fit(FLOAT, np.array(list("abcd"))[Y]), ValueError, "expected one type of labels"),
    ]:
        with pytest.raises(error, match=match):
            model.merge(other)
        assert np.array_equal(model.coef_, before)


def test_tuning_what_does_not_fit():
    model = ExplicitSoftmax(prior="count").fit(FLOAT, Y)
    with pytest.raises(ValueError, match="smoothing is 1 and temperature 1, which leaves nothing to tune"):
        model.tune(FLOAT, Y)
    model = ExplicitSoftmax(prior="count", temperature="search").partial_fit(FLOAT[Y > 0], Y[Y > 0], range(4))
    with pytest.raises(ValueError, match="row 0 of y is 0, of which no row was counted"):
        model.tune(FLOAT, Y)
    with pytest.raises(ValueError, match="Negative values"):
        model.tune(-FLOAT, np.ones_like(Y))
    assert not hasattr(model, "temperature_")
    model.tune(FLOAT[Y > 0], Y[Y > 0])
    assert 0 not in model.predict(FLOAT)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc])
def test_rows_in_any_sparse_layout(layout):
    x = torch.from_numpy(FLOAT)
    block = (2, 2) if layout in (torch.sparse_bsr, torch.sparse_bsc) else None
    model = ExplicitSoftmax().fit(x.to_sparse(layout=layout, blocksize=block), Y)
    np.testing.assert_allclose(model.feature_count_, ExplicitSoftmax().fit(FLOAT, Y).feature_count_, rtol=1e-12)


def test_tensors_that_are_neither_rows_nor_labels():
    for y, match in [
        (torch.from_numpy(Y).to("meta"), "y is a tensor, torch.strided, on meta; expected a strided one that holds"),
        (torch.from_numpy(Y).to_sparse(), "y is a tensor, torch.sparse_coo, on cpu"),
    ]:
        with pytest.raises(ValueError, match=match):
            ExplicitSoftmax().fit(FLOAT, y)
    assert ExplicitSoftmax().fit(FLOAT, torch.from_numpy(Y).bfloat16()).score(FLOAT, Y) > 0.5
    ragged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    with pytest.raises(TypeError, match="x is a nested tensor; expected rows of one length"):
        ExplicitSoftmax().fit(ragged, [0, 1])


def test_bools_of_numpy_and_what_is_no_list_of_classes():
    assert ExplicitSoftmax().set_params(normalize=np.True_).fit(FLOAT, Y).score(FLOAT, Y) > 0.5
    with pytest.raises(TypeError, match="classes is a int; expected a list of all labels"):
        ExplicitSoftmax().partial_fit(FLOAT, Y, classes=4)
    with pytest.raises(ValueError, match="expected an integer of 64 bits"):
        ExplicitSoftmax(temperature="search", seed=2**64).fit(FLOAT, Y)


@pytest.mark.parametrize("learn", [lambda model: model.partial_fit(FLOAT, Y),
                                   lambda model: model.merge(ExplicitSoftmax(smoothing=2.0).fit(FLOAT, Y))],
                         ids=["partial_fit", "merge"])  # fmt: skip
def test_parameters_that_were_set_hold_when_it_learns_more(learn):
    model = learn(ExplicitSoftmax().fit(FLOAT, Y).set_params(smoothing=3.0, temperature=2.0, prior="count"))
    twice = np.concatenate([FLOAT, FLOAT]), np.concatenate([Y, Y])
    expected = ExplicitSoftmax(smoothing=3.0, temperature=2.0, prior="count").fit(*twice)
    assert (model.smoothing_, model.temperature_) == (3.0, 2.0)
    np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-12)
    np.testing.assert_allclose(model.intercept_, expected.intercept_, rtol=1e-12)


def test_what_is_held_out_does_not_depend_on_the_default_dtype():
    index = np.zeros(45, dtype=np.int64)  # 0.7 of them is 31.5, which float32 and float64 round differently
    expected = held_out(index, 0.7, 0)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(held_out(index, 0.7, 0), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_before_fitting():
    with pytest.raises(ValueError, match="This ExplicitSoftmax instance is not fitted yet"):
        ExplicitSoftmax().predict(FLOAT)
    with pytest.raises(AttributeError, match="ExplicitSoftmax has no coef_ before it is fitted"):
        ExplicitSoftmax().coef_  # noqa: B018
    with pytest.raises(TypeError, match=r"group is a str; expected a torch\.distributed\.ProcessGroup, or None"):
        ExplicitSoftmax().fit(FLOAT, Y, group="world")


def test_a_column_of_labels_is_taken_with_a_warning():
    with pytest.warns(UserWarning, match="A column-vector y was passed when a 1d array was expected"):
        model = ExplicitSoftmax().fit(FLOAT, Y[:, None])
    assert np.array_equal(model.coef_, ExplicitSoftmax().fit(FLOAT, Y).coef_)
