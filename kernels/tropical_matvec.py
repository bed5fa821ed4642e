"""Tropical matrix-vector product: y[m] = max_k A[m, k] + x[k], and its kin with min, with ·, and smoothed.

It is the tropical matrix product, and takes everything from there: winners, ties, NaN, gradients, backends. One matrix
for many vectors is Y = X Aᵀ, which reads A once for all of them; in a batch of matrices x is their one column. The C++
kernel reads rows of A as they lie, a few at a time.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from .contract.misuses import misuse_of
from .contract.registry import register
from .contract.samples import SPECIAL, sampled, short
from .contract.spec import Misuse, Sizes, Spec
from .contract.workloads import Function, Prepare, called, rivals, standard, trained
from .mathematics.factors import (
    are_alike,
    as_temperature,
    check_batches,
    check_factors,
    check_options,
    fit,
    under_autocast,
)
from .runtime.arguments import FLOATS, INTEGERS
from .runtime.tracing import stand_ins
from .tropical_matmul import _FORWARDS, SEMIRINGS, by_cpp, tropical_matmul, tropical_matmul_ref
from .tropical_matmul.spec import inputs as matmul_inputs
from .tropical_matmul.spec import option_misuses, scalings, supports

# ------------------------------------------------------------------------------------------------ public


class TropicalMatvec(NamedTuple):
    """The result of `tropical_matvec(..., return_indices=True)`, named as that of torch.max."""

    values: Tensor
    indices: Tensor


@overload
def tropical_matvec(
    a: Tensor,
    x: Tensor,
    *,
    semiring: str = "max_plus",
    temperature: float = 1.0,
    return_indices: Literal[False] = False,
    nan: str = "propagate",
    out_dtype: torch.dtype | None = None,
) -> Tensor: ...
@overload
def tropical_matvec(
    a: Tensor,
    x: Tensor,
    *,
    semiring: str = "max_plus",
    temperature: float = 1.0,
    return_indices: Literal[True],
    nan: str = "propagate",
    out_dtype: torch.dtype | None = None,
) -> TropicalMatvec: ...
def tropical_matvec(
    a: Tensor,
    x: Tensor,
    *,
    semiring: str = "max_plus",
    temperature: float = 1.0,
    return_indices: bool = False,
    nan: str = "propagate",
    out_dtype: torch.dtype | None = None,
) -> Tensor | TropicalMatvec:
    """Tropical matrix-vector product, batched: y[..., m] = max_k A[..., m, k] + x[..., k].

    Equal to `tropical_matmul(a, x.unsqueeze(-1)).squeeze(-1)` in semirings, values, winners and gradients.

    Args:
        a: [..., M, K] float64, float32, float16, bfloat16, int32, int16 or int8, any strides.
        x: [..., K], the dtype and device of a; its batch dimensions broadcast with a's.
        semiring: "max_plus", "min_plus", "max_times" or "log", as in `tropical_matmul`.
        temperature: T > 0 of the log semiring, as in `tropical_matmul`, in the units of a and x; the others ignore it.
        return_indices: also return the winners k*(m), the smallest k at ties.
        nan: "propagate": the first NaN candidate wins, as in torch.max. "ignore": NaN candidates are skipped.
        out_dtype: a wider dtype to compute and return in, of the same kind; by default that of a, and int32 for int8.

    Returns:
        y [..., M]; with return_indices a named tuple (values, indices), indices int64, −1 where there was no
        candidate. Differentiable any number of times in reverse mode; forward mode raises NotImplementedError.

    Raises:
        TypeError: a or x is no strided tensor of a supported dtype, their dtypes differ, out_dtype is not wider, or the
            temperature is no number, or requires a gradient.
        ValueError: devices, ranks, sizes or batch shapes do not fit, K is beyond 2³¹, an option is not one of those
            above, the temperature is not positive and finite, or winners are asked of the log semiring, which has none.
    """
    if type(temperature) is not float:
        temperature = as_temperature("tropical_matvec", temperature)
    if semiring == "log" or not (fit(a, x, 1) and are_alike(a, x)):
        if proxies := stand_ins(a, x):
            options = {"semiring": semiring, "temperature": temperature, "return_indices": return_indices}
            return handle_torch_function(tropical_matvec, proxies, a, x, **options, nan=nan, out_dtype=out_dtype)
        a, x = under_autocast(a, x, semiring)
        check_factors("tropical_matvec", a, x, "x", 1, "[..., K]")
        if a.shape[-1] != x.shape[-1]:
            raise ValueError(
                f"tropical_matvec: x has shape {tuple(x.shape)}; "
                f"expected [..., {a.shape[-1]}], to follow a's {tuple(a.shape)}"
            )
        check_batches("tropical_matvec", a.shape[:-2], x.shape[:-1], "x")
    check_options("tropical_matvec", a.dtype, semiring, temperature, return_indices, nan, out_dtype)
    if a.dim() > 2:
        left, right, column = a, x.unsqueeze(-1), -1
    else:  # vectors are rows of one product
        left, right, column = (x.unsqueeze(0), a.mT, 0) if x.dim() == 1 else (x, a.mT, None)
    options = {"semiring": semiring, "temperature": temperature, "nan": nan, "out_dtype": out_dtype}
    if return_indices:
        product = tropical_matmul(left, right, return_indices=True, **options)
        return TropicalMatvec(*(product if column is None else (y.squeeze(column) for y in product)))
    y = tropical_matmul(left, right, **options)
    return y if column is None else y.squeeze(column)


# ------------------------------------------------------------------------------------------------ the op as data


def tropical_matvec_ref(a, x, *, return_indices=False, out_dtype=None, **options):
    """The oracle: the definition of the matrix product, on one column."""
    a, x = a.to(out_dtype or a.dtype), x.to(out_dtype or x.dtype)
    values, winners = tropical_matmul_ref(a, x.unsqueeze(-1), **options)
    return (values.squeeze(-1), winners.squeeze(-1)) if return_indices else values.squeeze(-1)


def inputs(shape: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    """Standard normal A [M, K] and x [B, K]; integers from ±1000."""
    a, columns = matmul_inputs({"M": shape["M"], "K": shape["K"], "N": shape["B"]}, dtype, device, seed)
    return a, columns.mT.contiguous()


def _steps(shape: Sizes) -> int:
    return shape["B"] * shape["M"] * shape["K"]


def _dense(a: Tensor, x: Tensor) -> Tensor:
    return (a + x.unsqueeze(-2)).amax(-1)


def _dense_of_one_winner(a: Tensor, x: Tensor) -> Tensor:
    return (a + x.unsqueeze(-2)).max(-1).values  # amax shares its gradient among ties


def _output(a: Tensor, x: Tensor) -> tuple[int, ...]:
    return *x.shape[:-1], a.shape[-2]


def _trained(product: Function) -> Prepare:
    return trained(product, _output)


WORKLOADS = standard(
    "matvec",
    tropical_matvec,
    inputs,
    _output,
    _steps,
    "add_max",
    forward=rivals(_dense, called),
    training=rivals(_dense_of_one_winner, _trained, "dense autograd"),
    saves_winners=True,
    dtypes=(*FLOATS, torch.int32, torch.int16),  # as the product's
)


@sampled
def samples(add, numbers) -> None:
    """The matrix product's samples, and those of one column and its batches."""
    special = torch.tensor(SPECIAL)
    for semiring in ("max_plus", "min_plus", "max_times"):
        for dtype in (torch.float32, torch.float16):
            for nan in ("propagate", "ignore"):
                label = f"{semiring}-{short(dtype)}-{nan}"
                pairs = special.view(7, 1, 1).expand(7, 1, 1), special.view(1, 7, 1)
                add(f"special-{label}", *(x.to(dtype) for x in pairs), semiring=semiring, nan=nan)
        a, x = numbers.small(2, 1, 9, 33), numbers.small(3, 33)
        add(f"broadcast-{semiring}", a, x, semiring=semiring)
        add(f"shared-vector-{semiring}", a, x[0], semiring=semiring)
        add(f"matrices-{semiring}", a[:, 0], x[:2], semiring=semiring)
        add(f"shared-matrix-{semiring}", a[0, 0], x, semiring=semiring)
        add(f"int32-{semiring}", a.int(), x.int(), semiring=semiring)
        add(f"wider-{semiring}", a.half(), x.half(), semiring=semiring, out_dtype=torch.float32)
        for M, K in ((0, 3), (3, 0), (0, 0), (1, 1)):
            add(f"edge-{semiring}-{M}x{K}", torch.randn(M, K), torch.randn(K), semiring=semiring)
        add(f"edge-{semiring}-no-batch", torch.randn(0, 3, 4), torch.randn(0, 4), semiring=semiring)
    add("matrices-log", numbers.normal(2, 9, 13), numbers.normal(2, 13), semiring="log")
    add("log", numbers.normal(2, 9, 13), numbers.normal(13), semiring="log")


