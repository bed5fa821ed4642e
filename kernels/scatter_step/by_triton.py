"""The Triton step. Three ways, by the length of the list and by what is asked; none waits for the host.

* few: one launch, one program an entry; the first of those that share a coordinate sums them up in the list's order.
* atomic: "sgd" in float32 or float64 where any order will do: W[key] −= lr · value, added atomically; it is linear in
  the values, so that nothing need be summed first.
* sorted: keys, a stable sort, and a pass in which the first entry of each run of equal keys walks the run and moves W.
  Runs are cut at multiples of PIECE entries, whose sums a pass before makes: a run takes PIECE + run / PIECE steps. The
  order of additions is that of the sorted list: the same bits each time.

An index outside [−1, size) is skipped as −1 is: nothing is read or written out of bounds.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...autotune import Config, Space, Tuned
from ...triton_or_stub import tl, triton
from ..runtime.grid import cdiv, next_power_of_2
from .definition import Options, State, compute_dtype

FEW = 64  # entries up to which every program looks at all of them
STEP = Tuned(
    "scatter_step.triton",
    Space({"ENTRIES": (64, 128, 256), "num_warps": (2, 4, 8)}),
    default=lambda problem: (
        {"ENTRIES": 64, "num_warps": 2}  # more were spilled
        if problem["dtype"] == "torch.float64"
        else {"ENTRIES": 256, "num_warps": 8}
    ),
    source=Path(__file__),
)
KEYS = Tuned(
    "scatter_step_keys.triton",
    Space({"BLOCK": (256, 512, 1024, 2048), "num_warps": (2, 4, 8)}),
    default=lambda problem: {"BLOCK": 1024, "num_warps": 4},
    source=Path(__file__),
)
PIECE = 128  # never tuned: it says in which order the values of a long run are added
_WIDEST = 128  # elements of a row that a program holds at a time


@triton.jit
def _key(row_ptr, column_ptr, i, mask, R, C, total, HAS_COLUMNS: tl.constexpr):
    """The key row · C + column of an entry, or total = R · C where it is skipped."""
    row = tl.load(row_ptr + i, mask=mask, other=-1).to(tl.int64)
    good = (row >= 0) & (row < R)
    key = row * C
    if HAS_COLUMNS:
        column = tl.load(column_ptr + i, mask=mask, other=-1).to(tl.int64)
        good = good & (column >= 0) & (column < C)
        key += column
    return tl.where(good, key, total)


@triton.jit
def _place(row_ptr, column_ptr, i, mask, stride_r, stride_c, HAS_COLUMNS: tl.constexpr):
    """Where the row of W begins that entry i names: of its indices, as a key would have to be divided in 64 bits."""
    place = tl.load(row_ptr + i, mask=mask, other=0).to(tl.int64) * stride_r
    if HAS_COLUMNS:
        place += tl.load(column_ptr + i, mask=mask, other=0).to(tl.int64) * stride_c
    return place


@triton.jit
def _over_root(w, lr, x, square, g, DECAY: tl.constexpr, EPS: tl.constexpr, LEAST: tl.constexpr):
    """w − lr x / (√v + eps). √v ≥ √(1 − decay) |g|, but where v is too small to be told from 0; by 0 is no step."""
    root = tl.sqrt(square)
    root = tl.where(square < LEAST, tl.maximum(root, ((1 - DECAY) ** 0.5) * tl.abs(g)), root) + EPS
    return tl.where(root == 0, w, w - lr * (x / root))


@triton.jit
def _apply(
    key, at, d, mask, g, lr, norm, moment_ptr, square_ptr, touched, number, D,
    RULE: tl.constexpr, MOMENTUM: tl.constexpr, LOG2_MOMENTUM: tl.constexpr, DECAY: tl.constexpr, EPS: tl.constexpr,
    LEAST: tl.constexpr,
):  # fmt: skip
    """The rule on elements d, which lie at `at`, of the rows of W at `key`. norm: ‖g‖, of Polyak's alone."""
    w = tl.load(at, mask=mask, other=0).to(g.dtype)
    if RULE == "momentum":
        moment = tl.load(moment_ptr + key * D + d, mask=mask, other=0)
        decay = tl.exp2((number - touched).to(tl.float64) * LOG2_MOMENTUM)
        g += decay.to(g.dtype) * moment
        tl.store(moment_ptr + key * D + d, g, mask=mask)
        w -= lr * g
    elif RULE == "adagrad":
        moment = tl.load(moment_ptr + key * D + d, mask=mask, other=0) + g * g
        tl.store(moment_ptr + key * D + d, moment, mask=mask)
        root = tl.maximum(tl.sqrt(moment), tl.abs(g))  # √q ≥ |g|, but where g² is too small to be told from 0
        w = tl.where(g == 0, w, w - lr * (g / (root + EPS)))  # without EPS 0 / 0 where g is 0
    elif RULE == "adam":
        moment = tl.load(moment_ptr + key * D + d, mask=mask, other=0)
        moment += (g - moment) * (1 - MOMENTUM)
        tl.store(moment_ptr + key * D + d, moment, mask=mask)
        square = tl.load(square_ptr + key * D + d, mask=mask, other=0)
        # ∞ − ∞ would be NaN
        square = tl.where(square == float("inf"), square, square + (g * g - square) * (1 - DECAY))
        tl.store(square_ptr + key * D + d, square, mask=mask)
        w = _over_root(w, lr, moment, square, g, DECAY, EPS, LEAST)
    elif RULE == "rmsprop":
        square = tl.load(square_ptr + key * D + d, mask=mask, other=0) * DECAY + (1 - DECAY) * g * g
        tl.store(square_ptr + key * D + d, square, mask=mask)
        w = _over_root(w, lr, g, square, g, DECAY, EPS, LEAST)
    elif RULE == "polyak":
        w -= lr * (g / norm)
    else:
        w -= lr * g
    tl.store(at, w.to(at.dtype.element_ty), mask=mask)


