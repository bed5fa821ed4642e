"""FeasibleTargetPropagation: what it solves and refuses, what it writes, interruption, and what bad input gets."""

import itertools
import os

import numpy as np
import pytest
import torch
from torch import nn

from tropigrad.optim import FeasibleTargetPropagation
from tropigrad.optim.target_propagation import exhaustive
from tropigrad.optim.target_propagation.problem import HiddenLayer, Problem
from tropigrad.perf_reports import data

LEVELS = [(-1.0, 1.0), (0.0, 1.0)]


class Threshold(nn.Module):
    """A hard threshold by its protocol alone."""

    def __init__(self, levels=(-1.0, 1.0)):
        super().__init__()
        self.levels = levels

    def forward(self, z):
        below, above = self.levels
        return torch.where(z > 0, above, below).to(z.dtype)


def network(*sizes, levels=(-1.0, 1.0), dtype=torch.float32, bias=True) -> nn.Sequential:
    layers = [(nn.Linear(a, b, bias=bias), Threshold(levels)) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*[*itertools.chain(*layers)][:-1]).to(dtype)


def parity(bits):
    """All corners of the cube, and whether the number of ones is odd."""
    x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=bits)))
    return x, x.sum(dim=1).long() % 2


def images(classes, size=300, side=28):
    """Smooth patches on a dark ground, one pattern a class, and noise: like Fashion-MNIST in shape and range."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(classes, 1, 7, 7, generator=generator)
    patterns = nn.functional.interpolate(coarse, size=(side, side), mode="bilinear").flatten(1)
    y = torch.arange(size) % classes
    x = (patterns[y] + 0.4 * torch.randn(size, side * side, generator=generator)).clamp(0, 1)
    return x, y


def wrong(model, x, y):
    """Errors by the model's own forward, ties counted as errors."""
    z = model(x).double()
    if z.shape[1] == 1:
        return int(((2 * (y > 0) - 1) * z[:, 0] <= 0).sum())
    others = z.scatter(1, y[:, None], -torch.inf).amax(dim=1)
    return int((z.gather(1, y[:, None])[:, 0] <= others).sum())


def state(model):
    return [p.detach().clone() for p in model.parameters()]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# ------------------------------------------------------------------------------------------------ small problems


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("outputs", [1, 2])
def test_xor_needs_two_units(outputs, levels, seed):
    x, y = parity(2)
    model = network(2, 1, outputs, levels=levels)
    one = FeasibleTargetPropagation(model, seed=seed).fit(x, y)
    assert (one.status, one.feasible, one.errors) == ("infeasible", False, 1)
    assert one.errors == wrong(model, x, y)
    assert "none of the 7 choices of 1 among 7 separable dichotomies" in one.report.reason
    model = network(2, 2, outputs, levels=levels)
    two = FeasibleTargetPropagation(model, seed=seed).fit(x, y)
    assert (two.status, two.feasible, two.errors) == ("feasible", True, 0)
    assert wrong(model, x, y) == 0
    assert all(unit.status == "separable" and unit.margin > 0.1 for layer in two.report.layers for unit in layer.units)


def test_parity_of_three_with_two_units_is_refused_with_a_proof():
    x, y = parity(3)
    solver = FeasibleTargetPropagation(network(3, 2, 1)).fit(x, 2 * y - 1)
    assert (solver.status, solver.report.dichotomies) == ("infeasible", 52)
    head = solver.report.layers[-1].units[0]
    assert head.status == "inseparable"
    assert head.margin < 0
    assert head.certificate is not None
    assert len(set(y[head.certificate.rows].tolist())) == 2
    assert "1378 choices of 2" in str(solver.report)


@pytest.mark.parametrize("seed", range(5))
def test_parity_of_three_with_three_units_is_solved(seed):
    x, y = parity(3)
    model = network(3, 3, 1)
    solver = FeasibleTargetPropagation(model, seed=seed).fit(x, y)
    assert solver.status == "feasible"
    assert 0 < solver.fits < 2000
    assert wrong(model, x, y) == 0


