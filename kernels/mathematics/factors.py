"""Checks of the tropical products' arguments: each error names the op, what came and what was expected."""

from __future__ import annotations

import math
import numbers

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..runtime import arguments, memory
from ..runtime.arguments import FLOATS, INTEGERS, broadcast, listed, looks_at_values
from .semiring import MOST_CANDIDATES, SEMIRINGS, value_dtype

_SUPPORTED = frozenset((*FLOATS, *INTEGERS))
_ORDINARY = (Tensor, torch.nn.Parameter)


def fit(a: Tensor, b: Tensor, b_rank: int) -> bool:
    """Whether a and b are tensors on the CPU, or on one GPU, of one dtype and sizes that fit, with one b for all of a.

    The checks of a small call may take longer than its kernel, so these are the cheapest questions that Python can ask.
    If the answer is no, the caller asks `check_factors`, which accepts the factors after all or says what is wrong. The
    plan of the operator's CPU kernel checks the dtype and the layouts, once for each kind of call; no plan does on a
    GPU. Autocast matters to factors of one dtype only in the log semiring.
    """
    try:
        return (
            type(a) in _ORDINARY
            and type(b) in _ORDINARY
            and ((a.is_cpu and b.is_cpu) or (a.is_cuda and b.device == a.device and are_alike(a, b)))
            and a.dtype is b.dtype
            and len(a_shape := a.shape) > 1
            and len(b_shape := b.shape) == b_rank
            and a_shape[-1] == b_shape[0] <= MOST_CANDIDATES
        )
    except RuntimeError:  # a nested tensor has no shape
        return False


def are_alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors that `fit` would pass `check_tensors`."""
    return a.dtype in _SUPPORTED and a.layout is b.layout is torch.strided


def under_autocast(a: Tensor, b: Tensor, semiring: str) -> tuple[Tensor, Tensor]:
    """The factors as autocast wants them; outside it, as they are.

    Nothing is cast down: no tensor core would gain by it, and the products stay exact. Factors of two float dtypes meet
    in the wider one, and the log semiring takes 16-bit floats in float32, as torch's softmax does.
    """
    a, b = arguments.under_autocast((a, b), sums=semiring == "log")
    return a, b


def check_tensors(op: str, **tensors: Tensor) -> None:
    """Demands that both are strided tensors of one supported dtype, on one device."""
    for name, x in tensors.items():
        memory.check_dense(op, name, x)
        if x.dtype not in _SUPPORTED:
            raise TypeError(f"{op}: {name} is {x.dtype}; expected one of {listed((*FLOATS, *INTEGERS))}")
    (a_name, a), (b_name, b) = tensors.items()
    if a.dtype != b.dtype:
        raise TypeError(f"{op}: {a_name} is {a.dtype} and {b_name} is {b.dtype}; expected one dtype")
    if a.device != b.device:
        raise ValueError(
            f"{op}: {a_name} {tuple(a.shape)} is on {a.device} and {b_name} {tuple(b.shape)} on {b.device}; "
            "expected one device"
        )


def check_factors(op: str, a: Tensor, b: Tensor, b_name: str, b_rank: int, b_shape: str) -> None:
    """Demands that a [..., M, K] and the other factor pass `check_tensors`, and have the ranks that they need."""
    check_tensors(op, **{"a": a, b_name: b})
    for name, x, rank, shape in (("a", a, 2, "[..., M, K]"), (b_name, b, b_rank, b_shape)):
        if x.dim() < rank:
            raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}; expected {shape}")
    check_candidates(op, "a", a.shape[-1], tuple(a.shape))


def check_candidates(op: str, name: str, K: int, shape: tuple[int, ...]) -> None:
    """Demands that K candidates can be numbered by a winner's 32 bits."""
    if K > MOST_CANDIDATES:
        raise ValueError(
            f"{op}: {name} has shape {shape}, so {K} candidates for each output; expected at most 2³¹: take them in "
            "parts, and the best of the parts' results"
        )


def check_nan(op: str, nan: str) -> None:
    if nan not in ("propagate", "ignore"):
        raise ValueError(f"{op}: nan is {nan!r}; expected 'propagate' or 'ignore'")


def check_batches(op: str, a_batch: torch.Size, b_batch: torch.Size, b_name: str) -> None:
    """Demands that the batch shapes broadcast."""
    if not broadcast(a_batch, b_batch):
        raise ValueError(f"{op}: {b_name}'s batch {tuple(b_batch)} does not broadcast with a's {tuple(a_batch)}")


def as_temperature(op: str, temperature: float | Tensor) -> float:
    """The temperature as a Python number. A tensor's value is read, unless the tensor would lose a gradient by that."""
    if isinstance(temperature, Tensor):
        return _read(op, temperature)
    if not isinstance(temperature, numbers.Real | torch.SymFloat) or isinstance(temperature, bool):
        raise TypeError(f"{op}: temperature is {temperature!r}; expected a number")
    return temperature if isinstance(temperature, int | float | torch.SymFloat) else float(temperature)


def _read(op: str, temperature: Tensor) -> float:
    remedy = "expected a number: the temperature has no gradient here; pass temperature.item()"
    if temperature.dim() or temperature.is_complex() or temperature.dtype == torch.bool:
        raise TypeError(
            f"{op}: temperature is a tensor of shape {tuple(temperature.shape)} and {temperature.dtype}; expected a "
            "number, one for all rows, or a tensor of no dimensions"
        )
    if temperature.requires_grad and torch.is_grad_enabled():
        raise TypeError(f"{op}: temperature requires a gradient; {remedy}")
    if forward_ad.unpack_dual(temperature).tangent is not None:
        raise TypeError(f"{op}: temperature carries a tangent; {remedy}")
    try:
        return temperature.item()
    except RuntimeError as error:  # vmap, or a tensor without data
        raise TypeError(
            f"{op}: temperature is a tensor without a value, of meta or of a transform; {remedy}"
        ) from error


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
    if nan != "propagate":
        check_nan(op, nan)
    if not 0 < temperature < math.inf:
        raise ValueError(f"{op}: temperature is {temperature}; expected a positive finite number")
    if semiring == "log":
        if dtype in FLOATS and temperature > torch.finfo(torch.promote_types(out_dtype or dtype, torch.float32)).max:
            raise ValueError(f"{op}: temperature is {temperature}; expected one that float32 holds, or a in float64")
        if return_indices:
            raise ValueError(f"{op}: return_indices is True; the log semiring has no winners: expected False")
        if dtype not in FLOATS:
            raise TypeError(f"{op}: a is {dtype}; the log semiring takes one of {listed(FLOATS)}")
    if out_dtype is not None and not _is_wider(dtype, out_dtype):
        raise TypeError(f"{op}: out_dtype is {out_dtype}; expected a dtype of a's kind at least as wide as its {dtype}")


def check_winners(op: str, winners: Tensor, K: int) -> None:
    """Demands winners in [−1, K). On a GPU, where looking synchronises, only detect_anomaly() makes it look."""
    if looks_at_values(winners.device):
        lowest, highest = (int(x) for x in winners.aminmax())
        if lowest < -1 or highest >= K:
            raise IndexError(f"{op}: winners are in [{lowest}, {highest}]; expected the forward's, in [-1, {K})")


def _is_wider(dtype: torch.dtype, out_dtype: torch.dtype) -> bool:
    kind = FLOATS if dtype in FLOATS else INTEGERS
    return out_dtype in kind and value_dtype(out_dtype) == out_dtype == torch.promote_types(dtype, out_dtype)
