"""The step on path values as data: shapes, costs, rivals, samples and misuses, for conformance and reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from ...autotune import Problem
from ..contract.registry import register
from ..contract.samples import Numbers, sampled
from ..contract.spec import Contender, Extra, Misuse, Scaling, Spec, Workload
from ..runtime.arguments import PLAIN_FLOATS
from . import _STEPS, Layer, Options, Shape, by_cpp, by_triton, path_step, path_step_ref, skeleton

HIDDEN = 4  # hidden layers, as in the MLP of Meng et al.


def edges_of(weights: Sequence[Tensor]) -> tuple[Shape, ...]:
    """Weights are [out, in], or [G, O, I, T] as they are."""
    return tuple(Shape(*(w.shape if w.dim() == 4 else (1, *w.shape, 1))) for w in weights)


def chain(args: Sequence[Tensor], biases: bool, moving: bool):
    """Copies of what a step works on: layers, shapes, run_momentum and events.

    args: all weights, their gradients, all biases and theirs, as columns, and a column for run_momentum.
    """
    *parts, last = args
    L = len(parts) // 4
    weights, grads, bias, bias_grad = ([*parts[at * L : (at + 1) * L]] for at in range(4))
    copies = [w.clone(memory_format=torch.contiguous_format) for w in weights]
    layers = []
    for w, g, b, db in zip(copies, grads, bias, bias_grad, strict=True):
        b = b.flatten().clone() if biases else None
        momenta = (torch.zeros_like(w), None if b is None else torch.zeros_like(b)) if moving else (None, None)
        layers.append(Layer(w, g, b, None if b is None else db.flatten(), *momenta))
    events = torch.zeros(3, dtype=torch.int64, device=last.device)
    return layers, edges_of(copies), last.flatten().clone() if moving else None, events


def _stepped(step: Callable, args: Sequence[Tensor], *, biases=True, lr=0.05, momentum=0.0, **options) -> Tensor:
    """Makes two steps; returns everything that they wrote, in a row."""
    layers, shapes, run_momentum, events = chain(args, biases, momentum != 0)
    for _ in range(2):
        step(layers, shapes, run_momentum, events, Options(lr, momentum, **options))
    written = [x for layer in layers for x in (layer.weight, layer.bias, layer.momentum, layer.bias_momentum)]
    return torch.cat([x.flatten() for x in (*written, run_momentum, events.to(args[0])) if x is not None])


def stepped(*args: Tensor, **options) -> Tensor:
    """path_step as a function."""
    return _stepped(path_step, args, **options)


def _by_definition(layers, shapes, run_momentum, events, options) -> None:
    path_step_ref(layers, skeleton(shapes, events.device), run_momentum, events, options)


def oracle(*args: Tensor, **options) -> Tensor:
    """The definition as a function."""
    return _stepped(_by_definition, args, **options)


def inputs(shape: Mapping[str, int], dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    """N → M → M → M → M → K: as torch draws weights, in size, but ones of both signs on the skeleton."""
    widths = [shape["N"], *[shape["M"]] * HIDDEN, shape["K"]]
    return _inputs([Shape(1, o, i, 1) for i, o in pairwise(widths)], dtype, device, seed)


def inputs_at(problem: Problem, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...] | None:
    """A chain with as many layers and about as many edges: narrow hidden layers, with groups and taps as needed."""
    N, M, K, count, edges = (int(problem[name]) for name in ("N", "M", "K", "layers", "edges"))
    for G in (G for G in range(1, N + 1) if N % G == M % G == K % G == 0):
        for inner in (G << power for power in reversed(range((M // G).bit_length()))):
            widths = [N, M, *[inner] * (count - 2), K]
            size = sum(i * o // G for i, o in pairwise(widths))
            taps = 1 << max(0, (edges - 1).bit_length() - (size - 1).bit_length())
            if (size * taps - 1).bit_length() == (edges - 1).bit_length():
                return _inputs([Shape(G, o // G, i // G, taps) for i, o in pairwise(widths)], dtype, device, 0)
    return None


def _inputs(shapes: Sequence[Shape], dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, ...]:
    normal = partial(Numbers(seed).normal, dtype=torch.float64)
    bones = skeleton(tuple(shapes), torch.device("cpu"))
    weights = [normal(*s) * (s.inputs * s.taps) ** -0.5 for s in shapes]
    for number, edges in enumerate(bones.edge_in):
        weights[number].view(-1)[edges] = normal(len(edges)).sign()
    for number, edges in enumerate(bones.edge_out, 1):
        weights[number].view(-1)[edges] = normal(len(edges)).sign()
    grads = [0.1 * normal(*s) for s in shapes]
    if all(s.groups == s.taps == 1 for s in shapes):
        weights, grads = ([x[0, :, :, 0] for x in each] for each in (weights, grads))
    bias, bias_grads = ([0.1 * normal(s.targets, 1) for s in shapes] for _ in range(2))
    args = (*weights, *grads, *bias, *bias_grads, normal(bones.runs, 1))
    return tuple(x.to(device, dtype).contiguous() for x in args)


# ------------------------------------------------------------------------------------------------ contenders


def _ours(step: Callable):
    """At a learning rate so small that thousands of steps find the same work to do."""

    def prepare(*args: Tensor):
        layers, *others = chain(args, False, False)

        def call():
            step(layers, *others, Options(1e-6))
            return tuple(layer.weight for layer in layers)

        return call

    return prepare


def _torch_sgd(*args: Tensor):
    layers, *_ = chain(args, False, False)
    parameters = [torch.nn.Parameter(layer.weight) for layer in layers]
    for p, layer in zip(parameters, layers, strict=True):
        p.grad = layer.grad
    optimizer = torch.optim.SGD(parameters, lr=1e-6, foreach=True)

    def call():
        optimizer.step()
        return tuple(p.detach() for p in parameters)

    return call


def _weights(shape: Mapping[str, int]) -> int:
    return shape["M"] * (shape["N"] + (HIDDEN - 1) * shape["M"] + shape["K"])


STEP = Workload(
    "path step",
    (
        Contender("tropigrad", "ours", _ours(path_step)),
        Contender("definition in torch", "dense", _ours(torch.no_grad()(_by_definition))),
        Contender("torch.optim.SGD, foreach", "scale", _torch_sgd),
    ),
    operations=_weights,
    bytes=lambda shape, itemsize: 3 * itemsize * _weights(shape),  # weight and gradient read, the weight written
    mix="mul_add",
)

# ------------------------------------------------------------------------------------------------ samples


@sampled
def samples(add, numbers) -> None:
    """Unequal widths, hourglasses, groups, taps, one node, and steps that are too long for V."""
    chains = {
        "growing": [Shape(1, 3, 5, 1), Shape(1, 7, 3, 1), Shape(1, 4, 7, 1)],
        "hourglasses": [Shape(1, 8, 4, 1), Shape(1, 2, 8, 1), Shape(1, 8, 2, 1), Shape(1, 1, 8, 1), Shape(1, 3, 1, 1)],
        "convolutions": [Shape(1, 8, 3, 9), Shape(4, 3, 2, 9), Shape(1, 5, 12, 4), Shape(1, 2, 5, 1)],
        "scale": [Shape(6, 1, 1, 1), Shape(1, 4, 6, 9)],
        "one-node": [Shape(1, 1, 1, 1), Shape(1, 1, 1, 1)],
    }
    options = {
        "plain": {},
        "momentum": {"momentum": 0.9, "weight_decay": 0.1, "biases": False},
        "held": {"lr": 3.0, "momentum": 0.5, "least_ratio": 0.9, "floor": 0.6},
        "norms": {"momentum": 0.9, "weight_decay": 0.1, "norms": True},
        "rate": {"lr": torch.tensor(0.05), "momentum": 0.9},
    }
    cpu = torch.device("cpu")
    for seed, (name, shapes) in enumerate(chains.items()):
        for label, kwargs in options.items():
            add(f"{name}-{label}", *_inputs(shapes, torch.float64, cpu, seed), **kwargs)
    pruned = _inputs(chains["growing"], torch.float64, cpu, 0)
    pruned[1].view(-1)[4] = 0.0  # the edge (1, 1), on the skeleton: no V is left to move
    add("growing-pruned", *pruned, momentum=0.9)


def misuses(device: torch.device) -> list[Misuse]:
    args = inputs({"M": 3, "N": 2, "K": 2}, torch.float32, device, 0)
    layers, shapes, _, events = chain(args, True, False)
    moving, _, run_momentum, _ = chain(args, True, True)
    first, second, *others = layers
    weight, bias = first.weight, first.bias
    assert bias is not None
    assert run_momentum is not None

    def bad(id: str, error: type[Exception], match: str, layers=layers, shapes=shapes, run=None, events=events, μ=0.0):
        return Misuse(id, lambda: path_step(layers, shapes, run, events, Options(0.1, μ)), error, match)

    def one(**changed) -> list[Layer]:
        return [first._replace(**changed), second, *others]

    return [
        bad("one-layer", ValueError, "1 layers and 1 shapes came; expected two", layers[:1], shapes[:1]),
        bad("shapes", ValueError, "5 layers and 4 shapes came", shapes=shapes[1:]),
        bad("no-tensor", TypeError, r"layers\[0\].weight is a list; expected a torch.Tensor", one(weight=[1.0])),
        bad("half", TypeError, r"layers\[0\].weight is torch.float16; expected", one(weight=weight.half())),
        bad("mixed", TypeError, r"layers\[1\].weight is torch.float64; expected torch.float32",
            [first, second._replace(weight=second.weight.double()), *others]),
        bad("sparse", TypeError, r"layers\[0\].grad has layout torch.sparse_coo", one(grad=first.grad.to_sparse())),
        bad("no-gradient", TypeError, r"layers\[0\].bias_grad is a NoneType; expected a torch.Tensor",
            one(bias_grad=None)),
        bad("device", ValueError, r"layers\[0\].grad is on meta", one(grad=first.grad.to("meta"))),
        bad("chain", ValueError, r"shapes\[1\] has 4 nodes in; expected the 3 before it",
            shapes=(shapes[0], Shape(1, 3, 4, 1), *shapes[2:])),
        bad("edges", ValueError, r"layers\[0\].bias has shape \(2,\); expected \(3,\)", one(bias=bias[:2])),
        bad("weights", ValueError, r"layers\[0\].weight has shape \(2, 2\); expected 6 elements",
            one(weight=weight[:2])),
        bad("gradient", ValueError, r"layers\[0\].grad has shape \(2, 3\); expected \(3, 2\)",
            one(grad=first.grad.T)),
        bad("strides", ValueError, r"layers\[0\].weight has strides \(1, 3\); expected a contiguous",
            one(weight=weight.T.contiguous().T)),
        bad("no-momentum", ValueError, r"layers\[0\].momentum is a NoneType; expected a torch.Tensor, as",
            run=run_momentum, μ=0.9),
        bad("momentum", ValueError, r"layers\[0\].momentum is a Tensor; expected None", moving),
        bad("no-run-momentum", ValueError, "run_momentum is a NoneType; expected a torch.Tensor, as", moving, μ=0.9),
        bad("runs", ValueError, r"run_momentum has shape \(2,\); expected \(3,\)", moving, run=run_momentum[:2], μ=0.9),
        bad("events", TypeError, "events is torch.float32", events=events.float()),
        bad("event", ValueError, r"events has shape \(1,\); expected \(3,\)", events=events[:1]),
    ]  # fmt: skip


def _scalings(kwargs) -> tuple[Scaling, ...]:
    """Gradients, at a learning rate that makes up for it: what is moved by momenta and decay has their scale."""
    if kwargs:
        return ()
    L = HIDDEN + 1
    degrees = (*[0] * L, *[1] * L, *[0] * L, *[1] * L, 0)
    return (Scaling(degrees, 0, lambda factor: {"lr": 0.05 / factor}),)


def _own_gradient(copied: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """A step on Σ w² / 2, whose gradient is the weight itself."""
    return _step_along(lambda layer: layer.weight, copied)


def _shared_gradient(copied: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """Gradients that are rows of the weights, which the step has moved before it comes to the last."""
    return _step_along(lambda layer: layer.weight[:1].expand_as(layer.weight), copied)


def _step_along(gradient: Callable[[Layer], Tensor], copied: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    args = inputs({"M": 6, "N": 7, "K": 3}, torch.float32, torch.device("cpu"), 0)
    layers, shapes, run_momentum, events = chain(args, False, False)
    layers = [layer._replace(grad=copied(gradient(layer))) for layer in layers]
    path_step(layers, shapes, run_momentum, events, Options(0.05))
    return tuple(layer.weight for layer in layers)


SPEC = register(
    Spec(
        name="path_step",
        op=stepped,
        oracle=oracle,
        inputs=inputs,
        shapes={
            "64": {"M": 64, "N": 784, "K": 10},  # the MLP of the paper
            "256": {"M": 256, "N": 784, "K": 10},
            "1024": {"M": 1024, "N": 784, "K": 10},
        },
        workloads=(STEP,),
        variants={"plain": {}, "momentum": {"momentum": 0.9, "weight_decay": 0.1}},
        dtypes=PLAIN_FLOATS,
        small_shapes=({"M": 1, "N": 1, "K": 1}, {"M": 17, "N": 70, "K": 3}, {"M": 5, "N": 9, "K": 4}),
        samples=samples,
        particular_misuses=misuses,
        is_wrapped=True,
        implementations=_STEPS,
        is_exact=lambda kwargs: False,
        no_gradient="a step of an optimizer: it works in place and has no gradient",
        left_out={
            "strides": "parameters lie in one piece; gradients of any strides: tests/kernels/test_path_step.py",
            "vmap": "one step of many networks is a step of each",
            "autocast": "parameters stay float32 under it",
            **dict.fromkeys(("jit_trace", "fx_trace"), "no trace of a network holds a step of its optimizer"),
            "ends": "a skeleton's weights are of the size of 1",
        },
        scalings=_scalings,
        tuned={"cpp": (by_cpp.STEP,), "triton": (by_triton.FLOWS, by_triton.MOVE)},
        extra=Extra(
            inputs_at=inputs_at,
            in_place={"step": _ours(path_step)},
            overlapping={"own-gradient": _own_gradient, "shared-gradient": _shared_gradient},
        ),
    )
)