@pytest.mark.parametrize("sizes", [(3, 4, 3, 2), (3, 3, 3, 3, 1)], ids=["two hidden layers", "three hidden layers"])
@pytest.mark.parametrize("levels", LEVELS)
def test_deeper_networks_are_solved(sizes, levels):
    x, y = parity(3)
    model = network(*sizes, levels=levels)
    solver = FeasibleTargetPropagation(model).fit(x, y)
    assert solver.status == "feasible"
    assert wrong(model, x, y) == 0
    assert len(solver.report.layers) == len(sizes) - 1


def test_a_separable_set_takes_one_proposal():
    x = torch.tensor([[0.0, 0], [1, 0], [0, 1], [3, 3], [4, 3], [3, 4]]).repeat(3, 1)
    x = x + 0.1 * torch.arange(18)[:, None] / 18  # more rows than are tried exhaustively
    y = (x.sum(dim=1) > 3).long()
    solver = FeasibleTargetPropagation(network(2, 1, 1), seed=3).fit(x, y)
    assert solver.feasible
    assert solver.fits <= 3


def test_without_biases():
    x = torch.tensor([[1.0, 2], [2, 1], [-1, -2], [-2, -1], [1, -2], [2, -1]])
    y = torch.tensor([1, 1, 0, 0, 1, 1])
    model = network(2, 3, 2, bias=False)
    solver = FeasibleTargetPropagation(model).fit(x, y)
    assert solver.feasible
    assert wrong(model, x, y) == 0


def test_the_exhaustive_phase_agrees_with_the_search_and_keeps_to_its_bounds():
    generator = np.random.default_rng(0)
    for _ in range(6):
        x = generator.integers(0, 3, (6, 2)).astype(float)
        groups = np.unique(x, axis=0, return_inverse=True)[1].reshape(-1)
        labels = generator.integers(0, 2, 6)[groups]
        problem = Problem(x, labels, 2, True, (HiddenLayer(2, True, 0.0, 1.0),), True)
        exhausted = exhaustive.exhaust(problem, 1e-9)
        assert exhausted is not None
        if exhausted.network is not None:
            assert exhausted.network.head.errors == 0
    many = Problem(np.arange(11.0)[:, None], np.arange(11) % 2, 2, True, (HiddenLayer(1, True, 0.0, 1.0),), True)
    assert exhaustive.exhaust(many, 1e-9) is None
    x, y = parity(3)
    three = Problem(x.double().numpy(), y.numpy(), 2, True, (HiddenLayer(3, True, 0.0, 1.0),), True)
    assert exhaustive.exhaust(three, 1e-9) is None


def test_an_undecided_test_is_no_proof(monkeypatch):
    monkeypatch.setattr(exhaustive.exact, "combination", lambda *_: None)
    x, y = parity(2)
    solver = FeasibleTargetPropagation(network(2, 1, 1), budget=20).fit(x, y)
    assert (solver.status, solver.fits) == ("not found", 20)


# ------------------------------------------------------------------------------------------------ images


@pytest.mark.parametrize("classes", [2, 10])
def test_images_are_separated(classes):
    x, y = images(classes)
    model = network(784, 16, 1 if classes == 2 else classes)
    solver = FeasibleTargetPropagation(model).fit(x, y)
    assert solver.feasible
    assert wrong(model, x, y) == 0


@pytest.mark.skipif("TROPIGRAD_DATA" not in os.environ, reason="TROPIGRAD_DATA names no folder of MNIST")
@pytest.mark.parametrize("classes", [2, 10])
def test_mnist_is_separated(classes):
    dataset = data.load("mnist", data.find_data_dir())
    x, y = dataset.x_train[:300], dataset.y_train[:300]
    y = y if classes == 10 else (y > 4).long()
    model = network(784, 16, 1 if classes == 2 else classes)
    assert FeasibleTargetPropagation(model).fit(x, y).feasible
    assert wrong(model, x, y) == 0


@pytest.mark.slow
def test_three_hidden_layers_on_images():
    x, y = images(10)
    model = network(784, 16, 16, 16, 10)
    assert FeasibleTargetPropagation(model, budget=500).fit(x, y).feasible
    assert wrong(model, x, y) == 0


