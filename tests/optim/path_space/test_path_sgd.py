"""Path-SGD: its scale is the sum over paths, by enumeration; it commutes with rescaling."""

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tropigrad.optim import BasisPaths, PathSGD


def network(bias=False):
    layers = nn.Linear(4, 5, bias=bias), nn.ReLU(), nn.Linear(5, 3, bias=bias), nn.ReLU(), nn.Linear(3, 2, bias=bias)
    return nn.Sequential(*layers).double(), torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 2


def convolutions():
    layers = nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2)
    return nn.Sequential(*layers).double(), torch.randn(9, 2, 5, 5, dtype=torch.float64), torch.arange(9) % 2


def gradients(model, x, y):
    model.zero_grad()
    functional.cross_entropy(model(x), y).backward()


def test_the_scale_of_an_edge_is_the_sum_over_its_paths():
    model, x, y = network()
    weights = [p.detach().clone() for p in model.parameters()]
    γ = [torch.zeros_like(w) for w in weights]
    for nodes in itertools.product(range(4), range(5), range(3), range(2)):
        path = [(behind, before) for before, behind in itertools.pairwise(nodes)]
        for layer, edge in enumerate(path):
            others = [weights[other][path[other]].item() for other in range(3) if other != layer]
            γ[layer][edge] += math.prod(others) ** 2
    gradients(model, x, y)
    g = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    wanted = [w - 0.1 * s / scale for w, s, scale in zip(weights, g, γ, strict=True)]
    PathSGD(BasisPaths(model), lr=0.1).step()
    for p, w in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-12, atol=0)


@pytest.mark.parametrize("make", [lambda: network(True), convolutions], ids=["biases", "convolutions"])
def test_rescaled_starts_take_the_same_steps(make):
    model, x, y = make()
    twin = copy.deepcopy(model)
    BasisPaths(twin).rescale_()
    loss = functional.cross_entropy(model(x), y).item()
    for each in (model, twin):
        optimizer = PathSGD(BasisPaths(each), lr=0.01)
        for _ in range(100):
            gradients(each, x, y)
            optimizer.step()
    torch.testing.assert_close(twin(x), model(x), rtol=1e-9, atol=1e-9)
    assert functional.cross_entropy(model(x), y).item() < loss


def test_dead_paths_stay_where_they_are():
    model, x, y = network()
    optimizer = PathSGD(BasisPaths(model), lr=0.01)
    with torch.no_grad():
        model.get_parameter("2.weight")[1] = 0.0
        model.get_parameter("4.weight")[:, 0] = 0.0
    gradients(model, x, y)
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


def test_it_is_an_optimizer_of_torch():
    """Closures, schedulers, copies, state_dict, plain parameters, and a compiled step."""
    layers = nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.Sigmoid()
    model, x = nn.Sequential(*layers, nn.BatchNorm1d(3)).double(), torch.randn(20, 4, dtype=torch.float64)
    optimizer = PathSGD(BasisPaths(model), lr=0.1)
    assert len(optimizer.param_groups) == 2
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    shift = model.get_parameter("4.bias").detach().clone()

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert optimizer.step(closure) != first
    gradient = model.get_parameter("4.bias").grad
    assert gradient is not None
    assert not torch.equal(model.get_parameter("4.bias"), shift)
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.05]
    copied, twin = copy.deepcopy((model, optimizer))
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each in (model, copied):
        each.zero_grad()
        each(x).square().mean().backward()
    optimizer.step()
    torch.compile(twin.step, backend="aot_eager", fullgraph=True)()
    for p, q in zip(model.parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_nothing_moves_where_a_gradient_is_missing():
    model, x, y = network()
    optimizer = PathSGD(BasisPaths(model))
    gradients(model, x, y)
    before = [p.detach().clone() for p in model.parameters()]
    model.get_parameter("2.weight").grad = None
    with pytest.raises(RuntimeError, match=r"PathSGD: 2\.weight has no gradient"):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("settings", [{"lr": "0.1"}, {"floor": None}], ids=str)
def test_settings_that_are_no_numbers_are_named(settings):
    with pytest.raises(TypeError, match=r"PathSGD: (lr is '0.1'|floor is None); expected a number"):
        PathSGD(BasisPaths(network()[0]), **settings)


@pytest.mark.parametrize(("settings", "match"), [({"lr": 0}, "lr is 0"), ({"floor": -1.0}, "floor is -1")])
def test_settings_are_checked(settings, match):
    with pytest.raises(ValueError, match=match):
        PathSGD(BasisPaths(network()[0]), **settings)


@pytest.mark.parametrize("lr", [1e-3, 0.1, 1.0, 100.0])
def test_weights_stay_finite_at_any_rate(lr):
    """From torch's own initialisation, with a layer that takes plain SGD."""
    layers = nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4), nn.Sigmoid()
    model, x = nn.Sequential(*layers, nn.BatchNorm1d(4)), torch.randn(64, 6)
    optimizer = PathSGD(BasisPaths(model), lr)
    for _ in range(40):
        gradients(model, x, torch.arange(64) % 4)
        optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_chain_or_group_that_would_not_stay_finite_keeps_its_weights(caplog):
    layers = nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.Sigmoid()
    model: Any = nn.Sequential(*layers, nn.BatchNorm1d(3))
    optimizer = PathSGD(BasisPaths(model), lr=10.0)
    in_chain, plain = 4 * 5 + 5 + 5 * 3 + 3, 6
    for large, kept in ((model[0].weight, in_chain), (model[4].bias, plain)):
        gradients(model, torch.randn(20, 4), torch.arange(20) % 3)
        large.grad.view(-1)[1] = 3e38
        before, counted = [p.detach().clone() for p in model.parameters()], optimizer.kept
        optimizer.step()
        assert optimizer.kept == counted + kept
        stayed = sum(p.numel() for p, q in zip(model.parameters(), before, strict=True) if torch.equal(p, q))
        assert stayed == kept
    assert f"PathSGD: {in_chain} weights by now have kept their values" in caplog.text
