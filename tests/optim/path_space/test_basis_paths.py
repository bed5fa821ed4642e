"""What BasisPaths finds in a model, what it says of it, and what it refuses."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tropigrad.kernels.path_step import Shape, skeleton
from tropigrad.nn import LinearMinMax, MaxPlusConv2d, MaxPlusLinear, MinPlusLinear
from tropigrad.optim import GSGD, BasisPaths


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
    widths = [3, 8, 8, 5, 2]
    starts = [0, 8, 16, 21]
    assert (bones.made, bones.taken, bones.starts) == ((0, 1, 2), (1, 2, 3), (0, 8, 16))
    for h, (before, behind) in enumerate(zip(shapes, shapes[1:], strict=False)):  # noqa: RUF007
        G, O, I, T = before
        edges = bones.edge_in[h]
        assert torch.equal(edges // T // I, torch.arange(G * O))
        sources = edges // T // I // O * I + edges // T % I
        assert torch.equal(sources + starts[h - 1] if h else torch.full_like(sources, 21), bones.source[h])
        G, O, I, T = behind
        edges = bones.edge_out[h]
        assert torch.equal(edges // T // I // O * I + edges // T % I, torch.arange(G * I))
        targets = edges // T // I
        assert torch.equal(targets + starts[h + 1] if h < 2 else torch.full_like(targets, 21), bones.target[h])
        assert (edges % T == T // 2).all()
        assert len(bones.source[h]) == widths[h + 1]


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
        "c         [1, 3, 4, 1]               15  paths, chain 0; its paths end at add",
        "a.weight  [3, 5]                     15  plain SGD: its paths end at add",
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


# ------------------------------------------------------------------------------------------------ shapes

LAYERS = {
    "a": lambda: nn.Conv2d(2, 4, 3, padding=1),
    "row": lambda: nn.Linear(4, 3),
    "rows": lambda: nn.Linear(16, 3),
    "halves": lambda: nn.Linear(32, 3),
    "all": lambda: nn.Linear(4 * 4 * 4, 3),
    "one": lambda: nn.Conv1d(2, 4, 3, padding=1),
    "norm": lambda: nn.BatchNorm1d(4),
    "line": lambda: nn.Linear(3, 4),
    "next": lambda: nn.Conv1d(4, 3, 1),
}


def calls(forward, *names):
    return Calls(forward, **{name: LAYERS[name]() for name in names})


class Doubles(nn.ReLU):
    """A ReLU by its class, which is none."""

    def forward(self, x):
        return torch.relu(x) + 1


IMAGES, SIGNALS, ROWS = (5, 2, 4, 4), (5, 2, 4), (5, 3)
TAKEN_FOR_ANOTHER = {
    "flatten-some": lambda: (nn.Sequential(LAYERS["a"](), nn.ReLU(), nn.Flatten(1, 2), nn.Linear(4, 3)), IMAGES),
    "flatten-to-a-dimension": lambda: (calls(lambda m, x: m.row(torch.relu(m.a(x)).flatten(1, 2)), "a", "row"), IMAGES),
    "flatten-end-dim": lambda: (calls(lambda m, x: m.row(m.a(x).relu().flatten(end_dim=1)), "a", "row"), IMAGES),
    "flatten-up-to-the-last": lambda: (
        calls(lambda m, x: m.row(torch.flatten(m.a(x), start_dim=1, end_dim=-2)), "a", "row"),
        IMAGES,
    ),
    "mean-of-rows": lambda: (calls(lambda m, x: m.row(m.a(x).relu().mean((2,))), "a", "row"), IMAGES),
    "mean-of-columns": lambda: (calls(lambda m, x: m.row(m.a(x).relu().mean([-1])), "a", "row"), IMAGES),
    "mean-of-channels": lambda: (calls(lambda m, x: m.row(m.one(x).relu().mean((-2,))), "one", "row"), SIGNALS),
    "pooling-over-features": lambda: (
        nn.Sequential(LAYERS["line"](), LAYERS["norm"](), nn.ReLU(), nn.MaxPool1d(3, 1, 1), nn.Linear(4, 3)),
        ROWS,
    ),
    "pooling-over-what-was-flattened": lambda: (
        nn.Sequential(LAYERS["one"](), nn.ReLU(), nn.Flatten(), nn.MaxPool1d(3, 1, 1), nn.Linear(16, 3)),
        SIGNALS,
    ),
    "pooling-in-one-dimension-more": lambda: (
        nn.Sequential(LAYERS["one"](), nn.ReLU(), nn.AvgPool2d(3, 1, 1), nn.Conv1d(4, 3, 1)),
        SIGNALS,
    ),
    "linear-over-a-length": lambda: (
        nn.Sequential(LAYERS["one"](), LAYERS["norm"](), nn.ReLU(), nn.Linear(4, 3)),
        SIGNALS,
    ),
    "linear-over-a-width": lambda: (nn.Sequential(LAYERS["a"](), nn.BatchNorm2d(4), nn.Linear(4, 3)), IMAGES),
    "view-of-a-number": lambda: (
        calls(lambda m, x: m.halves(m.one(x).relu().view(2, -1)), "one", "halves"),
        (4, 2, 4),
    ),
    "view-by-the-channels": lambda: (
        calls(lambda m, x: m.halves(m.one(x).relu().view(x.size(1), -1)), "one", "halves"),
        (4, 2, 4),
    ),
    "transposed": lambda: (calls(lambda m, x: m.row((h := m.line(x)).relu()) + h.T.sum(), "line", "row"), ROWS),
    "a-subclass": lambda: (nn.Sequential(LAYERS["line"](), Doubles(), nn.Linear(4, 3)), ROWS),
}


def links(paths):
    return sum(len(chain.layers) - 1 for chain in paths.chains)


def changes_when_rescaled(model, paths, shape):
    model, x = copy.deepcopy(model).double().eval(), torch.randn(shape, dtype=torch.float64)
    before = model(x)
    BasisPaths.rescale_(_of_copy(paths, model), torch.Generator().manual_seed(0))
    return (model(x) - before).abs().max() > 1e-9 * before.abs().max()


def _of_copy(paths, model):
    other = copy.copy(paths)
    named = dict(model.named_parameters())
    other.chains = tuple(copy.copy(chain) for chain in paths.chains)
    for chain in other.chains:
        layers = [copy.copy(layer) for layer in chain.layers]
        for layer in layers:
            for of in ("weight", "bias"):
                if getattr(layer, of) is not None:
                    object.__setattr__(layer, of, named[f"{layer.name}.{of}"])
        object.__setattr__(chain, "layers", tuple(layers))
    return other


@pytest.mark.parametrize("examples", [False, True], ids=["no-examples", "examples"])
@pytest.mark.parametrize("name", TAKEN_FOR_ANOTHER)
def test_no_dimension_is_taken_for_another(name, examples):
    """Refused, or in no chain: what stands in one can be rescaled."""
    model, shape = TAKEN_FOR_ANOTHER[name]()
    assert model(torch.randn(shape)).isfinite().all()
    refused, paths = "", None
    try:
        paths = BasisPaths(model, torch.randn(shape) if examples else None)
    except ValueError as error:
        refused = str(error)
    if paths is None:
        assert refused.startswith("BasisPaths: ")
    else:
        assert not changes_when_rescaled(model, paths, shape)


RIGHT = {
    "flatten": lambda: (nn.Sequential(LAYERS["a"](), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)), IMAGES, 1),
    "flatten-named": lambda: (
        calls(lambda m, x: m.all(torch.flatten(m.a(x), start_dim=1, end_dim=3)), "a", "all"), IMAGES, 1),
    "view-of-a-shape": lambda: (
        calls(lambda m, x: m.all((h := m.a(x).relu()).view(h.shape[0], -1)), "a", "all"), IMAGES, 1),
    "reshape-by-a-tuple": lambda: (
        calls(lambda m, x: m.all(m.a(x).relu().reshape((x.size()[0], -1))), "a", "all"), IMAGES, 1),
    "mean-of-all": lambda: (calls(lambda m, x: m.row(m.a(x).relu().mean((2, 3))), "a", "row"), IMAGES, 1),
    "mean-of-some": lambda: (
        calls(lambda m, x: m.rows(m.a(x).relu().mean(dim=-1).flatten(1)), "a", "rows"), IMAGES, 1),
    "mean-that-keeps": lambda: (
        calls(lambda m, x: m.row(m.a(x).relu().mean((-1, -2), keepdim=True).flatten(1)), "a", "row"), IMAGES, 1),
    "norm-of-a-length": lambda: (
        nn.Sequential(LAYERS["one"](), LAYERS["norm"](), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)), SIGNALS, 1),
    "norm-of-images": lambda: (
        nn.Sequential(LAYERS["a"](), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)), IMAGES, 1),
    "norm-and-pooling-of-a-length": lambda: (
        nn.Sequential(LAYERS["one"](), LAYERS["norm"](), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(4, 3, 1)), SIGNALS, 1),
    "norm-of-features": lambda: (
        nn.Sequential(LAYERS["line"](), LAYERS["norm"](), nn.ReLU(), nn.Linear(4, 3)), ROWS, 1),
    "norm-first": lambda: (
        nn.Sequential(nn.BatchNorm1d(2), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(2, 3, 1)), SIGNALS, 1),
    "tokens": lambda: (nn.Sequential(LAYERS["line"](), nn.ReLU(), nn.Linear(4, 3)), (5, 7, 3), 1),
    "pooled": lambda: (
        nn.Sequential(LAYERS["a"](), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1, -1), nn.Linear(4, 3)),
        IMAGES, 1),
}  # fmt: skip


@pytest.mark.parametrize("examples", [False, True], ids=["no-examples", "examples"])
@pytest.mark.parametrize("name", RIGHT)
def test_what_can_be_rescaled_is_found(name, examples):
    model, shape, wanted = RIGHT[name]()
    paths = BasisPaths(model, torch.randn(shape) if examples else None)
    assert links(paths) == wanted
    assert not changes_when_rescaled(model, paths, shape)


def test_example_inputs_tell_what_numbers_in_a_view_mean():
    model = calls(lambda m, x: m.all(m.a(x).relu().view(-1, 64)), "a", "all")
    with pytest.raises(ValueError, match="view stands before all"):
        BasisPaths(model)
    assert links(BasisPaths(model, torch.randn(IMAGES))) == 1
    assert links(BasisPaths(model, (torch.randn(IMAGES),))) == 1


def hooked(hook, register="register_forward_hook"):
    model = mlp(3, 4, 2, bias=True)
    getattr(model[1], register)(hook)
    return model


HOOKS = {
    "that-changes": (lambda module, x, y: y + 1, "register_forward_hook"),
    "before": (lambda module, x: (x[0] - 1,), "register_forward_pre_hook"),
}


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_count(hook):
    with pytest.raises(
        ValueError, match=r"a forward (pre-)?hook of 1 .*before 2.*; where it is, example_inputs show it"
    ):
        BasisPaths(hooked(*HOOKS[hook]))
    with pytest.raises(ValueError, match="scaling the nodes between 0 and 2 changes the output by"):
        BasisPaths(hooked(*HOOKS[hook]), torch.randn(5, 3))


def test_a_hook_that_changes_nothing_is_accepted_with_example_inputs():
    seen = []
    model = hooked(lambda module, x, y: seen.append(y.shape))
    assert links(BasisPaths(model, torch.randn(5, 3))) == 1
    assert seen


@pytest.mark.parametrize(
    ("examples", "error", "match"),
    [
        (torch.randn(5, 7), ValueError, "Sequential does not run on example_inputs in float64"),
        (5, TypeError, "example_inputs is a int; expected a tensor or a tuple"),
    ],
    ids=["width", "number"],
)
def test_example_inputs_are_checked(examples, error, match):
    with pytest.raises(error, match=match):
        BasisPaths(mlp(3, 4, 2), examples)


def test_example_inputs_without_samples_are_named():
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(ValueError, match=r"0 makes a tensor of shape \(4, 4, 4\); expected 4 dimensions"):
        BasisPaths(model, torch.randn(2, 4, 4))


def test_example_inputs_leave_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 2))
    before, drawn = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    BasisPaths(model, torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    assert model.training
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


# ------------------------------------------------------------------------------------------------ wrapped, parametrized


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_it_looks_inside_of_a_data_parallel_model(one_process):
    model = mlp(3, 4, 2)
    paths = BasisPaths(nn.parallel.DistributedDataParallel(model))
    assert names(paths) == names(BasisPaths(model)) == [["0", "2"]]
    assert paths.chains[0].layers[0].weight is model.get_parameter("0.weight")


def test_it_looks_inside_of_compiled_models():
    model = mlp(3, 4, 2)
    compiled: Any = torch.compile(model, backend="eager")
    assert names(BasisPaths(compiled)) == [["0", "2"]]
    assert names(BasisPaths(nn.Sequential(compiled, nn.ReLU(), nn.Linear(2, 2)))) == [
        ["0._orig_mod.0", "0._orig_mod.2", "2"]
    ]
    model.compile(backend="eager")
    assert names(BasisPaths(nn.Sequential(model, nn.ReLU(), nn.Linear(2, 2)))) == [["0.0", "0.2", "2"]]
    normed: Any = torch.compile(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), backend="eager")
    assert isinstance(BasisPaths.fold(normed).get_submodule("1"), nn.Identity)


def test_a_module_that_cannot_be_traced_is_where_paths_end():
    inner = Calls(depends_on_values, a=nn.Linear(3, 3))
    model = nn.Sequential(*mlp(3, 4, 3), nn.Sequential(inner), *mlp(3, 5, 2))
    paths = BasisPaths(model)
    assert names(paths) == [["0", "2"], ["4", "6"]] == names(BasisPaths(model, torch.randn(5, 3)))
    assert set(paths.plain) == {"3.0.a.weight", "3.0.a.bias"}
    assert "plain SGD: paths end here: torch.fx cannot trace it (TraceError: symbolically traced" in str(paths)
    with pytest.raises(ValueError, match=r"3\.0 \(Calls\) cannot be traced .* give BasisPaths the part of the model"):
        BasisPaths.fold(model)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)),
         r"0\.weight is parametrized, .*: torch\.nn\.utils\.parametrize\.remove_parametrizations\(0, 'weight'\)"),
        (lambda: nn.utils.weight_norm(nn.Linear(3, 4)),
         r"0\.weight is parametrized, .*remove_weight_norm\(0, 'weight'\)"),
        (lambda: nn.utils.spectral_norm(nn.Linear(3, 4)), r"parametrized, .*remove_spectral_norm\(0, 'weight'\)"),
        (lambda: pruned("weight"), r"0\.weight is parametrized, .*: torch\.nn\.utils\.prune\.remove\(0, 'weight'\)"),
        (lambda: pruned("bias"), r"0\.bias is parametrized, .*: torch\.nn\.utils\.prune\.remove\(0, 'bias'\)"),
    ],
    ids=["weight-norm", "old-weight-norm", "spectral-norm", "pruned", "pruned-bias"],
)  # fmt: skip
def test_parametrized_weights_are_named_with_what_removes_it(make, match):
    with pytest.raises(ValueError, match=match):
        BasisPaths(nn.Sequential(make(), nn.ReLU(), nn.Linear(4, 2)))


def pruned(of):
    from torch.nn.utils import prune

    return prune.random_unstructured(nn.Linear(3, 4), of, 0.5)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: MaxPlusLinear(4, 4), (5, 3)),
        (lambda: MinPlusLinear(4, 4), (5, 3)),
        (lambda: LinearMinMax(4, 6, 4), (5, 3)),
    ],
    ids=["max-plus", "min-plus", "linear-min-max"],
)
def test_paths_end_at_a_max_plus_layer(layer, shape):
    model = nn.Sequential(*mlp(3, 5, 4), layer(), *mlp(4, 6, 2))
    paths = BasisPaths(model, torch.randn(shape))
    assert names(paths) == [["0", "2"], ["4", "6"]] == names(BasisPaths(model))
    reasons = {name: reason for name, (_, reason) in paths.plain.items()}
    assert set(reasons.values()) == {"paths end at a max-plus or min-plus layer"}
    assert "paths end at a max-plus or min-plus layer" in str(paths)
    optimizer = GSGD(paths, lr=0.01)
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.randn(shape)).square().sum().backward()
    optimizer.step()
    assert any(not torch.equal(p, q) for p, q in zip(model[3].parameters(), before[2:], strict=False))


def test_paths_end_at_a_max_plus_convolution():
    layers = nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), MaxPlusConv2d(4, 4, 2), nn.Flatten(), nn.Linear(4, 2)
    assert names(BasisPaths(nn.Sequential(*layers))) == [["0", "2"]]


def test_rescaling_draws_where_its_generator_is_whatever_the_default_device_is():
    model = mlp(3, 4, 2)
    twin = copy.deepcopy(model)
    with torch.device("meta"):
        BasisPaths(model).rescale_(torch.Generator(device="cpu").manual_seed(0))
        BasisPaths(model, (torch.zeros(5, 3, device="cpu"),))
    BasisPaths(twin).rescale_(torch.Generator().manual_seed(0))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
