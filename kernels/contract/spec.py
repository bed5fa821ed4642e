"""What an op declares once: its oracle, samples, costs and rivals feed conformance, timing, rooflines and tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ...autotune import Call, Problem, Tuned
from ...autotune.tunable import Sizes

# ours; dense: the materialised definition, in eager torch; compiled: torch.compile of it; peer: another library;
# scale: computes something else (torch.matmul), for scale alone: never gated, never a speedup
Role = Literal["ours", "dense", "compiled", "peer", "scale"]


@dataclass(frozen=True)
class Sample:
    """One call: `op(*args, **kwargs)`, under a readable id."""

    id: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Misuse:
    """A call that must fail: the error's type, and a pattern its message must contain."""

    id: str
    call: Callable[[], Any]
    error: type[Exception]
    match: str


@dataclass(frozen=True)
class Scaling:
    """A symmetry of a formula that powers of two show without rounding: op(2^{e·d} args) = 2^{e·degree} op(args).

    Args:
        degrees: d of each argument; integer tensors have 0.
        degree: of the value; winners stay. The gradient of argument i then has degree − d_i.
        options: keyword arguments that follow, of 2^e.
    """

    degrees: tuple[int, ...]
    degree: int
    options: Callable[[float], Mapping[str, Any]] = lambda factor: {}


@dataclass(frozen=True)
class Contender:
    """One way of doing a workload.

    `prepare(*inputs)` does what is not timed and returns the call that is; that call returns a tuple of tensors which
    the gate compares with the first contender's.
    """

    name: str
    role: Role
    prepare: Callable[..., Callable[[], tuple[torch.Tensor, ...]]]
    requires: str = ""  # a module that must be installed; "" for none
    limit: int = 0  # operations above which it is left out, because it would take too long; 0 for never


@dataclass(frozen=True)
class Workload:
    """What is timed (forward, forward + winners, forward + backward), and what it costs at the least."""

    name: str
    contenders: tuple[Contender, ...]  # ours first
    operations: Callable[[Sizes], int]  # (m, n, k) steps, or the op's own unit
    bytes: Callable[[Sizes, int], int]  # of a shape and an item size: each input read once, each output written once
    mix: str  # the ceiling that bounds it: "add_max", "mul_max", "gather", ...


@dataclass(frozen=True)
class Spec:
    """An op as data. Registering it puts it in the conformance suite and in the reports."""

    name: str
    op: Callable[..., Any]
    oracle: Callable[..., Any]  # the definition, same signature
    inputs: Callable[[Sizes, torch.dtype, torch.device, int], tuple[torch.Tensor, ...]]  # ..., seed: random, tie-free
    shapes: Mapping[str, Sizes]  # the standard shapes of the benchmarks
    workloads: tuple[Workload, ...]
    variants: Mapping[str, Mapping[str, Any]]  # id -> keyword arguments that select a form of the op
    dtypes: tuple[torch.dtype, ...]
    small_shapes: tuple[Sizes, ...]  # for conformance: with zeros, ones and ragged edges
    samples: Callable[[torch.device], list[Sample]]  # special values, ties and edges, all dtypes
    misuses: Callable[[torch.device], list[Misuse]]
    supports: Callable[[torch.dtype, Mapping[str, Any]], bool] = lambda dtype, kwargs: True
    is_exact: Callable[[Mapping[str, Any]], bool] = lambda kwargs: True  # `==` against the oracle, or a tolerance
    is_differentiable: bool = True  # gradients are compared beside the values
    left_out: Mapping[str, str] = field(default_factory=dict)  # promise -> why it is none of this op's
    has_winners: Callable[[Mapping[str, Any]], bool] = lambda kwargs: False  # return_indices=True is allowed
    backends: tuple[str, ...] = ("torch", "cpp", "triton")
    offers: Callable[[Mapping[str, Any]], tuple[str, ...]] = lambda kwargs: ("torch", "cpp", "triton")  # to a variant
    tuned: Mapping[str, tuple[Tuned, ...]] = field(default_factory=dict)  # backend -> its kernels with a config
    # of a variant: how its value follows when the arguments are scaled
    scalings: Callable[[Mapping[str, Any]], tuple[Scaling, ...]] = lambda kwargs: ()
    # arguments of `op` that are views of one [6, 6] tensor
    aliased: Mapping[str, Callable[[torch.Tensor], tuple[Any, ...]]] = field(default_factory=dict)
    # of an op that works in place, calls whose operands are views of what is written: call(copied) of a function that
    # copies such an operand, or does not
    overlapping: Mapping[str, Callable[[Callable[[torch.Tensor], torch.Tensor]], Any]] = field(default_factory=dict)
    # operands of more than 2³¹ outputs, and those of the last few of these outputs
    huge: Callable[[torch.device], tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]] | None = None
    # the raw scatter of winners [2, 5, 7] to gradients, and its K
    scatter: tuple[Callable[[torch.Tensor], tuple[torch.Tensor, ...]], int] | None = None
    raw_ops: Callable[[torch.device], list[tuple[Any, tuple[Any, ...]]]] = lambda device: []  # for opcheck
    # of an op that works in place, what the tuner calls, by name: prepare(*inputs) -> the call, as of a Contender, that
    # goes on from what it wrote before
    in_place: Mapping[str, Callable[..., Callable[[], tuple[torch.Tensor, ...]]]] = field(default_factory=dict)
    # inputs for which its calls launch a kernel at a problem, where it has such that no sizes of its shapes lead to
    inputs_at: Callable[[Problem, torch.dtype, torch.device], tuple[torch.Tensor, ...] | None] = lambda *problem: None
    # how the tuner calls it, where that is neither in place nor `op(*inputs, **variant)`, with winners, and trained
    # (tuning.py)
    tuning_calls: Callable[[Sizes, torch.dtype, torch.device], Iterable[Call]] | None = None