def misuses(device: torch.device) -> list[Misuse]:
    a, x = torch.zeros(2, 3, device=device), torch.zeros(3, device=device)
    bad = misuse_of(tropical_matvec)
    batches = a.expand(2, 2, 3), x.expand(3, 3)
    return [
        bad("no-matrix", ValueError, r"a has shape \(3,\); expected \[\.\.\., M, K\]", x, x),
        bad("scalar", ValueError, r"x has shape \(\); expected \[\.\.\., K\]", a, x[0]),
        bad("size", ValueError, r"x has shape \(2,\); expected \[\.\.\., 3\], to follow a's \(2, 3\)", a, x[:2]),
        bad("batch", ValueError, r"x's batch \(3,\) does not broadcast with a's \(2,\)", *batches),
        *option_misuses(tropical_matvec, a, x),
    ]


SPEC = register(
    Spec(
        name="tropical_matvec",
        op=tropical_matvec,
        oracle=tropical_matvec_ref,
        inputs=inputs,
        shapes={
            "square": {"M": 4096, "K": 4096, "B": 1},
            "wide": {"M": 512, "K": 65536, "B": 1},
            "batch": {"M": 512, "K": 512, "B": 64},
        },
        workloads=WORKLOADS,
        variants={name: {"semiring": name} for name in SEMIRINGS},
        dtypes=(*FLOATS, *INTEGERS),
        small_shapes=({"M": 1, "K": 1, "B": 1}, {"M": 17, "K": 33, "B": 3}),
        samples=samples,
        particular_misuses=misuses,
        implementations=_FORWARDS,
        middle={"M": 333, "K": 700, "B": 2},
        interpreted={"M": 9, "K": 17, "B": 1},
        supports=supports,
        is_exact=lambda kwargs: kwargs.get("semiring") != "log",
        fewer_backends=lambda kwargs: (
            ("torch", "triton") if kwargs.get("semiring") == "log" else ("torch", "cpp", "triton")
        ),
        scalings=scalings,
        aliased={
            "row": lambda x: (x, x[2]),
            "column": lambda x: (x, x[:, 2]),
            "diagonal": lambda x: (x, x.diagonal()),
            "rows": lambda x: (x, x),
        },
        tuned={"cpp": (by_cpp.NARROW,)},  # the others are the matrix product's
    )
)
