"""MaxPlusLinear and MinPlusLinear against the definition, and what a module owes its users."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from tropigrad.nn import MaxPlusLinear, MinPlusLinear

LAYERS = [pytest.param(MaxPlusLinear, torch.amax, id="max"), pytest.param(MinPlusLinear, torch.amin, id="min")]


@pytest.mark.parametrize(("layer", "reduce"), LAYERS)
@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 3, 5), (0, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_forward_is_the_definition(layer, reduce, shape, dtype):
    module = layer(5, 4, dtype=dtype)
    x = torch.randn(shape, dtype=dtype)
    assert torch.equal(module(x), reduce(x[..., None, :] + module.weight, dim=-1))


@pytest.mark.parametrize(("layer", "reduce"), LAYERS)
def test_gradients_go_to_the_winners(layer, reduce):
    module = layer(5, 4, dtype=torch.float64)
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(7, 4, dtype=torch.float64)
    got = torch.autograd.grad(module(x), (x, module.weight), upstream)
    expected = torch.autograd.grad(reduce(x[:, None, :] + module.weight, dim=-1), (x, module.weight), upstream)
    for ours, dense in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, dense)


def test_a_tie_gives_all_the_gradient_to_the_lowest_input():
    module = MaxPlusLinear(3, 1)
    torch.nn.init.zeros_(module.weight)
    (gradient,) = torch.autograd.grad(module(torch.ones(1, 3)).sum(), module.weight)
    assert gradient.tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize(("layer", "reduce"), LAYERS)
def test_shift_equivariance(layer, reduce):
    module = layer(6, 4)
    with torch.no_grad():
        module.weight.copy_(torch.randint(-9, 9, (4, 6)))
    x = torch.randint(-9, 9, (5, 6)).float()
    assert torch.equal(module(x + 3), module(x) + 3)


def test_min_is_max_of_the_negatives():
    upper, lower = MaxPlusLinear(6, 4), MinPlusLinear(6, 4)
    with torch.no_grad():
        lower.weight.copy_(-upper.weight)
    x = torch.randn(5, 6)
    assert torch.equal(lower(-x), -upper(x))


def test_every_input_can_win_at_the_start():
    torch.manual_seed(0)
    module = MaxPlusLinear(16, 32)
    winners = (torch.randn(4000, 1, 16) + module.weight).argmax(dim=-1)
    for o in range(32):
        assert len(winners[:, o].unique()) == 16


@pytest.mark.parametrize(("layer", "reduce"), LAYERS)
def test_round_trips(layer, reduce):
    module = layer(5, 4)
    x = torch.randn(3, 5)
    stored = io.BytesIO()
    torch.save(module.state_dict(), stored)
    stored.seek(0)
    loaded = layer(5, 4)
    loaded.load_state_dict(torch.load(stored, weights_only=True))
    for twin in (loaded, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), module(x))
    assert repr(module) == f"{layer.__name__}(in_features=5, out_features=4)"


@pytest.mark.parametrize(("layer", "reduce"), LAYERS)
@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5)], ids=str)
def test_compiles_into_one_graph(layer, reduce, shape):
    module = layer(5, 4)
    x = torch.randn(shape)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), module(x))
    (got,) = torch.autograd.grad(compiled(x).sum(), module.weight)
    (expected,) = torch.autograd.grad(module(x).sum(), module.weight)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("shape", [(), (4,), (3, 6)], ids=str)
def test_a_wrong_last_dimension_is_named(shape):
    with pytest.raises(ValueError, match=r"MaxPlusLinear: x has shape .*; expected \[\.\.\., 5\]"):
        MaxPlusLinear(5, 4)(torch.zeros(shape))


@pytest.mark.parametrize("sizes", [("5", 4), (5, 2.5), (True, 4), (None, 4)], ids=str)
def test_sizes_that_are_no_integers_are_named(sizes):
    with pytest.raises(TypeError, match=r"MaxPlusLinear: (in|out)_features is .*; expected an integer, at least 1"):
        MaxPlusLinear(*sizes)


@pytest.mark.parametrize("sizes", [(0, 4), (5, 0), (-1, 4)], ids=str)
def test_empty_layers_are_refused(sizes):
    with pytest.raises(ValueError, match="features is"):
        MinPlusLinear(*sizes)


@pytest.mark.parametrize("layer", [MaxPlusLinear(5, 3), MinPlusLinear(5, 3)], ids=lambda layer: type(layer).__name__)
def test_a_net_that_holds_one_is_traced_by_fx(layer):
    net = nn.Sequential(nn.Linear(4, 5), layer, nn.Linear(3, 2))
    traced = torch.fx.symbolic_trace(net)
    for x in (torch.randn(7, 4), torch.randn(2, 3, 4), torch.randn(4)):
        assert torch.equal(traced(x), net(x))
