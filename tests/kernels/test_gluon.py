"""The Gluon tropical product without a GPU: its machine code's costs, and the parts around it that run anywhere.

The costs are compared with gluon_costs.json, by Triton's minor version. Run as a script without TRITON_INTERPRET, this
file prints the costs of the cases that it is given; without arguments it writes those of all cases into the table.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tropigrad.kernels import ahead_of_time, backend, triton_or_stub
from tropigrad.kernels.tropical_matmul import gluon, portable
from tropigrad.kernels.tropical_matmul.definition import SELECTIVE, candidates, tropical_matmul_ref

triton = pytest.importorskip("triton", reason="triton is not installed")

TABLE = Path(__file__).with_name("gluon_costs.json")
VERSION = ".".join(triton.__version__.split(".")[:2])
CAPABILITIES = (80, 90, 100)
KINDS = ("value", "winners")
CASES = [
    *(f"{dtype}-{kind}-sm_{c}" for dtype in ("fp32", "fp16") for kind in KINDS for c in CAPABILITIES),
    *(f"fp32-{kind}-{form}-sm_90" for kind in KINDS for form in ("ragged", "min", "product", "ignore")),
]
QUICK = [case for case in CASES if (case.startswith("fp32") and case.count("-") == 2) or case == "fp16-value-sm_90"]
TORCH_NAMES = {"fp32": "torch.float32", "fp16": "torch.float16"}

needs_gluon = pytest.mark.skipif(not triton_or_stub.HAS_GLUON, reason="this triton has no gluon")
needs_interpreter = pytest.mark.skipif(
    bool(backend.why_off("triton", torch.device("cpu"))), reason="the refining kernel needs triton's interpreter"
)

# ------------------------------------------------------------------------------------------------ machine code


def cost(case: str) -> dict[str, float]:
    """Registers, stack, shared bytes and the inner loop's instructions per (m, n, k) of one case's default config."""
    dtype, kind, *form, sm = case.split("-")
    winners = kind == "winners"
    config = dict(gluon.FORWARD.default({"dtype": TORCH_NAMES[dtype], "winners": winners}))
    warps = config.pop("num_warps")
    strides = ["stride_ab", "stride_ak", "stride_bb", "stride_bk"]
    sizes = ["M", "N", "K"]
    signature = {"a_ptr": f"*{dtype}", "b_ptr": f"*{dtype}", "c_ptr": f"*{dtype}", "block_ptr": "*i32"}
    signature |= dict.fromkeys([*sizes, *strides], "i32")
    flags = {"MINIMUM": "min" in form, "PRODUCT": "product" in form, "IGNORE_NAN": "ignore" in form}
    constants = {"WORST": float("inf" if flags["MINIMUM"] else "-inf"), "WINNERS": winners} | flags | config
    code = ahead_of_time.compile(
        gluon._tropical_matmul_gluon_kernel,
        signature,
        constants,
        int(sm.removeprefix("sm_")),
        warps,
        divisible=strides if "ragged" in form else [*sizes, *strides],
    )
    steps = config["BLOCK_M"] * config["BLOCK_N"] * config["BLOCK_K"] // (32 * warps)
    barriers = sum(count for name, count in code.loop.items() if name.startswith("BAR.SYNC"))
    waits = sum(count for name, count in code.loop.items() if name.startswith("DEPBAR"))
    return {
        "registers": code.registers,
        "stack": code.stack,
        "shared": code.shared,
        "threads": 32 * warps,
        "barriers": barriers,
        "waits": waits,
        "instructions_per_step": round(sum(code.loop.values()) / steps, 4),
    }


def compiled_costs(cases: list[str]) -> dict[str, dict[str, float]]:
    """The costs, from a process in which Triton compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, __file__, *cases], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@needs_gluon
