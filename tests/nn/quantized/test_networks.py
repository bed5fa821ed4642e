"""The paper's networks: their sizes, and that the packed form is the plain one in fewer bytes."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from tropigrad.nn import (
    FTPROP_SETTINGS,
    BatchNormThreshold,
    HardThreshold,
    PackedConv2d,
    PackedLinear,
    alexnet,
    convnet4,
    convnet8,
    resnet18,
)

SMALL = {"convnet4": (convnet4, 32), "convnet8": (convnet8, 32), "resnet18": (resnet18, 64)}
ACTIVATIONS = ("sign", "step", "quantized_relu", "saturated_relu", "relu")


def twins(make, activation="sign", dtype=torch.float64, **options):
    """The packed and the plain form, of the same values."""
    packed, plain = (make(activation, packed=packed, **options).to(dtype) for packed in (True, False))
    plain.load_state_dict(packed.state_dict())
    return packed, plain


def images(count, size=32, dtype=torch.float64):
    return torch.randn(count, 3, size, size, dtype=dtype), torch.arange(count) % 10


def step(net, x, y):
    """(logits, gradients by name)"""
    torch.manual_seed(7)  # which channels are dropped
    net.zero_grad()
    logits = net(x)
    cross_entropy(logits, y).backward()
    return logits.detach(), {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def without_dropout(net):
    for module in net.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    return net


def close(one, other, tolerance=1e-9):
    assert one.keys() == other.keys()
    for name, x in one.items():
        assert (x - other[name]).abs().max() <= tolerance * (1e-3 + other[name].abs().max()), name


# ------------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize(
    ("make", "size", "count"),
    [(convnet4, 32, 4_259_274), (convnet8, 32, 1_492_554), (alexnet, 224, 62_394_344), (resnet18, 224, 11_689_512)],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_sizes_are_the_paper_s(make, size, count, packed):
    with torch.device("meta"):
        net = make(packed=packed)
        assert sum(p.numel() for p in net.parameters()) == count
        if not packed:
            assert net(torch.empty(2, 3, size, size)).shape == (2, 1000 if size == 224 else 10)


def test_resnet18_has_torchvision_s_names():
    names = set(resnet18().state_dict())
    norms = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv1.weight", "fc.weight", "fc.bias", *(f"bn1.{name}" for name in norms)}
    for group, block in ((group, block) for group in range(1, 5) for block in range(2)):
        prefix = f"layer{group}.{block}"
        for i in 1, 2:
            expected |= {f"{prefix}.conv{i}.weight", *(f"{prefix}.bn{i}.{name}" for name in norms)}
        if group > 1 and block == 0:
            expected |= {f"{prefix}.downsample.0.weight", *(f"{prefix}.downsample.1.{name}" for name in norms)}
    assert names == expected


def test_resnet18_starts_from_the_paper_s_weights():
    weight = resnet18().state_dict()["layer4.1.conv2.weight"]
    assert weight.std().item() == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)


def test_every_network_has_settings():
    assert list(FTPROP_SETTINGS) == [make.__name__ for make in (convnet4, convnet8, alexnet, resnet18)]
    for settings in FTPROP_SETTINGS.values():
        assert {"sign", "quantized_relu", "relu"} <= settings.weight_decay.keys() <= set(ACTIVATIONS)
        assert settings.milestones[-1] < settings.epochs


@pytest.mark.parametrize("make", [convnet4, convnet8, resnet18])
def test_the_packed_form_packs(make):
    packed, plain = make(), make(packed=False)
    kinds = BatchNormThreshold, PackedConv2d, PackedLinear
    assert not any(isinstance(module, kinds) for module in plain.modules())
    count = [sum(isinstance(module, kind) for module in packed.modules()) for kind in kinds]
    assert count == {"convnet4": [0, 1, 2], "convnet8": [6, 5, 1], "resnet18": [9, 19, 0]}[make.__name__]
    if make is not resnet18:
        assert not any(isinstance(module, nn.MaxPool2d) for module in packed.modules())


# ------------------------------------------------------------------------------------------------ the two forms


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("make", [convnet4, convnet8, resnet18])
def test_states_are_the_same(make, activation):
    nets = []
    for packed in True, False:
        torch.manual_seed(0)
        nets.append(make(activation, packed=packed))
    one, other = (net.state_dict() for net in nets)
    assert list(one) == list(other)
    assert all(torch.equal(x, y) for x, y in zip(one.values(), other.values(), strict=True))
    nets[0].load_state_dict(other)
    nets[1].load_state_dict(one)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", SMALL)
def test_forms_give_the_same(name, activation):
    make, size = SMALL[name]
    packed, plain = twins(make, activation)
    x, y = images(4, size)
    logits, grads = step(packed, x, y)
    other, expected = step(plain, x, y)
    close({"logits": logits}, {"logits": other})
    close(grads, expected)
    close(dict(packed.named_buffers()), dict(plain.named_buffers()))
    torch.testing.assert_close(packed.eval()(x), plain.eval()(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "sste"},
        {"rule": "ste", "weighted": False},
        {"rule": "hinge", "save": "bits"},
        {"activation": "quantized_relu", "steps": 5, "rule": "sste"},
    ],
    ids=str,
)
def test_forms_give_the_same_by_every_rule(options):
    packed, plain = twins(convnet8, **options)
    x, y = images(4)
    logits, grads = step(packed, x, y)
    other, expected = step(plain, x, y)
    assert torch.equal(logits, other)
    close(grads, expected)


@pytest.mark.parametrize(("make", "save"), [(convnet4, "auto"), (convnet4, "byte"), (convnet8, "auto")])
def test_forms_give_the_same_in_float32(make, save):
    packed, plain = twins(make, dtype=torch.float32, save=save)
    x, y = images(8, dtype=torch.float32)
    logits, grads = step(packed, x, y)
    other, expected = step(plain, x, y)
    torch.testing.assert_close(logits, other)
    close(grads, expected, 1e-4)


@pytest.mark.slow
def test_forms_of_alexnet_give_the_same():
    packed, plain = twins(alexnet)
    x, y = images(2, 224)
    logits, grads = step(packed, x, y)
    other, expected = step(plain, x, y)
    close({"logits": logits}, {"logits": other})
    close(grads, expected)


def saved_bytes(net, x, y):
    """The bytes of storages that a training step keeps for its backward, without parameters."""
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        tensors.append(tensor)  # so that no other takes its place
        return tensor

    tensors = []
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        cross_entropy(net(x), y)
    for p in net.parameters():
        kept.pop(p.untyped_storage().data_ptr(), None)
    return sum(kept.values())


@pytest.mark.parametrize(
    ("options", "most"),
    [({"rule": "sste"}, 15e6), ({"save": "byte"}, 15e6), ({"rule": "ste"}, 15e6), ({}, 17.5e6)],
    ids=str,
)
def test_the_packed_form_keeps_few_bytes(options, most):
    x, y = images(8, dtype=torch.float32)
    packed, plain = (convnet8(packed=packed, **options) for packed in (True, False))
    assert saved_bytes(packed, x, y) <= most * 8 / 64
    # the plain form keeps inputs and outputs of σ, and what is pooled with its indices
    if options == {}:
        assert saved_bytes(plain, x, y) >= 3 * saved_bytes(packed, x, y)


def test_a_network_of_relus_is_the_plain_one():
    x, y = images(4, dtype=torch.float32)
    packed, plain = (convnet8("relu", packed=packed) for packed in (True, False))
    assert saved_bytes(packed, x, y) == saved_bytes(plain, x, y)


# ------------------------------------------------------------------------------------------------ all of torch


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
@pytest.mark.parametrize("make", [convnet8, resnet18])
def test_copies_do_the_same(make, twin):
    net = make()
    other = twin(net)
    x, y = images(2, dtype=torch.float32)
    (logits, grads), (other_logits, other_grads) = step(net, x, y), step(other, x, y)
    assert torch.equal(logits, other_logits)
    assert all(torch.equal(grads[name], other_grads[name]) for name in grads)


@pytest.mark.parametrize("make", [convnet4, convnet8])
def test_it_compiles_into_one_graph(make):
    net = without_dropout(make().double())
    other = copy.deepcopy(net)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    x, y = images(2)
    logits, grads = step(net, x, y)
    compiled_logits, compiled_grads = step(compiled, x, y)
    close({"logits": compiled_logits}, {"logits": logits})
    close({name.removeprefix("_orig_mod."): grad for name, grad in compiled_grads.items()}, grads)
    close(dict(other.named_buffers()), dict(net.named_buffers()))


@pytest.mark.slow
def test_inductor_compiles_convnet8():
    net = without_dropout(convnet8().double())
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True)
    x, y = images(2)
    logits, grads = step(net, x, y)
    compiled_logits, compiled_grads = step(compiled, x, y)
    close({"logits": compiled_logits}, {"logits": logits})
    close({name.removeprefix("_orig_mod."): grad for name, grad in compiled_grads.items()}, grads)


@pytest.mark.parametrize("make", [convnet4, convnet8])
def test_it_is_exported(make):
    net = make().eval()
    x, _ = images(2, dtype=torch.float32)
    exported = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    x, _ = images(5, dtype=torch.float32)
    torch.testing.assert_close(exported(x), net(x))


@pytest.mark.parametrize("make", [convnet4, convnet8, resnet18])
def test_it_is_traced_by_fx(make):
    net = make()
    traced = torch.fx.symbolic_trace(copy.deepcopy(net))
    x, y = images(2, dtype=torch.float32)
    (logits, grads), (other_logits, other_grads) = step(net, x, y), step(traced, x, y)
    assert torch.equal(logits, other_logits)
    close(other_grads, grads, 1e-6)
    assert torch.equal(net.eval()(x), traced.eval()(x))


@pytest.mark.parametrize("make", [convnet4, convnet8, resnet18])
def test_it_trains_under_autocast(make):
    net = make()
    x, y = images(4, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = net(x)
        loss = cross_entropy(logits.float(), y)
    assert logits.dtype == torch.bfloat16
    loss.backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.dtype == torch.float32
        assert p.grad.isfinite().all()
        assert p.grad.any() or name == "conv1.bias", name


def test_a_part_of_it_is_recomputed_by_checkpointing():
    net = convnet4().double()
    x, y = images(2)
    _, expected = step(net, x, y)
    expected = {name: grad.clone() for name, grad in expected.items()}
    first, rest = net[:3], net[3:]
    net.zero_grad()
    cross_entropy(rest(checkpoint(first, x, use_reentrant=False)), y).backward()
    close({name: p.grad for name, p in net.named_parameters()}, expected)


def test_it_learns():
    torch.manual_seed(1)
    net = convnet8()
    x, y = images(16, dtype=torch.float32)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


RANK = """
import sys
from datetime import timedelta
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from tropigrad.nn import convnet8

folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", f"file://{folder}/meeting", timedelta(seconds=90), 2, rank)
net, x, y = torch.load(f"{folder}/step", weights_only=False)
ddp = torch.nn.parallel.DistributedDataParallel(net)
for _ in range(2):  # that the buffers of rank 0 are sent does not stop the second step
    ddp.zero_grad()
    cross_entropy(ddp(x[rank]), y[rank]).backward()
torch.save([p.grad for p in net.parameters()], f"{folder}/rank{rank}")
dist.destroy_process_group()
"""


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo")
def test_ranks_take_the_mean_of_their_gradients(tmp_path):
    net = without_dropout(convnet8().double())
    x, y = images(8)
    x, y = x.view(2, 4, 3, 32, 32), y.view(2, 4)
    torch.save((net, x, y), tmp_path / "step")
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(tmp_path), str(rank)]) for rank in range(2)]
    both = [list(step(copy.deepcopy(net), x[rank], y[rank])[1].values()) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"rank{rank}") for rank in range(2))
    for one, other, mine, theirs in zip(first, second, *both, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, (mine + theirs) / 2, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------------------ users


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"activation": "tanh"}, "convnet8: activation is 'tanh'; expected one of 'sign', 'step', 'quantized_relu', "),
        ({"activation": "relu", "rule": "sste"}, "convnet8: activation is 'relu', with rule 'sste'; expected None"),
        ({"activation": "saturated_relu", "weighted": False}, "with weighted False; expected True"),
        ({"activation": "relu", "save": "byte"}, "with save 'byte'; expected 'auto'"),
        ({"steps": 3}, "convnet8: activation is 'sign', with steps 3; expected None"),
        ({"activation": "quantized_relu", "steps": 1}, "QuantizedReLU: steps is 1; expected an integer of at least 2"),
        ({"activation": "quantized_relu", "steps": 0}, "QuantizedReLU: steps is 0; expected an integer of at least 2"),
        ({"rule": "relu"}, "HardThreshold: rule is 'relu'; expected one of"),
        ({"classes": 0}, "convnet8: classes is 0; expected at least 1"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        convnet8(**options)


def test_packed_is_true_or_false():
    with pytest.raises(TypeError, match=r"resnet18: packed is 1; expected True or False"):
        resnet18(packed=1)  # pyright: ignore[reportArgumentType]


def test_resnet18_s_quantized_relu_has_six_levels():
    nets = {"convnet8": convnet8("quantized_relu"), "resnet18": resnet18("quantized_relu")}
    steps = {
        name: {module.steps for module in net.modules() if isinstance(module, BatchNormThreshold)}
        for name, net in nets.items()
    }
    assert steps == {"convnet8": {3}, "resnet18": {5}}


def test_sigma_of_a_hidden_layer_says_its_levels():
    levels = [module.levels for module in convnet4().modules() if isinstance(module, HardThreshold)]
    assert levels == [(-1.0, 1.0)] * 3
