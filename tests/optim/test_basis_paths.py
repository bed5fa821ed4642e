"""What BasisPaths finds in a model, what it says of it, and what it refuses."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from tropigrad.kernels.path_step import Shape, skeleton
from tropigrad.optim import BasisPaths


def mlp(*widths, bias=False, between: type[nn.Module] = nn.ReLU):
    layers = []
    for before, behind in zip(widths, widths[1:], strict=False):  # noqa: RUF007
        layers += [nn.Linear(before, behind, bias=bias), between()]
    return nn.Sequential(*layers[:-1])


class Calls(nn.Module):
    """A network whose forward is given."""

    def __init__(self, forward, **modules):
        super().__init__()
        self._forward = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self._forward(self, x)


def names(paths):
    return [[layer.name for layer in chain.layers] for chain in paths.chains]


CNN = {"a": nn.Conv2d(2, 4, 3), "b": nn.Conv2d(4, 6, 3), "c": nn.Linear(24, 3)}


@pytest.mark.parametrize(
    ("model", "chains"),
    [
        pytest.param(mlp(3, 4, 5, 2), [["0", "2", "4"]], id="mlp"),
        pytest.param(mlp(3, 4, 5, 2, between=nn.LeakyReLU), [["0", "2", "4"]], id="leaky"),
        pytest.param(nn.Sequential(nn.Sigmoid(), *mlp(3, 4, 2), nn.Softmax(1)), [["1", "3"]], id="bent-outside"),
        pytest.param(nn.Sequential(mlp(3, 4, 2), nn.ReLU(), mlp(2, 3)), [["0.0", "0.2", "2.0"]], id="nested"),
        pytest.param(
            nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(16, 3)),
            [["0", "5"]],
            id="pooling-and-flatten",
        ),
        pytest.param(
            Calls(lambda m, x: m.c(m.b(functional.relu(m.a(x))).relu().view(x.size(0), -1)), **CNN),
            [["a", "b", "c"]],
            id="view-by-size",
        ),
        pytest.param(
            Calls(lambda m, x: m.c(torch.flatten(m.b(torch.relu(m.a(x))), 1)), **CNN), [["a", "b", "c"]], id="flatten"
        ),
        pytest.param(
            Calls(lambda m, x: m.c((h := m.a(x)) + m.b(torch.relu(h))), **{n: nn.Linear(3, 3) for n in "abc"}),
            [],
            id="used-twice",
        ),
        pytest.param(
            Calls(lambda m, x: m.d((h := m.a(x)) + m.c(torch.relu(m.b(h)))), **{n: nn.Linear(3, 3) for n in "abcd"}),
            [["b", "c"]],
            id="residual-branch",
        ),
        pytest.param(
            nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)), [["1", "3"]], id="batch-norm"
        ),
        pytest.param(
            nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)),
            [["2", "4"]],
            id="bent-before-batch-norm",
        ),
        pytest.param(
            nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), nn.ReLU(), nn.Linear(4, 2)),
            [],
            id="batch-norm-without-scale",
        ),
    ],
)
def test_chains_are_found(model, chains):
    paths = BasisPaths(model)
    assert names(paths) == chains
    found = {id(p) for chain in paths.chains for p in chain.parameters}
    plain = {id(p) for p, _ in paths.plain.values()}
    assert found | plain == {id(p) for p in model.parameters()}
    assert not found & plain


def test_frozen_layers_are_in_no_chain():
    model = mlp(3, 4, 5, 6, 2)
    model.get_parameter("2.weight").requires_grad_(False)
    paths = BasisPaths(model)
    assert names(paths) == [["4", "6"]]
    assert list(paths.plain) == ["0.weight"]


def test_every_hidden_node_has_one_skeleton_edge_in_and_one_out():
    shapes = (Shape(1, 8, 3, 9), Shape(4, 2, 2, 9), Shape(1, 5, 8, 4), Shape(1, 2, 5, 1))
    bones = skeleton(shapes, torch.device("cpu"))
    for h, (before, behind) in enumerate(zip(shapes, shapes[1:], strict=False)):  # noqa: RUF007
        G, O, I, T = before
        edges = bones.edge_in[h]
        assert torch.equal(edges // T // I, torch.arange(G * O))
        assert torch.equal(edges // T // I // O * I + edges // T % I, bones.source[h])
        G, O, I, T = behind
        edges = bones.edge_out[h]
        assert torch.equal(edges // T // I // O * I + edges // T % I, torch.arange(G * I))
        assert torch.equal(edges // T // I, bones.target[h])
        assert (edges % T == T // 2).all()


@pytest.mark.parametrize(
    ("widths", "special", "fixed_outside"),
    [((5, 6, 6, 3), 0, True), ((4, 5, 9, 9, 3), 1, True), ((4, 8, 2, 8, 3), 0, False)],
    ids=["equal", "one-maximum", "hourglass"],
)
def test_the_weights_fixed_outside_the_special_layer(widths, special, fixed_outside):
    """They are H, as many as there are scalings, where widths have one maximum; an hourglass has more edges there."""
    paths = BasisPaths(mlp(*widths))
    (chain,) = paths.chains
    assert chain.skeleton.special == special
    outside = sum(len(edges) for at, edges in enumerate(chain.skeleton_edges()) if at != special)
    assert (outside == paths.hidden) == fixed_outside
    assert paths.count == paths.size - sum(widths[1:-1])


def test_the_layers_reduced_are_the_cheapest_cover():
    (chain,) = BasisPaths(mlp(784, 64, 64, 64, 64, 10)).chains
    bones = chain.skeleton
    assert bones.reduced == (False, True, False, True, False)
    again = sum(layer.size for layer, reduced in zip(chain.layers, bones.reduced, strict=True) if reduced)
    assert 12 + 8 * again / chain.size < 14  # bytes a weight: SGD's twelve, and w and g of the reduced layers once more
    bones = BasisPaths(mlp(2, 9, 2)).chains[0].skeleton
    assert sum(bones.reduced) == 1


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_folding_a_batch_norm_keeps_the_function_in_evaluation(kind):
    if kind == "linear":
        model, x = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(20, 3)
    else:
        layers = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)
        model, x = nn.Sequential(*layers), torch.randn(6, 2, 7, 7)
    for _ in range(5):
        model(x)
    model.eval()
    before = [p.detach().clone() for p in model.parameters()]
    folded = BasisPaths.fold(model)
    torch.testing.assert_close(folded(x), model(x))
    assert names(BasisPaths(folded)) == [["0", "3"]]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_a_batch_norm_without_statistics_is_not_folded():
    with pytest.raises(ValueError, match="1 keeps no running statistics; expected track_running_stats=True"):
        BasisPaths.fold(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False)))


def test_it_prints_a_table():
    model = Calls(
        lambda m, x: m.d((h := m.a(x)) + m.c(torch.relu(m.b(h)))),
        a=nn.Linear(5, 3, bias=False),
        b=nn.Linear(3, 4),
        c=nn.Linear(4, 3),
        d=nn.Linear(3, 2, bias=False),
    )
    assert str(BasisPaths(model)).splitlines() == [
        "module    weights [G, O, I, T]  weights  where",
        "b         [1, 4, 3, 1]               16  paths, chain 0, s",
        "c         [1, 3, 4, 1]               15  paths, chain 0",
        "a.weight  [3, 5]                     15  plain SGD: its output is used more than once",
        "d.weight  [2, 3]                      6  plain SGD: no hidden node at either side",
        "31 weights in 1 chain, 4 hidden nodes: 27 basis paths",
    ]


def test_it_draws_the_skeleton():
    figure = pytest.importorskip("matplotlib.figure", reason="matplotlib draws it")
    axes = figure.Figure().subplots()
    paths = BasisPaths(mlp(3, 4, 4, 2))
    paths.draw(axes)
    bold = [line for line in axes.lines if line.get_color() == "#0072b2"]
    assert len(bold) == sum(len(edges) for edges in paths.chains[0].skeleton_edges())
    assert len(axes.lines) == 3 * 4 + 4 * 4 + 4 * 2 + 3 + 4 + 4 + 2


def test_unit_skeleton_sets_nothing_else():
    model = mlp(3, 4, 4, 2, bias=True)
    before = [p.detach().clone() for p in model.parameters()]
    paths = BasisPaths(model).unit_skeleton_()
    changed = sum(int((p != q).sum()) for p, q in zip(model.parameters(), before, strict=True))
    assert changed == sum(len(edges) for edges in paths.chains[0].skeleton_edges())
    assert model.get_parameter("2.weight").diagonal().eq(1).all()


# ------------------------------------------------------------------------------------------------ what it refuses


def shared():
    model = mlp(3, 3, 3)
    model[2].weight = model[0].weight
    return model


def zeroed(value):
    model = mlp(3, 4, 4, 2)
    with torch.no_grad():
        model.get_parameter("2.weight")[1, 1] = value
    return model


def depends_on_values(m, x):
    return m.a(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        pytest.param(
            lambda: mlp(3, 4, 2, between=nn.Sigmoid),
            ValueError,
            r"1 \(Sigmoid\) stands before 2, and is not known to be positively homogeneous: 2\.weight",
            id="sigmoid",
        ),
        pytest.param(
            lambda: Calls(lambda m, x: m.b(functional.gelu(m.a(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 2)),
            ValueError,
            r"gelu stands before b, .* b\.weight",
            id="gelu",
        ),
        pytest.param(
            lambda: Calls(lambda m, x: m.b(m.a(x).view(-1, 2)), a=nn.Linear(3, 4), b=nn.Linear(2, 2)),
            ValueError,
            r"view stands before b",
            id="reshape",
        ),
        pytest.param(
            lambda: Calls(depends_on_values, a=nn.Linear(3, 4)), ValueError, "Calls cannot be traced", id="control-flow"
        ),
        pytest.param(shared, ValueError, r"2\.weight is 0\.weight, one parameter under two names", id="shared-weight"),
        pytest.param(
            lambda: Calls(lambda m, x: m.a(torch.relu(m.a(x))), a=nn.Linear(3, 3)),
            ValueError,
            r"a is used twice, and a\.weight with it",
            id="used-twice",
        ),
        pytest.param(lambda: zeroed(0.0), ValueError, r"2\.weight\[1, 1\] is 0; .* unit_skeleton_\(\)", id="zero"),
        pytest.param(lambda: zeroed(float("nan")), ValueError, r"2\.weight\[1, 1\] is nan", id="nan"),
        pytest.param(lambda: [nn.Linear(3, 4)], TypeError, "model is a list; expected a torch.nn.Module", id="a-list"),
        pytest.param(lambda: mlp(3, 4, 2).half(), TypeError, r"0\.weight is torch\.float16", id="half"),
        pytest.param(
            lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Linear(6, 2)),
            ValueError,
            "2 takes 6 channels and 0 makes 4, or in another dimension: 2.weight",
            id="linear-over-a-row",
        ),
        pytest.param(
            lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Linear(4, 2)),
            ValueError,
            "2 takes 4 channels and 0 makes 4, or in another dimension",
            id="linear-over-a-row-of-as-many",
        ),
        pytest.param(
            lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)),
            ValueError,
            "3 takes 8 channels and 0 makes 4",
            id="flattened-rows-of-a-linear",
        ),
        pytest.param(
            lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Conv1d(4, 2, 1)), ValueError, "2 takes 4", id="conv"
        ),
        pytest.param(
            lambda: nn.Sequential(nn.Linear(3, 4), nn.MaxPool1d(3, 1, 1), nn.Linear(4, 2)),
            ValueError,
            r"1 \(MaxPool1d\) stands before 2",
            id="pooling-over-channels",
        ),
        pytest.param(
            lambda: nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(2)), ValueError, "1.weight is a Uninit", id="lazy"
        ),
    ],
)
def test_what_has_no_path_values_is_named(make, error, match):
    with pytest.raises(error, match=match):
        BasisPaths(make())
