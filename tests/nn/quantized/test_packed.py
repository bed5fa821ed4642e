"""PackedLinear and PackedConv2d beside torch's layers: value to the bit, gradients, what is kept, what is refused."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
import torch._dynamo
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from tropigrad.kernels import packed_layers
from tropigrad.nn import PackedConv2d, PackedLinear

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


def signs(*shape: int, seed: int = 0) -> torch.Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.5).float() * 2 - 1


def pair(packed: type[nn.Module], plain: type[nn.Module], *args, **kwargs):
    ours, theirs = packed(*args, **kwargs), plain(*args, **kwargs)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def linears(*args, **kwargs):
    return pair(PackedLinear, nn.Linear, *args, **kwargs)


def convs(*args, **kwargs):
    return pair(PackedConv2d, nn.Conv2d, *args, **kwargs)


def gradients(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The value, and the gradients of x and of the parameters under unequal weights."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    g = torch.linspace(-1, 1, y.numel()).view_as(y).to(y.dtype)
    return (y.detach(), *torch.autograd.grad(y, (x, *layer.parameters()), g))


def check(ours: nn.Module, theirs: nn.Module, x: torch.Tensor) -> None:
    (y, *got), (expected_y, *expected) = gradients(ours, x), gradients(theirs, x)
    assert torch.equal(y, expected_y)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setitem(packed_layers._CHUNK, "cpu", 300)


# ------------------------------------------------------------------------------------------------ as torch's layers


@pytest.mark.parametrize("shape", [(7, 13), (13,), (2, 3, 13), (0, 13), (90, 13)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_is_torch_s(shape, bias, small_chunks):
    check(*linears(13, 5, bias=bias), signs(*shape))


OPTIONS = {
    "plain": {},
    "no-bias": {"bias": False},
    "padding": {"padding": (1, 2)},
    "stride": {"stride": (2, 3), "padding": 1},
    "dilation": {"padding": 2, "dilation": 2},
    "groups": {"groups": 4, "stride": 2},
    "valid": {"padding": "valid", "kernel_size": (2, 3)},
    "same": {"padding": "same", "dilation": (1, 2)},
    "same-of-even": {"padding": "same", "kernel_size": (2, 4)},
    **{mode: {"padding": (2, 1), "padding_mode": mode, "stride": 2} for mode in ("reflect", "replicate", "circular")},
    "same-circular": {"padding": "same", "kernel_size": (4, 3), "padding_mode": "circular"},
    "same-reflect": {"padding": "same", "kernel_size": (4, 3), "padding_mode": "reflect"},
}
SHAPES = {
    "batch": (5, 4, 9, 8),
    "one": (1, 4, 9, 8),
    "unbatched": (4, 9, 8),
    "empty": (0, 4, 9, 8),
    "odd": (6, 4, 9, 9),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_convolution_is_torch_s(shape, options, small_chunks):
    layers = convs(4, 8, **{"kernel_size": 3} | options)
    check(*layers, signs(*shape))
    if len(shape) == 4:
        check(*layers, signs(*shape).contiguous(memory_format=torch.channels_last))


def test_double_precision_agrees_to_its_own_rounding(small_chunks):
    for (ours, theirs), x in (
        (convs(4, 6, 3, stride=2, padding=1, groups=2, dtype=torch.float64), signs(9, 4, 8, 7).double()),
        (linears(13, 5, dtype=torch.float64), signs(90, 13).double()),
    ):
        torch.testing.assert_close(gradients(ours, x), gradients(theirs, x), rtol=1e-12, atol=1e-12)


def test_any_strides(small_chunks):
    check(*linears(13, 5), signs(13, 40).t())
    check(*linears(13, 5), signs(6, 3, 13).transpose(0, 1))
    check(*linears(13, 5), signs(1, 13).expand(70, 13))
    check(*convs(4, 8, 3), signs(5, 4, 9, 16)[..., ::2])
    check(*convs(4, 8, 3), signs(4, 5, 9, 8).transpose(0, 1))


def test_weights_in_channels_last():
    ours, theirs = (layer.to(memory_format=torch.channels_last) for layer in convs(8, 8, 3, padding=1))
    check(ours, theirs, signs(5, 8, 9, 8).contiguous(memory_format=torch.channels_last))
    check(ours, theirs, signs(5, 8, 9, 8))


def test_a_state_of_torch_s_layer_loads_and_round_trips():
    for ours, theirs in (linears(13, 5), convs(4, 8, 3, padding=1)):
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert repr(ours).removeprefix("Packed") == repr(theirs)
        stored = io.BytesIO()
        torch.save(theirs.state_dict(), stored)
        stored.seek(0)
        ours.load_state_dict(torch.load(stored, weights_only=True))
        x = signs(2, 13) if isinstance(ours, nn.Linear) else signs(2, 4, 6, 6)
        for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            assert torch.equal(twin(x), theirs(x))


# ------------------------------------------------------------------------------------------------ what is kept


def kept_bytes(layer: nn.Module, x: torch.Tensor) -> int:
    """The bytes that a step keeps for its backward, a storage once, without the parameters'."""
    own = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    storages: dict[int, torch.Tensor] = {}

    def pack(saved: torch.Tensor) -> torch.Tensor:
        if saved.untyped_storage().data_ptr() not in own:
            storages.setdefault(saved.untyped_storage().data_ptr(), saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        y = layer(x)
    y.sum().backward()
    return sum(saved.untyped_storage().nbytes() for saved in storages.values())


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        (lambda: linears(1024, 64), (64, 1024)),
        (lambda: convs(16, 8, 3, padding=1), (8, 16, 16, 16)),
        (lambda: convs(16, 8, 3, padding=1, padding_mode="reflect"), (8, 16, 16, 16)),
        (lambda: convs(16, 8, 3, padding=1, padding_mode="replicate"), (8, 16, 16, 16)),
        (lambda: convs(16, 8, 3, padding=1, padding_mode="circular"), (8, 16, 16, 16)),
    ],
    ids=["linear", "conv2d", "reflect", "replicate", "circular"],
)
def test_a_bit_is_kept_of_each_element(layers, shape):
    ours, theirs = layers()
    x = signs(*shape).requires_grad_()
    assert kept_bytes(theirs, x) >= x.nbytes
    assert kept_bytes(ours, x) == x.nbytes // 32 + 4  # and the flags


