"""Chains that branch: U-nets, concatenations, two heads: their step is SGD on path values, at any scale the same."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tropigrad.kernels.path_step import Layer, Options, Shape, Wiring, path_step, path_step_ref, skeleton
from tropigrad.kernels.path_step.definition import node_flows
from tropigrad.kernels.runtime import backend
from tropigrad.optim import GSGD, BasisPaths, PathSGD


class UNet(nn.Module):
    """Two levels; what goes down at each comes back beside what comes up. A forward that asks a shape."""

    def __init__(self, bias=True):
        super().__init__()
        self.a = nn.Conv2d(2, 3, 3, padding=1, bias=bias)
        self.b = nn.Conv2d(3, 4, 3, padding=1, bias=bias)
        self.c = nn.Conv2d(4, 4, 1, groups=2, bias=bias)
        self.up_b = nn.ConvTranspose2d(4, 4, 2, stride=2, groups=2, bias=bias)
        self.d = nn.Conv2d(8, 3, 1, bias=bias)
        self.up_a = nn.ConvTranspose2d(3, 2, 2, stride=2, bias=bias)
        self.e = nn.Conv2d(5, 3, 1, bias=bias)

    def forward(self, x):
        a = torch.relu(self.a(x))
        b = functional.leaky_relu(self.b(functional.max_pool2d(a, 2)), 0.1)
        c = torch.relu(self.c(functional.avg_pool2d(b, 2)))
        up = torch.relu(self.d(torch.cat([torch.relu(self.up_b(c)), b], 1)))
        return self.e(torch.cat([torch.relu(self.up_a(up)), a], 1)).mean((2, 3))


class AskingUNet(UNet):
    def forward(self, x):
        return super().forward(x if x.shape[0] > 0 else x.new_zeros(1, *x.shape[1:]))


class DenseNet(nn.Module):
    """Each layer takes the input and what all layers before it made."""

    def __init__(self, growth=3, layers=3, bias=True):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 1, bias=bias)
        convs = [nn.Conv2d(6 + growth * at, growth, 3, padding=1, bias=bias) for at in range(layers)]
        self.layers = nn.ModuleList(convs)
        self.head = nn.Linear(6 + growth * layers, 3, bias=bias)

    def forward(self, x):
        features = [x, torch.relu(self.stem(x))]
        for layer in self.layers:
            features.append(torch.relu(layer(torch.cat(features, 1))))
        return self.head(torch.flatten(functional.adaptive_avg_pool2d(torch.cat(features, dim=1), 1), 1))


class TwoHeads(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 7, bias), nn.ReLU(), nn.Linear(7, 6, bias), nn.ReLU())
        self.deep = nn.Sequential(nn.Linear(6, 4, bias), nn.ReLU(), nn.Linear(4, 3, bias))
        self.flat = nn.Linear(6, 3, bias)

    def forward(self, x):
        trunk = self.trunk(x)
        return torch.cat([self.deep(trunk), self.flat(trunk)], 1)


class Residual(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.stem = nn.Linear(5, 6, bias)
        self.up, self.down = nn.Linear(6, 8, bias), nn.Linear(8, 6, bias)
        self.a, self.b = nn.Linear(6, 5, bias), nn.Linear(11, 6, bias)
        self.head = nn.Linear(6, 3, bias)

    def forward(self, x):
        x = self.stem(x)
        x = functional.relu(x + self.down(functional.relu(self.up(x))))
        a = functional.relu(self.a(x))
        return self.head(functional.relu(x + self.b(torch.cat((a, x), -1))))


class Graph(nn.Module):
    """Linear layers, each of which takes the given ones, concatenated; -1 is the input."""

    def __init__(self, takes, widths, inputs=4, bias=False):
        super().__init__()
        self.takes, used = takes, {number for parts in takes for number in parts}
        widths = [inputs if number < 0 else width for number, width in ((-1, 0), *enumerate(widths))]
        self.lines = nn.ModuleList(
            nn.Linear(sum(widths[part + 1] for part in parts), widths[number + 1], bias=bias)
            for number, parts in enumerate(takes)
        )
        self.ends = [number for number in range(len(takes)) if number not in used]

    def forward(self, x):
        made = {-1: x}
        for number, (line, parts) in enumerate(zip(self.lines, self.takes, strict=True)):
            y = line(torch.cat([made[part] for part in parts], -1))
            made[number] = y if number in self.ends else torch.relu(y)
        return torch.cat([made[number] for number in self.ends], -1)


def images(n=9, size=4):
    return torch.randn(n, 2, size, size, dtype=torch.float64)


def rows(n=16, width=5):
    return torch.randn(n, width, dtype=torch.float64)


NETWORKS = {
    "u-net": lambda: (UNet(), images()),
    "u-net without bias": lambda: (UNet(bias=False), images()),
    "dense": lambda: (DenseNet(), images()),
    "two heads": lambda: (TwoHeads(), rows()),
    "residual": lambda: (Residual(), rows()),
    "twice": lambda: (Graph([[-1], [0, 0], [1, -1, 0]], [3, 4, 2]), rows(width=4)),
}
GRAPHS = {  # what each layer takes, and how wide it is
    "diamond": ([[-1], [0], [0], [1, 2]], [3, 4, 2, 3]),
    "skip": ([[-1], [0], [1, 0], [2]], [4, 2, 5, 3]),
    "two-levels": ([[-1], [0], [1], [2, 1], [3, 0]], [3, 5, 2, 4, 3]),
    "dense": ([[-1], [-1, 0], [-1, 0, 1], [-1, 0, 1, 2]], [3, 2, 4, 3]),
    "dense-hourglass": ([[-1], [0], [0, 1], [0, 1, 2], [3, 0]], [6, 1, 5, 2, 3]),
    "two-heads": ([[-1], [0], [1], [1]], [4, 5, 2, 3]),
    "heads-at-each-depth": ([[-1], [0], [0], [2], [2]], [4, 2, 3, 1, 2]),
    "two-stems": ([[-1], [-1], [0, 1], [2]], [3, 4, 2, 3]),
    "crossed": ([[-1], [-1], [0, 1], [1, 0], [2, 3]], [3, 2, 4, 3, 2]),
    "the-same-twice": ([[-1], [0, 0], [1, 0]], [3, 4, 2]),
}


@pytest.fixture(params=NETWORKS, ids=lambda name: name.replace(" ", "-"))
def network(request):
    torch.manual_seed(0)
    model, x = NETWORKS[request.param]()
    return of_order_one(model.double()), x, torch.arange(len(x)) % 3 % model(x.to(model(x))).shape[1]


@torch.no_grad()
def of_order_one(model):
    for p in model.parameters():
        p.copy_(p.sign() * (0.5 * p.abs() + 0.7))
    return model


def gradients(model, x, y):
    model.zero_grad()
    functional.cross_entropy(model(x), y).backward()


# ------------------------------------------------------------------------------------------------ the oracle


def edges_of(chain):
    """Every weight as (parameter, flat index, source, target): nodes are (layer, target), or None where paths end."""
    made = {number for parts in chain.wiring.sources for number, _ in parts if number >= 0}
    found = []
    for number, (layer, parts) in enumerate(zip(chain.layers, chain.wiring.sources, strict=True)):
        G, O, I, T = layer.shape
        sources = [(made, at) if made >= 0 else None for made, count in parts for at in range(count)]
        for g, o, i, t in itertools.product(range(G), range(O), range(I), range(T)):
            flat = ((g * I + i) * O + o) * T + t if layer.turned else ((g * O + o) * I + i) * T + t
            found.append((layer.weight, flat, (number, g * O + o), sources[g * I + i], (g, o, i, t), number))
        for target in range(G * O if layer.bias is not None else 0):
            found.append((layer.bias, target, (number, target), None, None, number))
    return [(p, at, s, t if t[0] in made else None, place, number) for p, at, t, s, place, number in found]


def basis(chain):
    """Rows of edges, by number: through each edge, along the skeleton before and behind it. Equal rows are one path.

    The edge (o, o mod in) into a node, and (i mod out, i) in the last layer that takes it, at the centre tap.
    """
    edges = edges_of(chain)
    into, out = {}, {}
    for at, (_, _, source, target, place, number) in enumerate(edges):
        if place is None:
            continue
        (_, o, i, t), (_, O, I, T) = place, chain.layers[number].shape
        if t == T // 2 and i == o % I and target is not None:
            into[target] = at
        if t == T // 2 and o == i % O and source is not None and out.get(source, (0, -1))[1] < number:
            out[source] = (at, number)

    def before(node):
        return () if node is None else (*before(edges[into[node]][2]), into[node])

    def behind(node):
        return () if node is None else (out[node][0], *behind(edges[out[node][0]][3]))

    through = [(*before(source), at, *behind(target)) for at, (_, _, source, target, _, _) in enumerate(edges)]
    return edges, list(dict.fromkeys(through))


def values(edges, paths):
    weights = torch.stack([edge[0].detach().reshape(-1)[edge[1]] for edge in edges])
    return torch.stack([weights[list(path)].prod() for path in paths]), weights


def slopes(edges, paths, weights):
    """∂L/∂v of the basis paths, from g = Jᵀ ∂L/∂v with J = ∂v/∂w: solved, since paths are all that L depends on."""
    g = torch.stack([edge[0].grad.reshape(-1)[edge[1]] for edge in edges])
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
    lr = 2e-4
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
            torch.testing.assert_close(values(*basis(chain))[0], v, rtol=1e-12, atol=1e-12)


def all_paths(chain):
    """Every path from end to end, as rows of edges."""
    edges = edges_of(chain)
    begins: dict[Any, list[int]] = {}
    for at, (_, _, source, *_) in enumerate(edges):
        begins.setdefault(source, []).append(at)
    found = []

    def walk(path):
        target = edges[path[-1]][3]
        if target is None:
            found.append(path)
            return
        for at in begins[target]:
            walk([*path, at])

    for at in begins[None]:
        walk([at])
    return edges, found


@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("name", GRAPHS)
def test_the_path_matrix_has_rank_m_minus_h_and_the_basis_spans_it(name, bias):
    """Of every path from end to end, not of the basis alone."""
    (chain,) = BasisPaths(Graph(*GRAPHS[name], bias=bias)).chains
    edges, rows = all_paths(chain)

    def matrix(rows):
        found = torch.zeros(len(rows), len(edges), dtype=torch.float64)
        for at, row in enumerate(rows):
            found[at, list(row)] = 1
        return found

    _, chosen = basis(chain)
    assert {tuple(path) for path in chosen} <= {tuple(path) for path in rows}
    assert torch.linalg.matrix_rank(matrix(rows)) == torch.linalg.matrix_rank(matrix(chosen)) == len(chosen)
    assert len(chosen) == chain.size - chain.skeleton.hidden


# ------------------------------------------------------------------------------------------------ properties


def rescaled(model, *examples):
    model = copy.deepcopy(model)
    BasisPaths(model, *examples).rescale_(torch.Generator().manual_seed(1))
    return model


def trajectory(make, model, x, y, steps):
    model = copy.deepcopy(model)
    optimizer = make(model)
    found = []
    for step in range(steps):
        gradients(model, x, y)
        optimizer.step()
        if step % 50 == 49:
            found.append(model(x).detach())
    return torch.stack(found)


@pytest.mark.parametrize("start", ["unit", "as drawn"])
@pytest.mark.parametrize("name", ["u-net", "dense", "two heads", "residual"])
def test_300_steps_from_rescaled_starts_are_the_same(name, start):
    """From a skeleton of ones by path values, from torch's own initialisation by path norms."""
    torch.manual_seed(0)
    model, x = NETWORKS[name]()
    model, y = model.double(), torch.arange(len(x)) % 3
    if start == "unit":
        BasisPaths(model).unit_skeleton_()

    def make(model):
        return GSGD(BasisPaths(model), lr=0.01, momentum=0.5, weight_decay=0.001)

    assert any(make(model).param_groups[0]["norms"]) == (start != "unit")
    ours, theirs = (trajectory(make, first, x, y, 300) for first in (model, rescaled(model)))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert functional.cross_entropy(ours[-1], y) < functional.cross_entropy(model(x), y)
    dense = [
        trajectory(lambda model: torch.optim.SGD(model.parameters(), lr=0.01), first, x, y, 50)
        for first in (model, rescaled(model))
    ]
    assert (dense[0] - dense[1]).abs().max() > 1e-3  # the control: plain SGD does depend on the scale


