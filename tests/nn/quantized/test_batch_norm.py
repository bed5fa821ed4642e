"""BatchNormThreshold against nn.BatchNorm2d followed by the threshold, and what a module owes its users."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tropigrad.nn import BatchNormThreshold, HardThreshold, QuantizedReLU

SHAPES = {"images": (8, 5, 6, 4), "rows": (16, 5), "one sample": (1, 5, 4, 4)}
FORMS = {
    "sign": ({"kind": "sign"}, HardThreshold()),
    "step-sste": ({"kind": "step", "rule": "sste"}, HardThreshold("step", "sste")),
    "sign-unweighted": ({"weighted": False}, HardThreshold(weighted=False)),
    "staircase": ({"kind": "staircase", "steps": 3}, QuantizedReLU()),
    "saturated_relu": ({"kind": "saturated_relu"}, nn.Hardtanh(0.0, 1.0)),
    "pool": ({"pool": 2}, nn.Sequential(nn.MaxPool2d(2), HardThreshold())),
}


def pair(shape, options, act, dtype=torch.float64, **settings):
    """BatchNormThreshold, and batch norm with a threshold behind it, of the same state."""
    norm = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(5, dtype=dtype, **settings)
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    ours = BatchNormThreshold(5, dtype=dtype, **settings, **options)
    ours.load_state_dict(norm.state_dict())
    return ours, nn.Sequential(norm, act)


def run(module, z, dy=None):
    """(y, gradients of z and of the parameters)"""
    z = z.detach().requires_grad_()
    y = module(z)
    dy = torch.linspace(-1, 1, y.numel()).to(y.dtype).view_as(y) if dy is None else dy
    return y.detach(), torch.autograd.grad(y, [z, *module.parameters()], dy)


def batch(shape, dtype=torch.float64):
    return (2 * torch.randn(shape) + torch.linspace(-1, 3, 5).view(-1, *(1,) * (len(shape) - 2))).to(dtype)


def same(ours, theirs, z, ulps=50.0):
    """Outputs, gradients and buffers are the same, but for rounding."""
    (y, grads), (other_y, other_grads) = run(ours, z), run(theirs, z)
    torch.testing.assert_close(y, other_y, rtol=1e-12, atol=1e-12)
    eps = ulps * torch.finfo(z.dtype).eps
    for one, other in zip(grads, other_grads, strict=True):
        assert (one - other).abs().max() <= eps * (1 + other.abs().max())
    for one, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=8 * torch.finfo(z.dtype).eps, atol=8 * torch.finfo(z.dtype).eps)


# ------------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("options", "act"), FORMS.values(), ids=FORMS)
def test_it_is_batch_norm_and_the_threshold(shape, options, act):
    if "pool" in options and len(shape) == 2:
        pytest.skip("rows are not pooled")
    ours, theirs = pair(shape, options, act)
    for _ in range(3):
        same(ours, theirs, batch(shape))
    ours.eval()
    theirs.eval()
    same(ours, theirs, batch(shape))


@pytest.mark.parametrize(
    "settings",
    [{"momentum": None}, {"momentum": 0.7}, {"track_running_stats": False}, {"affine": False}, {"eps": 0.5}],
    ids=str,
)
def test_it_takes_batch_norm_s_settings(settings):
    ours, theirs = pair(SHAPES["images"], *FORMS["sign"], **settings)
    assert list(ours.state_dict()) == [name.removeprefix("0.") for name in theirs.state_dict()]
    for _ in range(3):
        same(ours, theirs, batch(SHAPES["images"]))
    ours.eval()
    theirs.eval()
    same(ours, theirs, batch(SHAPES["images"]))


def test_it_is_right_in_float32():
    ours, theirs = pair(SHAPES["images"], *FORMS["sign"], dtype=torch.float32)
    same(ours, theirs, batch(SHAPES["images"], torch.float32))
    same(ours.eval(), theirs.eval(), batch(SHAPES["images"], torch.float32))


def test_statistics_stay_where_nothing_is_normalised():
    ours, theirs = pair(SHAPES["images"], *FORMS["sign"])
    empty = torch.zeros(0, 5, 4, 4, dtype=torch.float64)
    y, grads = run(ours, empty)
    assert y.shape == empty.shape
    assert not any(grad.any() for grad in grads)
    theirs(empty)
    for name, running in ("mean", torch.zeros(5)), ("var", torch.ones(5)):
        for norm in ours, theirs[0]:
            assert norm.state_dict()[f"running_{name}"].tolist() == running.tolist()


def test_evaluation_and_no_grad_keep_nothing():
    ours = BatchNormThreshold(5).eval()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda x: x), torch.no_grad():
        ours(torch.randn(8, 5))
        ours.train()(torch.randn(8, 5))
    assert kept == []


def test_training_keeps_z_alone():
    kept = []
    z = torch.randn(16, 5, 8, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        BatchNormThreshold(5, pool=2)(z)
    large = [x for x in kept if x.numel() > 5]
    assert [x.data_ptr() for x in large] == [z.data_ptr()]


def test_a_frozen_layer_in_evaluation_keeps_a_bit_an_element():
    ours = BatchNormThreshold(5, rule="sste").eval().requires_grad_(False)
    kept = []
    z = torch.randn(16, 5, 8, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        ours(z)
    assert sum(x.nbytes for x in kept if x.numel() > 5) == z.numel() // 8


# ------------------------------------------------------------------------------------------------ state


def test_states_load_into_batch_norm_and_from_it():
    ours, theirs = pair(SHAPES["images"], *FORMS["sign"])
    run(ours, batch(SHAPES["images"]))
    theirs[0].load_state_dict(ours.state_dict())
    z = batch(SHAPES["images"])
    same(ours.eval(), theirs.eval(), z)


@pytest.mark.parametrize(
    "twin", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["copy", "pickle"]
)
def test_copies_do_the_same(twin):
    ours, _ = pair(SHAPES["images"], *FORMS["pool"])
    other, z = twin(ours), batch(SHAPES["images"])
    assert torch.equal(other(z), ours(z))
    torch.testing.assert_close(other.state_dict(), ours.state_dict(), rtol=0, atol=0)
    assert repr(other) == repr(ours)


def test_it_is_reset_as_batch_norm_is():
    ours, _ = pair(SHAPES["images"], *FORMS["sign"])
    ours(batch(SHAPES["images"]))
    ours.reset_parameters()
    assert ours.weight.tolist() == [1.0] * 5
    assert ours.running_mean is not None
    assert ours.running_mean.tolist() == [0.0] * 5
    assert ours.num_batches_tracked == 0


def test_a_conversion_to_synchronized_batch_norm_does_not_lose_the_threshold():
    net = nn.Sequential(nn.BatchNorm2d(3), BatchNormThreshold(3))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert [type(layer) for layer in converted.children()] == [nn.SyncBatchNorm, BatchNormThreshold]


# ------------------------------------------------------------------------------------------------ all of torch


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("momentum", [0.1, None], ids=["momentum", "cumulative"])
def test_it_compiles_into_one_graph(training, momentum):
    ours = pair(SHAPES["images"], {"pool": 2}, None, momentum=momentum)[0].train(training)
    twin = copy.deepcopy(ours)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        z = batch(SHAPES["images"])
        (y, grads), (other_y, other_grads) = run(compiled, z), run(ours, z)
        assert torch.equal(y, other_y)
        torch.testing.assert_close(grads, other_grads)
    torch.testing.assert_close(list(twin.buffers()), list(ours.buffers()))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_it_is_exported(training):
    ours = pair(SHAPES["images"], *FORMS["sign"])[0].train(training)
    z = batch(SHAPES["images"])
    exported = torch.export.export(ours, (z,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},)).module()
    z = batch((3, 5, 6, 4))
    assert torch.equal(exported(z), ours(z))
    assert torch.equal(exported.running_var, ours.running_var)  # pyright: ignore[reportArgumentType]


def test_fx_sees_one_module_that_still_trains_and_evaluates():
    net = nn.Sequential(nn.Conv2d(2, 5, 3), BatchNormThreshold(5))
    traced, z = torch.fx.symbolic_trace(copy.deepcopy(net)), torch.randn(4, 2, 6, 6)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1"]
    for training in (True, False):
        assert torch.equal(traced.train(training)(z), net.train(training)(z))
    assert traced.state_dict().keys() == net.state_dict().keys()
    assert torch.equal(traced.state_dict()["1.running_var"], net.state_dict()["1.running_var"])


def test_fx_cannot_trace_it_alone():
    with pytest.raises(TypeError, match=r"^BatchNormThreshold: torch\.fx traces it alone; expected a network"):
        torch.fx.symbolic_trace(BatchNormThreshold(5))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_autocast_gives_what_batch_norm_gives(training):
    ours, theirs = pair(SHAPES["images"], *FORMS["sign"], dtype=torch.float32)
    conv, z = nn.Conv2d(3, 5, 3), torch.randn(8, 3, 8, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ours.train(training)(conv(z))
        other = theirs.train(training)(conv(z))
    assert y.dtype == other.dtype == torch.bfloat16
    assert (y != other).float().mean() < 0.01  # where batch norm's output is about 0, and rounded otherwise
    y.float().square().sum().backward()
    assert ours.weight.grad is not None
    assert ours.weight.grad.dtype == torch.float32


def test_it_takes_rows_of_channels_and_gives_them():
    ours, theirs = pair(SHAPES["images"], *FORMS["sign"])
    z = batch(SHAPES["images"]).contiguous(memory_format=torch.channels_last)
    assert ours(z).is_contiguous(memory_format=torch.channels_last)
    theirs(z)
    same(ours, theirs, z)


def test_checkpointing_gives_the_same_gradients():
    ours = pair(SHAPES["images"], *FORMS["sign"])[0]
    z = batch(SHAPES["images"]).requires_grad_()
    expected = torch.autograd.grad(ours(z).square().sum() + ours(z).sum(), z)
    y = checkpoint(ours, z, use_reentrant=False)
    (got,) = torch.autograd.grad(y.square().sum() + y.sum(), z)
    torch.testing.assert_close((got,), expected)


# ------------------------------------------------------------------------------------------------ users


def test_it_shows_batch_norm_s_settings_and_its_own():
    assert "5, eps=1e-05, momentum=0.1" in repr(BatchNormThreshold(5))
    assert repr(BatchNormThreshold(5)).endswith("kind='sign', rule='soft_hinge')")
    shown = repr(BatchNormThreshold(5, kind="staircase", steps=3, pool=2))
    assert shown.endswith("kind='staircase', steps=3, rule='soft_hinge', pool=2)")
    assert repr(BatchNormThreshold(5, kind="saturated_relu")).endswith("kind='saturated_relu')")


@pytest.mark.parametrize(
    ("z", "match"),
    [
        (torch.zeros(1, 5), r"z has shape \(1, 5\), one value of each channel, whose variance is 0; expected more"),
        (torch.zeros(1, 5, 1, 1), r"z has shape \(1, 5, 1, 1\), one value of each channel"),
        (torch.zeros(8, 4), r"z has shape \(8, 4\); expected \[N, 5, \.\.\.\]"),
        (torch.zeros(5), r"z has shape \(5,\); expected \[N, 5, \.\.\.\]"),
    ],
    ids=lambda z: str(tuple(z.shape)) if isinstance(z, torch.Tensor) else "",
)
def test_shapes_that_do_not_fit_are_named(z, match):
    with pytest.raises(ValueError, match=f"^BatchNormThreshold: {match}"):
        BatchNormThreshold(5)(z)


def test_rows_are_not_pooled():
    with pytest.raises(ValueError, match=r"z has shape \(8, 4\); expected \[N, 4, H, W\], of 4 channels"):
        BatchNormThreshold(4, pool=2)(torch.zeros(8, 4))
    with pytest.raises(ValueError, match=r"z has shape \(8, 4, 3, 2\); expected even last two dimensions for pool=2"):
        BatchNormThreshold(4, pool=2)(torch.zeros(8, 4, 3, 2))


def test_one_value_of_each_channel_is_taken_in_evaluation():
    assert BatchNormThreshold(5).eval()(torch.ones(1, 5)).tolist() == [[1.0] * 5]


@pytest.mark.parametrize(
    ("z", "match"),
    [
        (torch.zeros(8, 5, dtype=torch.int32), "z is torch.int32; expected one of float64, float32, float16, bfloat16"),
        (torch.zeros(8, 5, dtype=torch.complex64), "z is torch.complex64; expected one of"),
        ([[0.0] * 5], "z is a list; expected a torch.Tensor"),
    ],
    ids=["integers", "complex", "list"],
)
def test_other_types_are_named(z, match):
    with pytest.raises(TypeError, match=f"^BatchNormThreshold: {match}"):
        BatchNormThreshold(5)(z)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_features": 0}, "num_features is 0; expected at least 1"),
        ({"kind": "staircase"}, "steps is None; expected an integer of at least 2"),
        ({"kind": "relu"}, "kind is 'relu'; expected one of 'sign', 'step', 'staircase', 'saturated_relu'"),
        ({"kind": "saturated_relu", "rule": "sste"}, "kind is 'saturated_relu', with rule 'sste'"),
        ({"steps": 3}, "steps is 3 and kind 'sign'; expected None"),
    ],
    ids=str,
)
def test_options_are_checked_when_it_is_made(options, match):
    with pytest.raises(ValueError, match=f"^BatchNormThreshold: {match}"):
        BatchNormThreshold(**{"num_features": 5} | options)
