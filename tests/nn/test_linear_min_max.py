"""LinearMinMax: the definition, its start as the nearest-medoid classifier, its invariances and its sparse gradient."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from tropigrad.nn import LinearMinMax, WorstSampleLoss, chebyshev_distances


def dense(model, x):
    """The definition, and its autograd: max over a named dimension, so the first winner takes all."""
    z = x @ model.A.T
    u = (z[:, None, :] + model.W1).min(dim=2).values
    return (u[:, None, :] + model.W2).max(dim=2).values


def problem(n=60, d=5, classes=3, dtype=torch.float32):
    x = torch.rand(n, d, generator=torch.Generator().manual_seed(0), dtype=dtype)
    y = torch.arange(n) % classes
    return x, y


def started(hidden=12, scale=64.0, train_a=False, dtype=torch.float32):
    x, y = problem(dtype=dtype)
    model = LinearMinMax(5, hidden, 3, train_a=train_a, dtype=dtype)
    return model, x, y, model.init_kmedoids(x, y, scale)


@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 3, 5), (0, 5)], ids=str)
def test_forward_is_the_definition(shape):
    model, x = LinearMinMax(5, 8, 3), torch.randn(shape)
    assert torch.equal(model(x), dense(model, x.reshape(-1, 5)).reshape(*shape[:-1], 3))


# ------------------------------------------------------------------------------------------------ the start


@pytest.mark.parametrize("scale", [1.0, 64.0, 0.3], ids=str)
def test_hidden_units_start_as_scaled_distances(scale):
    model, x, _, start = started(scale=scale)
    unseen = torch.rand(40, 5)
    for samples in (x, unseen):
        u = model.min_units(model.linear(samples))
        distances = chebyshev_distances(samples, x[start.medoids])
        if scale == 0.3:  # no power of two: λ x and λ m are rounded before they are subtracted
            torch.testing.assert_close(u, -scale * distances, atol=1e-7, rtol=1e-6)
        else:
            assert torch.equal(u, -scale * distances)


def test_starts_as_the_nearest_medoid_classifier():
    model, x, y, start = started()
    unseen = torch.rand(200, 5)
    nearest = chebyshev_distances(unseen, x[start.medoids]).argmin(dim=1)
    assert torch.equal(model(unseen).argmax(dim=1), start.classes[nearest])
    assert torch.equal(y[start.medoids], start.classes)


def test_own_units_weigh_nothing_and_others_are_out_of_reach():
    model, x, _, start = started()
    own = start.classes == torch.arange(3)[:, None]
    farthest = model.min_units(model.linear(x)).abs().max().item()
    assert not model.W2[own].any()
    assert model.W2[~own].unique().tolist() == [-2 * (farthest + 1.0)]


def test_hidden_units_follow_class_frequency():
    x = torch.rand(100, 2)
    y = torch.cat([torch.zeros(80), torch.ones(18), torch.full((2,), 2)]).long()
    counts = torch.bincount(LinearMinMax(2, 20, 3).init_kmedoids(x, y).classes).tolist()
    assert counts == [15, 4, 1] or counts == [16, 3, 1]
    # a unit for every sample: no class can get more than it has samples
    assert torch.bincount(LinearMinMax(2, 100, 3).init_kmedoids(x, y).classes).tolist() == [80, 18, 2]


def test_the_cost_of_the_start_is_reported():
    _, x, y, start = started()
    distances = chebyshev_distances(x, x[start.medoids]).masked_fill(y[:, None] != start.classes, float("inf"))
    assert start.loss == pytest.approx(distances.amin(dim=1).sum().item())
    assert len(start.by_class) == 3
    assert start.seconds > 0
    assert start.swaps >= 0


def test_sampled_start_is_seeded():
    x, y = problem(n=300)
    weights = []
    for _ in range(2):
        model = LinearMinMax(5, 9, 3)
        model.init_kmedoids(x, y, 64.0, max_samples=40, generator=torch.Generator().manual_seed(1))
        weights.append(model.W1)
    assert torch.equal(*weights)


# ------------------------------------------------------------------------------------------------ properties


def test_moving_a_unit_and_its_readout_apart_changes_nothing():
    model = LinearMinMax(5, 8, 3)
    x = torch.randint(-8, 8, (30, 5)).float()
    with torch.no_grad():
        model.W1.copy_(torch.randint(-8, 8, model.W1.shape))
        model.W2.copy_(torch.randint(-8, 8, model.W2.shape))
        before = model(x)
        shift = torch.randint(-8, 8, (8,)).float()
        model.W1.add_(shift[:, None])
        model.W2.sub_(shift)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("name", ["W1", "W2"])
def test_monotone_in_each_weight(name):
    model, x = LinearMinMax(5, 8, 3), torch.randn(30, 5)
    with torch.no_grad():
        before = model(x)
        getattr(model, name).add_(torch.rand_like(getattr(model, name)))
        assert (model(x) >= before).all()


# ------------------------------------------------------------------------------------------------ gradient


@pytest.mark.parametrize("train_a", [False, True], ids=["A fixed", "A trained"])
def test_gradients_are_those_of_the_dense_network(train_a):
    model, x, y, _ = started(train_a=train_a)
    trained = [p for p in model.parameters() if p.requires_grad]
    loss = WorstSampleLoss(margin=8.0)
    got = torch.autograd.grad(loss(model(x), y), trained)
    expected = torch.autograd.grad(loss(dense(model, x), y), trained)
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_gradients_of_all_outputs_match_in_float64():
    model, x, *_ = started(train_a=True, dtype=torch.float64)
    x.requires_grad_()
    upstream = torch.randn(len(x), 3, dtype=torch.float64)
    inputs = (x, model.A, model.W1, model.W2)
    got = torch.autograd.grad(model(x), inputs, upstream)
    expected = torch.autograd.grad(dense(model, x), inputs, upstream)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_worst_sample_s_gradient_has_four_entries_at_most():
    model, x, y, _ = started()
    gradients = torch.autograd.grad(WorstSampleLoss(margin=8.0)(model(x), y), (model.W1, model.W2))
    entries = [g[g != 0].tolist() for g in gradients]
    assert sum(map(len, entries)) == 4
    assert all(sorted(e) == [-1.0, 1.0] for e in entries)


# ------------------------------------------------------------------------------------------------ as a module


def test_round_trips():
    model, x, *_ = started()
    stored = io.BytesIO()
    torch.save(model.state_dict(), stored)
    stored.seek(0)
    loaded = LinearMinMax(5, 12, 3)
    loaded.load_state_dict(torch.load(stored, weights_only=True))
    for twin in (loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
        assert not twin.A.requires_grad
    assert repr(model) == "LinearMinMax(in_features=5, hidden=12, classes=3, train_a=False)"


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_network_and_loss_compile_into_one_graph(backend):
    model, x, y, _ = started()
    loss = WorstSampleLoss(margin=8.0)

    @torch.compile(fullgraph=True, backend=backend)
    def compiled(x, y):
        return loss(model(x), y)

    trained = (model.W1, model.W2)
    got, expected = compiled(x, y), loss(model(x), y)
    torch.testing.assert_close(got, expected)
    for ours, eager in zip(torch.autograd.grad(got, trained), torch.autograd.grad(expected, trained), strict=True):
        torch.testing.assert_close(ours, eager)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        pytest.param({"x": torch.rand(60, 4)}, ValueError, r"x has shape \(60, 4\); expected \[N, 5\]", id="features"),
        pytest.param({"x": torch.rand(60, 5).double()}, TypeError, "float64; expected torch.float32", id="dtype"),
        pytest.param({"x": torch.full((60, 5), float("nan"))}, ValueError, "NaN or infinite", id="NaN"),
        pytest.param({"y": torch.zeros(59).long()}, ValueError, r"y has shape \(59,\); expected \[60\]", id="labels"),
        pytest.param({"y": torch.zeros(60)}, TypeError, "y is torch.float32", id="float labels"),
        pytest.param(
            {"x": torch.rand(60, 5).numpy()}, TypeError, "x is a ndarray; expected a torch.Tensor", id="array"
        ),
        pytest.param(
            {"y": torch.arange(60) % 4}, ValueError, r"spans \[0, 3\]; expected labels in \[0, 2\]", id="label 3"
        ),
        pytest.param({"y": torch.arange(60) % 3 - 1}, ValueError, r"spans \[-1, 1\]", id="label -1"),
        pytest.param({"y": torch.arange(60) % 2}, ValueError, "no sample of class 2", id="empty class"),
        pytest.param({"y": torch.zeros(60).long()}, ValueError, "no sample of class 1, 2", id="single class"),
        pytest.param({"hidden": 61}, ValueError, "61 hidden units for 3 classes and 60 samples", id="too many units"),
        pytest.param({"hidden": 2}, ValueError, "2 hidden units for 3 classes", id="too few units"),
        pytest.param({"classes": 1, "y": torch.zeros(60).long()}, ValueError, "at least two", id="one class"),
        pytest.param({"scale": 0.0}, ValueError, "scale is 0.0", id="scale"),
        pytest.param({"scale": "1"}, TypeError, "scale is '1'; expected a number", id="scale as text"),
        pytest.param({"scale": 3e38}, ValueError, "weights would be more than torch.float32 holds", id="wide scale"),
        pytest.param({"margin": 1e39}, ValueError, "weights would be more than torch.float32 holds", id="wide margin"),
        pytest.param({"x": torch.rand(60, 5, device="meta")}, ValueError, "x is on meta", id="meta"),
        pytest.param({"margin": -1.0}, ValueError, "margin is -1.0", id="margin"),
    ],
)
def test_a_bad_start_is_named_and_changes_nothing(change, error, match):
    x, y = problem()
    model = LinearMinMax(5, change.pop("hidden", 12), change.pop("classes", 3))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=match):
        model.init_kmedoids(**{"x": x, "y": y, "scale": 64.0, **change})
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_network_elsewhere_than_its_samples_is_refused():
    x, y = problem()
    with torch.device("meta"):
        model = LinearMinMax(5, 12, 3)
    with pytest.raises(ValueError, match="x is on cpu, y on cpu and the parameters on meta"):
        model.init_kmedoids(x, y)


@pytest.mark.parametrize("exponent", [60, -60, 110, -100])
def test_rescaled_samples_make_a_rescaled_start(exponent):
    x, y = problem()
    scale = 2.0**exponent
    models = [LinearMinMax(5, 12, 3) for _ in range(2)]
    for model, by in zip(models, (1.0, scale), strict=True):
        model.init_kmedoids(by * x, y, 64.0, margin=by)
    one, other = models
    assert torch.equal(other.A, one.A)
    assert torch.equal(other.W1, scale * one.W1)
    assert torch.equal(other.W2, scale * one.W2)


@pytest.mark.parametrize("sizes", [(2.0, 4, 2), (5, True, 2), (5, 4, "2")], ids=str)
def test_sizes_that_are_no_integers_are_refused(sizes):
    with pytest.raises(TypeError, match="expected an integer, at least 1"):
        LinearMinMax(*sizes)


@pytest.mark.parametrize("sizes", [(0, 4, 2), (5, 0, 2), (5, 4, 0)], ids=str)
def test_empty_networks_are_refused(sizes):
    with pytest.raises(ValueError, match="expected at least 1"):
        LinearMinMax(*sizes)


def test_a_wrong_last_dimension_is_named():
    with pytest.raises(ValueError, match=r"x has shape \(3, 4\); expected \[\.\.\., 5\]"):
        LinearMinMax(5, 4, 2)(torch.zeros(3, 4))


def test_torch_fx_traces_it():
    model, x = nn.Sequential(LinearMinMax(3, 7, 4), nn.ReLU(), LinearMinMax(4, 5, 2)), torch.randn(5, 6, 3)
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(x), model(x))
    with pytest.raises(ValueError, match=r"LinearMinMax: x has shape \(5, 7\)"):
        traced(torch.randn(5, 7))
