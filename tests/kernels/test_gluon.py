"""The Gluon tropical product without a GPU: its machine code's costs, and the parts around it that run anywhere.

The costs are compared with gluon_costs.json, by Triton's minor version. Run as a script without TRITON_INTERPRET, this
file prints the costs of the cases that it is given; without arguments it writes those of all cases into the table.
What only a GPU can run is mirrored in torch, step by step; the mirror is held against the definition, and the kernel's
PTX, interpreted, against the mirror.
"""

import functools
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tropigrad import autotune, triton_or_stub
from tropigrad.autotune.machine import ahead_of_time
from tropigrad.kernels.mathematics.semiring import SELECTIVE, candidates, semiring_zero, value_dtype, winner_dtype
from tropigrad.kernels.runtime import backend
from tropigrad.kernels.tropical_matmul import by_gluon, by_triton, gluon_tile, refine
from tropigrad.kernels.tropical_matmul.definition import tropical_matmul_ref
from tropigrad.perf_reports import ptx

triton = pytest.importorskip("triton", reason="triton is not installed")

TABLE = Path(__file__).with_name("gluon_costs.json")
VERSION = ".".join(triton.__version__.split(".")[:2])
CAPABILITIES = (80, 90, 100)
KINDS = ("value", "winners")
NAMES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
}
TRITON_NAMES = {dtype: name for name, dtype in NAMES.items()}
CASES = [
    *(f"{dtype}-{kind}-sm_{c}" for dtype in NAMES for kind in KINDS for c in CAPABILITIES),
    *(f"fp32-{kind}-{form}-sm_90" for kind in KINDS for form in ("ragged", "one", "min", "product", "ignore")),
    *(f"{dtype}-{kind}-product-sm_90" for dtype in ("i32", "i16", "i8") for kind in KINDS),
    *(f"{dtype}-{kind}-min-sm_90" for dtype in ("i32", "i16") for kind in KINDS),
    # the loop that runs where the extremes of A and B show that nothing overflows; "checked" kernels have it besides
    *(f"{dtype}-{kind}-fits-sm_90" for dtype in ("i32", "i16") for kind in KINDS),
    # of K where refining asks for shorter k-blocks
    *(f"{dtype}-winners-short-sm_90" for dtype in NAMES),
    *(f"{dtype}-first-split-sm_90" for dtype in ("fp32", "bf16", "i16")),
    *(f"{dtype}-refine-sm_90" for dtype in ("fp32", "fp16", "bf16", "i32")),
]
QUICK = [
    *(f"fp32-value-sm_{c}" for c in CAPABILITIES),
    "fp32-winners-sm_90",
    "bf16-winners-sm_90",
    "i8-value-sm_90",
    "fp32-refine-sm_90",
]
# instructions per (m, n, k) of the inner loop on compute capability 9.0: the work itself, plus what carries it
LIMITS = {
    "fp32-value": 2.10,
    "fp32-winners": 2.25,
    **{f"{dtype}-{kind}": 1.15 for dtype in ("fp16", "bf16") for kind in KINDS},
    "i32-value": 4.5,
    "i32-winners": 5.0,
    "i16-value": 2.4,
    "i16-winners": 2.4,
    "i8-value": 0.75,
    "i8-winners": 0.95,
    "i32-value-fits": 2.0,
    "i32-winners-fits": 2.0,
    "i16-value-fits": 0.75,
    "i16-winners-fits": 0.95,
}
DTYPES = pytest.mark.parametrize("dtype", by_gluon.DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
# refining and the portable kernel take what `combine` takes
REFINED = [dtype for dtype in by_gluon.DTYPES if dtype in getattr(by_triton, "DTYPES", by_gluon.DTYPES)]

needs_gluon = pytest.mark.skipif(not triton_or_stub.HAS_GLUON, reason="this triton has no gluon")
needs_interpreter = pytest.mark.skipif(
    bool(backend.why_off("triton", torch.device("cpu"))) or not triton_or_stub.HAS_GLUON,
    reason="the plain Triton kernels need triton's interpreter, and their inputs gluon",
)

# ------------------------------------------------------------------------------------------------ machine code


def compiled(case: str, config: dict[str, int] | None = None) -> tuple[ahead_of_time.MachineCode, int, int]:
    """Machine code of a case, by default of its default config; threads, and steps (m, n, k) of a thread's k-block."""
    name, kind, *form, sm = case.split("-")
    dtype, winners, capability = NAMES[name], kind == "winners", int(sm.removeprefix("sm_"))
    semiring = "min_plus" if "min" in form else "max_times" if "product" in form else "max_plus"
    out = TRITON_NAMES[value_dtype(dtype)]
    if kind == "first":
        tuned, sizes = dict(by_gluon.FIRST_SPLIT.default({})), ["SIZE", "SPLITS"]
        kernel, signature = by_gluon._first_split_kernel, {"part_ptr": f"*{out}", "part_block_ptr": "*i16"}
        signature |= {"c_ptr": f"*{out}", "block_ptr": "*i16"} | dict.fromkeys(sizes, "i32")
        constants = {"MINIMUM": False, "WINNERS": True, "BLOCK": tuned["BLOCK"]}
        warps = tuned["num_warps"]
        return ahead_of_time.compile(kernel, signature, constants, capability, warps), 32 * warps, 1
    if kind == "refine":
        tuned, sizes = dict(refine.REFINE.default({})), ["M", "N", "K"]
        kernel = refine._refine_winners_kernel
        signature = {"a_ptr": f"*{name}", "b_ptr": f"*{name}", "c_ptr": f"*{out}", "winner_ptr": "*i16"}
        strides = [f"stride_{x}" for x in ("ab", "am", "ak", "bb", "bk", "bn")]
        zero = semiring_zero(semiring, value_dtype(dtype))
        constants = {"WORST": zero, "EMPTY": zero, "PRODUCT": False, "IGNORE_NAN": False, "BLOCK_K": 32}
        constants["BLOCK"], warps = tuned["BLOCK"], tuned["num_warps"]
        signature |= dict.fromkeys([*sizes, *strides], "i32")
        return ahead_of_time.compile(kernel, signature, constants, capability, warps), 32 * warps, 1
    K = 512 if "short" in form else 4096
    config = dict(config or by_gluon.FORWARD.default({"dtype": str(dtype), "winners": winners, "K": K}))
    constants = gluon_tile.constants(config, dtype, semiring, winners, "ignore" in form, divmod(capability, 10))
    warps, maxnreg = constants.pop("num_warps"), constants.pop("maxnreg")
    if "fits" in form:
        constants["FORM"] = "fits"
    if "one" in form:  # a launch makes constants of sizes that are 1
        constants |= {"M": 1, "SPLITS": 1}
    lanes = TRITON_NAMES[gluon_tile.lanes(dtype)]
    signature = {"a_ptr": f"*{lanes}", "b_ptr": f"*{lanes}", "c_ptr": f"*{out}", "block_ptr": "*i16"}
    signature |= {"range_ptr": f"*{lanes}"}
    sizes, strides = ["M", "N", "K"], ["stride_ab", "stride_ak", "stride_bb", "stride_bk"]
    signature |= {name: "i32" for name in [*sizes, *strides, "SPLITS"] if name not in constants}
    divisible = [name for name in (strides if "ragged" in form else [*sizes, *strides]) if name in signature]
    code = ahead_of_time.compile(
        gluon_tile._tropical_matmul_gluon_kernel, signature, constants, capability, warps, divisible, maxnreg
    )
    steps = constants["BLOCK_M"] * constants["BLOCK_N"] * constants["BLOCK_K"] // (32 * warps)
    return code, 32 * warps, steps


def cost(case: str, config: dict[str, int] | None = None) -> dict[str, float]:
    """Registers, stack, shared bytes and the inner loop's instructions per (m, n, k) of one case."""
    code, threads, steps = compiled(case, config)
    return {
        "registers": code.registers,
        "stack": code.stack,
        "shared": code.shared,
        "threads": threads,
        "barriers": sum(count for name, count in code.loop.items() if name.startswith("BAR.SYNC")),
        "waits": sum(count for name, count in code.loop.items() if name.startswith("DEPBAR")),
        "instructions_per_step": round(sum(code.loop.values()) / steps, 4),
    }


def in_a_process_that_compiles(*arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@needs_gluon
@pytest.mark.parametrize(
    "cases", [QUICK, pytest.param(CASES, marks=pytest.mark.slow)], ids=["the-quick-cases", "every-case"]
)
def test_default_configs_cost_what_the_table_says(cases):
    table = json.loads(TABLE.read_text())
    if VERSION not in table:
        pytest.skip(f"gluon_costs.json has triton {', '.join(table)}; this is {VERSION}")
    found = json.loads(in_a_process_that_compiles(*cases))
    assert list(found) == cases
    for case, now in found.items():
        assert now["stack"] == 0, f"{case} spills: {now}"
        # 128 threads of at most 255 registers: two blocks and more fit the 65,536 of a multiprocessor
        assert now["threads"] == 128
        assert now["registers"] <= 255
        assert now["shared"] <= 81 * 1024, f"{case}: two blocks do not fit the 163 KiB of sm_80: {now}"
        if case.split("-")[1] in KINDS:
            assert now["waits"] >= 1, f"{case}: the copies are not waited for: {now}"
            assert now["barriers"] >= 1, f"{case}: other threads' copies are not waited for: {now}"
        for figure in ("registers", "instructions_per_step"):
            assert now[figure] <= table[VERSION][case][figure], f"{case}: {figure} grew: {now}"


@pytest.mark.parametrize("version", ["3.6", "3.7"])
def test_table_is_near_the_floor(version):
    """Two instructions per fp32 step on sm_90, one in packed 16 bits; the winners' k-block adds little."""
    table = json.loads(TABLE.read_text())[version]
    assert list(table) == CASES
    assert all(figures["stack"] == 0 for figures in table.values())
    for name, limit in LIMITS.items():
        found = table[f"{name}-sm_90"]
        assert 0.5 <= found["instructions_per_step"] <= limit, name
        # three blocks on a multiprocessor: 65,536 registers, and 228 KiB, of which each takes 1 more than its own
        assert 3 * 128 * -(-found["registers"] // 8) * 8 <= 1 << 16, name
        assert 3 * (found["shared"] + 1024) <= 228 * 1024, name
    # the copies of a k-block wait once for those before them, and once for other threads'
    assert {figures["barriers"] for case, figures in table.items() if case.split("-")[1] in KINDS} == {2}


@needs_gluon
@pytest.mark.slow
@pytest.mark.parametrize("dtype", NAMES)
def test_no_config_of_the_space_spills(dtype):
    """A sample: with STAGES of 3, as the others change the loop little, all large tiles and a few small ones.

    One does, which no default is: the search compiles what it tries, and rejects it.
    """
    found = json.loads(in_a_process_that_compiles("--space", dtype))
    assert len(found) == len(set(found)) == (36 if dtype.startswith("i") else 18)
    spilling = {case.split(" ")[0]: case for case, stack in found.items() if stack}
    assert set(spilling) <= {"i32-value-product-sm_90"}
    assert all("'BLOCK_N': 64, 'BLOCK_K': 16" in case and "'num_warps': 8" in case for case in spilling.values())


def space_of(dtype: str) -> dict[str, int]:
    """Stack of configs of the space on sm_90, by case and config. Neither GROUP_M nor SPLITS changes the loop."""
    kinds = [*KINDS, *(f"{kind}-product" for kind in KINDS if dtype.startswith("i"))]
    space = [dict(x) for x in by_gluon.FORWARD.space if (x["STAGES"], x["GROUP_M"], x["SPLITS"]) == (3, 8, 0)]
    # 32 outputs a thread take at most 128 registers of 168 and more: of these one is a check of the rest
    configs = [x for x in space if x["OUTPUTS"] == 64 or (x["BLOCK_N"], x["BLOCK_K"], x["num_warps"]) == (64, 32, 8)]
    return {
        f"{case} {config}": compiled(case, config)[0].stack
        for case in (f"{dtype}-{kind}-sm_90" for kind in kinds)
        for config in configs
    }


@needs_gluon
def test_addresses_are_computed_in_64_bits():
    """Beyond 2^31 elements a product of 32 bits with a size or a stride would wrap: the compiler's IR has none."""
    ir = in_a_process_that_compiles("--ir", "fp32-winners-ragged-sm_90")
    products = [line for line in ir.splitlines() if "arith.muli" in line]
    wide = [line for line in products if "i64" in line]
    sized = [line for line in products if re.search(r"%(M|N|K|stride_\w+)\b", line)]
    assert len(wide) >= 6  # batch and row of A and of B, and of C
    assert not [line for line in sized if "i64" not in line]
    # the offsets that stay in 32 bits are of a tile and within one: below M and N
    narrow = [line for line in ir.splitlines() if "tt.addptr" in line and "i64" not in line]
    assert len(narrow) <= 4, narrow


# ------------------------------------------------------------------------------------------------ a mirror in torch


def sums_in_lanes(a: torch.Tensor, b: torch.Tensor, semiring: str, form: str) -> torch.Tensor:
    """A ⊗ B as a lane of the GPU computes it: in 32 bits where "wide", else in the operands' own, wrapping."""
    if semiring == "max_times":
        if a.dtype == torch.int32 and form == "wide":
            return candidates(a, b, semiring)  # in 64 bits
        return a.int() * b.int()
    if form == "wide" and a.dtype == torch.int32:
        low, high = torch.iinfo(torch.int32).min - a.clamp(max=0), torch.iinfo(torch.int32).max - a.clamp(min=0)
        return a + torch.minimum(torch.maximum(b, low), high)
    return a.int() + b.int() if form == "wide" else a + b


def loop_of(a: torch.Tensor, b: torch.Tensor, semiring: str, capability: tuple[int, int] = (9, 0)) -> str:
    """The loop that a program takes: of "checked", what the extremes of A and B allow."""
    form = gluon_tile.form_of(a.dtype, semiring, capability)
    if form != "checked":
        return form
    ends = [[int(x) for x in t.aminmax()] for t in (a, b)]
    corners = [x * y if semiring == "max_times" else x + y for x, y in itertools.product(*ends)]
    bounds = torch.iinfo(a.dtype)
    return "fits" if bounds.min <= min(corners) and max(corners) <= bounds.max else "wide"


def k_blocks(
    a: torch.Tensor, b: torch.Tensor, semiring: str, ignore_nan: bool, block_k: int, splits: int = 1, form: str = ""
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the Gluon kernel stores: the ⊕ of each split [B, SPLITS, M, N], and the k-block in which it last rose.

    The rows of K are reached as the kernel's pointers are: from a split's start by one step of the second k-block's
    distance, then by whole blocks.
    """
    K, out = a.shape[-1], value_dtype(a.dtype)
    lanes = gluon_tile.lanes(a.dtype)
    a, b = a.to(lanes), b.to(lanes)
    form = form or ("fits" if a.is_floating_point() else loop_of(a, b, semiring))
    minimum = semiring == "min_plus"
    worst = semiring_zero("min_plus" if minimum else "max_plus", lanes)
    values, ids = [], []
    for split in range(splits):
        first, end, row, step = gluon_tile._share_of.fn(split, splits, K, block_k)
        value = torch.full((a.shape[0], a.shape[1], b.shape[-1]), worst, dtype=lanes)
        block = torch.zeros(value.shape, dtype=winner_dtype(K))
        for i in range(first, end):
            x = a[..., row : row + block_k, None], b[:, None, row : row + block_k]
            x = candidates(*x, semiring) if a.is_floating_point() else sums_in_lanes(*x, semiring, form)
            if ignore_nan:
                x = x.where(~x.isnan(), worst)
            top = x.amin(-2) if minimum else x.amax(-2)
            if top.dtype != lanes:  # int16 summed in int32 is saturated here, once
                top = top.clamp(-(2**15), 2**15 - 1).to(lanes)
            block = block.where(~(top < value if minimum else top > value), torch.tensor(i, dtype=block.dtype))
            value = torch.minimum(value, top) if minimum else torch.maximum(value, top)
            row, step = row + step, block_k
        values.append(value.to(out))
        ids.append(block)
    return torch.stack(values, 1), torch.stack(ids, 1)


def operands(kind: str, dtype: torch.dtype, K: int) -> tuple[torch.Tensor, torch.Tensor]:
    """a [2, 2, K], b [2, K, 7]: normal, full of ties, or full of NaN and infinities; integers at their bounds too."""
    if not dtype.is_floating_point:
        bounds = torch.iinfo(dtype)
        chosen = torch.tensor([bounds.min, bounds.min + 1, -1, 0, 1, bounds.max - 1, bounds.max])
        if kind != "messy":
            chosen = torch.randint(*((-3, 4) if kind == "ties" else (bounds.min // 2, bounds.max // 2)), (2 * K,))
        a, b = (chosen[torch.randint(len(chosen), shape)].to(dtype) for shape in ((2, 2, K), (2, K, 7)))
        return a, b
    a, b = torch.randn(2, 2, K), torch.randn(2, K, 7)
    if kind == "ties":
        a, b = a.round(), b.round()
    elif dtype == torch.bfloat16:  # Triton's interpreter truncates it: candidates that need no rounding
        a, b = (2 * a).round() / 2, (2 * b).round() / 2
    if kind == "messy":
        for x in (a, b):
            chance = torch.rand(x.shape)
            x[chance < 0.5] = float("nan")
            x[chance > 0.7] = float("-inf")
            x[chance > 0.9] = float("inf")
        a[0, 0] = float("nan")  # a row without any candidate
        a[1, 1, : K // 2], b[1, : K // 2] = float("nan"), 0  # −∞ candidates after skipped ones alone
        a[1, 1, K // 2 :] = float("-inf")
    return a.to(dtype), b.to(dtype)


def interpreted(
    case: str, text: str, a: torch.Tensor, b: torch.Tensor, splits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the PTX of a case stores, as `k_blocks` returns it."""
    winners, dtype = "winners" in case, NAMES[case.split("-")[0]]
    config = by_gluon.FORWARD.default({"dtype": str(dtype), "winners": winners, "K": 4096})
    constants = gluon_tile.constants(config, dtype, "max_plus", winners, False, (9, 0))
    (B, M, _), N, threads = a.shape, b.shape[-1], 32 * constants["num_warps"]
    tiles = B * -(-M // constants["BLOCK_M"]) * -(-N // constants["BLOCK_N"])
    rows_a, rows_b = (by_gluon.k_major(x, constants["BLOCK_K"], dtype) for x in (a.mT, b))
    values = torch.full((B, splits, M, N), 7e3, dtype=dtype)
    blocks = torch.full((B, splits, M, N) if winners else (1,), -7, dtype=torch.int16)
    strides = [stride for rows in (rows_a, rows_b) for stride in rows.stride()[:2]]
    sizes = [M, N, rows_a.shape[1], *strides, splits, 0, 0]
    extremes = torch.stack((*a.aminmax(), *b.aminmax()))
    ptx.run(text, [rows_a, rows_b, values, blocks, extremes, *sizes], tiles * splits, threads, 81 * 1024)
    return values, blocks


PROGRAMS = (
    *(f"{name}-ragged-sm_90" for name in ("fp32-value", "fp32-winners", "fp16-winners", "i32-winners")),
    "bf16-winners-ragged-sm_80",
)


@functools.cache
def programs() -> dict[str, str]:
    return json.loads(in_a_process_that_compiles("--ptx", *PROGRAMS))


@needs_gluon
@pytest.mark.parametrize("kind", ["ties", "messy"])
@pytest.mark.parametrize("case", PROGRAMS)
def test_its_ptx_computes_the_product(case, kind):
    """Ragged tiles in two splits, of which the first repeats rows; more k-blocks than stages, and no race."""
    a, b = operands(kind, NAMES[case.split("-")[0]], 230)
    a, b = a[:, torch.arange(66) % 2], b[..., torch.arange(70) % 7]
    values, blocks = interpreted(case, programs()[case], a, b, 2)
    expected, ids = k_blocks(a, b, "max_plus", False, 32, 2)
    torch.testing.assert_close(values, expected, rtol=0, atol=0, equal_nan=True)
    if "winners" in case:  # refining does not look at the block of a NaN
        assert torch.equal(blocks[~expected.isnan()], ids[~expected.isnan()])


@needs_gluon
def test_its_ptx_would_race_without_its_waits():
    """The barrier of the loop, and a wait that leaves one group of copies under way, not two."""
    a, b = operands("ties", torch.float32, 230)
    text = programs()[PROGRAMS[0]]
    waiting = r"(cp\.async\.wait_group\s+)1;(.*?)(bar\.sync)"
    changed = [re.sub(waiting, r"\g<1>2;\2\3", text, count=1, flags=re.DOTALL)]
    changed.append(re.sub(waiting, r"\g<1>1;\2//\3", text, count=1, flags=re.DOTALL))
    assert len({text, *changed}) == 3
    for wrong in changed:
        with pytest.raises(ptx.Race):
            interpreted(PROGRAMS[0], wrong, a, b, 1)


INTEGER_DTYPES = [dtype for dtype in by_gluon.DTYPES if not dtype.is_floating_point]


@needs_gluon
@pytest.mark.parametrize("dtype", INTEGER_DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("kind", ["normal", "ties", "messy"])
@pytest.mark.parametrize("semiring", SELECTIVE)
def test_loops_of_integers_are_exact(semiring, kind, dtype):
    """The value, and the k-block of the first winner, of both loops and through saturated ties."""
    a, b = operands(kind, dtype, 41)
    expected, winners = tropical_matmul_ref(a, b, semiring=semiring)
    lanes = gluon_tile.lanes(dtype)
    for form in {"wide", loop_of(a.to(lanes), b.to(lanes), semiring)}:
        values, blocks = k_blocks(a, b, semiring, False, 16, form=form)
        assert torch.equal(values[:, 0], expected)
        # whole blocks, of which the second starts at 9
        assert torch.equal(blocks[:, 0].long(), torch.where(winners < 16, 0, (winners + 7) // 16))


@needs_gluon
@settings(max_examples=100, deadline=None)
@given(tiles_m=st.integers(1, 30), tiles_n=st.integers(1, 12), group=st.sampled_from([1, 8]))
def test_programs_cover_the_tiles_once(tiles_m, tiles_n, group):
    found = [gluon_tile._tile_at.fn(pid, tiles_m, tiles_n, group) for pid in range(tiles_m * tiles_n)]
    assert sorted(found) == list(itertools.product(range(tiles_m), range(tiles_n)))
    assert [m for m, _ in found[: min(group, tiles_m)]] == list(range(min(group, tiles_m)))


@needs_gluon
@settings(max_examples=200, deadline=None)
@given(K=st.integers(1, 400), block_k=st.sampled_from([16, 32]), splits=st.integers(1, 20))
def test_splits_share_all_rows_in_whole_blocks(K, block_k, splits):
    K = max(K, block_k)
    rows, blocks = [], []
    for split in range(splits):
        first, end, row, step = gluon_tile._share_of.fn(split, splits, K, block_k)
        for i in range(first, end):
            assert 0 <= row <= K - block_k
            assert row == max(K - (-(-K // block_k) - i) * block_k, 0)  # what refining takes a block to be
            rows += range(row, row + block_k)
            blocks.append(i)
            row, step = row + step, block_k
    assert blocks == list(range(-(-K // block_k)))
    assert set(rows) == set(range(K))


@settings(max_examples=200, deadline=None)
@given(
    dtype=st.sampled_from([torch.int32, torch.int16]),
    semiring=st.sampled_from(SELECTIVE),
    seed=st.integers(0, 1 << 30),
    bits=st.tuples(st.integers(1, 32), st.integers(1, 32)),
)
def test_what_fits_cannot_wrap(dtype, semiring, seed, bits):
    generator = torch.Generator().manual_seed(seed)
    width = torch.iinfo(dtype).bits
    a, b = (
        torch.randint(-(1 << min(n, width) - 1), 1 << min(n, width) - 1, shape, generator=generator).to(dtype)
        for n, shape in zip(bits, ((1, 2, 5), (1, 5, 3)), strict=True)
    )
    exact = candidates(a[..., None], b[:, None], semiring)
    if loop_of(a, b, semiring) == "fits":
        assert torch.equal(sums_in_lanes(a[..., None], b[:, None], semiring, "fits"), exact)
    elif semiring != "max_times":  # an extreme pair exists somewhere: all or nothing is decided for whole tensors
        low, high = (int(t.min()) for t in (a, b)), (int(t.max()) for t in (a, b))
        assert sum(low) < torch.iinfo(dtype).min or sum(high) > torch.iinfo(dtype).max


def test_pairs_of_winners_are_raised_by_masks():
    """The bits of `_raise_pairs`: max, xor, min with 1, times 0xffff, select."""
    ends = torch.tensor([-(2**15), -(2**15) + 1, -257, -1, 0, 1, 255, 2**15 - 1], dtype=torch.int64)
    best, top = (x.flatten() for x in torch.meshgrid(ends, ends, indexing="ij"))
    best = torch.stack((best, best.roll(3)))  # two halves of one word
    top = torch.stack((top, top.roll(3)))
    block, i = torch.tensor([[12], [345]]), 678
    changed = (torch.maximum(best, top) ^ best) & 0xFFFF
    one = changed.clamp(max=1)
    mask = ((one[0] | one[1] << 16) * 0xFFFF) & 0xFFFFFFFF
    word = (mask & (i | i << 16)) | (~mask & (block[0] | block[1] << 16))
    halves = torch.stack((word & 0xFFFF, word >> 16))
    assert torch.equal(halves, torch.where(top > best, i, block))


# ------------------------------------------------------------------------------------------------ splits, winners


@settings(max_examples=300, deadline=None)
@given(tiles=st.integers(1, 10_000), blocks=st.integers(1, 5_000), units=st.integers(1, 200))
def test_splits_fill_the_device_and_none_is_in_vain(tiles, blocks, units):
    splits = by_gluon.splits_that_fill(tiles, blocks, units)
    share = -(-blocks // splits)
    assert splits == 1 or splits * tiles <= 2 * units
    assert splits == 1 or share >= 2
    assert (splits - 1) * share < blocks <= splits * share
    if tiles >= units * 2:
        assert splits == 1


@needs_interpreter
@DTYPES
@pytest.mark.parametrize("splits", [2, 7])
@pytest.mark.parametrize("kind", ["ties", "messy"])
def test_first_split_keeps_values_and_earliest_block(kind, splits, dtype):
    """Of K = 41 in blocks of 8; 7 splits leave the last without a block."""
    for semiring, ignore_nan in itertools.product(("max_plus", "min_plus"), {False, dtype.is_floating_point}):
        a, b = operands(kind, dtype, 41)
        parts, part_blocks = k_blocks(a, b, semiring, ignore_nan, 8, splits)
        expected, blocks = (x[:, 0] for x in k_blocks(a, b, semiring, ignore_nan, 8))
        for with_winners in (False, True):
            values = torch.empty_like(expected)
            ids = torch.full_like(blocks, -1) if with_winners else blocks.new_empty(0)
            by_gluon.first_split(parts, part_blocks, values, ids, semiring)
            torch.testing.assert_close(values, expected, rtol=0, atol=0, equal_nan=True)
            if with_winners:  # refining does not look at the block of a NaN
                assert torch.equal(ids[~values.isnan()], blocks[~values.isnan()])


@needs_interpreter
@pytest.mark.parametrize("dtype", REFINED, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("kind", ["ties", "messy"])
@pytest.mark.parametrize("semiring", SELECTIVE)
def test_refine_finds_the_exact_winners(semiring, kind, dtype):
    for K, skips in itertools.product((1, 27), {False, dtype.is_floating_point}):
        a, b = operands(kind, dtype, K)
        values, winners = (x[:, 0] for x in k_blocks(a, b, semiring, skips, 8))
        refine.refine(a, b, values, winners, semiring, skips, 8)
        expected, indices = tropical_matmul_ref(a, b, semiring=semiring, nan="ignore" if skips else "propagate")
        torch.testing.assert_close(values, expected, rtol=0, atol=0, equal_nan=True)
        assert winners.dtype == torch.int16
        assert torch.equal(winners.long(), indices)


@needs_interpreter
def test_refine_writes_four_bytes_beyond_32768_rows():
    K = (1 << 15) + 40
    a, b = torch.zeros(1, 1, K), torch.zeros(1, K, 2)
    a[0, 0, K - 2], b[0, 7, 1] = 1, 2
    values, winners = (x[:, 0] for x in k_blocks(a, b, "max_plus", False, 32))
    assert winners.dtype == torch.int32
    refine.refine(a, b, values, winners, "max_plus", False, 32)
    assert winners.tolist() == [[[K - 2, 7]]]


@needs_interpreter
def test_refine_reads_any_strides():
    a, b = operands("ties", torch.float32, 40)
    expected = tropical_matmul_ref(a, b)[1]
    values, winners = (x[:, 0] for x in k_blocks(a, b, "max_plus", False, 16))
    strided_a, strided_b = a.mT.contiguous().mT, torch.stack((b, b), -1)[..., 1]
    refine.refine(strided_a, strided_b, values, winners, "max_plus", False, 16)
    assert torch.equal(winners.long(), expected)


# ------------------------------------------------------------------------------------------------ operands


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 40), st.sampled_from([1, 7, 16, 33, 64])),
    order=st.permutations([0, 1, 2]),
    offset=st.integers(0, 5),
    dtype=st.sampled_from(by_gluon.DTYPES),
    expanded=st.booleans(),
)
def test_k_major_rows_can_be_copied_16_bytes_at_a_time(sizes, order, offset, dtype, expanded):
    B, K, S = sizes
    laid = [sizes[axis] for axis in order]
    storage = torch.arange(B * K * S + offset, dtype=torch.float32).remainder(97).to(dtype)
    x = storage[offset:].view(laid).permute([order.index(axis) for axis in range(3)])
    if expanded:
        x = x[:1].expand(B, -1, -1)
    rows = by_gluon.k_major(x, 16, dtype)
    assert rows.shape[:2] == (B, max(K, 16))
    assert torch.equal(rows[:, :K, :S], x)
    assert torch.equal(rows[:, K:, :S], x[:, -1:].expand(-1, rows.shape[1] - K, -1))
    assert rows.shape[2] % 16 == 0
    assert rows.stride(2) == 1
    assert rows.stride(0) % 16 == rows.stride(1) % 16 == rows.data_ptr() % 16 == 0


def test_k_major_copies_nothing_that_is_laid_out_already():
    x = torch.zeros(3, 32, 64)
    assert by_gluon.k_major(x, 32, torch.float32) is x
    assert by_gluon.k_major(x[:1].expand(3, -1, -1), 32, torch.float32).data_ptr() == x.data_ptr()
    assert (
        by_gluon.k_major(torch.zeros(1, 32, 5).expand(4, -1, -1), 32, torch.float32).untyped_storage().nbytes()
        == 32 * 16 * 4
    )


def test_k_major_widens_int8():
    x = torch.arange(-128, 128, dtype=torch.int8).view(1, 16, 16)
    rows = by_gluon.k_major(x, 16, torch.int16)
    assert rows.dtype == torch.int16
    assert torch.equal(rows, x.short())


# ------------------------------------------------------------------------------------------------ on a GPU

on_a_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="no NVIDIA GPU of compute capability 8.0 or later",
)


def both(
    a: torch.Tensor, b: torch.Tensor, semiring: str, ignore_nan: bool, **config: int
) -> list[tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]]:
    """(Gluon's, the portable kernel's) values and winners, without and with winners, at a changed default config."""
    pairs = []
    for with_winners in (False, True):
        default = by_gluon.FORWARD.default({"dtype": str(a.dtype), "winners": with_winners, "K": a.shape[-1]})
        with autotune.override(by_gluon.FORWARD.name, {**default, **config}):
            found = by_gluon.forward(a, b, semiring, with_winners, ignore_nan)
        pairs.append((found, by_triton.forward(a, b, semiring, with_winners, ignore_nan)))
    return pairs


def check_both(*arguments, **config):
    for (values, winners), (expected, indices) in both(*arguments, **config):
        assert values.dtype == expected.dtype
        torch.testing.assert_close(values, expected, rtol=0, atol=0, equal_nan=True)
        assert winners.dtype == indices.dtype
        assert torch.equal(winners, indices)


def on_device(kind: str, dtype: torch.dtype, sizes: tuple[int, int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    B, M, K, N = sizes
    a, b = operands(kind, dtype, K)
    a, b = a[:, torch.arange(M) % 2].cuda(), b[..., torch.arange(N) % 7].cuda()
    pick = torch.arange(B, device="cuda") % 2
    return a[pick], b[pick]


# one tile; ragged everywhere; whole tiles; K below and far above STAGES · BLOCK_K; batches; several waves
SIZES = [
    (1, 1, 1, 1),
    (2, 65, 31, 129),
    (1, 64, 128, 128),
    (3, 200, 517, 77),
    (1, 33, 5000, 50),
    (2, 1500, 70, 2100),
]


@on_a_gpu
@DTYPES
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_agrees_with_the_portable_kernel(sizes, dtype):
    for kind, semiring, ignore_nan in itertools.product(("normal", "ties", "messy"), SELECTIVE, (False, True)):
        a, b = on_device(kind, dtype, sizes)
        check_both(a, b, semiring, ignore_nan)


@on_a_gpu
@DTYPES
@pytest.mark.parametrize("splits", [1, 2, 3, 16, 1000])
def test_splits_change_nothing_on_a_gpu(splits, dtype):
    sizes = ((2, 65, 517, 129), (1, 3, 40, 7))
    for size, kind, semiring, ignore_nan in itertools.product(sizes, ("ties", "messy"), SELECTIVE, (False, True)):
        a, b = on_device(kind, dtype, size)
        check_both(a, b, semiring, ignore_nan, SPLITS=splits)


@on_a_gpu
@pytest.mark.slow
@DTYPES
def test_every_config_agrees_on_a_gpu(dtype):
    a, b = on_device("ties", dtype, (2, 300, 517, 270))
    for config in by_gluon.FORWARD.space:
        check_both(a, b, "max_plus", False, **config)


@on_a_gpu
@DTYPES
def test_twenty_repetitions_are_one_result(dtype):
    """A copy that is not waited for would show here: many waves, deep K."""
    a, b = on_device("normal", dtype, (1, 2048, 1500, 2048))
    first = by_gluon.forward(a, b, "max_plus", True, False)
    check_both(a, b, "max_plus", False)
    for _ in range(20):
        again = by_gluon.forward(a, b, "max_plus", True, False)
        assert all(torch.equal(x, y) for x, y in zip(again, first, strict=True))


@on_a_gpu
@pytest.mark.slow
def test_beyond_two_to_the_31_outputs_on_a_gpu():
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("2^31 outputs of fp16 with winners and their operands need 24 GB of free memory")
    a = torch.randn(1, 1 << 16, 40, device="cuda", dtype=torch.float16)
    b = torch.randn(1, 40, (1 << 15) + 64, device="cuda", dtype=torch.float16)
    values, winners = by_gluon.forward(a, b, "max_plus", True, False)
    for rows in (slice(0, 8), slice(-8, None)):
        expected, indices = by_triton.forward(a[:, rows], b, "max_plus", True, False)
        assert torch.equal(values[:, rows], expected)
        assert torch.equal(winners[:, rows], indices)


def main(arguments: list[str]) -> None:
    match arguments:
        case ["--space", dtype]:
            print(json.dumps(space_of(dtype)))
        case ["--ir", case]:
            print(compiled(case)[0].ir)
        case ["--ptx", *cases]:
            with mock.patch.object(ahead_of_time, "machine_codes", lambda made, _: [one.assembly for one in made]):
                print(json.dumps({case: compiled(case)[0] for case in cases}))
        case []:
            found = {case: cost(case) for case in CASES}
            table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
            TABLE.write_text(json.dumps(dict(sorted((table | {VERSION: found}).items())), indent=1) + "\n")
        case cases:
            print(json.dumps({case: cost(case) for case in cases}))


if __name__ == "__main__":
    main(sys.argv[1:])