@pytest.mark.parametrize(
    "cases", [QUICK, pytest.param(CASES, marks=pytest.mark.slow)], ids=["the-quick-cases", "every-case"]
)
def test_default_configs_cost_what_the_table_says(cases):
    table = json.loads(TABLE.read_text())
    if VERSION not in table:
        pytest.skip(f"gluon_costs.json has triton {', '.join(table)}; this is {VERSION}")
    found = compiled_costs(cases)
    assert list(found) == cases
    for case, now in found.items():
        assert now["stack"] == 0, f"{case} spills: {now}"
        # 128 threads of at most 255 registers: two blocks and more fit the 65,536 of a multiprocessor
        assert now["threads"] == 128
        assert now["registers"] <= 255
        assert now["shared"] <= 81 * 1024, f"{case}: two blocks do not fit the 163 KiB of sm_80: {now}"
        assert now["waits"] >= 1, f"{case}: the copies are not waited for: {now}"
        assert now["barriers"] >= 1, f"{case}: other threads' copies are not waited for: {now}"
        for figure in ("registers", "instructions_per_step"):
            assert now[figure] <= table[VERSION][case][figure], f"{case}: {figure} grew: {now}"


@pytest.mark.parametrize(("version", "fp32_value"), [("3.6", 2.101), ("3.7", 2.10)])
def test_table_is_near_the_floor(version, fp32_value):
    """Two instructions per fp32 step on sm_90, one in packed fp16; the winners' k-block adds little."""
    table = json.loads(TABLE.read_text())[version]
    assert list(table) == CASES
    limits = {"fp32-value": fp32_value, "fp32-winners": 2.25, "fp16-value": 1.15, "fp16-winners": 1.15}
    for case, figures in table.items():
        if case.endswith("sm_90"):
            assert 1.0 <= figures["instructions_per_step"] <= limits["-".join(case.split("-")[:2])], case
        assert figures["stack"] == 0


# ------------------------------------------------------------------------------------------------ winners


def k_blocks(a: torch.Tensor, b: torch.Tensor, semiring: str, ignore_nan: bool, block_k: int):
    """What the Gluon kernel hands to refine: values [B, M, N], and the k-block in which each last rose.

    Blocks as the kernel lays them: the first starts at 0 and all others end at K, block_k apart.
    """
    K = a.shape[-1]
    values = a.new_full((a.shape[0], a.shape[1], b.shape[-1]), float("inf" if semiring == "min_plus" else "-inf"))
    blocks = torch.zeros(values.shape, dtype=torch.int32)
    count = -(-K // block_k)
    for i in range(count):
        first = max(K - (count - i) * block_k, 0)
        x = candidates(a[..., first : first + block_k, None], b[:, None, first : first + block_k], semiring)
        if ignore_nan:
            x = x.where(~x.isnan(), values.new_tensor(float("inf" if semiring == "min_plus" else "-inf")))
        top = x.amin(-2) if semiring == "min_plus" else x.amax(-2)
        rises = top < values if semiring == "min_plus" else top > values
        blocks = blocks.where(~rises, torch.tensor(i, dtype=torch.int32))
        values = torch.minimum(values, top) if semiring == "min_plus" else torch.maximum(values, top)
    return values, blocks


def operands(kind: str, dtype: torch.dtype, K: int) -> tuple[torch.Tensor, torch.Tensor]:
    """a [2, 3, K], b [2, K, 7]: normal, full of ties, or full of NaN and infinities."""
    a, b = torch.randn(2, 3, K), torch.randn(2, K, 7)
    if kind == "ties":
        a, b = a.round(), b.round()
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


@needs_interpreter
@pytest.mark.parametrize("K", [1, 16, 41])
@pytest.mark.parametrize("ignore_nan", [False, True], ids=["propagate", "ignore"])
@pytest.mark.parametrize("kind", ["normal", "ties", "messy"])
@pytest.mark.parametrize("semiring", SELECTIVE)
def test_refine_finds_the_exact_winners(semiring, kind, ignore_nan, K):
    for dtype in gluon.DTYPES:
        a, b = operands(kind, dtype, K)
        values, winners = k_blocks(a, b, semiring, ignore_nan, 16)
        gluon.refine(a, b, values, winners, semiring, ignore_nan, 16)
        nan = "ignore" if ignore_nan else "propagate"
        expected, indices = tropical_matmul_ref(a, b, semiring=semiring, nan=nan)
        torch.testing.assert_close(values, expected, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(winners.long(), indices)


@needs_interpreter
def test_refine_reads_any_strides():
    a, b = operands("ties", torch.float32, 40)
    expected = tropical_matmul_ref(a, b)[1]
    values, winners = k_blocks(a, b, "max_plus", False, 16)
    strided_a, strided_b = a.mT.contiguous().mT, torch.stack((b, b), -1)[..., 1]
    gluon.refine(strided_a, strided_b, values, winners, "max_plus", False, 16)
    assert torch.equal(winners.long(), expected)


# ------------------------------------------------------------------------------------------------ operands


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 40), st.sampled_from([1, 7, 16, 33, 64])),
    order=st.permutations([0, 1, 2]),
    offset=st.integers(0, 5),
    dtype=st.sampled_from(gluon.DTYPES),
    expanded=st.booleans(),
)
def test_k_major_rows_can_be_copied_16_bytes_at_a_time(sizes, order, offset, dtype, expanded):
    B, K, S = sizes
    laid = [sizes[axis] for axis in order]
    storage = torch.arange(B * K * S + offset, dtype=torch.float32).remainder(97).to(dtype)
    x = storage[offset:].view(laid).permute([order.index(axis) for axis in range(3)])
    if expanded:
        x = x[:1].expand(B, -1, -1)
    rows = gluon.k_major(x, 16)
    assert rows.shape[:2] == (B, max(K, 16))
    assert torch.equal(rows[:, :K, :S], x)
    assert torch.equal(rows[:, K:, :S], x[:, -1:].expand(-1, rows.shape[1] - K, -1))
    assert rows.shape[2] % 16 == 0
    assert rows.stride(2) == 1
    assert rows.stride(0) % 16 == rows.stride(1) % 16 == rows.data_ptr() % 16 == 0


