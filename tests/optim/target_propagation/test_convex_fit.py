"""The convex fits: at the optimum that torch finds, each unit as if it were alone."""

import numpy as np
import pytest
import torch

from tropigrad.optim.target_propagation.convex_fit import Rows, fit_classes, fit_units, margins

RIDGE = 1e-3


def problem(features, size=60):
    generator = np.random.default_rng(features)
    x = generator.standard_normal((size, features)) * np.geomspace(1, 0.1, features)
    return generator, Rows(x, has_bias=True)


def gradient(rows, weights, loss):
    """Of loss(z) + λ/2 ‖u‖² in the units of the fit, relative to that at 0."""
    a = torch.from_numpy(rows.a)
    scale = a.square().sum(dim=1).mean()

    def at(u):
        u = u.clone().requires_grad_()
        return torch.autograd.grad(loss(a @ u) + RIDGE / 2 * scale * u.square().sum(), u)[0]

    start = torch.zeros(weights.shape, dtype=torch.float64)
    return (at(torch.from_numpy(weights)).norm() / at(start).norm()).item()


@pytest.mark.parametrize("features", [5, 200], ids=["solved", "conjugate gradients"])
def test_units_are_at_their_optimum(features):
    generator, rows = problem(features, size=300 if features > 100 else 60)
    shape = (len(rows.a), 4)
    targets, weights = generator.choice([-1.0, 1.0], shape), generator.random(shape)
    fit = fit_units(rows, targets, weights, RIDGE, until_separated=False)
    t, w = torch.from_numpy(targets), torch.from_numpy(weights / weights.sum(axis=0))
    assert gradient(rows, fit.weights, lambda z: (w * torch.nn.functional.softplus(-t * z)).sum()) < 1e-5
    alone = fit_units(rows, targets[:, [2]], weights[:, [2]], RIDGE, until_separated=False)
    np.testing.assert_allclose(fit.weights[:, [2]], alone.weights, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(fit.z, rows.a @ fit.weights, atol=1e-9)


def test_a_head_of_classes_is_at_its_optimum():
    generator, rows = problem(5)
    labels = generator.integers(3, size=len(rows.a))
    fit = fit_classes(rows, labels, 3, RIDGE, until_separated=False)
    y = torch.from_numpy(labels)
    assert gradient(rows, fit.weights, lambda z: torch.nn.functional.cross_entropy(z, y)) < 1e-5


def test_what_can_be_separated_is_and_rows_without_weight_do_not_count():
    generator, rows = problem(6)
    normal = generator.standard_normal(7)
    targets = np.where(rows.a @ normal > 0, 1.0, -1.0)[:, None]
    fit = fit_units(rows, targets, np.ones_like(targets))
    assert (targets * fit.z > 0).all()
    turned, weights = targets.copy(), np.ones_like(targets)
    turned[:5], weights[:5] = -turned[:5], 0.0
    assert (targets * fit_units(rows, turned, weights).z)[5:].min() > 0


def test_rows_that_depend_on_each_other_and_units_without_weight():
    rows = Rows(np.ones((4, 3)), has_bias=True)
    fit = fit_units(rows, np.ones((4, 2)), np.array([[1.0, 0.0]] * 4))
    assert fit.z[:, 0].min() > 0
    assert not fit.weights[:, 1].any()


def test_margins_are_to_the_nearest_other_class():
    z = np.array([[1.0, 3.0, 2.0], [5.0, 0.0, 5.0]])
    assert margins(z, np.array([1, 0])).tolist() == [1.0, 0.0]
