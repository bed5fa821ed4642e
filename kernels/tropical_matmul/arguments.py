"""What the tropical products accept, matrix or vector: each error names the op, what came and what was expected."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import backend
from .definition import FLOATS, INTEGERS, SEMIRINGS, value_dtype


def under_autocast(a: Tensor, b: Tensor, semiring: str) -> tuple[Tensor, Tensor]:
    """The factors as autocast wants them; outside it, as they are.

    Nothing is cast down: no tensor core would gain by it, and the products stay exact. Factors of two float dtypes meet
    in the wider one, and the log semiring takes 16-bit floats in float32, as torch's softmax does.
    """
    tensors = isinstance(a, Tensor) and isinstance(b, Tensor)
    if not tensors or a.device.type not in backend.DEVICES or not torch.is_autocast_enabled(a.device.type):
        return a, b
    if a.dtype not in FLOATS or b.dtype not in FLOATS:
        return a, b
    dtype = torch.promote_types(a.dtype, b.dtype)
    if semiring == "log":
        dtype = torch.promote_types(dtype, torch.float32)
    return a.to(dtype), b.to(dtype)


def check_factors(op: str, a: Tensor, b: Tensor, b_name: str, b_rank: int, b_shape: str) -> None:
    """a [..., M, K] and the other factor are strided tensors of one supported dtype, on one device, of enough ranks."""
    supported = (*FLOATS, *INTEGERS)
    for name, x, rank, shape in (("a", a, 2, "[..., M, K]"), (b_name, b, b_rank, b_shape)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{op}: {name} is a {type(x).__name__}; expected a torch.Tensor")
        if x.layout != torch.strided:
            raise TypeError(f"{op}: {name} has layout {x.layout}; expected torch.strided: {name}.to_dense()")
        if x.dtype not in supported:
            raise TypeError(f"{op}: {name} is {x.dtype}; expected one of {_listed(supported)}")
        if x.dim() < rank:
            raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}; expected {shape}")
    if a.dtype != b.dtype:
        raise TypeError(f"{op}: a is {a.dtype} and {b_name} is {b.dtype}; expected one dtype")
    if a.device != b.device:
        raise ValueError(
            f"{op}: a {tuple(a.shape)} is on {a.device} and {b_name} {tuple(b.shape)} on {b.device}; "
            "expected one device"
        )


def check_batches(op: str, a_batch: torch.Size, b_batch: torch.Size, b_name: str) -> None:
    """The batch shapes broadcast."""
    for x, y in zip(reversed(a_batch), reversed(b_batch), strict=False):
        if x != y and x != 1 and y != 1:
            raise ValueError(f"{op}: {b_name}'s batch {tuple(b_batch)} does not broadcast with a's {tuple(a_batch)}")


def check_options(
    op: str,
    dtype: torch.dtype,
    semiring: str,
    temperature: float,
    return_indices: bool,
    nan: str,
    out_dtype: torch.dtype | None,
) -> None:
    if semiring not in SEMIRINGS:
        raise ValueError(f"{op}: semiring is {semiring!r}; expected one of {', '.join(map(repr, SEMIRINGS))}")
    if nan not in ("propagate", "ignore"):
        raise ValueError(f"{op}: nan is {nan!r}; expected 'propagate' or 'ignore'")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"{op}: temperature is {temperature}; expected a positive finite number")
    if semiring == "log":
        if return_indices:
            raise ValueError(f"{op}: return_indices is True; the log semiring has no winners: expected False")
        if dtype not in FLOATS:
            raise TypeError(f"{op}: a is {dtype}; the log semiring takes one of {_listed(FLOATS)}")
    if out_dtype is not None and not _is_wider(dtype, out_dtype):
        raise TypeError(f"{op}: out_dtype is {out_dtype}; expected a dtype of a's kind at least as wide as its {dtype}")


def _is_wider(dtype: torch.dtype, out_dtype: torch.dtype) -> bool:
    kind = FLOATS if dtype in FLOATS else INTEGERS
    return out_dtype in kind and value_dtype(out_dtype) == out_dtype == torch.promote_types(dtype, out_dtype)


def _listed(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
