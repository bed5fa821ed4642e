"""An op declares once its oracle, samples, costs and rivals; conformance, reports and the tuner read them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import torch

from ...autotune import Problem, Tuned
from ...autotune.tunable import Sizes
from ..runtime.implementations import Implementations
from .misuses import Misuse, misuses_of
from .operators import OperatorCall, operator_calls

Tensors: TypeAlias = tuple[torch.Tensor, ...]

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
class Scaling:
    """A symmetry of a formula that powers of two keep free of rounding: op(2^{e·d} args) = 2^{e·degree} op(args).

    Args:
        degrees: d of each argument; integer tensors have 0.
        degree: of the value; winners stay. The gradient of argument i then has degree − d_i.
        options: gives the keyword arguments that change with the scale 2^e.
    """

    degrees: tuple[int, ...]
    degree: int
    options: Callable[[float], Mapping[str, Any]] = lambda factor: {}


@dataclass(frozen=True)
class Contender:
    """One way of doing a workload.

    `prepare(*inputs)` does the work that is not timed and returns the call that is. The gate compares the tuple of
    tensors that this call returns with the first contender's.
    """

    name: str
    role: Role
    prepare: Callable[..., Callable[[], tuple[torch.Tensor, ...]]]
    requires: str = ""  # a module that must be installed; "" for none
    limit: int = 0  # operations above which it is left out, because it would take too long; 0 for never


@dataclass(frozen=True)
class Workload:
    """A computation that is timed (forward, forward + winners, forward + backward), and its least cost."""

    name: str
    contenders: tuple[Contender, ...]  # ours first
    operations: Callable[[Sizes], int]  # (m, n, k) steps, or the op's own unit
    bytes: Callable[[Sizes, int], int]  # of a shape and an item size: each input read once, each output written once
    mix: str  # the ceiling that bounds it: "add_max", "mul_max", "gather", ...
    options: Mapping[str, Any] = field(default_factory=dict)  # of ours, where they decide whether results are exact
    # of its inputs, where they are not all of the op's: fewer, or those that its contenders convert them to
    dtypes: tuple[torch.dtype, ...] = ()


@dataclass(frozen=True)
class Extra:
    """Fields that few ops need."""

    # operands of more than 2³¹ outputs, and those of the last few of these outputs
    huge: Callable[[torch.device], tuple[Tensors, Tensors]] | None = None
    # the raw scatter of winners [2, 5, 7] to gradients, and its K
    scatter: tuple[Callable[[torch.Tensor], Tensors], int] | None = None
    # calls of operators that neither variants nor samples reach, for opcheck
    operators: Callable[[torch.device], list[OperatorCall]] = lambda device: []
    # inputs for which the op's calls launch a kernel at a problem, where the sizes of no shape lead to that problem
    inputs_at: Callable[[Problem, torch.dtype, torch.device], Tensors | None] = lambda *problem: None
    # keyword arguments that a shape asks for beside the variant's, such as groups
    options_at: Callable[[Sizes], Mapping[str, Any]] = lambda shape: {}
    # for in-place ops: the calls that the tuner times. As in Contender, `prepare(*inputs)` returns the call; repeated
    # calls continue from the state that the last one left
    in_place: Mapping[str, Callable[..., Callable[[], Tensors]]] = field(default_factory=dict)
    # for in-place ops: calls whose operands are views of what is written. call(copied) uses a function that copies such
    # an operand, or does not
    overlapping: Mapping[str, Callable[[Callable[[torch.Tensor], torch.Tensor]], Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Spec:
    """An op as data. Registering it puts it in the conformance suite and in the reports.

    A spec says what is particular to the op. The methods below derive what follows from its signature, its dtypes, its
    inputs and its implementations.
    """

    name: str
    op: Callable[..., Any]
    oracle: Callable[..., Any]  # the definition, same signature
    inputs: Callable[[Sizes, torch.dtype, torch.device, int], Tensors]  # ..., seed: random, tie-free
    dtypes: tuple[torch.dtype, ...]
    variants: Mapping[str, Mapping[str, Any]]  # id -> keyword arguments that select a form of the op
    shapes: Mapping[str, Sizes]  # the standard shapes of the benchmarks
    small_shapes: tuple[Sizes, ...]  # for conformance: with zeros, ones and ragged edges
    samples: Callable[[torch.device], list[Sample]]  # special values, ties and edges, all dtypes
    implementations: Implementations
    workloads: tuple[Workload, ...] = ()
    tuned: Mapping[str, tuple[Tuned, ...]] = field(default_factory=dict)  # backend -> its kernels with a config
    # misuses beside those that follow from the arguments (misuses.py); all of them where `op` is wrapped
    particular_misuses: Callable[[torch.device], list[Misuse]] = lambda device: []
    is_wrapped: bool = False  # `op` is a function made of the public one, with arguments of its own
    supports: Callable[[torch.dtype, Mapping[str, Any]], bool] = lambda dtype, kwargs: True  # "return_indices" as well
    is_exact: Callable[[Mapping[str, Any]], bool] = lambda kwargs: True  # `==` against the oracle, or a tolerance
    # the same of gradients, of an op whose value is exact and whose gradient rounds
    has_exact_gradient: Callable[[Mapping[str, Any]], bool] | None = None
    no_gradient: str = ""  # why the op has none; "" where gradients are compared beside the values
    left_out: Mapping[str, str] = field(default_factory=dict)  # promises that this op does not make, with the reasons
    # the backends of a variant, where it has fewer than there are implementations
    fewer_backends: Callable[[Mapping[str, Any]], tuple[str, ...] | None] = lambda kwargs: None
    middle: Sizes | None = None  # several blocks and tasks of each C++ kernel; by default the last small shape
    interpreted: Sizes | None = None  # for Triton's interpreter; by default the last small shape
    # how the value of a variant follows when the arguments are scaled
    scalings: Callable[[Mapping[str, Any]], tuple[Scaling, ...]] = lambda kwargs: ()
    # arguments of `op` that are views of one [6, 6] tensor
    aliased: Mapping[str, Callable[[torch.Tensor], tuple[Any, ...]]] = field(default_factory=dict)
    extra: Extra = field(default_factory=Extra)

    def __post_init__(self) -> None:
        if self.no_gradient:
            reasons = dict.fromkeys(("gradcheck", "subgradient", "jvp"), self.no_gradient)
            object.__setattr__(self, "left_out", {**reasons, **self.left_out})

    def timed_in(self, workload: Workload) -> tuple[torch.dtype, ...]:
        """The dtypes that a workload can be timed in, the usual one first."""
        own = [dtype for dtype in workload.dtypes if dtype in self.dtypes]
        return tuple(sorted(own or workload.dtypes or self.dtypes, key=lambda dtype: dtype != torch.float32))

    @property
    def is_differentiable(self) -> bool:
        """Whether gradients are compared beside the values."""
        return not self.no_gradient

    def gradient_is_exact(self, kwargs: Mapping[str, Any]) -> bool:
        """Whether gradients are compared by `==`, which they are where values are, unless the spec says else."""
        return (self.has_exact_gradient or self.is_exact)(kwargs)

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The parameters of `op`."""
        return inspect.signature(self.op).parameters

    def has_winners(self, kwargs: Mapping[str, Any]) -> bool:
        """Whether a call may be made with return_indices=True."""
        return "return_indices" in self.parameters and self.supports(torch.float32, {**kwargs, "return_indices": True})

    @property
    def backends(self) -> tuple[str, ...]:
        """The backends that serve some variant."""
        offered = {name for kwargs in self.variants.values() or ({},) for name in self.offers(kwargs)}
        return tuple(name for name in self.implementations.backends if name in offered)

    def offers(self, kwargs: Mapping[str, Any]) -> tuple[str, ...]:
        """The backends that serve a variant."""
        return self.fewer_backends(kwargs) or self.implementations.backends

    def runs(self, args: Tensors, kwargs: Mapping[str, Any]) -> Iterator[Callable[[], Any]]:
        """The calls on these arguments: forward, with winners, and forward and backward, as far as the op has them."""
        yield lambda: self.op(*args, **kwargs)
        if self.has_winners(kwargs):
            yield lambda: self.op(*args, **kwargs, return_indices=True)
        if self.is_differentiable and args[0].dtype.is_floating_point:
            yield lambda: _trained(self.op, args, kwargs)

    def raw_ops(self, device: torch.device) -> list[OperatorCall]:
        """The operators that the op's variants and samples reach, with their arguments: what opcheck is given."""
        return operator_calls(self._every_run(), device) + self.extra.operators(device)

    def _every_run(self) -> Iterator[Callable[[], Any]]:
        cpu, shape = torch.device("cpu"), self.small_shapes[-1]
        for kwargs in self.variants.values():
            if "vmap" not in self.left_out:  # first: a batch of 2 says more than one of 1
                pair = (self.inputs(shape, torch.float32, cpu, seed) for seed in range(2))
                stacked = tuple(torch.stack(x) for x in zip(*pair, strict=True))
                yield from self._mapped(kwargs).runs(stacked, {})
            for dtype in self.dtypes:
                if self.supports(dtype, kwargs):
                    yield from self.runs(self.inputs(shape, dtype, cpu, 0), kwargs)
        for sample in self.samples(cpu):
            yield from self.runs(sample.args, sample.kwargs)

    def _mapped(self, kwargs: Mapping[str, Any]) -> Spec:
        return replace(self, op=lambda *args: torch.vmap(partial(self.op, **kwargs))(*args))

    def misuses(self, device: torch.device) -> list[Misuse]:
        """Calls that must fail."""
        particular = self.particular_misuses(device)
        if self.is_wrapped:
            return particular
        args = self.inputs(dict.fromkeys(self.small_shapes[-1], 3), torch.float32, device, 0)
        return misuses_of(self.op, dict(zip(self._names(len(args)), args, strict=True)), self.dtypes) + particular

    def _names(self, count: int) -> list[str]:
        """The names that messages have for the arguments: those of `op`, or places in its list of weights."""
        first, *others = self.parameters.values()
        if first.kind is first.VAR_POSITIONAL:
            return [f"{first.name}[{place}]" for place in range(count)]
        return [first.name, *(parameter.name for parameter in others[: count - 1])]


def _trained(op: Callable[..., Any], args: Tensors, kwargs: Mapping[str, Any]) -> None:
    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in args]
    out = op(*leaves, **kwargs)
    torch.autograd.grad(out, [x for x in leaves if x.requires_grad], torch.ones_like(out))
