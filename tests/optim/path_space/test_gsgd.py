"""G-SGD: its step is SGD on path values; no rescaling changes it; its bounds; what it shares with other optimizers."""

import copy
import dataclasses
import logging
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.backends.registry import lookup_backend
from torch.nn import functional

from tropigrad.kernels.path_step import Layer, Options, path_step_ref
from tropigrad.kernels.path_step.definition import node_flows
from tropigrad.kernels.runtime import backend
from tropigrad.optim import GSGD, BasisPaths


def mlp(*widths, bias=False):
    layers = []
    for before, behind in pairwise(widths):
        layers += [nn.Linear(before, behind, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Cnn(nn.Module):
    """Convolutions of unequal widths, one of them grouped, a pooling, and a Linear behind all positions."""

    def __init__(self, bias=True):
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3, padding=1, bias=bias)
        self.b = nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=bias)
        self.c = nn.Linear(6 * 4, 3, bias=bias)

    def forward(self, x):
        x = functional.max_pool2d(torch.relu(self.b(torch.relu(self.a(x)))), 2)
        return self.c(x.view(x.size(0), -1))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(5, 6)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x)
        x = functional.relu(x + self.down(functional.relu(self.up(x))))
        return self.head(x)


def normed():
    layers = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def images(n=9, size=4):
    return torch.randn(n, 2, size, size, dtype=torch.float64)


NETWORKS = {
    "equal": lambda: (mlp(5, 6, 6, 6, 3), torch.randn(20, 5, dtype=torch.float64)),
    "growing": lambda: (mlp(5, 3, 7, 4, bias=True), torch.randn(20, 5, dtype=torch.float64)),
    "one maximum": lambda: (mlp(4, 5, 9, 9, 3, 2, bias=True), torch.randn(20, 4, dtype=torch.float64)),
    "hourglass": lambda: (mlp(4, 8, 2, 8, 3), torch.randn(20, 4, dtype=torch.float64)),
    "two hourglasses": lambda: (mlp(4, 6, 3, 7, 2, 5, 3, bias=True), torch.randn(20, 4, dtype=torch.float64)),
    "cnn": lambda: (Cnn(), images()),
    "cnn without bias": lambda: (Cnn(bias=False), images()),
    "residual": lambda: (Residual(), torch.randn(20, 5, dtype=torch.float64)),
    "batch norm": lambda: (normed(), images(size=6)),
}


@pytest.fixture(params=NETWORKS, ids=lambda name: name.replace(" ", "-"))
def network(request):
    model, x = NETWORKS[request.param]()
    model = model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.sign() * (p.abs() + 0.3))  # path values of order one, of both signs
    return model, x, torch.arange(len(x)) % 3 % model(x).shape[1]


def gradients(model, x, y):
    model.zero_grad()
    functional.cross_entropy(model(x), y).backward()


# ------------------------------------------------------------------------------------------------ the oracle


def chain_edges(chain):
    """Every weight of a chain as (parameter, flat index, source, target), nodes named (layer, number)."""
    found = []
    for number, layer in enumerate(chain.layers):
        G, O, I, T = layer.shape
        for flat in range(G * O * I * T):
            target, source = flat // T // I, flat // T // I // O * I + flat // T % I
            found.append((layer.weight, flat, (number, source), (number + 1, target)))
        for target in range(G * O if layer.bias is not None else 0):
            found.append((layer.bias, target, None, (number + 1, target)))
    return found


