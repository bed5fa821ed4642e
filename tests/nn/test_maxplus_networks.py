"""MaxPlusMLP and ResidualMaxPlus: the definition, its start, and what a module owes its users."""

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tropigrad.nn import MaxPlusLinear, MaxPlusMLP, ResidualMaxPlus


def dense(model, x):
    """The definition: each max over all of its candidates."""
    for layer in model.layers:
        x = layer(x) if isinstance(layer, nn.Linear) else (x[..., None, :] + layer.weight).max(dim=-1).values
    return x


def problem(n=300, d=6, classes=3):
    """Classes by the largest of the first features, and so by a max of linear functions."""
    x = torch.rand(n, d, generator=torch.Generator().manual_seed(0))
    return x, x[:, :classes].argmax(dim=1)


NETWORKS = [
    pytest.param(lambda **o: MaxPlusMLP(6, 12, 3, **o), id="one block"),
    pytest.param(lambda **o: MaxPlusMLP(6, [12, 7], 3, **o), id="two blocks"),
    pytest.param(lambda **o: MaxPlusMLP(6, (8, 9, 2), 3, bias=False, **o), id="three, one narrower than the classes"),
]


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("shape", [(6,), (7, 6), (2, 3, 6), (0, 6)], ids=str)
def test_forward_is_the_definition(make, shape):
    model, x = make(), torch.randn(shape)
    assert torch.equal(model(x), dense(model, x))


@pytest.mark.parametrize("make", NETWORKS)
def test_gradients_are_those_of_the_definition(make):
    model, x = make(dtype=torch.float64), torch.randn(40, 6, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(40, 3, dtype=torch.float64)
    inputs = (x, *model.parameters())
    got = torch.autograd.grad(model(x), inputs, upstream)
    expected = torch.autograd.grad(dense(model, x), inputs, upstream)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_sizes_are_those_of_the_blocks():
    classes: Any = np.int64(3)
    model = MaxPlusMLP(6, [12, 7], classes)
    assert [tuple(p.shape) for p in model.parameters()] == [(12, 6), (12,), (7, 12), (7, 7), (7,), (3, 7)]
    assert model.hidden == (12, 7)
    assert [type(layer) for layer in model.layers] == [nn.Linear, MaxPlusLinear] * 2


# ------------------------------------------------------------------------------------------------ the start


@pytest.mark.parametrize(("hidden", "classes"), [(12, 5), (5, 5), (3, 7)], ids=str)
def test_each_output_starts_with_units_of_its_own(hidden, classes):
    weight = MaxPlusMLP(6, hidden, classes, lag=1.5).get_parameter("layers.1.weight")
    assert set(weight.unique().tolist()) == {0.0, -1.5}
    own = weight == 0
    assert own.any(dim=1).all()  # an output without a unit would not learn
    assert own.any(dim=0).all()  # a unit that is nobody's neither
    if hidden >= classes:
        assert (own.sum(dim=0) == 1).all()


def test_with_a_wide_lag_the_start_is_a_maxout():
    model, x = MaxPlusMLP(6, 12, 4, lag=1e3), torch.randn(50, 6)
    units = model.layers[0](x)
    assert torch.equal(model(x), units.reshape(50, 3, 4).amax(dim=1))


def test_shifted_scores_give_shifted_outputs():
    """A block is equivariant to shifts of its units: a constant added to all biases is added to all scores."""
    model, x = MaxPlusMLP(6, 12, 3), torch.randn(50, 6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randint(-9, 9, parameter.shape))
        x = x.round()
        before = model(x)
        model.get_parameter("layers.0.bias").add_(4)
    assert torch.equal(model(x), before + 4)


@pytest.mark.parametrize("make", NETWORKS[:2])
def test_it_learns(make):
    torch.manual_seed(0)
    model, (x, y) = make(), problem()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model(x).argmax(dim=1) == y).double().mean() > 0.95


# ------------------------------------------------------------------------------------------------ residual blocks


def block(**options):
    """A block that has left its start."""
    model = ResidualMaxPlus(6, 9, **options)
    nn.init.normal_(model.scale)
    return model


def test_a_block_starts_as_the_identity():
    x = torch.randn(20, 6)
    assert torch.equal(ResidualMaxPlus(6)(x), x)


@pytest.mark.parametrize("shape", [(6,), (7, 6), (2, 3, 6), (0, 6)], ids=str)
def test_a_block_is_its_definition(shape):
    model, x = block(), torch.randn(shape)
    assert torch.equal(model(x), x + model.scale * dense(model, x))


def test_a_block_is_as_lipschitz_as_it_says():
    model = block(dtype=torch.float64)
    bound = 1 + model.scale.abs().max() * model.get_parameter("layers.0.weight").abs().sum(dim=1).max()
    x, near = torch.randn(2, 500, 6, dtype=torch.float64)
    moved = (model(x) - model(near)).abs().amax(dim=1)
    assert (moved <= bound * (x - near).abs().amax(dim=1) * (1 + 1e-12)).all()


def test_a_deep_stack_learns_from_its_start():
    torch.manual_seed(0)
    x, y = problem()
    model = nn.Sequential(nn.Linear(6, 8), *(ResidualMaxPlus(8) for _ in range(12)), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model(x).argmax(dim=1) == y).double().mean() > 0.9
    for block in range(1, 13):
        assert model.get_parameter(f"{block}.scale").abs().min() > 0  # none has stayed out of it


# ------------------------------------------------------------------------------------------------ as a module

MODULES = [*NETWORKS, pytest.param(block, id="residual block")]


