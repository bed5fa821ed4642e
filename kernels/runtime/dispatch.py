"""Operators of this library, registered with torch's dispatcher, so that all of torch sees every call.

Profilers, modes, hooks, checkpointing, tracing and transforms look at a call on its way through the dispatcher.
Therefore every call takes that way, the hundredth like the first. dispatch.cpp registers the CPU kernels and autograd
from C++, which costs a call little more than the dispatcher itself. It is compiled against torch's headers at the first
call of an operator, once a machine, and cached as the C++ kernels are. Where it does not compile, the registrations
from Python, in this file, serve.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ... import autotune
from . import native

SOURCE = Path(__file__).with_suffix(".cpp")

# ------------------------------------------------------------------------------------------------ plans

Plan = list[int]  # a call of a CPU kernel for one layout of its tensors; empty: there is none, and Python serves


def plan(run: Any, outputs: Sequence[tuple[torch.dtype, Sequence[int] | None]], constants: Any) -> Plan:
    """The call of a kernel that dispatch.cpp makes whenever tensors of this layout come, as a row of integers.

    Args:
        run: int(const void* constants, void* const* addresses) from a library of native/; it returns 0 on success.
            The addresses are those of the tensors in the schema's order (null for None), of the float arguments, as
            doubles in their places among them, and of the outputs.
        outputs: the dtype and shape of each returned tensor, contiguous; the address of an empty one is null. The shape
            None stands for an output that the caller did not ask for, of a dtype that carries no gradient: all calls
            return one and the same tensor of shape [0] for it.
        constants: a structure or an array of ctypes whose members take 8 bytes each.
    """
    row = [ctypes.cast(run, ctypes.c_void_p).value or 0, len(outputs)]
    for dtype, shape in outputs:
        row += [_SCALAR_TYPES[dtype], *((_UNWANTED,) if shape is None else (len(shape), *shape))]
    size = ctypes.sizeof(constants) // 8
    return row + list((ctypes.c_int64 * size).from_buffer_copy(constants))


_UNWANTED = -1  # as in dispatch.cpp; takes the place of the rank of an output that was not asked for

# the numbers that torch's C++ gives to dtypes (c10/core/ScalarType.h); they are a part of its file formats, and stay
_SCALAR_TYPES = {
    torch.uint8: 0,
    torch.int8: 1,
    torch.int16: 2,
    torch.int32: 3,
    torch.int64: 4,
    torch.float16: 5,
    torch.float32: 6,
    torch.float64: 7,
    torch.bfloat16: 15,
}
_DTYPES = {number: dtype for dtype, number in _SCALAR_TYPES.items()}
_KERNEL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p))


def run(plan: Plan, *inputs: Tensor | float | None) -> tuple[int, tuple[Tensor, ...]]:
    """Runs a plan as dispatch.cpp does, but does not tell autograd which tensors were written.

    Returns:
        The kernel's status, and its outputs.
    """
    kernel, count, at, outputs = _KERNEL(plan[0]), plan[1], 2, []
    for _ in range(count):
        dtype, rank = plan[at : at + 2]
        shape = (0,) if rank == _UNWANTED else plan[at + 2 : at + 2 + rank]
        outputs.append(torch.empty(shape, dtype=_DTYPES[dtype], device="cpu"))
        at += 2 + max(rank, 0)
    constants = native.integers(*plan[at:])
    numbers = {i: ctypes.c_double(x) for i, x in enumerate(inputs) if isinstance(x, float)}
    addresses = [
        ctypes.addressof(numbers[i]) if i in numbers else x.data_ptr() if isinstance(x, Tensor) else None
        for i, x in enumerate((*inputs, *outputs))
    ]
    return kernel(ctypes.addressof(constants), (ctypes.c_void_p * len(addresses))(*addresses)), tuple(outputs)


# ------------------------------------------------------------------------------------------------ gradients


@dataclass(frozen=True)
class Gradient:
    """How an operator is differentiated in reverse mode.

    Attributes:
        backward: computes the gradients that are needed, in order. It takes the gradients of the outputs that carry
            one, at least one of which is a tensor; the saved tensors; the sizes of all tensor arguments, one after the
            other; for each of these whether its gradient is needed; and the arguments that are no tensors. None stands
            for an absent tensor. It is made of differentiable operators, and so can be differentiated again.
        inputs: the places, in the schema, of tensor arguments that are saved.
        conditional: the places of further arguments, which are saved if the string argument at `asked` is `answer`.
        outputs: the places of outputs that are saved. Saved tensors come in this order.
        detached: the places of outputs that carry no gradient though they are of a float dtype.
        flag: the place of a bool argument that is set to true whenever a gradient is recorded.
    """

    backward: Callable[..., Sequence[Tensor]]
    inputs: tuple[int, ...] = ()
    conditional: tuple[int, ...] = ()
    asked: int = 0
    answer: str = ""
    outputs: tuple[int, ...] = ()
    detached: tuple[int, ...] = ()
    flag: int = -1


class Operator:
    """`torch.ops.tropigrad.<name>`, differentiable if it has a `Gradient`; calling `.call` saves a frame of Python."""

    def __init__(self, name: str, body: Callable[..., Any], gradient: Gradient | None, is_planned: bool) -> None:
        self.name, self.body, self.gradient, self.is_planned = name, body, gradient, is_planned
        self.dispatched = getattr(torch.ops.tropigrad, name).default
        self.function = None if gradient is None else _function(_camel(name), self.dispatched, gradient)
        self.call = self._first

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)

    def _first(self, *args: Any) -> Any:
        if is_compiling():  # while torch.compile traces, nothing can be compiled or loaded
            return self._from_python(*args)
        load(compiles=True)
        return self.call(*args)

    def _from_python(self, *args: Any) -> Any:
        if self.function is None or not torch.is_grad_enabled():
            return self.dispatched(*args)
        return self.function.apply(*args)

    def settle(self, library: ctypes.CDLL | None) -> None:
        """Lets dispatch.cpp serve from now on, or, if `library` is None, Python."""
        self.call = self._from_python if library is None else self.dispatched
        if library is None:
            return
        name, complaints = self.name.encode(), []
        if self.is_planned:
            complaints.append(library.tropigrad_register_cpu(name))
        if self.gradient is not None:
            rule = self.gradient
            lists = rule.inputs, rule.outputs, rule.conditional, rule.detached
            places = [n for kept in lists for n in (len(kept), *kept)]
            asked = rule.asked, rule.answer.encode(), rule.flag
            node = f"{_camel(self.name)}Backward".encode()
            complaints.append(library.tropigrad_register_gradient(name, node, native.integers(*places), *asked))
        if any(complaints):
            reasons = "; ".join(x.decode() for x in complaints if x)
            raise RuntimeError(f"{SOURCE.name}: torch refuses {self.name}: {reasons}; please report this")


def _camel(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def _function(name: str, dispatched: Callable[..., Any], gradient: Gradient) -> type[torch.autograd.Function]:
    """An autograd Function around the operator, in place of dispatch.cpp's `AutogradKernel` if that does not compile.

    It has no jvp on purpose: forward-mode AD raises NotImplementedError instead of giving a silent zero.
    """

    # bound to names of their own, since Dynamo accepts no dataclass from a closure
    backward_of, flag, asked, answer = gradient.backward, gradient.flag, gradient.asked, gradient.answer
    inputs_kept, conditional, outputs_kept = gradient.inputs, gradient.conditional, gradient.outputs
    detached = gradient.detached

    def forward(*args):
        return dispatched(*args) if flag < 0 else dispatched(*args[:flag], True, *args[flag + 1 :])

    def setup_context(ctx, inputs, output):
        outputs = output if isinstance(output, tuple) else (output,)
        ctx.differentiable = [i for i, x in enumerate(outputs) if x.is_floating_point() and i not in detached]
        ctx.mark_non_differentiable(*(x for i, x in enumerate(outputs) if i not in ctx.differentiable))
        ctx.tensors = [i for i, x in enumerate(inputs) if isinstance(x, Tensor)]
        ctx.sizes = [size for i in ctx.tensors for size in inputs[i].shape]
        ctx.options = [x for x in inputs if not isinstance(x, Tensor) and x is not None]
        ctx.set_materialize_grads(False)
        places = (*inputs_kept, *conditional) if inputs[asked] == answer else inputs_kept
        ctx.save_for_backward(*(inputs[i] for i in places), *(outputs[i] for i in outputs_kept))

    def backward(ctx, *grads):
        needs = [ctx.needs_input_grad[i] for i in ctx.tensors]
        grads = [grads[i] for i in ctx.differentiable]
        if all(x is None for x in grads):
            return (None,) * len(ctx.needs_input_grad)
        needed_grads = iter(backward_of(grads, ctx.saved_tensors, ctx.sizes, needs, *ctx.options))
        return tuple(next(needed_grads) if needed else None for needed in ctx.needs_input_grad)

    members = {"forward": forward, "setup_context": setup_context, "backward": backward}
    members = {name: staticmethod(member) for name, member in members.items()}
    return type(name, (torch.autograd.Function,), {"generate_vmap_rule": True, **members})


# ------------------------------------------------------------------------------------------------ registration

_OPERATORS: list[Operator] = []
# the dispatch keys of torch.func.vmap and of the batched gradients of torch.autograd
_UNDER_VMAP = "FuncTorchBatchedDecomposition", "Batched"


def operator(
    schema: str,
    body: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    vmap: Callable[..., Any] | None = None,
    decomposition: Callable[..., Any] | None = None,
    plan: Callable[..., Plan] | None = None,
    gradient: Gradient | None = None,
) -> Operator:
    """Defines `tropigrad::<schema>`.

    Args:
        schema: `name(Tensor a, ...) -> ...`.
        body: computes the outputs, on any device, without autograd.
        fake: makes outputs of the right shapes and dtypes, without values.
        vmap: the batching rule, as torch.library.register_vmap takes it.
        decomposition: the function that is called instead under vmap, for an operator without a batching rule.
        plan: returns the CPU kernel's plan for such arguments, or [] if there is none. `body` serves then; it is also
            called if the kernel fails, to raise the error that says what is wrong.
        gradient: how the operator is differentiated; without one, autograd does not see it.
    """
    name, signature = schema.split("(", 1)
    qualified = f"tropigrad::{name}"
    tags = (torch.Tag.pt2_compliant_tag,)
    torch.library.define(qualified, f"({signature}", tags=tags)
    torch.library.impl(qualified, "CompositeExplicitAutograd", body)  # a kernel registered for one device precedes it
    torch.library.register_fake(qualified, fake)
    if vmap is not None:
        torch.library.register_vmap(qualified, vmap)  # pyright: ignore[reportOptionalCall]
    if decomposition is not None:
        for key in _UNDER_VMAP:
            torch.library.impl(qualified, key, decomposition)
    if plan is not None:
        torch.library.define(f"{qualified}_plan", f"({signature.split(' -> ')[0].replace('!', '')} -> int[]", tags=tags)
        torch.library.impl(f"{qualified}_plan", "CompositeExplicitAutograd", plan)
    if gradient is None:
        torch.library.impl(qualified, "Autograd", torch.library.fallthrough_kernel)
    else:
        options = [x for x in signature.split(") ->")[0].split(", ") if not x.startswith("Tensor")]
        common = ["Tensor?[] grads", "Tensor?[] saved", "SymInt[] sizes", "bool[] needs"]
        torch.library.define(f"{qualified}_gradient", f"({', '.join(common + options)}) -> Tensor[]", tags=tags)
        torch.library.impl(f"{qualified}_gradient", "CompositeImplicitAutograd", gradient.backward)
        for key in _UNDER_VMAP:  # under vmap the operators that it is made of are called instead
            torch.library.impl(f"{qualified}_gradient", key, gradient.backward)
    made = Operator(name, body, gradient, plan is not None)
    with _loading:
        _OPERATORS.append(made)
        if _is_settled:
            made.settle(_library)
    return made


# ------------------------------------------------------------------------------------------------ C++

_library: ctypes.CDLL | None = None
_is_settled = False
_loading, _counting = threading.RLock(), threading.Lock()
_open_scopes = 0


def load(*, compiles: bool) -> bool:
    """Lets dispatch.cpp take over from Python, once a process. Returns whether it has.

    compiles: if it is not in the cache, compile it, which takes a core about a quarter of a minute, once a machine.

    Raises:
        RuntimeError: torch refused a kernel.
    """
    global _library, _is_settled
    with _loading:
        if _is_settled:
            return _library is not None
        library = native.extension(SOURCE, compiles=compiles)
        if library is None and not compiles:
            return False
        if library is not None:
            _declare(library)
            with _counting:
                _library = library
                library.tropigrad_scope(_open_scopes)
        _is_settled = True
        for made in _OPERATORS:
            made.settle(library)
        return library is not None


def unserved_by_plans() -> None:
    """Has CPU tensors go the way of a GPU's from now on: from C++'s autograd to an operator's body, by no plan.

    For a process that counts what a GPU's call costs the host; no way leads back.
    """
    load(compiles=True)
    for made in _OPERATORS:
        if made.is_planned:
            torch.library.impl(f"tropigrad::{made.name}", "CPU", made.body)


def _declare(library: ctypes.CDLL) -> None:
    text, whole = ctypes.c_char_p, ctypes.c_int64
    for function in (library.tropigrad_register_cpu, library.tropigrad_register_gradient):
        function.restype = text
    library.tropigrad_register_cpu.argtypes = [text]
    library.tropigrad_register_gradient.argtypes = [text, text, ctypes.POINTER(whole), whole, text, whole]
    library.tropigrad_scope.argtypes, library.tropigrad_scope.restype = [whole], None
    library.tropigrad_forget.argtypes, library.tropigrad_forget.restype = [], None


def who_registers() -> str:
    """Says for people whether C++ or Python registers the operators here, and why not C++."""
    if load(compiles=False):
        return "C++"
    if reason := native.why_no_compiler():
        return f"Python: {reason}"
    return "Python: dispatch.cpp did not compile" if _is_settled else "C++, compiled at the first call"


def _forget() -> None:
    if _library is not None:
        _library.tropigrad_forget()


def _scope(change: int) -> None:
    global _open_scopes
    with _counting:
        _open_scopes += change
        if _library is not None:
            _library.tropigrad_scope(change)


autotune.on_reload(_forget)
autotune.on_scope(_scope)
