"""The C++ kernels of hard thresholds (by_cpp.cpp), called through ctypes on torch tensors."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from ..runtime import native
from .definition import KINDS, Form, rule_of
from .layout import channels, code_bytes, ordered, y_like

SOURCE = Path(__file__).with_name("by_cpp.cpp")

FORWARD, BACKWARD, SUMS = (
    Tuned(name, Space({"threads": native.THREADS}), default=lambda problem: {"threads": 0}, source=SOURCE)
    for name in ("hard_threshold.cpp", "hard_threshold_backward.cpp", "hard_threshold_sums.cpp")
)
_SMALL = 1 << 16  # elements that one thread takes before another would start
_FAMILIES = ("all", "mask", "sided", "sech", "ramp", "adaline")
_KEPT = ("z", "m", "bits", "byte")


class _Call(ctypes.Structure):
    """Mirrors `struct Call` in by_cpp.cpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("count", "channels", "inner", "width")),
        *((name, ctypes.c_int64) for name in ("kind", "steps", "family", "is_open", "weighted", "kept", "keeps")),
        ("threads", ctypes.c_int64),
        *((name, ctypes.c_double) for name in ("low", "high", "height", "slope", "offset")),
        *((name, ctypes.c_void_p) for name in ("z", "scale", "shift", "y", "kept_m", "code", "dy")),
        *((name, ctypes.c_void_p) for name in ("coefficients", "dz", "center", "sums")),
    )


@native.cached
def _functions(dtype: torch.dtype):
    library = native.required("hard_threshold", SOURCE, dtype)
    functions = library.hard_threshold_forward, library.hard_threshold_backward, library.hard_threshold_sums
    for function in functions:
        function.argtypes = [ctypes.POINTER(_Call)]
    return functions


def _run(number: int, tuned: Tuned, shape: torch.Size, like: Tensor, form: Form, keep: bool, **tensors: Tensor | None):
    """Calls a function of the library, of z.s shape and a tensor like y."""
    outer, of_channel, inner = channels(shape, form) if len(shape) > 1 else (1, 1, 1)
    rule, count = rule_of(form), like.numel()
    config = tuned.config({"N": outer, "C": of_channel, "M": inner, "dtype": str(like.dtype)}, like.device)
    width = like.shape[-1] if form.pool else 0
    call = _Call(
        *(count, of_channel, inner, width, KINDS.index(form.kind), form.steps, _FAMILIES.index(rule.family)),
        *(rule.is_open, form.weighted, _KEPT.index(form.kept), keep, native.threads(config["threads"], count, _SMALL)),
        *(rule.low, rule.high, rule.height, rule.slope, rule.offset),
        **{name: x.data_ptr() for name, x in tensors.items() if x is not None},
    )
    if count and _functions(like.dtype)[number](call):
        raise MemoryError("hard_threshold: no memory for the buffers of its threads")


def forward(z: Tensor, scale: Tensor | None, shift: Tensor | None, form: Form, keep: bool) -> tuple[Tensor, ...]:
    """y, m if it is kept, and what is kept of the rule and of the maxima, as `by_torch.forward`."""
    z, y = ordered(z, form), y_like(z, form)
    kept = y.new_empty(y.shape if keep and form.kept == "m" else (0,))
    code = z.new_empty((code_bytes(y.numel(), form) if keep else 0,), dtype=torch.uint8)
    scale, shift = _in_one_piece(scale, shift)
    _run(0, FORWARD, z.shape, y, form, keep, z=z, scale=scale, shift=shift, y=y, kept_m=kept, code=code)
    return y, kept, code


def backward(
    dy: Tensor, z: Tensor | None, scale: Tensor | None, shift: Tensor | None, kept: Tensor, code: Tensor,
    coefficients: Tensor | None, form: Form,
) -> Tensor:  # fmt: skip
    """dz, as `by_torch.backward`."""
    shape = (*dy.shape[:-2], 2 * dy.shape[-2], 2 * dy.shape[-1]) if form.pool else dy.shape
    order = torch.channels_last if form.channels_last else torch.contiguous_format
    dz = torch.empty(shape, dtype=dy.dtype, device=dy.device, memory_format=order)
    dy = ordered(dy, form)
    z = None if z is None else ordered(z, form)
    scale, shift, coefficients, kept, code = _in_one_piece(scale, shift, coefficients, kept, code)
    _run(
        1, BACKWARD, dz.shape, dy, form, True,
        dy=dy, z=z, scale=scale, shift=shift, kept_m=kept, code=code, coefficients=coefficients, dz=dz,
    )  # fmt: skip
    return dz


def sums(dy: Tensor, z: Tensor, scale: Tensor | None, shift: Tensor | None, center: Tensor, form: Form) -> Tensor:
    """Rows Σ dx, Σ dx (z − center) [2, C], as `by_torch.sums`; z is what was kept."""
    total = center.new_zeros((2, z.shape[1]))
    dy, z = ordered(dy, form), ordered(z, form)
    scale, shift, center = _in_one_piece(scale, shift, center)
    form = form._replace(kept="z")
    _run(2, SUMS, z.shape, dy, form, True, dy=dy, z=z, scale=scale, shift=shift, center=center, sums=total)
    return total


def _in_one_piece(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.contiguous() for x in tensors]