def test_rescaling_keeps_the_function(network):
    model, x, _ = network
    other = rescaled(model)
    torch.testing.assert_close(other(x), model(x), rtol=1e-10, atol=1e-10)
    assert not all(torch.equal(p, q) for p, q in zip(other.parameters(), model.parameters(), strict=True))


def test_every_hidden_node_is_balanced(network):
    """What flows into a node flows out of it, into all that take it: the sums may take either."""
    model, x, y = network
    gradients(model, x, y)
    for chain in BasisPaths(model).chains:
        bones = chain.skeleton
        operands: list[Any] = []
        for layer in chain.layers:
            bias = (None, None) if layer.bias is None else (layer.bias, layer.bias.grad)
            weight: Any = layer.weight
            operands.append(Layer(weight, weight.grad, *bias))
        into = node_flows(operands, bones, [True] * len(operands))
        chosen = node_flows(operands, bones, bones.reduced)
        torch.testing.assert_close(chosen, into, rtol=1e-10, atol=1e-12)
        for l, start in zip(bones.made, bones.starts, strict=True):
            out = node_flows(operands, bones, [number != l for number in range(len(operands))])
            its = slice(start, start + bones.shapes[l].targets)
            torch.testing.assert_close(out[its], into[its], rtol=1e-10, atol=1e-12)
        for l, parts in enumerate(bones.wiring.sources):
            assert all(made < 0 or bones.reduced[l] or bones.reduced[made] for made, _ in parts)
        assert not all(bones.reduced)