# ------------------------------------------------------------------------------------------------ what is written


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_errors_are_those_of_the_model_as_written(dtype):
    x, y = images(3, size=60, side=8)
    model = network(64, 6, 3, dtype=dtype)
    solver = FeasibleTargetPropagation(model).fit(x, y)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert solver.errors == wrong(model, x.to(dtype), y)
    assert solver.feasible == (solver.errors == 0)
    assert solver.feasible


def test_errors_that_rounding_makes_are_counted():
    x = torch.tensor([[1.0], [1.0009765625], [1.001953125]])  # neighbours in float16
    y = torch.tensor([0, 1, 0])
    model = network(1, 2, 2, dtype=torch.float16)
    solver = FeasibleTargetPropagation(model).fit(x, y)
    assert solver.errors == wrong(model, x.half(), y)
    assert solver.status == ("feasible" if solver.errors == 0 else "not found")
    if solver.errors:
        assert "rounds" in solver.report.reason


def test_a_seed_gives_the_same_and_the_start_of_the_model_does_not_matter():
    x, y = parity(3)
    results = []
    for seed in (0, 0, 1):
        model = network(3, 3, 2)
        solver = FeasibleTargetPropagation(model, seed=seed).fit(x, y)
        results.append((solver.fits, state(model)))
    assert results[0][0] == results[1][0]
    assert equal(results[0][1], results[1][1])
    assert not equal(results[0][1], results[2][1])


def test_flatten_and_other_kinds_of_data():
    x, y = images(2, size=20, side=4)
    model = nn.Sequential(nn.Flatten(), network(16, 2, 1))
    solver = FeasibleTargetPropagation(model).fit(x.reshape(-1, 4, 4).numpy(), (2 * y - 1).tolist())
    assert solver.feasible
    assert [layer.name for layer in solver.report.layers] == ["1.0", "1.2"]
    assert wrong(model, x.reshape(-1, 4, 4), y) == 0


