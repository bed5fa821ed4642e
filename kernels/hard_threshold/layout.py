"""How tensors of hard thresholds lie in memory, and how what is kept for the backward does.

What is kept is a row of bytes. The elements of y, n in all, stand in it in the order in which y lies in memory:
first, for "byte", a byte an element: the factor's share of its largest value, 255 for all of it. Then bit planes of
ceil(n / 8) bytes each; element i is bit i % 8 of byte i // 8, and bits beyond n are 0. The planes are, in this order:
of a mask, whether the element passes; of a sided rule, whether m ≥ low and whether m ≤ high; of a pool, the winner's
column and its row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .definition import Form, rule_of


def ordered(z: Tensor, form: Form) -> Tensor:
    """z, contiguous or by rows of channels, as the form says; z itself where it lies so."""
    return z.contiguous(memory_format=torch.channels_last) if form.channels_last else z.contiguous()


def in_one_piece(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.contiguous() for x in tensors]


def y_like(z: Tensor, form: Form) -> Tensor:
    """An empty y."""
    return _empty(z, y_shape(z.shape, form), form)


def z_like(dy: Tensor, form: Form) -> Tensor:
    """An empty dz."""
    return _empty(dy, z_shape(dy.shape, form), form)


def _empty(like: Tensor, shape: tuple[int, ...], form: Form) -> Tensor:
    memory_format = torch.channels_last if form.channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def y_shape(shape: Sequence[int], form: Form) -> tuple[int, ...]:
    """y's, of z's."""
    return (*shape[:-2], shape[-2] // 2, shape[-1] // 2) if form.pool else tuple(shape)


def z_shape(shape: Sequence[int], form: Form) -> tuple[int, ...]:
    """z's, of y's."""
    return (*shape[:-2], 2 * shape[-2], 2 * shape[-1]) if form.pool else tuple(shape)


def planes(form: Form) -> int:
    """The bit planes that are kept."""
    if form.kept == "z":
        return 0
    return ((rule_of(form).bits or 0) if form.kept == "bits" else 0) + 2 * form.pool


def code_bytes(count: int, form: Form) -> int:
    """The bytes that are kept of so many elements of y, beside z or m."""
    return (count if form.kept == "byte" else 0) + planes(form) * ((count + 7) // 8)


def channels(shape: Sequence[int], form: Form) -> tuple[int, int, int]:
    """(outer, C, inner): x[o, c, i] is how elements of z lie in memory; c is z's dimension 1."""
    C = shape[1]
    if form.channels_last:
        return shape[0] * shape[2] * shape[3], C, 1
    return shape[0], C, math.prod(shape[2:])
