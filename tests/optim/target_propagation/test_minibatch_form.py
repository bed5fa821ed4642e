"""One step of FTPROP-MB, the mini-batch form, is the first proposal with a gradient step for each convex fit."""

import numpy as np
import torch
from torch import nn

from tropigrad.optim.target_propagation.convex_fit import unit_slope
from tropigrad.optim.target_propagation.problem import HiddenLayer, Problem
from tropigrad.optim.target_propagation.search import Network, Search

STEP = 1e-4


class Rule(torch.autograd.Function):
    """A sign whose backward is FTPROP-MB's: the gradient of Σ |go| log(1 + exp(−T z)) with T = −sign(go)."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return torch.where(z > 0, 1.0, -1.0).to(z.dtype)

    @staticmethod
    def backward(ctx, go):
        (z,) = ctx.saved_tensors
        T = -go.sign()
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            loss = (go.abs() * torch.nn.functional.softplus(-T * z)).sum()
        return torch.autograd.grad(loss, z)[0]


class OneStep(Search):
    """The search with a gradient step from the present weights in place of each convex fit, and no placing."""

    def _fitted(self, layer, rows, targets, present):
        z = rows.a @ present
        weights = present - STEP * rows.a.T @ unit_slope(targets.signs, targets.weights, z)
        return self.problem.hidden[layer].outputs(rows.a @ weights), weights


def columns(linear):
    """The weights as the solver holds them, [D, U], the bias last."""
    return torch.cat([linear.weight, linear.bias[:, None]], dim=1).detach().t().numpy()


def test_one_step_of_the_minibatch_form_is_the_first_proposal(monkeypatch):
    torch.manual_seed(1)
    x, y = torch.randn(30, 5).double(), torch.arange(30) % 3
    linears = [nn.Linear(5, 6).double(), nn.Linear(6, 4).double(), nn.Linear(4, 3).double()]
    hidden = (HiddenLayer(6, True, -1.0, 1.0), HiddenLayer(4, True, -1.0, 1.0))
    problem = Problem(x.numpy(), y.numpy(), 3, False, hidden, True)
    search = OneStep(problem, 10, np.random.default_rng(0))
    placed = tuple(columns(linear) for linear in linears[:2])
    outputs: tuple[np.ndarray, ...] = ()
    for layer, weights in enumerate(placed):
        outputs = (*outputs, hidden[layer].outputs(problem.rows_of(layer, outputs).a @ weights))
    rows = problem.rows_of(2, outputs)
    here = Network(placed, outputs, problem.head_of(rows, columns(linears[2])))

    seen = {}
    monkeypatch.setattr(search, "_network", lambda hidden, outputs: seen.update(hidden=hidden, outputs=outputs))
    monkeypatch.setattr(np, "array_equal", lambda *_: False)  # the outputs are as before, as the step is small
    search._projected(here, "all", 2)
    monkeypatch.undo()
    assert np.array_equal(seen["outputs"][0], here.outputs[0])
    head = here.head.weights - STEP * rows.a.T @ problem.head_slope(here.head.z)

    flow = x
    for linear in linears[:2]:
        flow = Rule.apply(linear(flow))
    nn.functional.cross_entropy(linears[2](flow), y).backward()
    with torch.no_grad():
        for linear in linears:
            for parameter in linear.parameters():
                assert parameter.grad is not None
                parameter -= STEP * parameter.grad
    for linear, mine, before in zip(linears, (*seen["hidden"], head), (*placed, here.head.weights), strict=True):
        moved = columns(linear) - before
        assert np.abs(moved).max() > 0
        np.testing.assert_allclose(mine - before, moved, rtol=1e-6, atol=1e-15)


def test_one_output_has_the_slope_of_the_logistic_loss():
    x, y = torch.randn(8, 3).double(), torch.arange(8) % 2
    problem = Problem(x.numpy(), y.numpy(), 2, True, (HiddenLayer(2, True, 0.0, 1.0),), True)
    z = torch.randn(8, 1, dtype=torch.float64, requires_grad=True)
    loss = nn.functional.binary_cross_entropy_with_logits(z[:, 0], y.double())
    slope = torch.autograd.grad(loss, z)[0]
    np.testing.assert_allclose(problem.head_slope(z.detach().numpy()), slope.numpy(), rtol=1e-12)