@triton.jit
def _rate(
    lr_ptr, lr, number, dtype: tl.constexpr, RULE: tl.constexpr, LOG2_MOMENTUM: tl.constexpr, LOG2_DECAY: tl.constexpr,
    HAS_LR: tl.constexpr,
):  # fmt: skip
    """lr; of Adam's lr √(1 − decayᵗ) / (1 − momentumᵗ), t = number."""
    rate = tl.load(lr_ptr).to(dtype) if HAS_LR else lr
    if RULE == "adam":
        t = number.to(tl.float64)
        rate = (rate * tl.sqrt(1 - tl.exp2(t * LOG2_DECAY)) / (1 - tl.exp2(t * LOG2_MOMENTUM))).to(dtype)
    return rate


@triton.jit
def _norm(lr_ptr, dtype: tl.constexpr, RULE: tl.constexpr):
    """‖g‖, which Polyak's rate is followed by."""
    return tl.load(lr_ptr + 1).to(dtype) if RULE == "polyak" else 0.0


@triton.jit
def _few_kernel(
    param_ptr,  # [R, C, D]
    row_ptr, column_ptr,  # [nnz]
    values_ptr,  # [nnz, D], contiguous
    lr_ptr,  # [], or lr; of Polyak's [lr / ‖g‖, ‖g‖]
    lr,
    moment_ptr, square_ptr,  # [R, C, D], contiguous
    touched_ptr,  # [R, C] int32, contiguous
    number_ptr,  # [] int32
    norm_ptr,  # [nnz]: ‖g‖² of each entry, if RULE is "norm", which moves nothing
    nnz, R, total, C, D, stride_r, stride_c, stride_d,
    RULE: tl.constexpr, MOMENTUM: tl.constexpr, LOG2_MOMENTUM: tl.constexpr, DECAY: tl.constexpr,
    LOG2_DECAY: tl.constexpr, EPS: tl.constexpr, LEAST: tl.constexpr, HAS_COLUMNS: tl.constexpr, HAS_LR: tl.constexpr,
    COMPUTE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0)
    j = tl.arange(0, BLOCK)
    key = _key(row_ptr, column_ptr, i, True, R, C, total, HAS_COLUMNS)
    keys = _key(row_ptr, column_ptr, j, j < nnz, R, C, total, HAS_COLUMNS)
    place = _place(row_ptr, column_ptr, i, key < total, stride_r, stride_c, HAS_COLUMNS)
    leads = (key < total) & (tl.sum(((keys == key) & (j < i)).to(tl.int32), 0) == 0)
    touched, number = 0, 0
    if RULE == "momentum":
        touched = tl.load(touched_ptr + key, mask=leads, other=0)
    if RULE == "momentum" or RULE == "adam":
        number = tl.load(number_ptr)
    norm = tl.full([], 0, tl.float64)
    for start in range(0, D, BLOCK_D):
        d = tl.arange(0, BLOCK_D).to(tl.int64) + start
        mask = (d < D) & leads
        g = tl.zeros([BLOCK_D], COMPUTE)
        value_ptrs = values_ptr + i.to(tl.int64) * D + d
        for other in range(i, nnz):
            same = _key(row_ptr, column_ptr, other, True, R, C, total, HAS_COLUMNS) == key
            g += tl.load(value_ptrs, mask=mask & same, other=0).to(COMPUTE)
            value_ptrs += D
        if RULE == "norm":
            norm += tl.sum(g.to(tl.float64) * g.to(tl.float64), 0)
        else:
            rate = _rate(lr_ptr, lr, number, COMPUTE, RULE, LOG2_MOMENTUM, LOG2_DECAY, HAS_LR)
            norm_g = _norm(lr_ptr, COMPUTE, RULE)
            _apply(
                key, param_ptr + place + d * stride_d, d, mask, g, rate, norm_g, moment_ptr, square_ptr, touched,
                number, D, RULE, MOMENTUM, LOG2_MOMENTUM, DECAY, EPS, LEAST,
            )  # fmt: skip
    if RULE == "norm":
        tl.store(norm_ptr + i, norm)
    if RULE == "momentum":
        tl.debug_barrier()  # all threads have read what one of them now writes
        tl.store(touched_ptr + key, number, mask=leads)


