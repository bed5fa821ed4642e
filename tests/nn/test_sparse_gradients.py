# pyright: reportOptionalMemberAccess=false, reportArgumentType=false
"""Sparse gradients of the tropical layers: those that the dense form gives, as lists, and what torch does with them."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._dynamo.exc import Unsupported
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tropigrad.nn import LinearMinMax, MaxPlusLinear, MinPlusLinear, WorstSampleLoss

LAYERS = [pytest.param(MaxPlusLinear, id="max"), pytest.param(MinPlusLinear, id="min")]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def twins(model):
    """A model with sparse gradients, and the same with dense ones."""
    dense = copy.deepcopy(model)
    for module in dense.modules():
        if hasattr(module, "sparse"):
            module.sparse = False
    return model, dense


def samples(n=20, d=6, classes=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-40, 40, (n, d), generator=generator) / 8
    return x.to(dtype), torch.arange(n) % classes


def network(train_a=True, dtype=torch.float32, hidden=9, sparse=True):
    """Of eighths, whose sums are exact: gradients agree to the bit in whatever order they are summed."""
    torch.manual_seed(0)
    model = LinearMinMax(6, hidden, 4, train_a=train_a, sparse=sparse, dtype=dtype)
    with torch.no_grad():
        for weight in (model.W1, model.W2):
            weight.copy_((8 * weight).round() / 8)
    return model


def stack(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(
        MaxPlusLinear(6, 8, sparse=True, dtype=dtype),
        MinPlusLinear(8, 7, sparse=True, dtype=dtype),
        nn.Tanh(),
        MaxPlusLinear(7, 4, sparse=True, dtype=dtype),
    )


def assert_equal_gradients(model, dense):
    for (name, ours), theirs in zip(model.named_parameters(), dense.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            assert torch.equal(ours.grad.to_dense(), theirs.grad), name


# ------------------------------------------------------------------------------------------------ equality


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("shape", [(6,), (7, 6), (2, 3, 6), (0, 6)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_layer_s_sparse_gradient_is_the_dense_one(layer, shape, dtype):
    ours, dense = twins(layer(6, 5, sparse=True, dtype=dtype))
    x = torch.randn(shape, dtype=dtype)
    # powers of two, of one sign: sums of a few are exact in all dtypes
    upstream = 2.0 ** torch.randint(-1, 2, (*shape[:-1], 5)).to(dtype)
    gradients = []
    for model in (ours, dense):
        copied = x.clone().requires_grad_()
        y = model(copied)
        y.backward(upstream)
        gradients.append((y, copied.grad, model.weight.grad))
    (y, dx, dw), (dense_y, dense_dx, dense_dw) = gradients
    assert dw.layout is torch.sparse_coo
    assert dw.sparse_dim() == 2
    assert dw.dtype is dtype
    assert torch.equal(y, dense_y)
    assert torch.equal(dx, dense_dx)
    assert torch.equal(dw.to_dense(), dense_dw)


@pytest.mark.parametrize("train_a", [False, True], ids=["A fixed", "A trained"])
@pytest.mark.parametrize("x_needs", [False, True], ids=["x data", "x hidden"])
@pytest.mark.parametrize("loss", ["hinge", "cross-entropy", "sum"])
def test_a_network_s_sparse_gradients_are_the_dense_ones(train_a, x_needs, loss):
    x, y = samples(dtype=torch.float64)
    losses = {
        "hinge": WorstSampleLoss(margin=1.0),
        "cross-entropy": F.cross_entropy,
        "sum": lambda f, _: f.sum(),
    }
    ours, dense = twins(network(train_a, torch.float64))
    inputs = [x.clone().requires_grad_(x_needs) for _ in range(2)]
    for model, z in zip((ours, dense), inputs, strict=True):
        losses[loss](model(z), y).backward()
    for name, size in (("W1", 2), ("W2", 2), *([("A", 1)] if train_a else [])):
        gradient = getattr(ours, name).grad
        assert gradient.layout is torch.sparse_coo
        assert gradient.sparse_dim() == size
        torch.testing.assert_close(gradient.to_dense(), getattr(dense, name).grad, rtol=1e-12, atol=1e-14)
    assert (ours.A.grad is None) == (not train_a)
    if x_needs:
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_single_sample_s_gradients_agree_to_the_bit(dtype):
    """Each output then has a unit of its own or shares it: no more than a sum of few powers of two."""
    x, _ = samples(dtype=dtype)
    ours, dense = twins(network(dtype=dtype))
    for sample in x:
        for model in (ours, dense):
            model.zero_grad()
            (model(sample) * torch.tensor([1.0, -2.0, 0.5, 4.0], dtype=dtype)).sum().backward()
        assert_equal_gradients(ours, dense)


def test_a_stack_s_sparse_gradients_are_the_dense_ones():
    x, y = samples(dtype=torch.float64)
    ours, dense = twins(stack(torch.float64))
    for model in (ours, dense):
        F.cross_entropy(model(x), y).backward()
    for (name, mine), theirs in zip(ours.named_parameters(), dense.parameters(), strict=True):
        assert mine.grad.is_sparse
        torch.testing.assert_close(mine.grad.to_dense(), theirs.grad, rtol=1e-12, atol=1e-14, msg=name)


def test_the_hinge_of_the_worst_sample_has_four_entries():
    x, y = samples()
    model = network(train_a=True)
    WorstSampleLoss(margin=1.0)(model(x), y).backward()
    assert model.W2.grad._nnz() == model.W1.grad._nnz() == 2
    assert 1 <= model.A.grad._nnz() <= 2  # where both took the same leaf, one row


def test_cross_entropy_has_an_entry_for_each_output():
    x, y = samples()
    model = network(train_a=True)
    F.cross_entropy(model(x), y).backward()
    assert model.W1.grad._nnz() == model.W2.grad._nnz() == 20 * 4
    assert not model.W1.grad.is_coalesced()
    assert model.A.grad._nnz() <= len(model.A)
    assert torch.equal(model.A.grad.coalesce().indices(), model.A.grad._indices())


def test_zeros_have_no_entries():
    layer, x = MaxPlusLinear(6, 5, sparse=True), torch.randn(7, 6)
    upstream = torch.zeros(7, 5)
    upstream[2, 3], upstream[6, 0] = 1.0, float("nan")
    layer(x).backward(upstream)
    assert layer.weight.grad._nnz() == 2
    model = network()
    model(torch.randn(7, 6)).sum().mul(0).backward()
    assert [p.grad._nnz() for p in model.parameters()] == [0, 0, 0]


@pytest.mark.parametrize("upstream", [torch.ones(7, 5).neg, lambda: torch.ones(()).expand(7, 5), torch.ones(5, 7).t],
                         ids=["negated", "expanded", "transposed"])  # fmt: skip
def test_any_layout_of_the_upstream_gradient_will_do(upstream):
    x = torch.randn(7, 6)
    ours, dense = twins(MaxPlusLinear(6, 5, sparse=True))
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for model, z in zip((ours, dense), inputs, strict=True):
        model(z).backward(upstream())
    assert_equal_gradients(ours, dense)
    assert torch.equal(inputs[0].grad, inputs[1].grad)


def test_winners_are_those_of_nan_too():
    x = torch.randn(7, 6)
    x[3, 2] = float("nan")
    ours, dense = twins(MaxPlusLinear(6, 5, sparse=True))
    for model in (ours, dense):
        model(x).nansum().backward()
    assert_equal_gradients(ours, dense)


# ------------------------------------------------------------------------------------------------ torch


def test_what_needs_no_gradient_gets_none():
    x, _ = samples()
    model = network(train_a=False)
    model.W2.requires_grad_(False)
    model(x).sum().backward()
    assert model.A.grad is None
    assert model.W2.grad is None
    assert model.W1.grad.is_sparse
    for p in model.parameters():
        p.requires_grad_(False)
    assert not model(x).requires_grad
    inputs = x.clone().requires_grad_()
    model(inputs).sum().backward()
    assert inputs.grad is not None
    with torch.no_grad():
        assert torch.equal(model(x), twins(model)[1](x))
    with torch.inference_mode():
        assert torch.equal(stack()(x), stack()(x))


def test_several_backwards_add_up():
    x, y = samples(dtype=torch.float64)
    ours, dense = twins(network(dtype=torch.float64))
    for model in (ours, dense):
        for part in (slice(0, 8), slice(8, 20)):
            F.cross_entropy(model(x[part]), y[part], reduction="sum").backward()
    for mine, theirs in zip(ours.parameters(), dense.parameters(), strict=True):
        assert mine.grad.is_sparse
        torch.testing.assert_close(mine.grad.to_dense(), theirs.grad, rtol=1e-12, atol=1e-13)


def test_the_graph_may_be_kept():
    x, y = samples()
    model = network()
    loss = F.cross_entropy(model(x), y)
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(model.parameters()))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.to_dense(), other.to_dense())
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_gradients_share_no_values():
    """Programs scale gradients in place, as GradScaler does."""
    x, _ = samples()
    model = network()
    f = model(x)
    f.retain_grad()
    (f * 2).sum().backward()
    for p in model.parameters():
        p.grad._values().mul_(2)
    assert torch.equal(f.grad, torch.full_like(f, 2))
    assert set(model.W1.grad._values().tolist()) == set(model.W2.grad._values().tolist()) == {4.0}


@pytest.mark.parametrize("make", [network, stack, lambda: MaxPlusLinear(6, 4, sparse=True)],
                         ids=["LinearMinMax", "stack", "MaxPlusLinear"])  # fmt: skip
def test_differentiating_twice_is_refused_by_name(make):
    model = make()
    x = torch.randn(5, 6, requires_grad=True)
    loss = model(x).square().sum()
    (dx,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"Linear(MinMax)?: a sparse gradient cannot be .* expected sparse=F"):
        dx.sum().backward()
    loss = model(x).square().sum()
    weight = next(model.parameters()) if not isinstance(model, LinearMinMax) else model.W1
    (dw,) = torch.autograd.grad(loss, weight, create_graph=True)
    with pytest.raises(NotImplementedError, match="a sparse gradient cannot be differentiated again"):
        dw.to_dense().sum().backward()


def test_a_weight_that_changed_since_is_noticed():
    model = network(train_a=True)
    x = torch.randn(5, 6, requires_grad=True)
    loss = model(x).sum()
    with torch.no_grad():
        model.A.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("make", [network, stack], ids=["LinearMinMax", "stack"])
def test_autocast(make):
    x, y = samples()
    ours, dense = twins(nn.Sequential(nn.Linear(6, 6), make()))
    for model in (ours, dense):
        with torch.autocast("cpu", torch.bfloat16):
            f = model(x)
            assert f.dtype is torch.float32
            F.cross_entropy(f, y).backward()
    for mine, theirs in zip(ours.parameters(), dense.parameters(), strict=True):
        assert mine.grad.dtype is torch.float32
        torch.testing.assert_close(mine.grad.to_dense(), theirs.grad, rtol=0.05, atol=0.02)  # A's, by bfloat16 there


def test_hooks_and_checkpoints():
    x, y = samples()
    ours, dense = twins(stack())
    layouts = []
    ours.get_parameter("0.weight").register_hook(lambda g: layouts.append(g.layout))
    for model in (ours, dense):
        F.cross_entropy(checkpoint(model, x, use_reentrant=False), y).backward()
    assert layouts == [torch.sparse_coo]
    for mine, theirs in zip(ours.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.to_dense(), theirs.grad)


# which torch itself asks for where a graph is taken up again with a tensor that is no leaf
@pytest.mark.filterwarnings(r"ignore:The \.grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("make", [network, stack], ids=["LinearMinMax", "stack"])
def test_torch_compile_breaks_its_graph_there(make):
    x, y = samples()
    ours, eager = make(), make()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(nn.Sequential(nn.Tanh(), ours, nn.Tanh()), backend=backend)
    F.cross_entropy(compiled(x), y).backward()
    F.cross_entropy(eager(x.tanh()).tanh(), y).backward()
    assert len(graphs) >= 2
    for mine, theirs in zip(ours.parameters(), eager.parameters(), strict=True):
        assert mine.grad.is_sparse
        assert torch.equal(mine.grad.to_dense(), theirs.grad.to_dense())


@pytest.mark.parametrize("make", [network, stack], ids=["LinearMinMax", "stack"])
def test_a_full_graph_is_refused_by_name(make):
    with pytest.raises(Unsupported, match="sparse=True: sparse gradients are made outside graphs"):
        torch.compile(make(), fullgraph=True, backend="eager")(samples()[0])
    with torch.no_grad():
        x, model = samples()[0], make()
        assert torch.equal(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


@pytest.mark.parametrize("make", [network, stack], ids=["LinearMinMax", "stack"])
def test_torch_fx_traces_it(make):
    model, (x, y) = make(), samples()
    traced = torch.fx.symbolic_trace(model)
    gradients = []
    for f in (traced, model):
        model.zero_grad()
        F.cross_entropy(f(x), y).backward()
        gradients.append([p.grad.to_dense() for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match=r"x has shape \(3, 5\)"):
        model(torch.zeros(3, 5))


@pytest.mark.parametrize("make", [network, lambda: MinPlusLinear(6, 4, sparse=True)], ids=["network", "layer"])
def test_copies_keep_it(make):
    model, (x, _) = make(), samples()
    stored = io.BytesIO()
    torch.save(model.state_dict(), stored)
    stored.seek(0)
    dense = twins(model)[1]
    dense.load_state_dict(torch.load(stored, weights_only=True))
    assert torch.equal(dense(x), model(x))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin(x).sum().backward()
        assert all(p.grad.is_sparse for p in twin.parameters())
        assert repr(twin).endswith(", sparse=True)")


def test_sparse_adam_takes_them():
    x, y = samples()
    model = network(train_a=True)
    before = F.cross_entropy(model(x), y)
    optimizer = torch.optim.SparseAdam(list(model.parameters()), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    assert loss < before


# ------------------------------------------------------------------------------------------------ ranks

RANK = """
import sys
from datetime import timedelta
import torch, torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from tropigrad.nn import LinearMinMax, MaxPlusLinear

folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", f"file://{folder}/meeting", timedelta(seconds=90), 2, rank)
torch.manual_seed(0)
x, y = torch.randn(20, 6, dtype=torch.float64), torch.arange(20) % 4
model = nn.Sequential(
    nn.Linear(6, 6), MaxPlusLinear(6, 5, sparse=True), LinearMinMax(5, 9, 4, train_a=True, sparse=True)
).double()
F.cross_entropy(model(x), y).backward()
expected = [p.grad.to_dense() for p in model.parameters()]
model.zero_grad()
ours = {name: p for name, p in model.named_parameters() if not name.startswith("0.")}
DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(ours))
shared = DistributedDataParallel(model)
F.cross_entropy(shared(x[rank::2]), y[rank::2]).backward()
for p in ours.values():
    dist.all_reduce(p.grad)
    p.grad = p.grad / 2
for p, gradient in zip(model.parameters(), expected):
    torch.testing.assert_close(p.grad.to_dense(), gradient)
assert all(p.grad.is_sparse for p in ours.values())
print("equal")
dist.destroy_process_group()
"""


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo")
def test_ranks_share_sparse_gradients_beside_ddp(tmp_path):
    """DistributedDataParallel takes sparse gradients from nn.Embedding alone: ours are reduced beside it."""
    command = [sys.executable, "-c", RANK, str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(2)]
    assert [rank.communicate()[0].strip() for rank in ranks] == ["equal"] * 2