@pytest.mark.parametrize("make", NETWORKS)
def test_round_trips(make):
    model, x = make(), torch.randn(5, 6)
    stored = io.BytesIO()
    torch.save(model.state_dict(), stored)
    stored.seek(0)
    loaded = make()
    loaded.load_state_dict(torch.load(stored, weights_only=True))
    for twin in (loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
    assert repr(model).startswith(f"MaxPlusMLP(\n  in_features=6, hidden={model.hidden}, classes=3")


@pytest.mark.parametrize("make", MODULES)
@pytest.mark.parametrize("shape", [(7, 6), (2, 3, 6)], ids=str)
def test_compiles_into_one_graph(make, shape):
    model, x = make(), torch.randn(shape)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), model(x))
    parameters = list(model.parameters())
    got = torch.autograd.grad(compiled(x).sum(), parameters)
    expected = torch.autograd.grad(model(x).sum(), parameters)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("make", MODULES)
def test_exports_with_a_batch_of_any_size(make):
    model, x = make(), torch.randn(5, 6)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    longer = torch.randn(9, 6)
    torch.testing.assert_close(exported.module()(longer), model(longer))


@pytest.mark.parametrize("make", MODULES)
def test_torch_fx_traces_it(make):
    model = nn.Sequential(make(), nn.ReLU())
    traced = torch.fx.symbolic_trace(model)
    for x in (torch.randn(7, 6), torch.randn(2, 3, 6), torch.randn(6)):
        assert torch.equal(traced(x), model(x))


@pytest.mark.parametrize("make", MODULES)
def test_under_autocast_it_trains(make):
    model, (x, y) = make(), problem()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model(x)
        loss = functional.cross_entropy(scores, y)
    loss.backward()
    torch.testing.assert_close(scores.float(), model(x), atol=0.1, rtol=0.05)
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("make", MODULES)
def test_sparse_gradients_are_the_dense_ones(make):
    torch.manual_seed(0)
    model = make(dtype=torch.float64)
    sparse = make(dtype=torch.float64, sparse=True)
    sparse.load_state_dict(model.state_dict())
    x, upstream = torch.randn(40, 6, dtype=torch.float64), torch.randn(40, 1, dtype=torch.float64)
    for network in (model, sparse):
        (network(x) * upstream).sum().backward()
    for (name, ours), dense in zip(sparse.named_parameters(), model.parameters(), strict=True):
        is_tropical = name.endswith(("layers.1.weight", "layers.3.weight", "layers.5.weight"))
        assert ours.grad.is_sparse == is_tropical, name
        torch.testing.assert_close(ours.grad.to_dense(), dense.grad)


@pytest.mark.parametrize("make", MODULES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_parameters_have_the_dtype_asked_for(make, dtype):
    model = make(dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model(torch.randn(4, 6, dtype=dtype)).dtype == dtype


def test_it_can_be_made_without_memory():
    with torch.device("meta"):
        model = MaxPlusMLP(6, [12, 7], 3)
    model = model.to_empty(device="cpu")
    model.reset_parameters()
    assert set(model.get_parameter("layers.3.weight").unique().tolist()) == {0.0, -4.0}


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        pytest.param((6.0, 4, 3), TypeError, "MaxPlusMLP: in_features is 6.0; expected an integer", id="float"),
        pytest.param((6, "48", 3), TypeError, "hidden is '48'; expected an integer", id="text"),
        pytest.param((6, [4, None], 3), TypeError, "hidden is None; expected an integer", id="None among the sizes"),
        pytest.param((6, True, 3), TypeError, "hidden is True; expected an integer", id="bool"),
        pytest.param((6, 4, 0), ValueError, "classes is 0; expected at least 1", id="no class"),
        pytest.param((6, [4, -1], 3), ValueError, "hidden is -1; expected at least 1", id="negative"),
        pytest.param((6, [], 3), ValueError, r"hidden is \[\]; expected a size, or at least one", id="no hidden size"),
    ],
)
def test_sizes_that_make_no_network_are_named(arguments, error, match):
    with pytest.raises(error, match=match):
        MaxPlusMLP(*arguments)


@pytest.mark.parametrize(
    ("lag", "error"), [(0.0, ValueError), (-1, ValueError), (float("nan"), ValueError), ("2", TypeError)], ids=str
)
def test_a_lag_that_is_none_is_named(lag, error):
    with pytest.raises(error, match="MaxPlusMLP: lag is"):
        MaxPlusMLP(6, 4, 3, lag=lag)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        pytest.param((6.0,), TypeError, "features is 6.0; expected an integer", id="float"),
        pytest.param((0,), ValueError, "features is 0; expected at least 1", id="no feature"),
        pytest.param((6, 0), ValueError, "hidden is 0; expected at least 1", id="no unit"),
        pytest.param((6, "6"), TypeError, "hidden is '6'; expected an integer", id="text"),
    ],
)
def test_sizes_that_make_no_block_are_named(arguments, error, match):
    with pytest.raises(error, match=f"ResidualMaxPlus: {match}"):
        ResidualMaxPlus(*arguments)
    with pytest.raises(ValueError, match="ResidualMaxPlus: lag is -1"):
        ResidualMaxPlus(6, lag=-1)


@pytest.mark.parametrize("model", [MaxPlusMLP(6, 4, 3), ResidualMaxPlus(6)], ids=lambda model: type(model).__name__)
@pytest.mark.parametrize("shape", [(), (4,), (3, 5)], ids=str)
def test_a_wrong_last_dimension_is_named(model, shape):
    with pytest.raises(ValueError, match=rf"{type(model).__name__}: x has shape .*; expected \[\.\.\., 6\]"):
        model(torch.zeros(shape))
