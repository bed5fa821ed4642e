"""Kernels of the step on path values against its definition; what the step is: tests/optim/path_space/test_gsgd.py."""

from contextlib import nullcontext
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tropigrad.kernels.path_step import (
    Layer,
    Options,
    Shape,
    by_cpp,
    by_triton,
    path_step,
    path_step_ref,
    skeleton,
    take_step,
)
from tropigrad.kernels.runtime import backend
from tropigrad.optim import GSGD, BasisPaths

CHAINS = {
    "equal": (Shape(1, 6, 5, 1), Shape(1, 6, 6, 1), Shape(1, 3, 6, 1)),
    "long-rows": (Shape(1, 8, 531, 1), Shape(1, 70, 8, 1), Shape(1, 3, 70, 1)),
    "hourglasses": (Shape(1, 8, 4, 1), Shape(1, 2, 8, 1), Shape(1, 8, 2, 1), Shape(1, 1, 8, 1), Shape(1, 3, 1, 1)),
    "convolutions": (Shape(1, 8, 3, 9), Shape(4, 3, 2, 9), Shape(1, 5, 12, 4), Shape(1, 2, 5, 1)),
    "scale": (Shape(6, 1, 1, 1), Shape(1, 4, 6, 9)),
}
SETTINGS = {
    "plain": Options(0.05),
    "decay": Options(0.05, weight_decay=0.1),
    "momentum": Options(0.05, momentum=0.9, weight_decay=0.1),
    "held": Options(5.0, momentum=0.9, least_ratio=0.9, floor=0.5),
    "norms": Options(0.05, norms=True),
    "norms-momentum": Options(0.05, momentum=0.9, weight_decay=0.1, norms=True),
}


