"""The C++ kernels of hard thresholds (by_cpp.cpp), called through ctypes on torch tensors."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from ..runtime import dispatch, native
from .definition import KINDS, Form, rule_of
from .layout import channels, code_bytes, in_one_piece, ordered, y_like, y_shape, z_like, z_shape

SOURCE = Path(__file__).with_name("by_cpp.cpp")

FORWARD, BACKWARD, SUMS = (
    Tuned(name, Space({"threads": native.THREADS}), default=lambda problem: {"threads": 0}, source=SOURCE)
    for name in ("hard_threshold.cpp", "hard_threshold_backward.cpp", "hard_threshold_sums.cpp")
)
_SMALL = 1 << 16  # elements that one thread takes before another would start
_FAMILIES = ("all", "mask", "sided", "sech", "ramp", "adaline")
_KEPT = ("z", "m", "bits", "byte")


class _Call(ctypes.Structure):
    """Mirrors `struct Numbers` in by_cpp.cpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("count", "channels", "inner", "width")),
        *((name, ctypes.c_int64) for name in ("kind", "steps", "family", "is_open", "weighted", "kept", "keeps")),
        *((name, ctypes.c_int64) for name in ("mapped", "threads")),
        *((name, ctypes.c_double) for name in ("low", "high", "height", "slope", "offset")),
    )


@native.cached
def _functions(dtype: torch.dtype):
    library = native.required("hard_threshold", SOURCE, dtype)
    names = "forward", "backward", "sums", "statistics"
    return tuple(getattr(library, f"hard_threshold_{name}") for name in names)


def _call(tuned: Tuned, shape: Sequence[int], x: Tensor, form: Form, keep: bool = False, mapped: bool = False) -> _Call:
    """The numbers of a call, of z's shape and a tensor of its dtype and device."""
    outer, of_channel, inner = channels(shape, form) if len(shape) > 1 else (1, 1, 1)
    rule, count, width = rule_of(form), math.prod(shape), 0
    if form.pool:
        count, width = count // 4, shape[-1] // 2
    config = tuned.config({"N": outer, "C": of_channel, "M": inner, "dtype": str(x.dtype)}, x.device)
    return _Call(
        *(count, of_channel, inner, width, KINDS.index(form.kind), form.steps, _FAMILIES.index(rule.family)),
        *(rule.is_open, form.weighted, _KEPT.index(form.kept), keep, mapped),
        native.threads(config["threads"], count, _SMALL),
        *(rule.low, rule.high, rule.height, rule.slope, rule.offset),
    )


def _run(number: int, call: _Call, dtype: torch.dtype, *tensors: Tensor | None) -> None:
    """Calls a function of the library with the addresses of these tensors."""
    addresses = (ctypes.c_void_p * len(tensors))(*(None if x is None else x.data_ptr() for x in tensors))
    if call.count and _functions(dtype)[number](ctypes.byref(call), addresses):
        raise MemoryError("hard_threshold: no memory for the buffers of its threads")


def forward(z: Tensor, scale: Tensor | None, shift: Tensor | None, form: Form, keep: bool) -> tuple[Tensor, ...]:
    """y, m if it is kept, and what is kept of the rule and of the maxima, as `by_torch.forward`."""
    z, y = ordered(z, form), y_like(z, form)
    kept = y.new_empty(y.shape if keep and form.kept == "m" else (0,))
    code = z.new_empty((code_bytes(y.numel(), form) if keep else 0,), dtype=torch.uint8)
    _run(0, _call(FORWARD, z.shape, z, form, keep), z.dtype, z, *in_one_piece(scale, shift), y, kept, code)
    return y, kept, code


def backward(
    dy: Tensor, z: Tensor | None, scale: Tensor | None, shift: Tensor | None, kept: Tensor, code: Tensor,
    coefficients: Tensor | None, form: Form,
) -> Tensor:  # fmt: skip
    """dz, as `by_torch.backward`."""
    dz = z_like(dy, form)
    call = _call(BACKWARD, dz.shape, dy, form, mapped=coefficients is not None)
    tensors = (
        *(ordered(dy, form), None if z is None else ordered(z, form), *in_one_piece(scale, shift, kept, code)),
        *(dz, None, None, *in_one_piece(coefficients)),
    )
    _run(1, call, dy.dtype, *tensors)
    return dz


def sums(dy: Tensor, z: Tensor, scale: Tensor | None, shift: Tensor | None, center: Tensor, form: Form) -> Tensor:
    """Rows Σ dx, Σ dx (z − center) [2, C], as `by_torch.sums`; z is what was kept."""
    total = center.new_zeros((2, z.shape[1]))
    dy, z = ordered(dy, form), ordered(z, form)
    call = _call(SUMS, z.shape, z, form._replace(kept="z"))
    _run(2, call, z.dtype, dy, z, *in_one_piece(scale, shift, center), total)
    return total


def statistics(z: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C], as `by_torch.statistics`."""
    mean = z.new_full((z.shape[1],), math.nan, dtype=torch.promote_types(z.dtype, torch.float32))
    variance = mean.clone()
    z = ordered(z, form)
    _run(3, _call(SUMS, z.shape, z, form._replace(pool=False)), z.dtype, z, mean, variance)
    return mean, variance


def forward_plan(z: Tensor, form: Form, keep: bool) -> dispatch.Plan:
    """The plan of `forward` of contiguous tensors. No size is 0."""
    shape = y_shape(z.shape, form)
    size = code_bytes(math.prod(shape), form) if keep else 0
    outputs = (
        (z.dtype, shape),
        (z.dtype, shape if keep and form.kept == "m" else (0,)),
        (torch.uint8, (size,) if size else None),
    )
    return dispatch.plan(_functions(z.dtype)[0], outputs, _call(FORWARD, z.shape, z, form, keep))


def backward_plan(dy: Tensor, form: Form) -> dispatch.Plan:
    """The plan of `backward` of contiguous tensors, without coefficients; two empty outputs follow dz. No size is 0."""
    shape, nothing = z_shape(dy.shape, form), (dy.dtype, (0,))
    call = _call(BACKWARD, shape, dy, form)
    return dispatch.plan(_functions(dy.dtype)[1], ((dy.dtype, shape), nothing, nothing), call)