def basis(chain):
    """Rows of edges, by number: through each edge, along the skeleton before and behind it. Equal rows are one path.

    By the rule as Meng et al. state it: edge (o, o mod in) into a node, (i mod out, i) out of it, at the centre tap.
    """
    edges = chain_edges(chain)
    number = {(id(p), flat): at for at, (p, flat, _, _) in enumerate(edges)}

    def into(node):
        layer, target = node
        if layer == 0:
            return []
        (_, O, I, T), weight = chain.layers[layer - 1].shape, chain.layers[layer - 1].weight
        local = target % O % I
        edge = number[id(weight), (target * I + local) * T + T // 2]
        return [*into((layer - 1, target // O * I + local)), edge]

    def out_of(node):
        layer, source = node
        if layer == len(chain.layers):
            return []
        (_, O, I, T), weight = chain.layers[layer].shape, chain.layers[layer].weight
        target = source // I * O + source % I % O
        edge = number[id(weight), (target * I + source % I) * T + T // 2]
        return [edge, *out_of((layer + 1, target))]

    through = [
        (*(into(source) if source else ()), at, *out_of(target)) for at, (_, _, source, target) in enumerate(edges)
    ]
    return edges, list(dict.fromkeys(through))


def values(edges, paths):
    weights = torch.stack([p.detach().reshape(-1)[flat] for p, flat, _, _ in edges])
    return torch.stack([weights[list(path)].prod() for path in paths]), weights


def slopes(edges, paths, weights):
    """∂L/∂v of the basis paths, from g = Jᵀ ∂L/∂v with J = ∂v/∂w: solved, since paths are all that L depends on."""
    g = torch.stack([p.grad.reshape(-1)[flat] for p, flat, _, _ in edges])
    jacobian = torch.zeros(len(paths), len(edges), dtype=g.dtype)
    for row, path in enumerate(paths):
        for edge in path:
            jacobian[row, edge] = weights[[other for other in path if other != edge]].prod()
    slope = torch.linalg.lstsq(jacobian.T, g).solution
    torch.testing.assert_close(jacobian.T @ slope, g, rtol=1e-9, atol=1e-10)  # else L depends on more than the paths
    return slope


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "weight_decay": 0.05}], ids=["plain", "momentum-decay"])
@pytest.mark.parametrize("form", ["cpp", "torch"])
def test_the_step_is_sgd_on_path_values(network, settings, form):
    if reason := backend.why_off(form, torch.device("cpu")):
        pytest.skip(reason)
    model, x, y = network
    paths = BasisPaths(model)
    lr = 0.003
    optimizer = GSGD(paths, lr=lr, least_ratio=1e-3, floor=0.0, **settings)
    velocity = {}
    for _ in range(3):
        gradients(model, x, y)
        wanted = {}
        for chain in paths.chains:
            edges, rows = basis(chain)
            v, weights = values(edges, rows)
            slope = slopes(edges, rows, weights) + settings.get("weight_decay", 0) * v
            velocity[chain] = settings.get("momentum", 0) * velocity.get(chain, 0) + slope
            wanted[chain] = v - lr * velocity[chain]
        with backend.forcing(form):
            optimizer.step()
        assert optimizer.held == 0
        for chain, v in wanted.items():
            torch.testing.assert_close(values(*basis(chain))[0], v, rtol=1e-12, atol=1e-13)


def test_basis_paths_are_as_many_as_the_path_matrix_has_rank(network):
    model, _, _ = network
    paths = BasisPaths(model)
    total = 0
    for chain in paths.chains:
        edges, rows = basis(chain)
        matrix = torch.zeros(len(rows), len(edges), dtype=torch.float64)
        for at, row in enumerate(rows):
            matrix[at, list(row)] = 1
        assert torch.linalg.matrix_rank(matrix) == len(rows) == chain.size - chain.skeleton.hidden
        total += len(rows)
    assert paths.count == total == paths.size - paths.hidden


# ------------------------------------------------------------------------------------------------ properties


def trajectory(make, model, x, y, steps):
    """Outputs along a training run, of a copy."""
    model = copy.deepcopy(model)
    optimizer = make(model)
    found = []
    for step in range(steps):
        gradients(model, x, y)
        optimizer.step()
        if step % 50 == 49 or steps < 50:
            found.append(model(x).detach())
    return torch.stack(found)


def rescaled(model, spread=1.0):
    model = copy.deepcopy(model)
    BasisPaths(model).rescale_(torch.Generator().manual_seed(1), spread)
    return model


def unit_start(model):
    BasisPaths(model).unit_skeleton_()
    return model


def test_rescaling_keeps_the_function(network):
    model, x, _ = network
    torch.testing.assert_close(rescaled(model)(x), model(x), rtol=1e-10, atol=1e-10)
    pairs = zip(rescaled(model).parameters(), model.parameters(), strict=True)
    assert not all(torch.equal(p, q) for p, q in pairs)


@pytest.mark.parametrize(
    "settings", [{"lr": 0.02}, {"lr": 0.005, "momentum": 0.9, "weight_decay": 0.01}], ids=["plain", "momentum-decay"]
)
@pytest.mark.parametrize(
    "name", ["equal", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cnn", "hourglass"))]
)
def test_600_steps_from_rescaled_starts_are_the_same(name, settings):
    model, x = NETWORKS[name]()
    model = unit_start(model.double())
    y = torch.arange(len(x)) % 3

    def make(model):
        return GSGD(BasisPaths(model), **settings)

    ours, theirs = (trajectory(make, start, x, y, 600) for start in (model, rescaled(model)))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert functional.cross_entropy(ours[-1], y) < functional.cross_entropy(model(x), y)
    dense = [
        trajectory(lambda model: torch.optim.SGD(model.parameters(), lr=0.02), start, x, y, 50)
        for start in (model, rescaled(model))
    ]
    assert (dense[0] - dense[1]).abs().max() > 1e-3  # the control: plain SGD does depend on the scale


def test_in_float32_rescaled_starts_drift_apart_by_rounding_alone():
    model, x = NETWORKS["equal"]()
    model, x = unit_start(model), x.float()
    y = torch.arange(len(x)) % 3

    def make(model):
        return GSGD(BasisPaths(model), lr=0.02)

    ours, theirs = (trajectory(make, start, x, y, 300) for start in (model, rescaled(model)))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_the_special_layer_changes_no_function(network):
    model, x, y = network
    outputs = []
    for special in range(3):
        copied = copy.deepcopy(model)
        optimizer = GSGD(BasisPaths(copied))
        gradients(copied, x, y)
        for chain in optimizer.paths.chains:
            operands = operands_of(chain)
            bones = dataclasses.replace(chain.skeleton, special=min(special, len(operands) - 1))
            with torch.no_grad():
                path_step_ref(operands, bones, None, torch.zeros(3, dtype=torch.int64), Options(0.003))
        outputs.append(copied(x).detach())
    assert not torch.equal(outputs[0], model(x))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(outputs[2], outputs[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["equal", "one maximum", "cnn", "batch norm"])
def test_the_skeleton_outside_the_special_layer_keeps_its_bits(name):
    model, x = NETWORKS[name]()
    model = unit_start(model.double())
    paths = BasisPaths(model)
    optimizer = GSGD(paths, lr=0.003)
    before = {chain: [w.clone() for w in skeleton_weights(chain)] for chain in paths.chains}
    for _ in range(5):
        gradients(model, x, torch.arange(len(x)) % 2)
        optimizer.step()
    for chain in paths.chains:
        for number, (old, new) in enumerate(zip(before[chain], skeleton_weights(chain), strict=True)):
            assert torch.equal(old, new) == (number != chain.skeleton.special)


def operands_of(chain):
    """Layers of path_step, with their gradients."""
    biases = [(None, None) if layer.bias is None else (layer.bias, layer.bias.grad) for layer in chain.layers]
    return [Layer(layer.weight, layer.weight.grad, *bias) for layer, bias in zip(chain.layers, biases, strict=True)]


def skeleton_weights(chain):
    edges = zip(chain.layers, chain.skeleton_edges(), strict=True)
    return [layer.weight.detach().reshape(-1)[at] for layer, at in edges]


def test_every_hidden_node_is_balanced(network):
    """What flows in, Σ w g of the edges into a node and its bias, flows out: the reductions may take either."""
    model, x, y = network
    gradients(model, x, y)
    optimizer = GSGD(BasisPaths(model))
    for chain in optimizer.paths.chains:
        operands = operands_of(chain)
        bones, numbers = chain.skeleton, range(len(operands))
        both = [node_flows(operands, bones, [(number + parity) % 2 == 0 for number in numbers]) for parity in (0, 1)]
        torch.testing.assert_close(both[0], both[1], rtol=1e-10, atol=1e-12)


def test_at_a_skeleton_of_ones_it_is_the_released_form():
    """Equal widths, skeleton 1, s = 0: σ of chain k sums w g over columns k of the layers above, off the skeleton."""
    model, x = NETWORKS["equal"]()
    model = unit_start(model.double())
    w = [p.detach().clone() for p in model.parameters()]
    gradients(model, x, torch.arange(len(x)) % 3)
    g = [p.grad.clone() for p in model.parameters()]
    lr, (n, d), K = 0.01, w[0].shape, len(w[-1])
    GSGD(BasisPaths(model), lr=lr).step()
    mask = [torch.zeros_like(v, dtype=torch.bool) for v in w]
    for k in range(n):
        mask[0][k, k % d] = mask[1][k, k] = mask[2][k, k] = mask[3][k % K, k] = True
    terms = [(v * s * ~m).sum(0) for v, s, m in zip(w[1:], g[1:], mask[1:], strict=True)]
    σ = torch.stack(terms).sum(0)
    R = torch.stack([1 - lr * (g[0][k, k % d] * w[0][k, k % d] - σ[k]) for k in range(n)])
    wanted = [torch.where(mask[0], w[0] * R[:, None], w[0] - lr * g[0])]
    wanted += [torch.where(m, v, (v - lr * s) / R) for v, s, m in zip(w[1:], g[1:], mask[1:], strict=True)]
    for found, value in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(found.detach(), value, rtol=1e-12, atol=1e-14)


# ------------------------------------------------------------------------------------------------ any start


def default_mlp(*widths, **settings):
    return lambda: (mlp(*widths, **settings), torch.randn(64, widths[0]))


def default_cnn():
    layers = nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(12 * 9, 4)), torch.randn(64, 2, 6, 6)


def default_normed():
    layers = nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)), torch.randn(64, 2, 6, 6)


STARTS = {
    "narrow": default_mlp(6, 8, 4),
    "wide": default_mlp(20, 256, 4, bias=True),
    "deep": default_mlp(20, 32, 32, 32, 32, 32, 4, bias=True),
    "without-bias": default_mlp(20, 64, 64, 4),
    "hourglass": default_mlp(20, 30, 3, 30, 4, bias=True),
    "cnn": default_cnn,
    "normed": default_normed,
}


def learned(model, x, optimizer, steps):
    """Losses of full batches with labels that x decides; stops where a loss is not finite any more."""
    y = (x.flatten(1)[:, 0] > 0).long() + 2 * (x.flatten(1)[:, 1] > 0).long()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", STARTS)
def test_torchs_own_initialisation_trains(name, seed, momentum):
    torch.manual_seed(seed)
    model, x = STARTS[name]()
    twin = copy.deepcopy(model)
    lr = 0.1 * (1 - momentum)
    losses = learned(model, x, GSGD(BasisPaths(model), lr, momentum), 150)
    by_sgd = learned(twin, x, torch.optim.SGD(twin.parameters(), lr, momentum), 150)
    assert losses[-1] < losses[0] - 0.5 * (losses[0] - by_sgd[-1])
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("unit", [False, True], ids=["as-drawn", "unit-skeleton"])
@pytest.mark.parametrize("lr", [1e-3, 1e-2, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("name", STARTS)
def test_weights_stay_finite_at_any_rate(name, lr, unit):
    model, x = STARTS[name]()
    paths = BasisPaths(model)
    if unit:
        paths.unit_skeleton_()
    optimizer = GSGD(paths, lr, momentum=0.9)
    learned(model, x, optimizer, 25)
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(m.isfinite().all() for state in optimizer.state.values() for m in state.values())


@pytest.mark.parametrize(
    "settings", [{"lr": 0.05}, {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.01}], ids=["plain", "all"]
)
@pytest.mark.parametrize("name", ["equal", "cnn", "two hourglasses"])
def test_rescaled_starts_that_path_norms_measure_are_the_same(name, settings):
    model, x = NETWORKS[name]()
    model, y = model.double(), torch.arange(len(x)) % 2

    def make(model):
        optimizer = GSGD(BasisPaths(model), **settings)
        assert optimizer.param_groups[0]["norms"] == [True]
        return optimizer

    ours, theirs = (trajectory(make, start, x, y, 200) for start in (model, rescaled(model)))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
    assert functional.cross_entropy(ours[-1], y) < functional.cross_entropy(model(x), y)


def test_by_path_norms_it_is_sgd_where_they_are_even():
    """Σ w² = 1 into every node: all path norms are 1, and so is every c."""
    model = mlp(4, 5, 6, 3).double()
    with torch.no_grad():
        for p in model.parameters():
            p.div_(p.norm(dim=1, keepdim=True))
    twin, x, y = copy.deepcopy(model), torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 3
    settings: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}
    optimizer, sgd = GSGD(BasisPaths(model), **settings), torch.optim.SGD(twin.parameters(), **settings)
    optimizer.param_groups[0]["norms"] = [True]
    for each, its in ((model, optimizer), (twin, sgd)):
        gradients(each, x, y)
        its.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("form", ["cpp", "torch"])
def test_a_weight_pruned_from_the_skeleton_is_named_and_the_chain_goes_on(form, momentum, caplog):
    if reason := backend.why_off(form, torch.device("cpu")):
        pytest.skip(reason)
    model, x = NETWORKS["growing"]()
    model, y = unit_start(model.double()), torch.arange(len(x)) % 3
    optimizer = GSGD(BasisPaths(model), lr=0.01, momentum=momentum)
    mask = torch.ones_like(model[2].weight)
    mask[4, 1] = 0
    with backend.forcing(form):
        gradients(model, x, y)
        optimizer.step()
        assert optimizer.param_groups[0]["norms"] == [False]
        losses = []
        for _ in range(20):
            with torch.no_grad():
                model[2].weight.mul_(mask)
            gradients(model, x, y)
            losses.append(functional.cross_entropy(model(x), y).item())
            optimizer.step()
            assert all(p.isfinite().all() for p in model.parameters())
    assert optimizer.param_groups[0]["norms"] == [True]
    assert "2.weight[4, 1] is 0, on the skeleton of its chain" in caplog.text
    assert losses[-1] < losses[0]
    assert optimizer.kept == 0


@pytest.mark.parametrize("norms", [False, True], ids=["skeleton", "norms"])
@pytest.mark.parametrize("form", ["cpp", "torch", "triton"])
def test_what_would_not_be_finite_keeps_its_value(form, norms, caplog):
    """The gradient of one weight of the last layer is too large, of finite ones; and then none is finite."""
    if reason := backend.why_off(form, torch.device("cpu")):
        pytest.skip(reason)
    model: Any = unit_start(mlp(5, 6, 6, 3, bias=True))
    optimizer = GSGD(BasisPaths(model), lr=10.0, momentum=0.9)
    optimizer.param_groups[0]["norms"] = [norms]
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e-3)
    with backend.forcing(form):
        optimizer.step()
        before = [p.detach().clone() for p in model.parameters()]
        momenta = copy.deepcopy(optimizer.state_dict()["state"])
        model[0].weight.grad[2, 4] = 3e38
        optimizer.step()
        assert optimizer.kept == (before_kept := 1 if norms else optimizer.kept) >= 1
        assert torch.equal(model[0].weight[2, 4], before[0][2, 4])
        assert all(p.isfinite().all() for p in model.parameters())
        for p in model.parameters():
            p.grad.fill_(float("nan"))
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert optimizer.kept == before_kept + sum(p.numel() for p in model.parameters())
    assert all(m.isfinite().all() for state in optimizer.state.values() for m in state.values())
    assert momenta.keys() == optimizer.state_dict()["state"].keys()
    assert "weights by now have kept their values" in caplog.text


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "weight_decay": 0.1}], ids=["plain", "momentum-decay"])
@pytest.mark.parametrize("fused", [False, True])
def test_plain_parameters_keep_their_values_too(settings, fused):
    """The group keeps all of them; the launch that decides on a GPU does so here."""
    model = Residual()
    optimizer = GSGD(BasisPaths(model), lr=10.0, **settings)
    head: list[torch.Tensor] = list(model.head.parameters())
    group = optimizer.param_groups[1]

    def move(value):
        slopes = [torch.full_like(p, value) for p in head]
        with torch.no_grad():
            if fused:
                momenta = optimizer._momenta(head) if settings else []
                optimizer._move_by_fused_sgd(head, slopes, momenta, group)
            else:
                optimizer._move_plainly(head, slopes, group)

    twin = copy.deepcopy(model.head)
    sgd = torch.optim.SGD(twin.parameters(), lr=10.0, **settings)
    for p in twin.parameters():
        p.grad = torch.full_like(p, 0.1)
    sgd.step()
    move(0.1)
    for p, q in zip(head, twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    before = [p.detach().clone() for p in head]
    for count, value in enumerate((3e38, float("nan")), 1):
        move(value)
        assert all(torch.equal(p, q) for p, q in zip(head, before, strict=True))
        assert optimizer.kept == count * sum(p.numel() for p in head)
        assert all(m.isfinite().all() for state in optimizer.state.values() for m in state.values())


# ------------------------------------------------------------------------------------------------ guards, bad input


def test_a_sign_is_held_counted_and_logged(caplog):
    model = unit_start(mlp(5, 6, 6, 6, 3).double())
    paths = BasisPaths(model)
    optimizer = GSGD(paths, lr=100.0)
    for p in model.parameters():
        p.grad = p.detach().clone() * 0.1  # every V would become negative, or grow
    before = [w.sign() for w in skeleton_weights(paths.chains[0])]
    with caplog.at_level(logging.WARNING):
        optimizer.step()
    assert 0 < optimizer.flips <= optimizer.held <= 6
    assert f"sign of a skeleton's path value, {optimizer.flips} times by now" in caplog.text
    for old, new in zip(before, skeleton_weights(paths.chains[0]), strict=True):
        assert torch.equal(old, new.sign())


def test_no_step_takes_a_path_value_below_the_floor():
    model, x = NETWORKS["equal"]()
    optimizer = GSGD(BasisPaths(unit_start(model.double())), lr=0.05, weight_decay=0.5, floor=0.5)
    for _ in range(100):
        gradients(model, x, torch.arange(len(x)) % 3)
        optimizer.step()
        weights = skeleton_weights(optimizer.paths.chains[0])
        assert (weights[0] >= 0.5 - 1e-12).all()
    assert optimizer.held > 0


def test_nothing_moves_where_a_gradient_is_missing():
    model, x = NETWORKS["cnn"]()
    model = model.double()
    optimizer = GSGD(BasisPaths(model))
    gradients(model, x, torch.arange(len(x)) % 3)
    before = [p.detach().clone() for p in model.parameters()]
    model.c.bias.grad = None
    with pytest.raises(RuntimeError, match=r"c\.bias has no gradient, others of its chain have"):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    optimizer.zero_grad()
    optimizer.step()  # no gradients at all: nothing to do
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_no_chain_moves_where_another_lacks_a_gradient():
    model, x = NETWORKS["batch norm"]()
    model = model.double()
    optimizer = GSGD(BasisPaths(model))
    assert len(optimizer.paths.chains) > 1
    gradients(model, x, torch.arange(len(x)) % 3)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.paths.chains[-1].layers[-1].weight.grad = None
    with pytest.raises(RuntimeError, match="has no gradient, others of its chain have"):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"lr": 0.0}, "lr is 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"momentum": -0.1}, "momentum is -0.1; expected a number that is not negative"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"least_ratio": 1.0}, "least_ratio is 1.0; expected a number between 0 and 1"),
        ({"floor": -1.0}, "floor is -1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_are_checked(settings, match):
    with pytest.raises(ValueError, match=match):
        GSGD(BasisPaths(mlp(3, 4, 2)), **settings)


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay", "least_ratio", "floor"])
@pytest.mark.parametrize("value", ["0.1", None, True], ids=str)
def test_settings_that_are_no_numbers_are_named(name, value):
    with pytest.raises(TypeError, match=f"GSGD: {name} is {value!r}; expected a number"):
        GSGD(BasisPaths(mlp(3, 4, 2)), **{name: value})


def test_it_takes_basis_paths():
    with pytest.raises(TypeError, match=r"paths is a Sequential; expected BasisPaths\(model\)"):
        GSGD(mlp(3, 4, 2))  # pyright: ignore
    with pytest.raises(ValueError, match="GSGD: no hidden node can be rescaled"):
        GSGD(BasisPaths(nn.Linear(3, 4)))


# ------------------------------------------------------------------------------------------------ an optimizer


def test_plain_parameters_take_the_steps_of_torch_sgd():
    model = Residual().double()
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.arange(20) % 3
    theirs = copy.deepcopy(model)
    settings: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
    optimizer, sgd = GSGD(BasisPaths(model), **settings), torch.optim.SGD(theirs.head.parameters(), **settings)
    for _ in range(3):
        gradients(model, x, y)
        theirs.load_state_dict(model.state_dict() | {f"head.{n}": p for n, p in theirs.head.state_dict().items()})
        gradients(theirs, x, y)
        optimizer.step()
        sgd.step()
        for ours, other in zip(model.head.parameters(), theirs.head.parameters(), strict=True):
            torch.testing.assert_close(ours, other)


def test_state_is_saved_loaded_and_copied():
    model, x = NETWORKS["cnn"]()
    model, y = model.double(), torch.arange(len(x)) % 3
    settings: dict[str, Any] = {"lr": 0.003, "momentum": 0.9}
    optimizer = GSGD(BasisPaths(model), **settings)
    for _ in range(2):
        gradients(model, x, y)
        optimizer.step()
    loaded = copy.deepcopy(model)
    other = GSGD(BasisPaths(loaded), lr=1.0)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    copied, twin = copy.deepcopy((model, optimizer))
    for _ in range(3):
        for each, its in ((model, optimizer), (loaded, other), (copied, twin)):
            gradients(each, x, y)
            its.step()
    for p, q, r in zip(model.parameters(), loaded.parameters(), copied.parameters(), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(p, r)


def test_schedulers_closures_and_a_group_of_ones_own():
    model = Residual().double()
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.arange(20) % 3
    optimizer = GSGD(BasisPaths(model), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    extra = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer.add_param_group({"params": [extra], "lr": 1.0})

    def closure():
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y) + extra.sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.05, 0.5]
    assert optimizer.step(closure) < first
    assert torch.equal(extra.detach(), torch.tensor([-0.5, -0.5], dtype=torch.float64))


def test_a_gradient_scaler_skips_and_takes_steps():
    model, x = NETWORKS["cnn"]()
    scaled = copy.deepcopy(model)
    x, y = x.float(), torch.arange(len(x)) % 3
    optimizer, other = GSGD(BasisPaths(model), lr=0.003), GSGD(BasisPaths(scaled), lr=0.003)
    gradients(model, x, y)
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(functional.cross_entropy(scaled(x), y)).backward()
    scaler.step(other)
    scaler.update()
    for p, q in zip(model.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    before = [p.detach().clone() for p in scaled.parameters()]
    scaled.a.weight.grad.fill_(float("inf"))
    scaler.step(other)
    assert all(torch.equal(p, q) for p, q in zip(scaled.parameters(), before, strict=True))


@pytest.mark.parametrize("form", ["cpp", "torch"])
def test_autocast_does_not_touch_the_step(form):
    if reason := backend.why_off(form, torch.device("cpu")):
        pytest.skip(reason)
    model, x = NETWORKS["cnn"]()
    inside = copy.deepcopy(model)
    x, y = x.float(), torch.arange(len(x)) % 3
    for each, is_inside in ((model, False), (inside, True)):
        optimizer = GSGD(BasisPaths(each), lr=0.003, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = functional.cross_entropy(each(x), y)
            loss.backward()
            with backend.forcing(form), torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_inside):
                optimizer.step()
    for p, q in zip(model.parameters(), inside.parameters(), strict=True):
        assert p.dtype == torch.float32
        assert torch.equal(p, q)


def test_a_compiled_training_step_is_the_training_step():
    model, x = NETWORKS["cnn"]()
    model = unit_start(model)
    x, y = x.float(), torch.arange(len(x)) % 3
    compiled = copy.deepcopy(model)

    def training_step(model, optimizer):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    optimizer, other = (GSGD(BasisPaths(m), lr=0.003, momentum=0.9) for m in (model, compiled))
    compiled_step = torch.compile(training_step, backend="aot_eager")
    for _ in range(4):
        training_step(model, optimizer)
        compiled_step(compiled, other)
    for p, q in zip(model.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_compiled_step_is_the_step():
    model, x = NETWORKS["cnn"]()
    model = unit_start(model)
    x, y = x.float(), torch.arange(len(x)) % 3
    compiled = copy.deepcopy(model)
    optimizer, other = (GSGD(BasisPaths(m), lr=0.003, momentum=0.9) for m in (model, compiled))

    graphs = []

    def noting(graph, inputs):
        graphs.append([node.target for node in graph.graph.nodes])
        return lookup_backend("aot_eager")(graph, inputs)

    @torch.compile(backend=noting, fullgraph=True)
    def step():
        other.step()

    for _ in range(3):
        gradients(model, x, y)
        optimizer.step()
        gradients(compiled, x, y)
        step()
    for p, q in zip(model.parameters(), compiled.parameters(), strict=True):
        assert torch.equal(p, q)
    assert other.held == 0
    assert all(torch.ops.tropigrad.path_step.default in targets for targets in graphs)
    assert len(graphs) <= 2  # the first step makes the momenta
