"""Launches: the PTX of a compiled kernel on NumPy arrays or torch tensors, and Triton's own launches without a GPU."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from ...triton_or_stub import HAS_TRITON, triton
from .doubts import Doubts
from .faults import OrderDependent
from .launched import Launch
from .parser import Program, parse
from .schedule import TOGETHER, Order
from .schedule import run as run_blocks
from .values import UNSIGNED, Approximations, to_bf16

# what stands in memory that nobody has written: a NaN in float32, and a number that no one computes
UNWRITTEN = 0x7FC0DEAD
_PROGRAMS: dict[str, Program] = {}
_MOST_PROGRAMS = 256


@dataclass
class Allocation:
    """A piece of the host's memory that a kernel may touch."""

    name: str
    first: int  # address
    end: int

    def read(self) -> tuple[Any, int]:
        """Its bytes, with padding in front and behind up to multiples of 16, and how much there is in front."""
        start, size = self.first % 16, self.end - self.first
        data = np.zeros(-(-(start + size) // 16) * 16, np.uint8)
        data[start : start + size] = self._bytes()
        return data, start

    def write(self, data: Any) -> None:
        start = self.first % 16
        self._bytes()[:] = data[start : start + self.end - self.first]

    def _bytes(self) -> Any:
        return np.ctypeslib.as_array((ctypes.c_uint8 * (self.end - self.first)).from_address(self.first))


def run(
    text: str,
    arguments: Sequence[Any],
    grid: int | tuple[int, ...],
    threads: int,
    shared: int = 0,
    orders: Order | Sequence[Order] = TOGETHER,
    approximations: int | None = None,
) -> None:
    """Run the kernel of a PTX text; arrays and tensors are written in place, unless a fault is found.

    Args:
        arguments: of each parameter an array or tensor on the CPU (its address is passed), or a NumPy number, or a
            Python number of the parameter's width. Parameters at the end that are left out are 0.
        grid: blocks along x, or along x, y and z.
        threads: of a block.
        shared: bytes of shared memory of a block, beside what the text itself declares.
        orders: of the blocks. With several the results of all must be the same to the bit.
        approximations: None: approximate instructions give the nearest number. Else the seed of errors within what the
            manual states.

    Raises:
        Fault: what faults.py lists, with the kernel, the line of PTX and the line of source.
        TypeError, ValueError: an argument that cannot be passed.
    """
    program = _parsed(text)
    if len(arguments) > len(program.parameters):
        raise TypeError(f"ptx.run: {len(arguments)} arguments; {program.name} has {len(program.parameters)} parameters")
    allocations = _allocations(arguments)
    parameters = [
        _parameter(program, place, arguments[place] if place < len(arguments) else 0, allocations)
        for place in range(len(program.parameters))
    ]
    sizes = (grid,) if isinstance(grid, int) else tuple(grid)
    x, y, z = (*sizes, 1, 1, 1)[:3]
    results: list[list[Any]] = []
    tried = [orders] if isinstance(orders, Order) else list(orders)

    def launched(order: Order, doubts: Doubts | None = None) -> Launch:
        pieces = []
        for allocation in allocations:
            data, start = allocation.read()
            pieces.append((allocation.name, data, start, allocation.end - allocation.first, _written(data)))
        launch = Launch(
            program, (x, y, z), threads, max(shared, program.static_shared), parameters, pieces,
            Approximations(approximations), doubts,
        )  # fmt: skip
        run_blocks(launch, order)
        return launch

    for order in tried:
        launch = launched(order)
        if launch.clock.doubts:  # does it matter what was read?
            launched(order, launch.clock.doubts)
        results.append([space.data for space in launch.memory.spaces])
        for allocation, space, first in zip(allocations, launch.memory.spaces, results[0], strict=True):
            if not np.array_equal(first, space.data):
                byte = int(np.flatnonzero(first != space.data)[0])
                raise OrderDependent(
                    f"byte {byte - allocation.first % 16} of {allocation.name} differs between the orders {tried[0]} "
                    f"and {order}",
                    space.writer_of(byte),
                )
    for allocation, data in zip(allocations, results[0] if results else [], strict=False):
        before, _ = allocation.read()
        if not np.array_equal(before, data):
            allocation.write(data)


def _parsed(text: str) -> Program:
    if text not in _PROGRAMS:
        if len(_PROGRAMS) >= _MOST_PROGRAMS:
            _PROGRAMS.clear()
        _PROGRAMS[text] = parse(text)
    return _PROGRAMS[text]


def _written(data: Any) -> Any:
    unwritten = data.view(np.uint32) == UNWRITTEN
    return np.repeat(~unwritten, 4) if unwritten.any() else None


def _extent(argument: Any, place: int) -> tuple[int, int] | None:
    """The addresses of an argument's memory; of a tensor, of its whole storage."""
    if isinstance(argument, Tensor):
        if argument.device.type != "cpu":
            raise ValueError(f"ptx.run: argument {place} is on {argument.device}; expected a tensor on the CPU")
        storage = argument.untyped_storage()
        return storage.data_ptr(), storage.data_ptr() + storage.nbytes()
    if isinstance(argument, np.ndarray) and argument.ndim:
        if not argument.flags.writeable:
            raise ValueError(f"ptx.run: argument {place} cannot be written; expected a writeable array")
        return np.lib.array_utils.byte_bounds(argument)
    return None


def _allocations(arguments: Sequence[Any]) -> list[Allocation]:
    """The pieces of memory behind the arguments; those that overlap are one."""
    extents = [(extent, place) for place, x in enumerate(arguments) if (extent := _extent(x, place)) is not None]
    found: list[Allocation] = []
    for (first, end), place in sorted(extents):
        if first == end:
            continue
        if found and first < found[-1].end:
            found[-1].end = max(found[-1].end, end)
            if not found[-1].name.endswith(f"{place}"):
                found[-1].name += f" and {place}"
        else:
            found.append(Allocation(f"argument {place}", first, end))
    return found


def _parameter(program: Program, place: int, value: Any, allocations: Sequence[Allocation]) -> Any:
    kind = program.parameters[place][0]
    bits = int(kind[1:])
    if _extent(value, place) is not None:
        address = value.data_ptr() if isinstance(value, Tensor) else value.__array_interface__["data"][0]
        for number, allocation in enumerate(allocations):
            if allocation.first <= address < allocation.end:
                # as GlobalMemory.address
                return np.uint64((number + 1 << 36) + allocation.first % 16 + address - allocation.first)
        return np.uint64(0)  # of no elements
    if isinstance(value, np.generic):
        raw = np.asarray(value)
        if raw.itemsize * 8 < bits and raw.dtype.kind in "iub":
            raw = raw.astype(np.int64 if raw.dtype.kind == "i" else np.uint64)
        return raw.view(UNSIGNED[8 * raw.itemsize])[()].astype(UNSIGNED[bits])
    if isinstance(value, float):
        return np.array(value, {16: np.float16, 32: np.float32, 64: np.float64}[bits]).view(UNSIGNED[bits])[()]
    if isinstance(value, (bool, int)):
        return UNSIGNED[bits](int(value) & ((1 << bits) - 1))
    raise TypeError(f"ptx.run: argument {place} is a {type(value).__name__}; expected an array, a tensor or a number")


# ------------------------------------------------------------------------------------------------ Triton's launches


@dataclass
class Made:
    """A launch that was interpreted."""

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    text: str = field(repr=False)


@contextmanager
def emulated(
    capability: int = 90,
    orders: Order | Sequence[Order] = TOGETHER,
    approximations: int | None = None,
    before: Callable[[Made], bool] | None = None,
) -> Iterator[list[Made]]:
    """Have launches on CPU tensors inside the block compiled for a GPU, and interpret what was compiled.

    Tensors of torch.empty, empty_like, empty_strided and Tensor.new_empty count as unwritten until they are written.
    The block yields the list of the launches so far. One thread at a time; autotuned kernels must be called through
    `.fn`.

    Args:
        capability: 80 or 90, as of sm_80 and sm_90.
        orders, approximations: as of `run`.
        before: is told of each launch, and says whether it is to be interpreted; by default all are.

    Raises:
        RuntimeError: triton is missing, or interprets itself (TRITON_INTERPRET).
    """
    if not HAS_TRITON:
        raise RuntimeError("ptx.emulated: triton is not installed: pip install triton (Linux)")
    if triton.knobs.runtime.interpret:
        raise RuntimeError("ptx.emulated: Triton's own interpreter is on: unset TRITON_INTERPRET before the import")
    made: list[Made] = []
    original = triton.JITFunction.run

    def run_here(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled = original(kernel, *args, grid=grid, warmup=True, **options)
        if warmup:
            return compiled
        values = {p.name: p.default for p in kernel.params if p.has_default}
        values |= dict(zip(kernel.arg_names, args, strict=False)) | options
        sizes: Any = grid(values) if callable(grid) else grid
        x, y, z = (*((sizes,) if isinstance(sizes, int) else sizes), 1, 1, 1)[:3]
        metadata, text = compiled.metadata, compiled.asm["ptx"]
        launch = Made(metadata.name, (x, y, z), 32 * metadata.num_warps, text)
        made.append(launch)
        if (before is None or before(launch)) and x * y * z:
            arguments = list(_passed(compiled.src.signature, values))
            run(text, arguments, (x, y, z), launch.threads, metadata.shared, orders, approximations)
        return compiled

    with ExitStack() as stack:
        stack.enter_context(_driver(capability))
        stack.enter_context(mock.patch.object(triton.JITFunction, "run", run_here))
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (Tensor, "new_empty")):
            stack.enter_context(mock.patch.object(owner, name, _unwritten(getattr(owner, name))))
        yield made


def _passed(signature: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[Any]:
    """The arguments that a compiled kernel has parameters for: no constants, tuples one element after the other."""
    for name, kind in signature.items():
        yield from _of_kind(kind, values[name])


def _of_kind(kind: Any, value: Any) -> Iterator[Any]:
    if isinstance(kind, (tuple, list)):
        for one, element in zip(kind, value, strict=True):
            yield from _of_kind(one, element)
    elif kind == "constexpr":
        return
    elif kind == "bf16":
        yield np.uint16(to_bf16(np.float32(value)))
    elif kind in ("fp16", "fp32", "fp64"):
        yield {"fp16": np.float16, "fp32": np.float32, "fp64": np.float64}[kind](value)
    else:
        yield value


def _unwritten(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(*args: Any, **kwargs: Any) -> Tensor:
        x = make(*args, **kwargs)
        if type(x) is Tensor and x.device.type == "cpu" and x.layout == torch.strided:
            storage = x.untyped_storage()
            words = storage.nbytes() // 4
            if words:
                np.ctypeslib.as_array((ctypes.c_uint32 * words).from_address(storage.data_ptr()))[:] = UNWRITTEN
        return x

    return made


@contextmanager
def _driver(capability: int) -> Iterator[None]:
    """Has Triton compile for an NVIDIA GPU of this compute capability that need not be there."""
    compiler, runtime = importlib.import_module("triton.backends.compiler"), importlib.import_module("triton.runtime")
    stand_in = mock.Mock(spec_set=("get_current_target", "get_current_device", "get_current_stream"))
    stand_in.get_current_target.return_value = compiler.GPUTarget("cuda", capability, 32)
    stand_in.get_current_device.return_value = capability  # Triton keeps what it has compiled by the device's number
    stand_in.get_current_stream.return_value = 0
    runtime.driver.set_active(stand_in)
    try:
        yield
    finally:
        with suppress(RuntimeError):  # that there is no GPU to go back to
            runtime.driver.reset_active()