def test_a_margin_is_the_distance_of_the_nearest_row():
    x, y = parity(2)
    model = network(2, 2, 2)
    report = FeasibleTargetPropagation(model).fit(x, y).report
    first, head = model[0], model[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(head, nn.Linear)
    distances = (first(x).abs() / first.weight.norm(dim=1)).amin(dim=0)
    assert [unit.margin for unit in report.layers[0].units] == pytest.approx(distances.tolist(), rel=1e-4)
    z, w = model(x), head.weight
    gap = (z.gather(1, y[:, None]) - z.gather(1, 1 - y[:, None])).min() / (w[0] - w[1]).norm()
    assert report.layers[1].margin == pytest.approx(gap.item(), rel=1e-4)


def test_equal_rows_of_different_labels_are_named():
    x, y = images(2, size=40, side=4)
    x[31], y[31] = x[7], 1 - y[7]
    model = network(16, 8, 2)
    solver = FeasibleTargetPropagation(model).fit(x, y)
    assert (solver.status, solver.report.equal_rows, solver.errors) == ("infeasible", (7, 31), 1)
    assert "rows 7 and 31 are equal and have different labels" in str(solver.report)
    assert wrong(model, x, y) == 1


# ------------------------------------------------------------------------------------------------ long runs


def hard():
    """Labels at random: more than two units can separate."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(60, 2, generator=generator), torch.randint(2, (60,), generator=generator)


def test_the_budget_is_kept_and_the_best_is_written():
    x, y = hard()
    errors = []
    for budget in (1, 30):
        model = network(2, 2, 1)
        solver = FeasibleTargetPropagation(model, budget=budget).fit(x, y)
        assert (solver.status, solver.fits) == ("not found", budget)
        assert solver.errors == wrong(model, x, y)
        assert f"{budget} of {budget} convex fits" in solver.report.reason
        errors.append(solver.errors)
    assert errors[1] < errors[0]


def test_progress_is_told_and_an_interruption_keeps_the_best():
    x, y = hard()
    model = network(2, 2, 1)
    solver, told = FeasibleTargetPropagation(model, budget=10**6), []

    def stop(*now):
        told.append(now)
        if len(told) == 3:
            raise KeyboardInterrupt

    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        solver.fit(x, y, progress=stop)
    assert not equal(before, state(model))
    assert (solver.status, solver.errors) == ("not found", wrong(model, x, y))
    fits, budgets, errors = zip(*told, strict=True)
    assert (set(budgets), sorted(fits), sorted(errors, reverse=True)) == ({10**6}, list(fits), list(errors))
    assert solver.fits >= fits[-1] > 0


# ------------------------------------------------------------------------------------------------ bad input


class Staircase(nn.Module):
    levels = (0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (nn.Linear(2, 2), TypeError, "model is a Linear; expected nn.Sequential"),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)), TypeError, "module 1 is ReLU"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), TypeError, "where a hard threshold stands"),
        (nn.Sequential(Threshold(), nn.Linear(2, 1)), TypeError, "where a Linear stands"),
        (nn.Sequential(nn.Linear(2, 2), Threshold()), ValueError, "ends with Threshold"),
        (nn.Sequential(nn.Linear(2, 2)), ValueError, "has 0 hidden layers"),
        (network(2, 2, 2, 2, 2, 1), ValueError, "has 4 hidden layers"),
        (nn.Sequential(), ValueError, "ends with nothing"),
        (nn.Sequential(nn.Linear(2, 2), Staircase(), nn.Linear(2, 1)), ValueError, "two different numbers"),
        (nn.Sequential(nn.Linear(2, 2), Threshold(), nn.Linear(3, 1)), ValueError, "takes 3 features"),
        (nn.Sequential(nn.Linear(2, 2), Threshold(), nn.Linear(2, 1).double()), ValueError, "expected one dtype"),
    ],
)
def test_models_that_do_not_fit_are_refused(model, error, words):
    with pytest.raises(error, match=words):
        FeasibleTargetPropagation(model)


def test_one_layer_twice_is_refused():
    linear = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="share one weight"):
        FeasibleTargetPropagation(nn.Sequential(linear, Threshold(), linear))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"budget": 0}, ValueError, "budget is 0; expected at least 1"),
        ({"budget": 2.5}, TypeError, "budget is 2.5; expected an integer"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"tol": 0.0}, ValueError, "tol is 0.0; expected a number between 0 and 1"),
        ({"tol": "small"}, TypeError, "tol is 'small'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        FeasibleTargetPropagation(network(2, 2, 1), **options)


GOOD = torch.zeros(3, 2), torch.tensor([0, 1, 1])


@pytest.mark.parametrize(
    ("outputs", "x", "y", "error", "words"),
    [
        (1, torch.zeros(3, 4), GOOD[1], ValueError, r"x has shape \(3, 4\); expected \[N, 2\]"),
        (1, torch.zeros(3), GOOD[1], ValueError, r"x has shape \(3,\)"),
        (1, torch.zeros(0, 2), GOOD[1][:0], ValueError, "no rows"),
        (1, torch.tensor([[0, 1], [0, torch.nan], [torch.inf, 0]]), GOOD[1], ValueError, "row 1 of x is not finite"),
        (1, torch.tensor([[0, 1e300]], dtype=torch.float64), GOOD[1][:1], ValueError, "not finite in torch.float32"),
        (1, GOOD[0] + 0j, GOOD[1], TypeError, "x is torch.complex64"),
        (1, np.array([["a", "b"]]), GOOD[1][:1], TypeError, "expected real numbers"),
        (1, GOOD[0], GOOD[1].float(), TypeError, "y is float32; expected integer labels"),
        (1, GOOD[0], GOOD[1][:2], ValueError, r"y has shape \(2,\) and x 3 row"),
        (1, GOOD[0], GOOD[1] * 0 + 1, ValueError, "all labels of y are 1; expected rows of at least two classes"),
        (1, GOOD[0], GOOD[1] + 1, ValueError, "y holds 1, 2 and the model has one output"),
        (3, GOOD[0], GOOD[1] + 2, ValueError, "row 1 of y is 3 and the model has 3 outputs; expected labels from 0"),
        (3, GOOD[0], GOOD[1] - 1, ValueError, "row 0 of y is -1"),
    ],
)
def test_data_that_do_not_fit_are_refused(outputs, x, y, error, words):
    model = network(2, 2, outputs)
    before = state(model)
    with pytest.raises(error, match=words):
        FeasibleTargetPropagation(model).fit(x, y)
    assert equal(before, state(model))
