"""The kernels of the step on path values against its definition; what the step is, tests/optim/test_gsgd.py shows."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tropigrad.kernels import backend
from tropigrad.kernels.path_step import (
    Layer,
    Options,
    Shape,
    cpu,
    path_step,
    path_step_ref,
    portable,
    skeleton,
    take_step,
)

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
    cpu.path_step(*ours, options)
    path_step_ref(*wanted, options)
    tolerance = 1e-11 if dtype == torch.float64 else 2e-4
    for found, value in zip(changed(ours), changed(wanted), strict=True):
        torch.testing.assert_close(found, value, rtol=tolerance, atol=tolerance)
    assert settings != "held" or ours[3][:2].min() > 0
    before = [x for x in changed(chain(name, options, dtype, biases)) if x.is_floating_point()]
    assert not torch.equal(before[0], changed(ours)[0])


def test_any_number_of_threads_gives_the_same_bits(monkeypatch):
    options = SETTINGS["momentum"]
    monkeypatch.setattr(cpu, "_SMALL", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    one = chain("long-rows", options, torch.float32)
    cpu.path_step(*one, options)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for _ in range(10):
        three = chain("long-rows", options, torch.float32)
        cpu.path_step(*three, options)
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

    kernels = Counted(portable._path_flows_kernel), Counted(portable._path_move_kernel)
    monkeypatch.setattr(portable, "_path_flows_kernel", kernels[0])
    monkeypatch.setattr(portable, "_path_move_kernel", kernels[1])
    monkeypatch.setattr(portable, "_MOST", most)
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
    monkeypatch.setattr(portable, "move", lambda *call: pytest.fail("the kernel would round to float32"))
    ours, wanted = (chain("equal", SETTINGS["plain"], torch.float64) for _ in range(2))
    with backend.forcing("triton"):
        step(*ours, SETTINGS["plain"])
    path_step_ref(*wanted, SETTINGS["plain"])
    assert torch.equal(ours[0][0].weight, wanted[0][0].weight)


@pytest.mark.parametrize("name", ["torch", "cpp"])
def test_a_forced_backend_serves(name, monkeypatch):
    served = []
    monkeypatch.setattr(cpu, "path_step", lambda *call: served.append("cpp"))
    call = chain("equal", SETTINGS["plain"], torch.float32)
    before = call[0][0].weight.clone()
    with backend.forcing(name):
        step(*call, SETTINGS["plain"])
    assert served == (["cpp"] if name == "cpp" else [])
    assert torch.equal(call[0][0].weight, before) == (name == "cpp")


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
        take_step(ours[0], ours[1].shapes, *ours[2:], options)
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
