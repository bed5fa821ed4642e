"""HardThreshold and QuantizedReLU: the op with options that were checked, and what a module owes its users."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import max_pool2d
from torch.utils.checkpoint import checkpoint

from tropigrad.kernels import hard_threshold
from tropigrad.nn import HardThreshold, QuantizedReLU

LAYERS = {
    "sign": HardThreshold(),
    "step-sste": HardThreshold("step", rule="sste"),
    "sign-byte-unweighted": HardThreshold(weighted=False, save="byte"),
    "sign-pool": HardThreshold(rule="ste", pool=2),
    "four levels": QuantizedReLU(),
    "six levels-pool": QuantizedReLU(5, rule="sste", save="bits", pool=2),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    return LAYERS[request.param]


def run(layer, z, dy=None):
    """(y, dz)"""
    z = z.detach().requires_grad_()
    y = layer(z)
    dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y) if dy is None else dy
    return y.detach(), torch.autograd.grad(y, z, dy)[0]


def equal(one, other):
    return all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


# ------------------------------------------------------------------------------------------------ values


def test_a_layer_is_the_op_with_its_options(layer):
    z = 2 * torch.randn(3, 4, 6, 8)
    names = ("kind", "steps", "rule", "weighted", "save", "pool")
    options = {name: getattr(layer, name) for name in names}
    assert equal(run(layer, z), run(lambda z: hard_threshold(z, **options), z))


@pytest.mark.parametrize(
    ("layer", "factor"),
    [
        (HardThreshold(), lambda z: 1 - z.tanh() ** 2),
        (HardThreshold(rule=None), lambda z: 1 - z.tanh() ** 2),
        (HardThreshold("step"), lambda z: 1 - z.tanh() ** 2),
        (HardThreshold(rule="sste"), lambda z: (z.abs() <= 1).double()),
        (HardThreshold(rule="ste"), torch.ones_like),
        (QuantizedReLU(), lambda z: 1 - (2 * z - 1).tanh() ** 2),
        (QuantizedReLU(5, rule="sste"), lambda z: ((z >= 0) & (z <= 1)).double()),
    ],
    ids=lambda value: repr(value) if isinstance(value, torch.nn.Module) else "",
)
def test_the_gradient_is_dy_times_the_rule_s_factor(layer, factor):
    z, dy = 2 * torch.randn(2, 50, dtype=torch.float64)
    torch.testing.assert_close(run(layer, z, dy)[1], dy * factor(z), rtol=1e-13, atol=1e-15)


def test_the_levels_are_the_values():
    z = torch.linspace(-1, 2, 1201)
    for layer in HardThreshold(), HardThreshold("step"), *(QuantizedReLU(n) for n in (2, 3, 5, 7)):
        assert layer(z).unique().tolist() == pytest.approx(layer.levels, abs=1e-7)
    below, above = HardThreshold("step").levels
    assert HardThreshold("step")(torch.tensor([-1.0, 0.0, 1.0])).tolist() == [below, below, above]


def test_a_pooled_layer_is_the_maximum_before_one():
    z = torch.randn(2, 3, 8, 6)
    pooled, plain = HardThreshold(pool=2), HardThreshold()
    assert equal(run(pooled, z), run(lambda z: plain(max_pool2d(z, 2)), z))


def test_it_has_no_state(layer):
    assert not layer.state_dict()
    assert not list(layer.parameters())


# ------------------------------------------------------------------------------------------------ all of torch


@pytest.mark.parametrize(
    "twin", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["copy", "pickle"]
)
def test_copies_do_the_same(layer, twin):
    z = torch.randn(1, 2, 4, 6)
    assert equal(run(twin(layer), z), run(layer, z))
    assert repr(twin(layer)) == repr(layer)


def test_it_compiles_into_one_graph(layer):
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    z = torch.randn(2, 3, 4, 6)
    assert equal(run(compiled, z), run(layer, z))


def test_inductor_compiles_a_pooled_layer():
    layer, z = HardThreshold(pool=2), torch.randn(2, 3, 4, 6)
    assert equal(run(torch.compile(copy.deepcopy(layer), fullgraph=True), z), run(layer, z))


def test_it_is_exported(layer):
    z = torch.randn(2, 3, 4, 6)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(nn.Sequential(layer), (z,), dynamic_shapes=({0: batch},)).module()
    z = torch.randn(5, 3, 4, 6)
    assert torch.equal(exported(z), layer(z))


def test_a_net_that_holds_one_is_traced_by_fx(layer):
    net, z = nn.Sequential(nn.Conv2d(2, 3, 3), layer), torch.randn(1, 2, 6, 8)
    assert torch.equal(torch.fx.symbolic_trace(net)(z), net(z))


def test_autocast_hands_it_what_the_layer_before_it_gives(layer):
    net = nn.Sequential(nn.Conv2d(2, 3, 3), layer)
    z = torch.randn(1, 2, 6, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(z)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    grad = net[0].weight.grad
    assert isinstance(grad, torch.Tensor)
    assert grad.dtype == torch.float32
    assert grad.isfinite().all()


def test_it_is_recomputed_by_checkpointing(layer):
    z = torch.randn(2, 3, 4, 6)
    assert equal(run(lambda z: checkpoint(layer, z, use_reentrant=False), z), run(layer, z))


# ------------------------------------------------------------------------------------------------ users


def test_it_shows_what_is_unusual():
    assert repr(HardThreshold()) == "HardThreshold(kind='sign', rule='soft_hinge')"
    shown = repr(HardThreshold("step", None, weighted=False, save="byte", pool=2))
    assert shown == "HardThreshold(kind='step', rule='soft_hinge', weighted=False, save='byte', pool=2)"
    assert repr(QuantizedReLU(5, "sste")) == "QuantizedReLU(steps=5, rule='sste')"


@pytest.mark.parametrize(
    ("layer", "options", "match"),
    [
        (HardThreshold, {"kind": "staircase"}, "kind is 'staircase'; expected one of 'sign', 'step'; QuantizedReLU is"),
        (HardThreshold, {"kind": ["sign"]}, r"kind is \['sign'\]; expected one of"),
        (HardThreshold, {"rule": "relu"}, "rule is 'relu'; expected one of 'soft_hinge', 'sste', 'ste', 'hinge', "),
        (HardThreshold, {"save": "bits"}, "save is 'bits' and rule 'soft_hinge', whose factor is a real number"),
        (HardThreshold, {"rule": "ste", "save": "byte"}, "save is 'byte' and rule 'ste', whose factor does not fit"),
        (HardThreshold, {"save": "all"}, "save is 'all'; expected 'auto', 'input', 'bits' or 'byte'"),
        (HardThreshold, {"pool": 3}, "pool is 3; expected None or 2"),
        (QuantizedReLU, {"steps": 1}, "steps is 1; expected an integer of at least 2: 1 step would be constantly 0"),
        (QuantizedReLU, {"steps": 2.0}, "steps is 2.0; expected an integer of at least 2"),
        (QuantizedReLU, {"rule": "hinge"}, "rule is 'hinge'; expected one of 'soft_hinge', 'sste', 'ste' for kind"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_options_are_checked_when_it_is_made(layer, options, match):
    with pytest.raises(ValueError, match=f"^{layer.__name__}: {match}"):
        layer(**options)


def test_weighted_is_true_or_false():
    with pytest.raises(TypeError, match=r"^HardThreshold: weighted is 1; expected True or False"):
        HardThreshold(weighted=1)  # pyright: ignore[reportArgumentType]