def test_path_sgd_is_the_same_at_any_scale(network):
    model, x, y = network

    def make(model):
        return PathSGD(BasisPaths(model), lr=0.001)

    ours, theirs = (trajectory(make, first, x, y, 50) for first in (model, rescaled(model)))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_path_sgd_weighs_by_all_paths():
    """γ_e against the squared values of all paths through e, one by one."""
    torch.manual_seed(0)
    model = of_order_one(Graph(*GRAPHS["dense"], bias=True).double())
    paths = BasisPaths(model)
    optimizer = PathSGD(paths, lr=0.1)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    (chain,) = paths.chains
    edges, rows = all_paths(chain)
    _, before = values(edges, rows)
    γ = torch.zeros_like(before)
    for row in rows:
        γ[row] += before[row].square().prod() / before[row].square()
    optimizer.step()
    torch.testing.assert_close(values(edges, rows)[1], before - 0.1 / γ, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", ["u-net", "dense", "two heads"])
def test_torchs_own_initialisation_trains_at_the_rates_of_sgd(name, momentum):
    torch.manual_seed(1)
    model, x = NETWORKS[name]()
    x = torch.randn(64, *x.shape[1:])
    y = (x.flatten(1)[:, : x[0].numel() // 2].mean(1) > 0).long()
    twin, lr = copy.deepcopy(model), 0.1 * (1 - momentum)
    losses = []
    for each, optimizer in (
        (model, GSGD(BasisPaths(model), lr, momentum)),
        (twin, torch.optim.SGD(twin.parameters(), lr, momentum)),
    ):
        for _ in range(200):
            optimizer.zero_grad()
            loss = functional.cross_entropy(each(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    ours, theirs = losses[:200], losses[200:]
    assert ours[-1] < ours[0] - 0.5 * (theirs[0] - theirs[-1])
    assert all(p.isfinite().all() for p in model.parameters())


# ------------------------------------------------------------------------------------------------ kernels

SHAPES = (Shape(1, 3, 2, 9), Shape(1, 4, 3, 9), Shape(2, 3, 2, 4), Shape(1, 5, 9, 1), Shape(1, 2, 8, 4))
WIRING = Wiring(
    (((-1, 2),), ((0, 3),), ((1, 4),), ((2, 6), (0, 3)), ((3, 5), (-1, 3))), (False, False, True, False, True)
)
SETTINGS = {
    "plain": Options(0.05),
    "momentum": Options(0.05, momentum=0.9, weight_decay=0.1),
    "held": Options(5.0, momentum=0.9, least_ratio=0.9, floor=0.5),
    "norms": Options(0.05, norms=True),
    "norms-momentum": Options(0.05, momentum=0.9, weight_decay=0.1, norms=True),
}


def operands(options, dtype):
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        x = torch.randn(size, generator=generator, dtype=torch.float64)
        return (x + 0.5 * x.sign()).to(dtype)

    layers = []
    for shape, turned in zip(SHAPES, WIRING.turned, strict=True):
        G, O, I, T = shape
        size = (G, I, O, T) if turned else shape
        momenta = (draw(*size), draw(shape.targets)) if options.momentum else (None, None)
        layers.append(Layer(draw(*size), draw(*size), draw(shape.targets), draw(shape.targets), *momenta))
    run_momentum = draw(skeleton(SHAPES, torch.device("cpu"), WIRING).runs) if options.momentum else None
    return layers, run_momentum, torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("form", ["cpp", "triton"])
def test_the_kernels_take_the_step_of_the_definition(form, settings, dtype):
    if reason := backend.why_off(form, torch.device("cpu")):
        pytest.skip(reason)
    options = SETTINGS[settings]
    ours, wanted = (operands(options, dtype) for _ in range(2))
    with backend.forcing(form):
        path_step(ours[0], SHAPES, *ours[1:], options, WIRING)
    path_step_ref(wanted[0], skeleton(SHAPES, torch.device("cpu"), WIRING), *wanted[1:], options)
    tolerance = 1e-11 if dtype == torch.float64 else 2e-4
    found, values = ([x for layer in each[0] for x in layer] + [*each[1:]] for each in (ours, wanted))
    for x, y in zip(found, values, strict=True):
        if x is not None:
            torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)
    assert settings != "held" or ours[2][0] > 0


@pytest.mark.parametrize(
    ("sources", "match"),
    [
        ({1: ((3, 5),)}, r"layers\[1\] takes nodes of layers\[3\]; expected layers before it, or -1: .* cycle"),
        ({1: ((1, 4),)}, r"layers\[1\] takes nodes of layers\[1\]"),
        ({3: ((2, 5), (0, 4))}, r"layers\[3\] takes 5 nodes of layers\[2\]; expected all 6"),
        ({3: ((2, 6), (-1, 2))}, r"shapes\[3\] has 9 nodes in; expected the 8 of its wiring"),
        ({at: ((-1, shape.sources),) for at, shape in enumerate(SHAPES)}, "no layer takes nodes of another"),
    ],
    ids=["cycle", "itself", "some", "count", "none"],
)
def test_wirings_that_no_paths_have_are_named(sources, match):
    layers, run_momentum, events = operands(SETTINGS["plain"], torch.float64)
    before = [layer.weight.clone() for layer in layers]
    parts = tuple(sources.get(at, its) for at, its in enumerate(WIRING.sources))
    with pytest.raises(ValueError, match=f"path_step: {match}"):
        path_step(layers, SHAPES, run_momentum, events, SETTINGS["plain"], WIRING._replace(sources=parts))
    assert all(torch.equal(layer.weight, x) for layer, x in zip(layers, before, strict=True))


# ------------------------------------------------------------------------------------------------ what is found


def named(paths):
    return [[layer.name for layer in chain.layers] for chain in paths.chains]


def test_what_each_layer_takes_is_in_the_table():
    paths = BasisPaths(UNet())
    assert named(paths) == [["a", "b", "c", "up_b", "d", "up_a", "e"]]
    assert not paths.plain
    assert "takes up_b and b" in str(paths)
    assert "takes up_a and a" in str(paths)
    assert paths.hidden == 3 + 4 + 4 + 4 + 3 + 2
    assert paths.count == sum(p.numel() for p in UNet().parameters()) - paths.hidden
    with pytest.raises(ValueError, match="chain 0, from a on, branches"):
        paths.draw(None)


def test_a_forward_that_asks_a_shape_is_exported():
    model = AskingUNet()
    with pytest.raises(ValueError, match=r"AskingUNet cannot be traced .* with example_inputs torch\.export"):
        BasisPaths(model)
    paths, wanted = BasisPaths(model, images(2)), BasisPaths(UNet())
    assert [chain.wiring for chain in paths.chains] == [chain.wiring for chain in wanted.chains]
    assert [chain.shapes for chain in paths.chains] == [chain.shapes for chain in wanted.chains]
    assert named(paths) == named(wanted)
    assert model.training


class Asks(nn.Module):
    """A forward that asks a shape, of modules of all the kinds that have paths."""

    def __init__(self, training_head=False):
        super().__init__()
        self.a, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.b, self.act, self.drop = nn.Conv2d(4, 4, 3, padding=1), nn.PReLU(), nn.Dropout(0.5)
        self.pool, self.flat = nn.MaxPool2d(2), nn.Flatten()
        self.c, self.d = nn.Linear(16, 5), nn.Linear(5, 3)
        self.attend = nn.MultiheadAttention(5, 1, batch_first=True)
        self.aside = nn.Linear(5, 3)
        self.training_head = training_head

    def forward(self, x):
        if x.shape[0] > 100:
            return x
        x = self.drop(self.act(self.b(torch.relu(self.norm(self.a(x))))))
        x = torch.relu(self.c(self.flat(self.pool(x))))
        if self.training_head and self.training:
            return self.d(x), self.aside(self.attend(x[None], x[None], x[None])[0])
        return self.d(x)


def test_exported_modules_are_those_of_the_model():
    paths = BasisPaths(Asks(), images(2))
    assert named(paths) == [["norm", "b", "c", "d"]]
    assert {"a.weight", "act.weight", "attend.in_proj_weight", "aside.weight"} <= set(paths.plain)


def test_what_training_alone_takes_counts():
    """In training mode attention takes the nodes of c too, and so none of them is hidden."""
    assert named(BasisPaths(Asks(training_head=True), images(2))) == [["norm", "b", "c"]]
    assert named(BasisPaths(Asks(training_head=True).eval(), images(2))) == [["norm", "b", "c", "d"]]


def sequential(*between):
    first = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)
    return nn.Sequential(*first, *between, nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.attend(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize(
    ("between", "said"),
    [
        (nn.LayerNorm(4), "3 (LayerNorm)"),
        (Attends(), "3.attend (MultiheadAttention)"),
        (nn.Softshrink(), None),
        (nn.Upsample(4), None),
    ],
    ids=["layer-norm", "attention", "activation", "upsampling-of-rows"],
)
def test_opaque_modules_are_ends_of_paths(between, said):
    model = sequential(between)
    if said is None:
        with pytest.raises(
            ValueError, match=r"3 \(\w+\) stands before 4, and is not known to be positively homogeneous"
        ):
            BasisPaths(model)
        return
    paths = BasisPaths(model, torch.randn(3, 5, 4))
    assert named(paths) == [["0", "2"], ["4", "6"]]
    assert f"its paths end at {said}" in str(paths)
    assert all(name.startswith("3.") and "paths end at" in why for name, (_, why) in paths.plain.items())


class Calls(nn.Module):
    def __init__(self, forward, **modules):
        super().__init__()
        self._forward = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self._forward(self, x)


def lines(*names):
    return {name: nn.Linear(4, 4) for name in names}


ENDS = {
    "product": (lambda m, x: m.c((h := torch.relu(m.a(x))) * m.b(h)), "abc", []),
    "gate": (lambda m, x: m.c(torch.relu(m.b(h := torch.relu(m.a(x)))) * h), "abc", []),
    "output-too": (lambda m, x: (h := torch.relu(m.a(x)), m.b(h)), "ab", []),
    "sum": (lambda m, x: m.c((h := torch.relu(m.a(x))) + m.b(h)), "abc", []),
    "sliced": (lambda m, x: m.b(torch.relu(m.a(x)).chunk(2, 0)[0]), "ab", []),
    "rows-concatenated": (lambda m, x: m.b(torch.cat([h := m.a(x), h], 0)), "ab", []),
    "one-of-two": (lambda m, x: m.c(torch.relu(m.b(h := m.a(x)))) + h, "abc", [["b", "c"]]),
    "attention": (
        lambda m, x: m.d(torch.relu(m.v(torch.softmax(m.q(x) @ m.k(x).mT, -1) @ x))),
        "qkvd",
        [["v", "d"]],
    ),
}


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("asks", [False, True], ids=["fx", "export"])
def test_what_more_than_layers_take_is_no_hidden_node(name, asks):
    forward, layers, wanted = ENDS[name]

    def asking(m, x):
        return forward(m, x if x.shape[0] > 0 else x + 1)

    model = Calls(asking if asks else forward, **lines(*layers))
    assert named(BasisPaths(model, torch.randn(6, 4))) == wanted


def test_a_layer_that_is_frozen_ends_the_paths_of_all_that_it_takes():
    model = UNet()
    model.d.weight.requires_grad_(False)
    paths = BasisPaths(model)
    assert named(paths) == [["a", "b", "up_a", "e"], ["c", "up_b"]]
    assert [chain.skeleton.hidden for chain in paths.chains] == [3 + 2, 4]


def test_a_concatenation_without_shapes_infers_one_unknown_width():
    model = Calls(lambda m, x: m.b(torch.cat([x, torch.relu(m.a(x))], -1)), a=nn.Linear(4, 3), b=nn.Linear(7, 2))
    for examples in ((), (torch.randn(5, 4),)):
        (chain,) = BasisPaths(model, *examples).chains
        assert chain.wiring.sources == (((-1, 4),), ((-1, 4), (0, 3)))


def test_two_unknown_widths_are_ends_until_shapes_tell():
    def forward(m, x):
        return m.b(torch.cat([x, torch.relu(m.a(x)), x], -1))

    model = Calls(forward, a=nn.Linear(4, 3), b=nn.Linear(11, 2))
    assert "a concatenation of which example_inputs would show the channels" in str(BasisPaths(model))
    assert named(BasisPaths(model, torch.randn(5, 4))) == [["a", "b"]]


# ------------------------------------------------------------------------------------------------ bad input


def recurrent(m, x):
    h = torch.relu(m.a(x))
    for _ in range(2):
        h = torch.relu(m.b(h))
    return m.c(h)


def uses_a_weight_again(m, x):
    return m.b(torch.relu(m.a(x))) + m.a.weight.sum()


def asking(forward):
    return lambda m, x: forward(m, x if x.shape[0] > 0 else x + 1)


@pytest.mark.parametrize("examples", [(), (torch.randn(5, 4),)], ids=["fx", "export"])
@pytest.mark.parametrize(
    ("forward", "match"),
    [
        (recurrent, r"b is used twice, and b\.weight with it.*cycle"),
        (uses_a_weight_again, r"a\.weight is used by sum\w* beside a"),
    ],
    ids=["cycle", "weight-of-two"],
)
def test_weights_of_two_uses_are_named(forward, match, examples):
    model = Calls(asking(forward) if examples else forward, **lines("a", "b", "c"))
    with pytest.raises(ValueError, match=match):
        BasisPaths(model, *examples)


def test_a_layer_of_a_module_that_cannot_be_looked_into_has_no_use_elsewhere():
    block = Calls(lambda m, x: m.a(x) if x.sum() > 0 else x, **lines("a"))
    model = Calls(lambda m, x: m.c(torch.relu(m.block.a(m.block(x)))), block=block, **lines("c"))
    with pytest.raises(ValueError, match=r"block\.a\.weight is used by block beside block\.a"):
        BasisPaths(model)


@pytest.mark.parametrize("count", [0, 2])
def test_example_inputs_of_the_wrong_number_are_named(count):
    with pytest.raises(ValueError, match=rf"example_inputs has {count} arguments; .*UNet.forward takes, \(x\)"):
        BasisPaths(UNet(), tuple(images() for _ in range(count)))


def test_nothing_moves_where_one_head_lacks_a_gradient():
    model, x = TwoHeads().double(), rows()
    optimizer = GSGD(BasisPaths(model))
    before = [p.detach().clone() for p in model.parameters()]
    model.flat(model.trunk(x)).sum().backward()
    with pytest.raises(RuntimeError, match=r"deep\.0\.weight has no gradient, others of its chain have"):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