def chain(name, options, dtype, biases=True):
    """Random layers, path values of order one, and a momentum of V."""
    shapes = CHAINS[name]
    bones = skeleton(shapes, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        x = torch.randn(size, generator=generator, dtype=torch.float64)
        return (x + 0.5 * x.sign()).to(dtype)

    layers = []
    for shape in shapes:
        bias = [draw(shape.targets) if biases else None for _ in range(3)]
        momentum = draw(*shape) if options.momentum else None
        layers.append(
            Layer(draw(*shape), draw(*shape), bias[0], bias[1], momentum, bias[2] if options.momentum else None)
        )
    return layers, bones, draw(bones.runs) if options.momentum else None, torch.zeros(3, dtype=torch.int64)


def step(layers, bones, run_momentum, events, options):
    path_step(layers, bones.shapes, run_momentum, events, options)


def changed(call):
    layers, _, run_momentum, events = call
    return [x for layer in layers for x in layer if x is not None] + [run_momentum, events][run_momentum is None :]


@pytest.fixture(autouse=True)
def _compiler():
    if reason := backend.why_off("cpp", torch.device("cpu")):
        pytest.skip(reason)


@pytest.mark.parametrize("biases", [True, False], ids=["biases", "no-biases"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", CHAINS)
def test_the_cpp_kernel_takes_the_step_of_the_definition(name, settings, dtype, biases):
    options = SETTINGS[settings]
    ours, wanted = (chain(name, options, dtype, biases) for _ in range(2))
    by_cpp.path_step(*ours, options)
    path_step_ref(*wanted, options)
    tolerance = 1e-11 if dtype == torch.float64 else 2e-4
    for found, value in zip(changed(ours), changed(wanted), strict=True):
        torch.testing.assert_close(found, value, rtol=tolerance, atol=tolerance)
    assert settings != "held" or ours[3][:2].min() > 0
    before = [x for x in changed(chain(name, options, dtype, biases)) if x.is_floating_point()]
    assert not torch.equal(before[0], changed(ours)[0])


def test_any_number_of_threads_gives_the_same_bits(monkeypatch):
    options = SETTINGS["momentum"]
    monkeypatch.setattr(by_cpp, "_SMALL", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    one = chain("long-rows", options, torch.float32)
    by_cpp.path_step(*one, options)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for _ in range(10):
        three = chain("long-rows", options, torch.float32)
        by_cpp.path_step(*three, options)
        assert all(torch.equal(x, y) for x, y in zip(changed(one), changed(three), strict=True))


@pytest.mark.skipif(
    bool(backend.why_off("triton", torch.device("cpu"))), reason="the kernels need triton's interpreter here"
)
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", CHAINS)
def test_the_triton_kernels_take_the_step_of_the_definition(name, settings):
    options = SETTINGS[settings]
    ours, wanted = (chain(name, options, torch.float32) for _ in range(2))
    with backend.forcing("triton"):
        step(*ours, options)
    path_step_ref(*wanted, options)
    for found, value in zip(changed(ours), changed(wanted), strict=True):
        torch.testing.assert_close(found, value, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(("most", "flows", "moves"), [(32, 1, 1), (2, 1, 3), (1, 2, 5)])
def test_a_pass_is_one_launch_for_as_many_layers_as_it_may_have(monkeypatch, most, flows, moves):
    if reason := backend.why_off("triton", torch.device("cpu")):
        pytest.skip(reason)

    class Counted:
        def __init__(self, kernel):
            self.kernel, self.launches = kernel, 0

        def __getitem__(self, grid):
            self.launches += 1
            return self.kernel[grid]

    kernels = Counted(by_triton._path_flows_kernel), Counted(by_triton._path_move_kernel)
    monkeypatch.setattr(by_triton, "_path_flows_kernel", kernels[0])
    monkeypatch.setattr(by_triton, "_path_move_kernel", kernels[1])
    monkeypatch.setattr(by_triton, "_MOST", most)
    options = SETTINGS["momentum"]
    ours, wanted = (chain("hourglasses", options, torch.float32) for _ in range(2))
    with backend.forcing("triton"):
        step(*ours, options)
    path_step_ref(*wanted, options)
    for found, value in zip(changed(ours), changed(wanted), strict=True):
        torch.testing.assert_close(found, value, rtol=2e-4, atol=2e-4)
    assert tuple(kernel.launches for kernel in kernels) == (flows, moves)


def test_float64_takes_the_definition_where_triton_is_forced(monkeypatch):
    if reason := backend.why_off("triton", torch.device("cpu")):
        pytest.skip(reason)
    monkeypatch.setattr(by_triton, "move", lambda *call: pytest.fail("the kernel would round to float32"))
    ours, wanted = (chain("equal", SETTINGS["plain"], torch.float64) for _ in range(2))
    with backend.forcing("triton"):
        step(*ours, SETTINGS["plain"])
    path_step_ref(*wanted, SETTINGS["plain"])
    assert torch.equal(ours[0][0].weight, wanted[0][0].weight)


@pytest.mark.parametrize("name", ["torch", "cpp"])
def test_a_forced_backend_serves(name, monkeypatch):
    served, plan = [], by_cpp.plan
    monkeypatch.setattr(by_cpp, "plan", lambda *call: served.append("cpp") or plan(*call))
    call = chain("equal", SETTINGS["plain"], torch.float32)
    before = call[0][0].weight.clone()
    with backend.forcing(name):
        step(*call, SETTINGS["plain"])
    assert served == (["cpp"] if name == "cpp" else [])
    assert not torch.equal(call[0][0].weight, before)


STRIDES = {
    "transposed": lambda x: x.mT.contiguous().mT,
    "sliced": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda x: x[..., :1, :1].expand(x.shape),
}


@pytest.mark.parametrize("name", ["cpp", "triton"])
@pytest.mark.parametrize("strides", STRIDES)
def test_gradients_of_any_strides_take_the_definition(name, strides):
    if reason := backend.why_off(name, torch.device("cpu")):
        pytest.skip(reason)
    (first, *others), bones, run_momentum, events = chain("convolutions", SETTINGS["plain"], torch.float32)
    (other, *rest), *_ = wanted = chain("convolutions", SETTINGS["plain"], torch.float32)
    first = first._replace(grad=STRIDES[strides](first.grad))
    with backend.forcing(name):
        step([first, *others], bones, run_momentum, events, SETTINGS["plain"])
    path_step_ref([other._replace(grad=first.grad.clone()), *rest], *wanted[1:], SETTINGS["plain"])
    assert torch.equal(first.weight, other.weight)


def test_momenta_of_another_dtype_take_the_definition():
    """A model that was cast behind its optimizer's back: read as its own dtype, they would be other numbers."""
    options = SETTINGS["momentum"]
    ours, wanted = (chain("equal", options, torch.float64) for _ in range(2))
    for layers, *_ in (ours, wanted):
        layers[:] = [layer._replace(momentum=layer.momentum.float()) for layer in layers]
    with torch.no_grad():
        sizes, biased = [n for shape in ours[1].shapes for n in shape], [layer.bias is not None for layer in ours[0]]
        take_step(*by_cpp.operands(ours[0]), *ours[2:], sizes, biased, options)
    path_step_ref(*wanted, options)
    assert all(torch.equal(x, y) for x, y in zip(changed(ours), changed(wanted), strict=True))


class Calls(TorchDispatchMode):
    """The names of the operators called inside."""

    def __enter__(self):
        self.names = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", SETTINGS)
def test_it_is_one_operator_where_somebody_looks_and_none_elsewhere(settings):
    options = SETTINGS[settings]
    plain, seen = (chain("convolutions", options, torch.float32) for _ in range(2))
    step(*plain, options)
    with Calls() as calls:
        step(*seen, options)
    assert [name for name in calls.names if name.startswith("tropigrad")] == ["tropigrad::path_step"]
    assert all(torch.equal(x, y) for x, y in zip(changed(plain), changed(seen), strict=True))


@pytest.mark.parametrize("name", ["cpp", "torch"])
def test_a_graph_that_saved_a_weight_is_told_that_it_moved(name):
    layers, bones, run_momentum, events = chain("equal", SETTINGS["plain"], torch.float32)
    weight = layers[1].weight.requires_grad_()
    loss = weight.square().sum()
    with backend.forcing(name):
        step(layers, bones, run_momentum, events, SETTINGS["plain"])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_learning_rate_may_be_a_tensor():
    ours, wanted = (chain("equal", SETTINGS["momentum"], torch.float32) for _ in range(2))
    step(*ours, SETTINGS["momentum"]._replace(lr=torch.tensor(0.05, dtype=torch.float64)))
    step(*wanted, SETTINGS["momentum"])
    assert all(torch.equal(x, y) for x, y in zip(changed(ours), changed(wanted), strict=True))


# ------------------------------------------------------------------------------------------------ operands in operands


def linked(name, how):
    """A chain with momentum, two of whose gradients are views of what is written; the same with copies of them."""
    chains = [chain(name, SETTINGS["momentum"], torch.float32) for _ in range(2)]
    for layers, *_ in chains:
        first, *others = layers
        second = others[0]
        if how == "weight":
            first = first._replace(grad=first.weight.detach())
        elif how == "momentum":
            first = first._replace(grad=first.momentum, bias_grad=first.bias_momentum)
        else:
            both = torch.cat([second.weight.flatten(), first.grad.flatten()])
            n = second.weight.numel()
            second = second._replace(weight=both[:n].view_as(second.weight))
            begin = min(3, n)
            first = first._replace(grad=both[begin : begin + first.grad.numel()].view_as(first.grad))
        layers[:] = [first, second, *others[1:]]
    for at, layer in enumerate(chains[1][0]):
        chains[1][0][at] = layer._replace(grad=layer.grad.clone(), bias_grad=layer.bias_grad.clone())
    return chains


@pytest.mark.parametrize("how", ["weight", "momentum", "another-weight"])
@pytest.mark.parametrize("backend_name", ["cpp", "torch", "triton"])
def test_gradients_that_are_views_of_what_is_written_count_as_copies(backend_name, how):
    if reason := backend.why_off(backend_name, torch.device("cpu")):
        pytest.skip(reason)
    ours, wanted = linked("hourglasses", how)
    with backend.forcing(backend_name):
        for call in (ours, wanted):
            step(*call, SETTINGS["momentum"])
    for layer, other in zip(ours[0], wanted[0], strict=True):
        for at in (0, 2, 4, 5):  # what is written
            assert torch.equal(layer[at], other[at])
    assert ours[2] is not None
    assert wanted[2] is not None
    assert torch.equal(ours[2], wanted[2])


def test_a_remembered_call_looks_where_its_operands_lie():
    """Of the same layout, one call has a gradient apart and the next one in a weight; both are as if copied."""
    options = SETTINGS["plain"]
    for turn in range(3):
        ours, wanted = (chain("equal", options, torch.float32) for _ in range(2))
        if turn != 1:
            ours[0][1] = ours[0][1]._replace(grad=ours[0][1].weight.detach())
            wanted[0][1] = wanted[0][1]._replace(grad=wanted[0][1].weight.clone())
        step(*ours, options)
        step(*wanted, options)
        for layer, other in zip(ours[0], wanted[0], strict=True):
            assert torch.equal(layer.weight, other.weight)
    tied = chain("equal", options, torch.float32)
    tied[0][2] = tied[0][2]._replace(weight=tied[0][1].weight.flatten()[: tied[0][2].weight.numel()].view(1, 3, 6, 1))
    before = [x.clone() for x in changed(tied)]
    for _ in range(2):
        with pytest.raises(ValueError, match=r"layers\[1\].weight and layers\[2\].weight share memory.*nothing was"):
            step(*tied, options)
    assert all(torch.equal(x, y) for x, y in zip(changed(tied), before, strict=True))


@pytest.mark.parametrize("backend_name", ["cpp", "torch"])
@pytest.mark.parametrize("pair", ["bias-weight", "momentum-weight", "momenta", "run_momentum"])
def test_what_is_written_has_places_of_its_own(backend_name, pair):
    layers, bones, run_momentum, events = chain("equal", SETTINGS["momentum"], torch.float32)
    first, second, third = layers
    if pair == "bias-weight":
        first, match = first._replace(bias=second.weight.view(-1)[:6]), r"layers\[0\].bias and layers\[1\].weight"
    elif pair == "momentum-weight":
        first, match = first._replace(momentum=first.weight), r"layers\[0\].weight and layers\[0\].momentum"
    elif pair == "momenta":
        second = second._replace(bias_momentum=first.bias_momentum)
        match = r"layers\[0\].bias_momentum and layers\[1\].bias_momentum"
    else:
        run_momentum, match = second.bias[: bones.runs], r"layers\[1\].bias and run_momentum"
    with backend.forcing(backend_name), pytest.raises(ValueError, match=f"path_step: {match} share memory"):
        step([first, second, third], bones, run_momentum, events, SETTINGS["momentum"])


# ------------------------------------------------------------------------------------------------ odd company


@pytest.mark.parametrize("how", ["context", "default"])
def test_another_default_device_changes_nothing(how):
    ours, wanted = (chain("convolutions", SETTINGS["momentum"], torch.float32) for _ in range(2))
    step(*wanted, SETTINGS["momentum"])
    if how == "default":
        torch.set_default_device("meta")
    try:
        with torch.device("meta") if how == "context" else nullcontext():
            step(*ours, SETTINGS["momentum"])
    finally:
        torch.set_default_device(None)
    assert all(torch.equal(x, y) for x, y in zip(changed(ours), changed(wanted), strict=True))


def test_gsgd_steps_under_another_default_device():
    first = nn.Linear(4, 6)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(6, 3))
    optimizer = GSGD(BasisPaths(model), 0.01, momentum=0.9)
    model(torch.randn(5, 4)).square().sum().backward()
    before = first.weight.detach().clone()
    with torch.device("meta"):
        optimizer.step()
    assert not torch.equal(first.weight, before)


def test_gsgd_names_weights_that_share_memory_and_moves_none():
    """Two Parameters on one tensor: BasisPaths tells parameters apart by what they are, not by where they lie."""
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    model = nn.Sequential(first, nn.ReLU(), second)
    second.weight = nn.Parameter(first.weight.data)
    optimizer = GSGD(BasisPaths(model), 0.01)
    model(torch.randn(5, 4)).square().sum().backward()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=r"layers\[0\].weight and layers\[1\].weight share memory"):
        optimizer.step()
    assert all(torch.equal(p, x) for p, x in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("wide", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("lr", [float("nan"), float("inf")])
def test_a_rate_that_is_not_finite_is_refused(lr, wide):
    call = chain("equal", SETTINGS["momentum"], torch.float32)
    step(*call, SETTINGS["momentum"])
    before = [x.clone() for x in changed(call)]
    options = SETTINGS["momentum"]._replace(lr=torch.tensor(lr) if wide else lr)
    with pytest.raises(ValueError, match=r"path_step: lr is .*; expected a finite number; nothing was written"):
        step(*call, options)
    assert all(torch.equal(x, y) for x, y in zip(changed(call), before, strict=True))


def test_numbers_of_any_kind_are_taken():
    ours, wanted = (chain("equal", SETTINGS["momentum"], torch.float32) for _ in range(2))
    numbers: Any = np.float32(0.5), Fraction(1, 2), np.float64(0.25), np.float32(0.5), np.float64(0.125)
    given = Options(*numbers)
    step(*ours, given)
    with Calls():
        step(*ours, given)
    for _ in range(2):
        step(*wanted, Options(0.5, 0.5, 0.25, 0.5, 0.125))
    assert all(torch.equal(x, y) for x, y in zip(changed(ours), changed(wanted), strict=True))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_is_not_taken_is_named():
    layers, bones, run_momentum, events = chain("equal", SETTINGS["plain"], torch.float32)
    first, *others = layers
    rate = torch.tensor(0.1, requires_grad=True)
    nested = torch.nested.nested_tensor([torch.ones(3), torch.ones(2)])
    for changes, options, error, match in (
        ({"weight": nn.parameter.UninitializedParameter()}, {}, TypeError, r"layers\[0\].weight is an Uninitialized"),
        ({"grad": nested}, {}, TypeError, r"layers\[0\].grad is a nested tensor"),
        ({}, {"lr": rate}, ValueError, r"lr requires a gradient.*lr.detach\(\)"),
        ({}, {"lr": torch.ones(2)}, ValueError, r"lr is torch.float32 of shape \(2,\); expected one float"),
        ({}, {"lr": "0.1"}, TypeError, "lr is a str; expected a number"),
        ({}, {"weight_decay": None}, TypeError, "weight_decay is a NoneType; expected a number"),
    ):
        with pytest.raises(error, match=f"path_step: {match}"):
            step([first._replace(**changes), *others], bones, run_momentum, events, Options(0.1)._replace(**options))


def test_gradients_that_are_lazy_negations_have_their_own_sign():
    ours, wanted = (chain("equal", SETTINGS["plain"], torch.float32) for _ in range(2))
    z = torch.randn(ours[0][0].weight.shape, dtype=torch.complex64)
    ours[0][0] = ours[0][0]._replace(grad=z.conj().imag)
    wanted[0][0] = wanted[0][0]._replace(grad=-z.imag)
    for call in (ours, wanted):
        step(*call, SETTINGS["plain"])
    assert torch.equal(ours[0][0].weight, wanted[0][0].weight)


def test_vmap_is_refused_by_name():
    layers, bones, run_momentum, events = chain("equal", SETTINGS["plain"], torch.float32)

    def one(grad):
        step([layers[0]._replace(grad=grad), *layers[1:]], bones, run_momentum, events, SETTINGS["plain"])
        return grad

    for maps in (0, 2):
        with pytest.raises(NotImplementedError, match=r"path_step: vmap does not apply.*a call for each"):
            torch.vmap(one)(torch.zeros(maps, *layers[0].grad.shape))
