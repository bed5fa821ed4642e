"""MaxPlusConv2d and MinPlusConv2d against torch's pooling and their linear kin, and what a module owes its users."""

import copy
import io
import pickle

import numpy
import pytest
import torch
from torch.nn.functional import max_pool2d, unfold

from tropigrad.nn import MaxPlusConv2d, MaxPlusLinear, MinPlusConv2d

LAYERS = [MaxPlusConv2d, MinPlusConv2d]


def test_a_flat_filter_is_max_pooling():
    module = MaxPlusConv2d(3, 3, 3, stride=2, padding=1, groups=3)
    torch.nn.init.zeros_(module.weight)
    x = torch.randn(2, 3, 9, 11)
    assert torch.equal(module(x), max_pool2d(x, 3, 2, 1))


def test_it_is_the_linear_layer_on_every_window():
    module, linear = MaxPlusConv2d(4, 5, (2, 3), dtype=torch.float64), MaxPlusLinear(24, 5, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(module.weight.flatten(1))
    x = torch.randn(2, 4, 6, 7, dtype=torch.float64, requires_grad=True)
    ours, theirs = module(x), linear(unfold(x, (2, 3)).mT).mT.unflatten(-1, (5, 5))
    assert torch.equal(ours, theirs)
    dy = torch.randn_like(ours)
    got = torch.autograd.grad(ours, (x, module.weight), dy)
    dx, dweight = torch.autograd.grad(theirs, (x, linear.weight), dy)
    torch.testing.assert_close(got, (dx, dweight.view_as(module.weight)))


def test_min_is_max_of_the_negatives():
    upper, lower = (layer(4, 6, 3, stride=(1, 2), padding=1, groups=2) for layer in LAYERS)
    with torch.no_grad():
        lower.weight.copy_(-upper.weight)
    x = torch.randn(2, 4, 7, 8)
    assert torch.equal(lower(-x), -upper(x))


def test_every_tap_can_win_at_the_start():
    module = MaxPlusConv2d(2, 4, 3)
    windows = unfold(torch.randn(8, 2, 24, 24), 3).unsqueeze(1) + module.weight.flatten(1).unsqueeze(-1)
    winners = windows.argmax(2)
    for o in range(4):
        assert len(winners[:, o].unique()) == 18


@pytest.mark.parametrize("layer", LAYERS)
def test_round_trips(layer):
    module = layer(4, 6, (3, 2), padding=(1, 0), groups=2)
    x = torch.randn(1, 4, 6, 5)
    stored = io.BytesIO()
    torch.save(module.state_dict(), stored)
    stored.seek(0)
    loaded = layer(4, 6, (3, 2), padding=(1, 0), groups=2)
    loaded.load_state_dict(torch.load(stored, weights_only=True))
    for twin in (loaded, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), module(x))


def test_it_shows_what_is_unusual():
    assert repr(MaxPlusConv2d(3, 4, 5)) == "MaxPlusConv2d(3, 4, kernel_size=(5, 5), stride=(1, 1))"
    shown = repr(MinPlusConv2d(2, 4, (3, 1), stride=(2, 1), padding=(1, 0), dilation=2, groups=2))
    assert shown == (
        "MinPlusConv2d(2, 4, kernel_size=(3, 1), stride=(2, 1), padding=(1, 0), dilation=(2, 2), groups=2)"
    )


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("shape", [(2, 4, 6, 5), (4, 6, 5)], ids=str)
def test_compiles_into_one_graph(layer, shape):
    module = layer(4, 6, 3, padding=1, groups=2)
    x = torch.randn(shape)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), module(x))
    (got,) = torch.autograd.grad(compiled(x).sum(), module.weight)
    (expected,) = torch.autograd.grad(module(x).sum(), module.weight)
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"in_channels": 0}, "in_channels is 0; expected at least 1"),
        ({"out_channels": -1}, "out_channels is -1; expected at least 1"),
        ({"kernel_size": (3, 0)}, r"kernel_size is \(3, 0\); expected at least 1"),
        ({"stride": 0}, r"stride is \(0, 0\); expected at least 1"),
        ({"groups": 3}, "groups is 3; expected a divisor of in_channels 4 and out_channels 6"),
        ({"padding": 3}, r"padding is 3; expected at least 0 and less than the window, of kernel_size \(3, 3\)"),
        ({"padding": (0, -1)}, r"padding is \(0, -1\); expected at least 0"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_impossible_layers_are_refused(arguments, match):
    with pytest.raises(ValueError, match=f"MaxPlusConv2d: {match}"):
        MaxPlusConv2d(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3} | arguments)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"in_channels": "4"}, "in_channels is '4'; expected an integer, at least 1"),
        ({"groups": 1.0}, "groups is 1.0; expected an integer, at least 1"),
        ({"kernel_size": "3"}, "kernel_size is '3'; expected an integer, or a pair of them"),
        ({"stride": (1, 1, 1)}, r"stride is \(1, 1, 1\); expected an integer, or a pair of them"),
        ({"padding": 0.5}, "padding is 0.5; expected an integer, or a pair of them"),
        ({"dilation": (1, None)}, r"dilation is \(1, None\); expected an integer, or a pair of them"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_sizes_that_are_no_integers_are_named(arguments, match):
    with pytest.raises(TypeError, match=f"MaxPlusConv2d: {match}"):
        MaxPlusConv2d(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3} | arguments)


def test_numpy_s_integers_are_sizes():
    layer = MaxPlusConv2d(4, 6, numpy.int64(3), stride=numpy.int64(2))  # pyright: ignore
    assert layer.stride == (2, 2)
    assert layer.weight.shape == (6, 4, 3, 3)


def test_wrong_channels_are_named():
    with pytest.raises(ValueError, match=r"weight has shape \(6, 4, 3, 3\); expected \[O, 5, kh, kw\]"):
        MaxPlusConv2d(4, 6, 3)(torch.zeros(1, 5, 8, 8))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_net_that_holds_one_is_traced_by_fx(layer):
    net = torch.nn.Sequential(layer(2, 3, 3, padding=1), torch.nn.ReLU(), layer(3, 3, 2, groups=3, stride=2))
    traced, x = torch.fx.symbolic_trace(net), torch.randn(2, 2, 6, 7)
    assert torch.equal(traced(x), net(x))