def test_channels_last_is_packed_as_it_lies():
    """The operator that packs is handed the memory of x itself."""
    seen = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.tropigrad.pack_bits.default:
                seen.append(args[0].data_ptr())
            return func(*args, **(kwargs or {}))

    x = signs(4, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    with Watching():
        y = PackedConv2d(16, 8, 3)(x)
    assert seen == [x.data_ptr()]
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_no_more_than_a_chunk_is_unpacked_at_a_time(small_chunks):
    made = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.tropigrad.unpack_bits.default:
                made.append(out.numel())
            return out

    x = signs(40, 100).requires_grad_()
    y = PackedLinear(100, 3)(x)
    with Watching(), torch.autograd.set_multithreading_enabled(False):
        y.sum().backward()
    assert made == [300] * 13 + [100]


def test_without_a_weight_gradient_nothing_is_packed_or_checked(monkeypatch):
    monkeypatch.setattr(packed_layers, "_packed", None)  # a call would fail
    for (ours, theirs), shape in ((linears(13, 5), (4, 13)), (convs(4, 8, 3, padding=1), (2, 4, 6, 6))):
        x = torch.randn(shape, requires_grad=True)
        with torch.no_grad():
            assert torch.equal(ours(x), theirs(x))
        with torch.inference_mode():
            assert torch.equal(ours(x), theirs(x))
        for layer in (ours, theirs):
            layer.weight.requires_grad_(False)
        assert torch.equal(ours(x), theirs(x))
        got, expected = (torch.autograd.grad(layer(x).sin().sum(), (x, layer.bias)) for layer in (ours, theirs))
        torch.testing.assert_close(got, expected)
        assert kept_bytes(ours, x) <= 4  # flags of nothing


# ------------------------------------------------------------------------------------------------ values beside ±1


def test_other_values_are_refused_and_named():
    with pytest.raises(ValueError, match=r"PackedLinear: the input holds 0.5; expected -1 and 1 .*torch.nn.Linear$"):
        PackedLinear(3, 2)(torch.tensor([[1.0, -1, 0.5]]))
    x = signs(2, 3, 5, 5)
    x[1, 2, 3, 4] = 0
    with pytest.raises(ValueError, match=r"PackedConv2d: the input holds 0; expected -1 and 1 .*torch.nn.Conv2d$"):
        PackedConv2d(3, 2, 3)(x)
    x[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="PackedConv2d: the input holds 0"):
        PackedConv2d(3, 2, 3)(x)


def test_nan_passes_and_makes_the_weight_gradient_nan(small_chunks):
    for (ours, theirs), x in ((linears(13, 5), signs(60, 13)), (convs(4, 8, 3), signs(5, 4, 9, 8))):
        x[3, 2] = float("nan")
        (y, dx, dw, db), (expected_y, expected_dx, _, expected_db) = gradients(ours, x), gradients(theirs, x)
        torch.testing.assert_close(y, expected_y, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close((dx, db), (expected_dx, expected_db), rtol=1e-4, atol=1e-4)
        assert dw.isnan().all()


def test_a_second_derivative_is_refused_by_name():
    for layer, x in ((PackedLinear(13, 5), signs(4, 13)), (PackedConv2d(4, 8, 3), signs(2, 4, 6, 6))):
        (dw,) = torch.autograd.grad(layer(x).square().sum(), layer.weight, create_graph=True)
        with pytest.raises(NotImplementedError, match=r"packed layers are differentiated once; .*torch\.nn\.Linear"):
            dw.sum().backward()


def test_forward_mode_is_refused_by_name():
    layer, x = PackedLinear(13, 5), signs(4, 13)
    with pytest.raises(NotImplementedError, match="packed_linear has no forward-mode derivative"):
        torch.func.jvp(layer, (x,), (torch.ones_like(x),))


# ------------------------------------------------------------------------------------------------ torch's features

LAYERS = {
    "linear": (lambda: linears(13, 5), (40, 13)),
    "conv2d": (lambda: convs(4, 8, 3, padding=1), (9, 4, 6, 5)),
    "conv2d-reflect": (lambda: convs(4, 8, 3, padding=1, padding_mode="reflect", groups=2), (9, 4, 6, 5)),
    "conv2d-unbatched": (lambda: convs(4, 8, (2, 3), padding="same"), (4, 6, 5)),
}
each_layer = pytest.mark.parametrize(("layers", "shape"), LAYERS.values(), ids=LAYERS)


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@each_layer
def test_compiles_into_one_graph(layers, shape, compiler):
    torch._dynamo.reset()
    ours, theirs = layers()
    compiled = torch.compile(ours, fullgraph=True, backend=compiler)
    for seed in range(2):
        x = signs(*shape, seed=seed)
        check(compiled, theirs, x)
        if x.dim() == 4:
            check(compiled, theirs, x.contiguous(memory_format=torch.channels_last))
        with torch.no_grad():
            assert torch.equal(compiled(x), theirs(x))
    with pytest.raises(ValueError, match=r"the input holds (-)?0\.5"):
        compiled(signs(*shape) * 0.5)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
@each_layer
def test_autocast_is_torch_s(layers, shape, low):
    ours, theirs = layers()
    x = signs(*shape)
    with torch.autocast("cpu", dtype=low):
        (y, *got), (expected_y, *expected) = gradients(ours, x), gradients(theirs, x)
    assert y.dtype == low
    assert torch.equal(y, expected_y)
    assert [one.dtype for one in got] == [one.dtype for one in expected]
    torch.testing.assert_close(got, expected, rtol=0.02, atol=0.05)


def test_autocast_is_compiled():
    torch._dynamo.reset()
    ours, theirs = convs(4, 8, 3, padding=1)
    compiled, x = torch.compile(ours, fullgraph=True, backend="aot_eager"), signs(9, 4, 6, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(compiled(x), theirs(x))


def test_sixteen_bits_are_summed_in_float32(monkeypatch):
    """A thousand chunks lose no more than one does."""
    ours, theirs = linears(8, 4, dtype=torch.bfloat16)
    x = signs(4000, 8).bfloat16()
    exact = gradients(theirs.double(), x.double())[2]
    monkeypatch.setitem(packed_layers._CHUNK, "cpu", 32)
    got = gradients(ours, x)[2]
    assert (got.double() - exact).abs().max() <= 0.01 * exact.abs().max()


@each_layer
def test_an_exported_program_is_made_of_torch_s_layers(layers, shape):
    ours, theirs = layers()
    x = signs(*shape)
    exported = torch.export.export(ours, (x,))
    assert not [node for node in exported.graph.nodes if "tropigrad" in str(node.target)]
    assert torch.equal(exported.module()(x), theirs(x))


@pytest.mark.parametrize("reentrant", [True, False])
@each_layer
def test_checkpointing(layers, shape, reentrant):
    ours, theirs = layers()
    y = checkpoint(ours, signs(*shape).requires_grad_(), use_reentrant=reentrant)
    assert isinstance(y, torch.Tensor)
    y.sum().backward()
    theirs(signs(*shape)).sum().backward()
    got, expected = ([parameter.grad for parameter in one.parameters()] for one in (ours, theirs))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@each_layer
def test_functional_gradients(layers, shape):
    """torch.func.grad, and its vmap over samples."""
    ours, theirs = layers()
    x = signs(*shape)
    results = []
    for layer in (ours, theirs):
        parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}

        def loss(p, sample, layer=layer):
            return torch.func.functional_call(layer, p, (sample,)).square().sum()

        of_all = torch.func.grad(loss)(parameters, x)
        of_each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x[:3]) if len(shape) != 3 else {}
        results.append((of_all, of_each))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@each_layer
def test_opcheck(layers, shape):
    """The forward and the backward operator, as a step calls them."""
    ours, _ = layers()
    calls = []

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if str(func).startswith("tropigrad.packed"):
                calls.append((func, tuple(x.detach().clone() if isinstance(x, torch.Tensor) else x for x in args)))
            return func(*args, **(kwargs or {}))

    with Noting(), torch.autograd.set_multithreading_enabled(False):
        gradients(ours, signs(*shape))
    assert len(calls) == 2
    for func, args in calls:
        torch.library.opcheck(func, args)


RANK = """
import sys
from datetime import timedelta
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tropigrad.nn import PackedConv2d

folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", f"file://{folder}/meeting", timedelta(seconds=90), 2, rank)
state, x = torch.load(f"{folder}/state")
net = nn.Sequential(PackedConv2d(4, 8, 3, padding=1), nn.Flatten(), nn.Hardtanh(), nn.Linear(240, 3))
net.load_state_dict(state)
DistributedDataParallel(net)(x[rank::2]).square().sum().backward()
torch.save([parameter.grad for parameter in net.parameters()], f"{folder}/rank{rank}")
dist.destroy_process_group()
"""


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo")
def test_ranks_average_the_gradients_of_their_samples(tmp_path):
    net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Flatten(), nn.Hardtanh(), nn.Linear(240, 3))
    x = signs(10, 4, 6, 5)
    torch.save((net.state_dict(), x), tmp_path / "state")
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(tmp_path), str(rank)]) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    (net(x).square().sum() / 2).backward()
    for rank in range(2):
        got = torch.load(tmp_path / f"rank{rank}")
        torch.testing.assert_close(got, [parameter.grad for parameter in net.parameters()], rtol=1e-4, atol=1e-4)
