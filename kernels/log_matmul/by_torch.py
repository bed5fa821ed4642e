"""The log semiring in plain torch, a chunk of rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from ..mathematics.semiring import scale_of_differences
from .definition import accumulator, candidates, chunks, exponentials, held, parts_of


def forward(a: Tensor, b: Tensor, temperature: float, ignore_nan: bool, keeps: bool):
    c, (top, share) = a.new_empty(a.shape[0], a.shape[1], b.shape[2]), parts_of(a, b, keeps)
    scale = scale_of_differences(temperature)
    degree = held(temperature, a.dtype) * scale
    for rows in chunks(a, b):
        x = candidates(a[:, rows], b, ignore_nan)
        highest = x.amax(-2)
        total = exponentials(x, highest.unsqueeze(-2), temperature, a.dtype).sum(-2)
        c[:, rows] = (highest * scale + degree * total.log()) / scale
        if keeps:
            top[:, rows] = highest
            share[:, rows] = total.reciprocal().masked_fill_(highest == float("-inf"), 0)  # there is nothing to route
    return c, top, share


def backward(dc, top, share, a, b, temperature, ignore_nan, needs_a, needs_b):
    da = a.new_empty(a.shape if needs_a else (0,))
    db = torch.zeros(b.shape if needs_b else (0,), dtype=accumulator(b.dtype), device=b.device)
    for rows in chunks(a, b):
        x = candidates(a[:, rows], b, ignore_nan)
        w = exponentials(x, top[:, rows].to(x.dtype).unsqueeze(-2), temperature, a.dtype)
        dx = w.mul_((dc[:, rows] * share[:, rows]).unsqueeze(-2))
        if needs_a:
            da[:, rows] = dx.sum(-1).to(a.dtype)
        if needs_b:
            db += dx.sum(-3)
    return da, db.to(b.dtype)
