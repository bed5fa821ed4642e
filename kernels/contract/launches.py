"""Records the Triton launches of an op on the CPU, so that its kernels can be compiled for GPUs that are not here.

The op is called as the tuner calls it and on its samples, with Triton forced. Each launch is noted and none is made:
what a kernel would have written reads as zeros.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ... import autotune
from ...triton_or_stub import triton
from ..runtime import backend
from .registry import REGISTRY
from .spec import Sizes, Spec

CPU = torch.device("cpu")
TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
}


@dataclass(frozen=True)
class Launch:
    """A launch as `ahead_of_time.compile` takes it. Integers equal to 1 are constants, as in Triton's own launches."""

    kernel: Any
    signature: Mapping[str, str | tuple[str, ...]]
    constants: Mapping[str, Any]
    warps: int
    fuses: bool = True  # products with sums, as Triton does unless the launch forbids it

    @property
    def name(self) -> str:
        return self.kernel.__name__.strip("_").removesuffix("_kernel")

    @property
    def flags(self) -> dict[str, bool | str]:
        """The constants that choose a form of the kernel."""
        return {name: value for name, value in self.constants.items() if isinstance(value, bool | str)}

    @property
    def tile(self) -> dict[str, int]:
        """The constants that say how much a program takes at a time, which a config chooses."""
        return {name: value for name, value in self.constants.items() if name.startswith("BLOCK")}


def launches(op: str, shapes: Iterable[Sizes], dtype: torch.dtype) -> list[Launch]:
    """The distinct launches of a registered op: the tuner's calls at these shapes first, then those of its samples."""
    spec = REGISTRY.get(op)
    with recording() as made:
        for shape in shapes:
            for call in autotune.TUNABLE[op].calls(shape, dtype, CPU):
                call.run()
        if spec is not None:
            for call in _more_calls(spec, shapes, dtype):
                call()
    return made


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Forces Triton on CPU tensors inside the block, and gathers the distinct launches there. None is made.

    TRITON_INTERPRET must be off.
    """
    made: list[Launch] = []
    seen: set[str] = set()

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launch = _launch(kernel, args, options)
        key = repr((launch.name, launch.signature, launch.constants, launch.warps, launch.fuses))
        if key not in seen:
            seen.add(key)
            made.append(launch)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(triton.JITFunction, "run", run))
        stack.enter_context(mock.patch.object(backend, "why_off", return_value=""))
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
            stack.enter_context(mock.patch.object(owner, name, _zeroed(getattr(owner, name))))
        stack.enter_context(backend.forcing("triton", everywhere=True))
        yield made


def _more_calls(spec: Spec, shapes: Iterable[Sizes], dtype: torch.dtype) -> Iterator[Callable[[], Any]]:
    """The calls that the tuner does not make: on samples, and with NaN ignored."""
    pairs = [(sample.args, sample.kwargs) for sample in spec.samples(CPU) if sample.args[0].dtype == dtype]
    for shape in shapes:
        for kwargs in spec.variants.values():
            if spec.supports(dtype, kwargs) and "nan" in spec.parameters:
                pairs.append((spec.inputs(shape, dtype, CPU, 0), {**kwargs, "nan": "ignore"}))
    for args, kwargs in pairs:
        if "triton" in spec.offers(kwargs):
            yield from spec.runs(args, kwargs)


def _zeroed(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args, **kwargs: make(*args, **kwargs).zero_()


def _launch(kernel: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> Launch:
    values = dict(zip(kernel.arg_names, args, strict=False)) | dict(options)
    signature, constants = {}, {}
    for parameter in kernel.params:
        value = values[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            constants[parameter.name] = value
        else:
            signature[parameter.name] = _type(value)
    return Launch(kernel, signature, constants, options.get("num_warps", 4), options.get("enable_fp_fusion", True))


def _type(value: Any) -> Any:
    match value:
        case Tensor():
            return "*" + TYPES[value.dtype]
        case bool():
            return "i1"
        case int():
            return "i32" if -(2**31) <= value < 2**31 else "i64"
        case float():
            return "fp32"
        case tuple():
            types = map(_type, value)
            return type(value)(*types) if hasattr(value, "_fields") else tuple(types)
    raise TypeError(
        f"launches: an argument is a {type(value).__name__}; expected a tensor, a number or a tuple of them"
    )


def without_a_gpu(capability: int) -> None:
    """Has Triton plan and compile for an NVIDIA GPU of this compute capability that is not there, from now on.

    A stand-in takes the driver's place: Triton asks it what to compile for, and gets to launch nothing. Only for a
    process of its own, without TRITON_INTERPRET.
    """
    compiler, runtime = importlib.import_module("triton.backends.compiler"), importlib.import_module("triton.runtime")
    target = compiler.GPUTarget("cuda", capability, 32)
    stand_in = mock.Mock(spec_set=("get_current_target", "get_current_device", "get_current_stream"))
    stand_in.get_current_target.return_value = target
    stand_in.get_current_device.return_value = stand_in.get_current_stream.return_value = 0
    runtime.driver.set_active(stand_in)
