"""Elementwise ops: y[i] = f(x[i], t[i], ...), from one formula for Triton, one for C++ and one definition in torch.

An op gives its formula three times, in a line or a few each; the launch, the loop, broadcasting, strides, rounding,
batching rules and the checks of arguments are here. Floats of 16 bits are computed in float32 and rounded once.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from ...autotune import Space, Tuned
from ...triton_or_stub import tl, triton
from . import backend, dispatch, memory, native
from .arguments import FLOATS, broadcast, listed, under_autocast
from .dispatch import Gradient, Plan, operator
from .grid import cdiv
from .implementations import Implementations
from .remembered import remembered
from .vmap import mapped_first

SOURCE = Path(__file__).with_suffix(".cpp")

_CPP = Space({"threads": native.THREADS})
_TRITON = Space({"BLOCK": (256, 512, 1024, 2048, 4096), "num_warps": (4, 8)})
_FLOATS = frozenset(FLOATS)
_ORDINARY = (Tensor, torch.nn.Parameter)
_SMALL = 1 << 15  # elements that are done before a thread would start

Strides: TypeAlias = tuple[int, ...]
Layout: TypeAlias = tuple[list[int], list[list[int]]]  # sizes, and the strides of each tensor

# ------------------------------------------------------------------------------------------------ the Triton launch


@triton.jit
def _elementwise_kernel(
    operands,  # a tensor's pointer, or a number, each
    out_ptr,
    size,  # the product of sizes
    sizes,  # of R dimensions
    strides,  # of the operands, then of the output, R each
    FORMULA: tl.constexpr, IS_NUMBER: tl.constexpr, COMPUTE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    COUNT: tl.constexpr = len(IS_NUMBER)  # pyright: ignore[reportAssignmentType, reportArgumentType]
    R: tl.constexpr = len(sizes)  # pyright: ignore[reportAssignmentType]
    pid = tl.program_id(0)
    offs = (pid.to(tl.int64) if WIDE else pid) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    values = ()
    for i in tl.static_range(COUNT):  # pyright: ignore[reportGeneralTypeIssues]
        if IS_NUMBER[i]:
            values = values + (tl.full([1], operands[i], COMPUTE),)  # noqa: RUF005  of Triton's tuples
        else:
            place = _place(offs, sizes, strides, i * R, R)
            values = values + (tl.load(operands[i] + place, mask=mask, other=0).to(COMPUTE),)  # noqa: RUF005
    y = FORMULA(*values).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + _place(offs, sizes, strides, COUNT * R, R), y, mask=mask)


@triton.jit
def _place(offs, sizes, strides, FIRST: tl.constexpr, R: tl.constexpr):
    """Where elements lie, counted from the first, in the tensor whose strides begin at FIRST."""
    place = tl.zeros_like(offs).to(tl.int64)
    rest = offs
    for d in tl.static_range(R - 1, 0, -1):
        place += (rest % sizes[d]).to(tl.int64) * strides[FIRST + d]
        rest = rest // sizes[d]
    return place + rest.to(tl.int64) * strides[FIRST]


def _layout(shape: Sequence[int], written: Sequence[int], *others: Sequence[int]) -> Layout:
    """Dimensions in the order in which what is written lies in memory; those that all tensors walk as one are one."""
    tensors = (written, *others)
    order = sorted((d for d, size in enumerate(shape) if size != 1), key=lambda d: -written[d])
    sizes: list[int] = []
    strides: list[list[int]] = [[] for _ in tensors]
    for d in order:
        if sizes and all(x[-1] == y[d] * shape[d] for x, y in zip(strides, tensors, strict=True)):
            sizes[-1] *= shape[d]
            for x, y in zip(strides, tensors, strict=True):
                x[-1] = y[d]
        else:
            sizes.append(shape[d])
            for x, y in zip(strides, tensors, strict=True):
                x.append(y[d])
    return (sizes, strides) if sizes else ([1], [[0] for _ in tensors])


def _contiguous_strides(shape: Sequence[int]) -> list[int]:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return strides[: len(shape)]


# ------------------------------------------------------------------------------------------------ the op


class Elementwise:
    """An op of tensors of one dtype and device that broadcast; it is called with them, and gives a new tensor.

    Args:
        name: of the operator, `torch.ops.tropigrad.<name>`.
        operands: their names. One that ends in "?" may be a number.
        torch: the definition.
        triton: the formula, a `@triton.jit` function of blocks in the compute dtype.
        cpp: the formula, an expression of C++ in the operands' names.
        source: the file that holds the formulas.
        gradient: how it is differentiated. All tensors of a call have the shape of the result there: the caller's
            broadcasting is undone outside.
        in_place: the first operand can be overwritten; the operator of that is `<name>_`.
    """

    def __init__(
        self,
        name: str,
        *operands: str,
        torch: Callable[..., Tensor],
        triton: Any,
        cpp: str,
        source: Path,
        gradient: Gradient | None = None,
        in_place: bool = False,
    ) -> None:
        self.name, self.definition, self.formula = name, torch, triton
        self.names = tuple(x.removesuffix("?") for x in operands)
        self.takes_number = tuple(x.endswith("?") for x in operands)
        self.defines = f"FORMULA={cpp}", "PARAMETERS=" + ", ".join(f"Compute {x}" for x in self.names)
        self.by_cpp = Tuned(f"{name}.cpp", _CPP, lambda problem: {"threads": 0}, SOURCE)
        self.by_triton = Tuned(f"{name}.triton", _TRITON, lambda problem: {"BLOCK": 1024, "num_warps": 4}, source)
        self._launch_of = remembered(self._work_out)
        self.tuned = {"cpp": (self.by_cpp,), "triton": (self.by_triton,)}
        self.implementations = Implementations(
            name, cpp=self._made_by_cpp, triton=self._made_by_triton, torch=self._made_by_torch
        )
        parameters = [
            f"Tensor? {x}, float {x}_number" if number else f"Tensor {x}"
            for x, number in zip(self.names, self.takes_number, strict=True)
        ]
        self.operator = operator(
            f"{name}({', '.join(parameters)}) -> Tensor",
            self._made,
            fake=lambda x, *rest: x.new_empty(x.shape),
            vmap=self._mapped,
            plan=self._plan,
            gradient=gradient,
        )
        self.in_place: Any = None
        if in_place:
            parameters[0] = f"Tensor(a!) {self.names[0]}"
            self.in_place = operator(
                f"{name}_({', '.join(parameters)}) -> ()",
                self._written,
                fake=lambda *args: None,
                vmap=self._mapped_in_place,
                plan=self._plan_in_place,
            )

    def __call__(self, *operands: Tensor | float, inplace: bool = False) -> Tensor:
        """f of the operands; with inplace, written into the first, which is returned.

        Raises:
            TypeError: an operand is no strided float tensor, nor a number where that may be; or dtypes differ.
            ValueError: devices differ, shapes do not broadcast, or the first operand cannot be written in place.
        """
        args = self._quickly(operands) or self._arguments(operands, inplace)
        if not inplace:
            return self.operator.call(*args)
        x: Any = operands[0]
        self._check_written(x)
        if _is_differentiated(operands):  # autograd knows what copy_ does
            return x.copy_(self.operator.call(*args))
        self.in_place.call(*args)
        return x

    # -------------------------------------------------------------------------------------------- arguments

    def _quickly(self, operands: Sequence[Any]) -> list[Any] | None:
        """The operator's arguments where the operands are ordinary tensors on the CPU, or on one GPU, or numbers, and
        the first has the result's shape. A small call takes no longer than its checks: these are the cheapest questions
        that Python can ask. Where this is None, `_arguments` says why, or makes it so.
        """
        x = operands[0]
        args: list[Any] = []
        try:
            dtype, shape, device = x.dtype, x.shape, x.device
            if dtype not in _FLOATS or not (x.is_cpu or x.is_cuda):
                return None
            for y, number in zip(operands, self.takes_number, strict=True):
                if number and type(y) is float:
                    args += None, y
                    continue
                if (
                    type(y) not in _ORDINARY
                    or y.device != device
                    or y.dtype is not dtype
                    or y.layout is not torch.strided
                ):
                    return None
                if y is not x and y.shape != shape:
                    if is_compiling():
                        return None
                    y = y.expand_as(x)
                args.append(y)
                if number:
                    args.append(0.0)
            return args
        except (AttributeError, RuntimeError):
            return None  # the first is no tensor, is nested and has no shape, or another does not expand to its shape

    def _arguments(self, operands: tuple[Any, ...], inplace: bool) -> list[Any]:
        """The operator's arguments: the operands, checked, as autocast wants them, and broadcast."""
        if not inplace:
            wide = iter(under_autocast([x for x in operands if isinstance(x, Tensor)]))
            operands = tuple(next(wide) if isinstance(x, Tensor) else x for x in operands)
        self._check(operands)
        first = operands[0]
        if any(isinstance(x, Tensor) and x.shape != first.shape for x in operands[1:]):
            shape = self._broadcast(operands)
            if inplace and shape != tuple(first.shape):
                raise ValueError(
                    f"{self.name}: {self.names[0]} has shape {tuple(first.shape)} and the result {shape}; expected the "
                    "result's, to be written in place"
                )
            operands = tuple(x.expand(shape) if isinstance(x, Tensor) else x for x in operands)
        args = []
        for x, number in zip(operands, self.takes_number, strict=True):
            args += [x] if not number else [x, 0.0] if isinstance(x, Tensor) else [None, x]
        return args

    def _check(self, operands: Sequence[Any]) -> None:
        first = operands[0]
        for name, x, number in zip(self.names, operands, self.takes_number, strict=True):
            if number and isinstance(x, float | torch.SymFloat):
                continue
            memory.check_dense(self.name, name, x)
            if x.dtype not in FLOATS:
                raise TypeError(f"{self.name}: {name} is {x.dtype}; expected one of {listed(FLOATS)}")
            if x.dtype != first.dtype:
                raise TypeError(
                    f"{self.name}: {self.names[0]} is {first.dtype} and {name} is {x.dtype}; expected one dtype"
                )
            if x.device != first.device:
                raise ValueError(
                    f"{self.name}: {self.names[0]} is on {first.device} and {name} on {x.device}; expected one device"
                )

    def _check_written(self, first: Tensor) -> None:
        if not is_compiling() and not first.is_contiguous() and memory.repeats(first):
            raise ValueError(
                f"{self.name}: {self.names[0]}'s elements share memory, as an expanded tensor's do; expected a place "
                f"for each, to be written in: {self.names[0]}.clone()"
            )

    def _broadcast(self, operands: Sequence[Any]) -> tuple[int, ...]:
        first = shape = tuple(operands[0].shape)
        for name, x in zip(self.names[1:], operands[1:], strict=True):
            if not isinstance(x, Tensor):
                continue
            if not broadcast(shape, x.shape):
                raise ValueError(
                    f"{self.name}: {name} has shape {tuple(x.shape)}; expected one that broadcasts with "
                    f"{self.names[0]}'s {first}"
                )
            shape = tuple(torch.broadcast_shapes(shape, x.shape))
        return shape

    def _operands(self, args: Sequence[Any]) -> list[Any]:
        """Tensors and numbers, from an operator's arguments."""
        rest = iter(args)
        operands = []
        for number in self.takes_number:
            x = next(rest)
            if number:
                value = next(rest)
                x = value if x is None else x
            operands.append(x)
        return operands

    # -------------------------------------------------------------------------------------------- bodies

    def _made(self, *args: Any) -> Tensor:
        x = args[0]
        if x.numel() == 0:
            return x.new_empty(x.shape)
        return self.implementations.functions[self._chosen(x)](*args)

    def _made_by_cpp(self, *args: Any) -> Tensor:
        return dispatch.run(self._planned(args, in_place=False), *args)[1][0]

    def _made_by_triton(self, *args: Any) -> Tensor:
        y = torch.empty_like(args[0], memory_format=torch.contiguous_format)
        self._launch(self._operands(args), y)
        return y

    def _made_by_torch(self, *args: Any) -> Tensor:
        return self.definition(*self._operands(args)).contiguous()

    def _written(self, *args: Any) -> None:
        x = args[0]
        if x.numel() == 0:
            return
        chosen = self._chosen(x)
        args = (x, *(memory.apart(y, x) if isinstance(y, Tensor) else y for y in args[1:]))
        operands = self._operands(args)
        if chosen == "cpp":
            dispatch.run(self._planned(args, in_place=True), *args)
        else:
            with torch.no_grad():
                if chosen == "torch":
                    x.copy_(self.definition(*operands))
                    return  # copy_ has told autograd
                self._launch(operands, x)
        if not x.is_inference():  # such a tensor has no version
            torch.autograd.graph.increment_version(x)

    def _chosen(self, x: Tensor) -> str:
        chosen = self.implementations.backend_of(x)
        if chosen == "cpp" and backend.forced() == "auto" and self._library(x.dtype) is None:  # which has warned
            return "torch"
        return chosen

    def _launch(self, operands: Sequence[Any], y: Tensor) -> None:
        if y.dtype == torch.float64:  # a launch takes numbers in float32
            operands = [x if isinstance(x, Tensor) else y.new_full((), x) for x in operands]
        layouts = [None if type(x) is float else x.expand(y.shape).stride() for x in operands]
        grid, numbers, constants = self._launch_of(y.shape, y.stride(), y.dtype, y.device, *layouts)
        _elementwise_kernel[grid](tuple(operands), y, *numbers, **constants)

    def _work_out(
        self, shape: torch.Size, written: Strides, dtype: torch.dtype, device: torch.device, *read: Strides | None
    ) -> tuple[tuple[int], tuple[Any, ...], dict[str, Any]]:
        """(grid, size and sizes and strides, constants) of a launch; the strides of an operand, None for a number."""
        of_tensors = [(0,) * len(shape) if steps is None else steps for steps in read]
        sizes, (of_y, *of_operands) = _layout(shape, written, *of_tensors)
        strides = [step for steps in (*of_operands, of_y) for step in steps]
        size = shape.numel()
        config = self.by_triton.config({"size": size, "dtype": str(dtype)}, device)
        constants = {
            "FORMULA": self.formula, "IS_NUMBER": tuple(steps is None for steps in read),
            "COMPUTE": tl.float64 if dtype == torch.float64 else tl.float32, "WIDE": size > 1 << 30,
        }  # fmt: skip
        return (cdiv(size, config["BLOCK"]),), (size, tuple(sizes), tuple(strides)), {**constants, **config}

    # -------------------------------------------------------------------------------------------- C++

    def _library(self, dtype: torch.dtype):
        return native.library_of(SOURCE, dtype, *self.defines)

    def _plan(self, *args: Any) -> Plan:
        return self._planned(args, in_place=False) if self._is_planned(args[0]) else []

    def _plan_in_place(self, *args: Any) -> Plan:
        return self._planned(args, in_place=True) if self._is_planned(args[0]) else []

    def _is_planned(self, x: Tensor) -> bool:
        return x.numel() > 0 and self._chosen(x) == "cpp"

    def _planned(self, args: Sequence[Any], in_place: bool) -> Plan:
        x = args[0]
        library = self._library(x.dtype)
        if library is None:
            raise RuntimeError(
                f"{self.name}: the C++ kernel of {x.dtype} did not compile; TROPIGRAD_BACKEND=torch avoids it"
            )
        places, place = [], 0
        for number in self.takes_number:
            is_number = number and args[place] is None
            places += [place + is_number, is_number]
            place += 1 + number
        shape = tuple(x.shape)
        of_y = x.stride() if in_place else _contiguous_strides(shape)
        of_operands = [(0,) * x.dim() if y is None else y.stride() for y in self._tensors(args)]
        sizes, (of_y, *of_operands) = _layout(shape, of_y, *of_operands)
        config = self.by_cpp.config(_problem(x), x.device)
        threads = native.threads(config["threads"], x.numel(), _SMALL)
        strides = [step for steps in (*of_operands, of_y) for step in steps]
        result = 0 if in_place else len(args)
        call = native.integers(len(sizes), x.numel(), threads, in_place, result, *places, *sizes, *strides)
        return dispatch.plan(library.elementwise, () if in_place else [(x.dtype, shape)], call)

    def _tensors(self, args: Sequence[Any]) -> list[Tensor | None]:
        """The tensors of an operator's arguments, None for a number."""
        return [x for x in args if not isinstance(x, float)]

    # -------------------------------------------------------------------------------------------- vmap

    def _mapped(self, info: Any, dims: Any, *args: Any) -> tuple[Tensor, int]:
        return self.operator.dispatched(*_batched(info, dims, args)), 0

    def _mapped_in_place(self, info: Any, dims: Any, *args: Any) -> tuple[None, None]:
        if dims[0] is None:
            raise ValueError(
                f"{self.name}: vmap does not map {self.names[0]}, which is written in place, and maps another operand; "
                "expected the first mapped, or no inplace"
            )
        self.in_place.dispatched(*_batched(info, dims, args))
        return None, None


def as_number(op: str, name: str, x: Any) -> Any:
    """An operand that is no tensor, as Python's number."""
    if not isinstance(x, numbers.Real | torch.SymFloat) or isinstance(x, bool):
        raise TypeError(f"{op}: {name} is a {type(x).__name__}; expected a number or a torch.Tensor")
    number: Any = x if isinstance(x, float | torch.SymFloat) else float(x)
    return number


def _batched(info: Any, dims: Any, args: Sequence[Any]) -> list[Any]:
    return [
        mapped_first(x, dim, info.batch_size) if isinstance(x, Tensor) else x for x, dim in zip(args, dims, strict=True)
    ]


def _problem(x: Tensor) -> dict[str, int | str | bool]:
    return {"size": x.numel(), "dtype": str(x.dtype)}


def _is_differentiated(operands: Sequence[Any]) -> bool:
    """Whether autograd records a call with these, or a tangent comes with one."""
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in operands):
        return True
    return forward_ad._current_level >= 0  # inside a dual_level
