"""Where tensors lie in memory: an op that works in place must know whether its operands overlap."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

_ORDINARY = (Tensor, torch.nn.Parameter)


def check_dense(op: str, name: str, x: Any, remedy: str = "") -> None:
    """
    Raises:
        TypeError: x is no tensor, or has no memory that its shape and strides describe; the message ends with remedy.
    """
    if type(x) in _ORDINARY and x.layout is torch.strided and not x.is_nested:
        return
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} is a {type(x).__name__}; expected a torch.Tensor")
    if isinstance(x, (UninitializedBuffer, UninitializedParameter)):
        raise TypeError(
            f"{op}: {name} is an {type(x).__name__}; expected an initialised tensor: call its module once, which "
            "takes the shape from the first input"
        )
    if x.is_nested:
        raise TypeError(f"{op}: {name} is a nested tensor; expected one shape for all: torch.nested.to_padded_tensor")
    if x.layout != torch.strided:
        raise TypeError(f"{op}: {name} has layout {x.layout}; expected torch.strided: {remedy or f'{name}.to_dense()'}")


def is_negation(x: Tensor) -> bool:
    """Whether x is a lazy negation, such as z.conj().imag, whose memory holds −x. torch.compile cannot ask: False."""
    return not torch.compiler.is_compiling() and x.is_neg()


def span(x: Tensor) -> tuple[int, int]:
    """The addresses of the first byte of x and of the byte behind its last."""
    begin = x.data_ptr()
    if x.is_contiguous():
        return begin, begin + x.nbytes
    last = sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    return begin, begin + (last + 1) * x.element_size()


def meet(x: Tensor, y: Tensor) -> bool:
    """Whether the spans of two tensors share a byte. If not, the tensors share none either."""
    (begin, end), (other_begin, other_end) = span(x), span(y)
    return begin < other_end and other_begin < end


def none_meet(tensors: Iterable[Tensor | None]) -> bool:
    """Whether no two of the spans share a byte: one sort, in place of a question for every two."""
    behind = 0
    for begin, end in sorted([span(x) for x in tensors if x is not None and x.numel()]):
        if begin < behind:
            return False
        behind = end
    return True


def apart(x: Tensor, *written: Tensor | None) -> Tensor:
    """x, or a copy of it if a write to one of the others could change it."""
    return x.clone() if any(y is not None and meet(x, y) for y in written) else x


def overlap(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors, one of them contiguous, share a byte."""
    if not meet(x, y):
        return False
    x, y = (y, x) if x.is_contiguous() else (x, y)
    begin, end = span(y)
    places = x.data_ptr() + _offsets(x) * x.element_size()
    return bool(((places > begin - x.element_size()) & (places < end)).any())


def repeats(x: Tensor) -> bool:
    """Whether two elements of x share memory, as those of an expanded tensor do."""
    if x.is_contiguous():
        return False
    reach = 0
    for step, size in sorted((step, size) for size, step in zip(x.shape, x.stride(), strict=True) if size > 1):
        if step == 0:
            return True
        if step <= reach:  # they may share memory: compare all offsets
            offsets = _offsets(x)
            return len(offsets.unique()) < len(offsets)
        reach += step * (size - 1)
    return False


def _offsets(x: Tensor) -> Tensor:
    """The offset of each element of x from its first, in elements."""
    offsets = torch.zeros(1, dtype=torch.int64, device="cpu")
    for size, step in zip(x.shape, x.stride(), strict=True):
        offsets = (offsets.unsqueeze(1) + torch.arange(size, device="cpu") * step).flatten()
    return offsets