def test_k_major_copies_nothing_that_is_laid_out_already():
    x = torch.zeros(3, 32, 64)
    assert gluon.k_major(x, 32) is x
    assert gluon.k_major(x[:1].expand(3, -1, -1), 32).data_ptr() == x.data_ptr()
    assert gluon.k_major(torch.zeros(1, 32, 5).expand(4, -1, -1), 32).untyped_storage().nbytes() == 32 * 16 * 4


# ------------------------------------------------------------------------------------------------ on a GPU


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="no NVIDIA GPU of compute capability 8.0 or later",
)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 65, 31, 129), (1, 64, 128, 128), (3, 200, 517, 77)], ids=str)
@pytest.mark.parametrize("kind", ["normal", "ties", "messy"])
@pytest.mark.parametrize(("semiring", "ignore_nan"), list(itertools.product(SELECTIVE, (False, True))))
def test_agrees_with_the_portable_kernel(semiring, ignore_nan, kind, sizes):
    B, M, K, N = sizes
    for dtype in gluon.DTYPES:
        a, b = operands(kind, dtype, K)
        a, b = a[:, torch.arange(M) % 3].cuda(), b[..., torch.arange(N) % 7].cuda()
        a, b = (x[torch.arange(B, device="cuda") % 2] for x in (a, b))
        for with_winners in (False, True):
            values, winners = gluon.forward(a, b, semiring, with_winners, ignore_nan)
            expected, indices = portable.forward(a, b, semiring, with_winners, ignore_nan)
            torch.testing.assert_close(values, expected, rtol=0, atol=0, equal_nan=True)
            assert torch.equal(winners, indices)


def main(cases: list[str]) -> None:
    found = {case: cost(case) for case in cases or CASES}
    if cases:
        print(json.dumps(found))
    else:
        table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
        TABLE.write_text(json.dumps(dict(sorted((table | {VERSION: found}).items())), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
