"""The Gluon fast path of the selective semirings: NVIDIA GPUs from compute capability 8.0, every dtype but fp64.

Tiles are made in registers by gluon_tile.py. Around it: operands laid K-major, winners, and splits.

Winners in two phases. The main loop keeps only the k-block in which the running ⊕ last improved (strictly, so the first
block wins a tie): one compare and one select per BLOCK_K steps. A second kernel, refine.py's, finds the k in it.

Where the tiles are too few to fill the GPU, SPLITS programs share one, each with a contiguous range of whole k-blocks;
a plain Triton kernel then takes the first split that reaches the ⊕ of all. Nothing is added up, so nothing changes.

Verified without a device so far: the tests read registers, stack and instruction counts from the machine code, and run
the PTX of fp32, fp16 and int32 in ptx.py's interpreter, which knows races. Therefore nothing may choose this path by
itself until a qualification record exists for the compute capability and the triton version.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

from ...autotune import Space, Tuned
from ...triton_or_stub import tl, triton
from ..mathematics.semiring import value_dtype, winner_dtype
from ..runtime.grid import cdiv
from .gluon_tile import HALVES, _tropical_matmul_gluon_kernel, constants, lanes
from .refine import refine

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int16, torch.int8)  # fp64: no gain here
ROW_MULTIPLE = 16  # what Triton asks of sizes and strides, in elements, to copy 16 bytes at a time
FORWARD = Tuned(
    "tropical_matmul.gluon",
    Space(
        {
            "OUTPUTS": (32, 64),  # per thread; where a winner takes three registers, half as many
            "BLOCK_N": (64, 128),
            "BLOCK_K": (16, 32),
            "STAGES": (2, 3, 4),
            "num_warps": (4, 8),
            "GROUP_M": (1, 8),
            "SPLITS": (0, 1, 2, 4),  # 0: as many as fill the GPU
        }
    ),
    default=lambda problem: {
        "OUTPUTS": 64,
        "BLOCK_N": 64 if problem["winners"] and problem["dtype"] not in HALVES else 128,
        # the longer spreads the copies' instructions and the winners' compare; refining takes BLOCK_K steps per winner
        "BLOCK_K": 16 if problem["winners"] and int(problem["K"]) <= 2048 else 32,
        "STAGES": 3,
        "num_warps": 4,
        "GROUP_M": 8,
        "SPLITS": 0,
    },
    source=Path(__file__).with_name("gluon_tile.py"),
)
FIRST_SPLIT = Tuned(
    "tropical_matmul_first_split.triton",
    Space({"BLOCK": (128, 256, 512), "num_warps": (2, 4, 8)}),
    default=lambda problem: {"BLOCK": 128, "num_warps": 4},
    source=Path(__file__),
)


@triton.jit
def _first_split_kernel(
    part_ptr,  # [B, SPLITS, SIZE]: the ⊕ of each split; SIZE is M · N
    part_block_ptr,  # [B, SPLITS, SIZE], read and written for winners alone
    c_ptr,  # [B, SIZE]
    block_ptr,  # [B, SIZE]
    SIZE, SPLITS,
    MINIMUM: tl.constexpr, WINNERS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    pieces = tl.cdiv(SIZE, BLOCK)
    batch = (pid // pieces).to(tl.int64)
    i = (pid % pieces).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < SIZE
    dtype: tl.constexpr = part_ptr.dtype.element_ty
    wide: tl.constexpr = tl.float32 if dtype.is_floating() else dtype
    offs = batch * SPLITS * SIZE + i
    best = tl.load(part_ptr + offs, mask=mask, other=0).to(wide)
    if WINNERS:
        block = tl.load(part_block_ptr + offs, mask=mask, other=0)
    for _ in range(1, SPLITS):
        offs += SIZE
        x = tl.load(part_ptr + offs, mask=mask, other=0).to(wide)
        wins = (x < best if MINIMUM else x > best) | (x != x)  # strict, so an earlier split keeps a tie
        best = tl.where(wins, x, best)
        if WINNERS:
            block = tl.where(wins, tl.load(part_block_ptr + offs, mask=mask, other=0), block)
    tl.store(c_ptr + batch * SIZE + i, best.to(dtype), mask=mask)
    if WINNERS:
        tl.store(block_ptr + batch * SIZE + i, block, mask=mask)


def forward(a: Tensor, b: Tensor, semiring: str, with_winners: bool, ignore_nan: bool) -> tuple[Tensor, Tensor]:
    """a [B, M, K], b [B, K, N] of one of DTYPES -> values and winners [B, M, N] (see definition.py for dtypes).

    Winners are [0] where not asked for. All sizes ≥ 1.
    """
    (B, M, K), N = a.shape, b.shape[-1]
    out, ids = value_dtype(a.dtype), winner_dtype(K)
    ignore_nan = ignore_nan and a.is_floating_point()
    # where all candidates of a product were skipped, the value is 0 and not the −∞ that the running maximum starts from
    tracks_blocks = with_winners or (ignore_nan and semiring == "max_times")
    problem = {"M": M, "N": N, "K": K, "dtype": str(a.dtype), "winners": tracks_blocks}
    config = FORWARD.config(problem, a.device)
    units, capability = _device(a.device)
    compiled = constants(config, a.dtype, semiring, tracks_blocks, ignore_nan, capability)
    tiles = B * cdiv(M, compiled["BLOCK_M"]) * cdiv(N, compiled["BLOCK_N"])
    block_k = compiled["BLOCK_K"]
    splits = config["SPLITS"] or splits_that_fill(tiles, cdiv(K, block_k), units)

    def outputs(*shape: int) -> tuple[Tensor, Tensor]:
        return a.new_empty(shape, dtype=out), a.new_empty(shape if tracks_blocks else (0,), dtype=ids)

    values, winners = outputs(B, M, N)
    parts, part_blocks = outputs(B, splits, M, N) if splits > 1 else (values, winners)
    rows_a, rows_b = (k_major(x, block_k, lanes(a.dtype)) for x in (a.mT, b))
    _tropical_matmul_gluon_kernel[(tiles * splits,)](
        rows_a, rows_b, parts, part_blocks,
        torch.stack((*a.aminmax(), *b.aminmax())) if compiled["FORM"] == "checked" else rows_a,
        M, N, rows_a.shape[1], *rows_a.stride()[:2], *rows_b.stride()[:2], splits, **compiled,
    )  # fmt: skip
    if splits > 1:
        first_split(parts, part_blocks, values, winners, semiring)
    if tracks_blocks:
        refine(a, b, values, winners, semiring, ignore_nan, block_k)
    return values, winners if with_winners else winners.new_empty(0)


@functools.cache
def _device(device: torch.device) -> tuple[int, tuple[int, int]]:
    """Multiprocessors and compute capability."""
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, (properties.major, properties.minor)


def splits_that_fill(tiles: int, blocks: int, units: int) -> int:
    """Programs per tile: two a multiprocessor altogether, each with two k-blocks or more, and no split in vain."""
    splits = max(1, min(2 * units // tiles, blocks // 2))
    return cdiv(blocks, cdiv(blocks, splits))


def first_split(parts: Tensor, part_blocks: Tensor, values: Tensor, blocks: Tensor, semiring: str) -> None:
    """⊕ over the splits of parts [B, SPLITS, M, N] into values [B, M, N]; NaN where any is NaN.

    With blocks [B, M, N], not [0], also the k-block that the first split to reach the value has in part_blocks.
    """
    (B, M, N), splits = values.shape, parts.shape[1]
    config = FIRST_SPLIT.config({"M": M, "N": N, "SPLITS": splits, "dtype": str(values.dtype)}, values.device)
    _first_split_kernel[(B * cdiv(M * N, config["BLOCK"]),)](
        parts, part_blocks, values, blocks, M * N, splits,
        MINIMUM=semiring == "min_plus", WINNERS=blocks.numel() > 0, **config,
    )  # fmt: skip


def k_major(x: Tensor, least_rows: int, dtype: torch.dtype) -> Tensor:
    """x [B, K, S] itself where its rows can be copied 16 bytes at a time, else a copy with rows padded to 16 elements.

    Fewer than `least_rows` rows are filled up by repeating the last: a maximum is unchanged by a repeated candidate.
    The padding at the end of a row is uninitialised; it only reaches outputs that are not stored. A batch of stride 0
    is copied once.
    """
    B, K, S = x.shape
    multiples = (*x.stride()[:2], S)
    aligned = x.data_ptr() % 16 == 0 and not any(i % ROW_MULTIPLE for i in multiples)
    if x.dtype == dtype and least_rows <= K and x.stride(2) == 1 and aligned:
        return x
    if B > 1 and x.stride(0) == 0:
        return k_major(x[:1], least_rows, dtype).expand(B, -1, -1)
    rows = x.new_empty(B, max(K, least_rows), -(-S // ROW_MULTIPLE) * ROW_MULTIPLE, dtype=dtype)
    rows[:, :K, :S] = x
    rows[:, K:, :S] = x[:, -1:]
    return rows
