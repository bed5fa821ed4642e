"""The log semiring's candidates and weights in plain torch, and what the kernels share: temperature and parts of C."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..mathematics.semiring import scale_of_differences


def accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def held(temperature: float, dtype: torch.dtype) -> float:
    """T, or the accumulator's smallest normal number, below which differences of its numbers do not tell it apart."""
    return max(temperature, torch.finfo(accumulator(dtype)).tiny)


def scaled(temperature: float, like: Tensor) -> Tensor:
    """The temperature as the kernels take it: T and 1, scaled."""
    scale = scale_of_differences(temperature)
    pair = torch.full((2,), scale, dtype=accumulator(like.dtype), device=like.device)
    pair[:1].fill_(held(temperature, like.dtype) * scale)  # no copy from the host: a CUDA graph can hold none
    return pair


def parts_of(a: Tensor, b: Tensor, keeps: bool) -> tuple[Tensor, Tensor]:
    """Room for top and share [B, M, N], or [0] where nobody keeps them."""
    shape = (a.shape[0], a.shape[1], b.shape[2]) if keeps else (0,)
    return a.new_empty(shape), a.new_empty(shape, dtype=accumulator(a.dtype))


def chunks(a: Tensor, b: Tensor) -> Iterator[slice]:
    """Rows of A, as many at a time as keep the candidates [B, rows, K, N] near 2 M elements."""
    (B, M, K), N = a.shape, b.shape[-1]
    rows = max(1, (1 << 21) // (B * K * N))
    return (slice(m, m + rows) for m in range(0, M, rows))


def candidates(a: Tensor, b: Tensor, ignore_nan: bool) -> Tensor:
    """[B, rows, K, N] of some rows, rounded to the dtype, in the accumulator's."""
    x = (a.unsqueeze(-1) + b.unsqueeze(-3)).to(accumulator(a.dtype))
    return x.masked_fill(x.isnan(), float("-inf")) if ignore_nan else x


def over_temperature(x: Tensor, top: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    """(x − top) / T; NaN where both are the same infinity."""
    scale = scale_of_differences(temperature)
    return (x * scale - top * scale if scale != 1 else x - top) / (held(temperature, dtype) * scale)


def exponentials(x: Tensor, top: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    """exp((x − top) / T), 1 where x is top, infinite ones too."""
    return over_temperature(x, top, temperature, dtype).exp_().masked_fill_(x == top, 1)


def weights(a: Tensor, b: Tensor, temperature: float, ignore_nan: bool) -> Tensor:
    """w[m, k, n] of some rows, in the accumulator's dtype, made of operations that torch differentiates."""
    x = candidates(a, b, ignore_nan)
    top = x.detach().amax(-2, keepdim=True)
    infinite = top.isinf()
    e = over_temperature(x, top, temperature, a.dtype).masked_fill(infinite, 0).exp()
    e = e.masked_fill(infinite & (x != top), 0)
    return e * e.sum(-2, keepdim=True).reciprocal().masked_fill(top == float("-inf"), 0)