@triton.jit
def _atomic_kernel(
    param_ptr,  # [R, C, D], as of the others
    row_ptr, column_ptr, values_ptr, lr_ptr, lr,
    nnz, R, total, C, D, stride_r, stride_c, stride_d,
    HAS_COLUMNS: tl.constexpr, HAS_LR: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    key = _key(row_ptr, column_ptr, i, i < nnz, R, C, total, HAS_COLUMNS)
    good = key < total
    place = _place(row_ptr, column_ptr, i, good, stride_r, stride_c, HAS_COLUMNS)[:, None]
    rate = _rate(lr_ptr, lr, 0, COMPUTE, "sgd", 0.0, 0.0, HAS_LR)
    for start in range(0, D, BLOCK_D):
        d = tl.arange(0, BLOCK_D)[None, :].to(tl.int64) + start
        mask = good[:, None] & (d < D)
        x = tl.load(values_ptr + i[:, None] * D + d, mask=mask, other=0)
        tl.atomic_add(param_ptr + place + d * stride_d, -rate * x, mask=mask, sem="relaxed")


@triton.jit
def _keys_kernel(
    row_ptr, column_ptr,  # [nnz]
    key_ptr,  # [nnz] int32 or int64
    nnz, R, C, total,
    HAS_COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    key = _key(row_ptr, column_ptr, i, i < nnz, R, C, total, HAS_COLUMNS)
    tl.store(key_ptr + i, key.to(key_ptr.dtype.element_ty), mask=i < nnz)


@triton.jit
def _pieces_kernel(
    key_ptr,  # [nnz], sorted
    order_ptr,  # [nnz] int64: where each was in the list
    values_ptr,  # [nnz, D], contiguous
    partial_ptr,  # [⌈nnz / PIECE⌉, D]: the sum of the piece that a run enters from before, written for those alone
    nnz, D, total,
    COMPUTE: tl.constexpr, PIECE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    piece = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i = piece * PIECE
    inside = (i > 0) & (i < nnz)
    key = tl.load(key_ptr + i, mask=inside, other=-1)
    enters = inside & (key < total) & (tl.load(key_ptr + i - 1, mask=inside, other=-1) == key)
    for start in range(0, D, BLOCK_D):
        d = tl.arange(0, BLOCK_D)[None, :].to(tl.int64) + start
        g = tl.zeros([BLOCK, BLOCK_D], COMPUTE)
        active, at = enters, i
        while tl.max(active.to(tl.int32), 0) > 0:
            entry = tl.load(order_ptr + at, mask=active, other=0)
            g += tl.load(values_ptr + entry[:, None] * D + d, mask=active[:, None] & (d < D), other=0).to(COMPUTE)
            at += 1
            active = active & (at % PIECE != 0) & (at < nnz)
            active = active & (tl.load(key_ptr + at, mask=active, other=-1) == key)
        tl.store(partial_ptr + piece.to(tl.int64)[:, None] * D + d, g, mask=enters[:, None] & (d < D))


@triton.jit
def _sorted_kernel(
    param_ptr, row_ptr, column_ptr, key_ptr, order_ptr, values_ptr, partial_ptr, lr_ptr, lr,
    moment_ptr, square_ptr, touched_ptr, number_ptr,
    norm_ptr,  # [programs]: ‖g‖² of each program's entries, if RULE is "norm", which moves nothing
    nnz, total, D, stride_r, stride_c, stride_d,
    RULE: tl.constexpr, MOMENTUM: tl.constexpr, LOG2_MOMENTUM: tl.constexpr, DECAY: tl.constexpr,
    LOG2_DECAY: tl.constexpr, EPS: tl.constexpr, LEAST: tl.constexpr, HAS_COLUMNS: tl.constexpr, HAS_LR: tl.constexpr,
    COMPUTE: tl.constexpr, PIECE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(key_ptr + head, mask=head < nnz, other=0)
    before = tl.load(key_ptr + head - 1, mask=(head > 0) & (head < nnz), other=-1)
    # −1 where no run begins: a predicate that lives across the walk is spilled
    key = tl.where((head < nnz) & (key < total) & (before != key), key, -1)
    first = tl.load(order_ptr + head, mask=key >= 0, other=0).to(tl.int32)
    norm = tl.full([], 0, tl.float64)
    for start in range(0, D, BLOCK_D):
        d = tl.arange(0, BLOCK_D)[None, :].to(tl.int64) + start
        g = tl.zeros([BLOCK, BLOCK_D], COMPUTE)
        active, at = key >= 0, head
        while tl.max(active.to(tl.int32), 0) > 0:
            whole = active & (at % PIECE == 0) & (at != head)  # a piece that the run enters from before
            single = active & ~whole
            entry = tl.load(order_ptr + at, mask=single, other=0)
            g += tl.load(values_ptr + entry[:, None] * D + d, mask=single[:, None] & (d < D), other=0).to(COMPUTE)
            piece = (at // PIECE).to(tl.int64)
            g += tl.load(partial_ptr + piece[:, None] * D + d, mask=whole[:, None] & (d < D), other=0)
            at += tl.where(whole, PIECE, 1)
            active = active & (at < nnz)
            active = active & (tl.load(key_ptr + at, mask=active, other=-1) == key)
        if RULE == "norm":
            norm += tl.sum(tl.sum(g.to(tl.float64) * g.to(tl.float64), 1), 0)
        else:
            leads = key >= 0
            place = _place(row_ptr, column_ptr, first, leads, stride_r, stride_c, HAS_COLUMNS)[:, None]
            touched, number = tl.zeros([BLOCK, 1], tl.int32), 0
            if RULE == "momentum":
                touched = tl.load(touched_ptr + key, mask=leads, other=0)[:, None]
            if RULE == "momentum" or RULE == "adam":
                number = tl.load(number_ptr)
            rate = _rate(lr_ptr, lr, number, COMPUTE, RULE, LOG2_MOMENTUM, LOG2_DECAY, HAS_LR)
            norm_g = _norm(lr_ptr, COMPUTE, RULE)
            _apply(
                key.to(tl.int64)[:, None], param_ptr + place + d * stride_d, d, leads[:, None] & (d < D), g, rate,
                norm_g, moment_ptr, square_ptr, touched, number, D, RULE, MOMENTUM, LOG2_MOMENTUM, DECAY, EPS, LEAST,
            )  # fmt: skip
    if RULE == "norm":
        tl.store(norm_ptr + tl.program_id(0), norm)
    if RULE == "momentum":
        number = tl.load(number_ptr)
        tl.debug_barrier()  # all threads have read what one of them now writes
        tl.store(touched_ptr + key, number, mask=key >= 0)


_TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}


def step(
    param: Tensor,
    rows: Tensor,
    columns: Tensor | None,
    values: Tensor,
    lr: float | Tensor,
    options: Options,
    state: State,
    deterministic: bool,
) -> None:
    """param [R, C, D] any strides, rows and columns [nnz], values [nnz, D], contiguous; see `_step` of the package."""
    (R, C, D), nnz = param.shape, rows.shape[0]
    total = R * C
    rule, momentum, decay, eps = options
    if state.number is not None:
        state.number.add_(1)
    if param.numel() == 0:
        return
    dtype = compute_dtype(param.dtype)
    if isinstance(lr, Tensor) and lr.device != param.device:
        lr = lr.item()  # of the CPU: nothing waits
    if not isinstance(lr, Tensor) and dtype == torch.float64:
        lr = torch.full((), lr, dtype=dtype, device=param.device)  # Triton takes a number as float32
    problem = {"R": R, "C": C, "nnz": nnz, "D": D, "dtype": str(param.dtype)}
    block_d = min(next_power_of_2(D), _WIDEST)

    def laid_out(config: Config) -> dict[str, Any]:
        block = max(1, config["ENTRIES"] // block_d)
        return {"COMPUTE": _TYPES[dtype], "BLOCK": block, "BLOCK_D": block_d, "num_warps": config["num_warps"]}

    chosen = laid_out(STEP.config(problem, param.device))
    has_columns, columns = columns is not None, rows if columns is None else columns
    constants = {"MOMENTUM": momentum, "DECAY": decay, "EPS": eps, "LEAST": torch.finfo(dtype).tiny}
    for name in ("MOMENTUM", "DECAY"):
        constants[f"LOG2_{name}"] = math.log2(constants[name]) if constants[name] else -math.inf
    sizes = (C, D, *param.stride())
    if nnz > FEW and rule == "sgd" and param.dtype == dtype and not deterministic:
        _atomic_kernel[(cdiv(nnz, chosen["BLOCK"]),)](
            param, rows, columns, values, *_rates(lr, param), nnz, R, total, *sizes,
            HAS_COLUMNS=has_columns, HAS_LR=isinstance(lr, Tensor), **chosen,
        )  # fmt: skip
        return
    if nnz <= FEW:

        def launch(rule: str, lr: float | Tensor, norm: Tensor, layout: dict[str, Any]) -> None:
            _few_kernel[(nnz,)](
                param, rows, columns, values, *_rates(lr, param), *state, norm, nnz, R, total, *sizes,
                RULE=rule, HAS_COLUMNS=has_columns, HAS_LR=isinstance(lr, Tensor), **constants,
                **{**layout, "BLOCK": next_power_of_2(nnz)},
            )  # fmt: skip
    else:
        keys = torch.empty(nnz, dtype=torch.int32 if total < 2**31 else torch.int64, device=param.device)
        config = KEYS.config(problem, param.device)
        _keys_kernel[(cdiv(nnz, config["BLOCK"]),)](
            rows, columns, keys, nnz, R, C, total, HAS_COLUMNS=has_columns, **config
        )
        keys, order = torch.sort(keys, stable=True)
        partial = torch.empty((cdiv(nnz, PIECE), D), dtype=dtype, device=param.device)
        _pieces_kernel[(cdiv(partial.shape[0], chosen["BLOCK"]),)](
            keys, order, values, partial, nnz, D, total, PIECE=PIECE, **chosen
        )

        def launch(rule: str, lr: float | Tensor, norm: Tensor, layout: dict[str, Any]) -> None:
            _sorted_kernel[(cdiv(nnz, layout["BLOCK"]),)](
                param, rows, columns, keys, order, values, partial, *_rates(lr, param), *state, norm,
                nnz, total, D, *param.stride(), RULE=rule, HAS_COLUMNS=has_columns, HAS_LR=isinstance(lr, Tensor),
                PIECE=PIECE, **constants, **layout,
            )  # fmt: skip

    if rule == "polyak":
        fixed = laid_out(STEP.default(problem))  # ‖g‖² adds up lanes and programs: in one order, whatever was tuned
        programs = nnz if nnz <= FEW else cdiv(nnz, fixed["BLOCK"])
        norms = torch.empty(programs, dtype=torch.float64, device=param.device)
        launch("norm", 0.0, norms, fixed)
        norm = norms.sum().sqrt()
        rate, norm = torch.where(norm == 0, 0.0, lr / norm), torch.where(norm == 0, 1.0, norm)
        launch("polyak", torch.stack((rate, norm)), norms, chosen)
    else:
        launch(rule, lr, param, chosen)


def _rates(lr: float | Tensor, param: Tensor) -> tuple[Tensor, float]:
    """The arguments lr_ptr and lr, of which the kernel reads one."""
    return (lr, 0.0) if isinstance(lr, Tensor) else (param, float(lr))
