"""The Triton scatter to winners, interpreted where there is no GPU: exact sums, by fixed point or as they come."""

import math

import pytest
import torch

from tropigrad.kernels.contract.comparison import assert_same
from tropigrad.kernels.contract.samples import INF, NAN, short
from tropigrad.kernels.runtime import backend
from tropigrad.kernels.runtime.arguments import FLOATS
from tropigrad.kernels.tropical_winners_scatter import by_triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OP = torch.ops.tropigrad.tropical_winners_scatter

pytestmark = pytest.mark.skipif(
    bool(backend.why_off("triton", DEVICE)), reason="the kernels need a GPU or triton's interpreter"
)
needs_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="no GPU")


def gradients(dc, winners, a, b, K, deterministic=True, needs=(True, True)):
    """dA, dB of the Triton kernel: by fixed point, or added as they come."""
    a, b = (None if x is None else x.to(DEVICE) for x in (a, b))
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        da, db = by_triton.scatter(
            dc.to(DEVICE), winners.to(DEVICE), a, b, K, "max_plus" if a is None else "max_times", *needs
        )
    finally:
        torch.use_deterministic_algorithms(before)
    return da.cpu(), db.cpu()


def exact(dc, winners, a, b, K):
    """The same by exactly rounded sums of fp64 terms: a term is a product of two fp32, which fp64 holds."""
    (B, M, N) = dc.shape
    to_a = [[[[] for _ in range(K)] for _ in range(M)] for _ in range(B)]
    to_b = [[[[] for _ in range(N)] for _ in range(K)] for _ in range(B)]
    for i in range(B):
        for m in range(M):
            for n in range(N):
                k, x = int(winners[i, m, n]), float(dc[i, m, n])
                if 0 <= k < K:
                    to_a[i][m][k].append(x if b is None else x * float(b[i, k, n]))
                    to_b[i][k][n].append(x if a is None else x * float(a[i, m, k]))
    return tuple(
        torch.tensor([[[math.fsum(terms) for terms in row] for row in batch] for batch in sums], dtype=torch.float64)
        for sums in (to_a, to_b)
    )


def problem(product: bool, dtype=torch.float32):
    """dC [2, 5, 70] of sizes 2^−30 to 2^3 with its winners of K = 7, some of them none, and the factors."""
    dc = torch.randn(2, 5, 70) * torch.exp2(torch.randint(-30, 4, (2, 5, 70)))
    if dtype != torch.float32:  # what Triton's interpreter does not truncate
        dc = dc.mul(8).round().clamp(-16, 16)
    factors = (torch.randn(2, 5, 7), torch.randn(2, 7, 70)) if product else (None, None)
    return dc.to(dtype), torch.randint(-1, 7, (2, 5, 70), dtype=torch.int16), *factors


@pytest.mark.parametrize("product", [False, True], ids=["sum", "product"])
@pytest.mark.parametrize("winners_dtype", [torch.int16, torch.int32], ids=short)
def test_fixed_point_keeps_its_bound(product, winners_dtype):
    dc, winners, a, b = problem(product)
    winners = winners.to(winners_dtype)
    got = gradients(dc, winners, a, b, 7)
    for x, expected, factor, count in zip(got, exact(dc, winners, a, b, 7), (b, a), (70, 5), strict=True):
        # 2^e is at most twice the largest magnitude, of each factor
        top = 2 * dc.abs().max().item() * (1 if factor is None else 2 * factor.abs().max().item())
        bound = count * 2 ** math.ceil(math.log2(count)) * top * 2**-62
        error = (x.double() - expected).abs()
        assert (error <= bound + expected.abs() * 2**-24).all()
        assert x.dtype == torch.float32


@pytest.mark.parametrize("product", [False, True], ids=["sum", "product"])
def test_fixed_point_knows_no_order(product):
    """Rows and columns in another order: the same bits."""
    dc, winners, a, b = problem(product)
    da, db = gradients(dc, winners, a, b, 7)
    for _ in range(3):
        rows, columns = torch.randperm(5), torch.randperm(70)
        shuffled = dc[:, rows][..., columns], winners[:, rows][..., columns]
        a_shuffled, b_shuffled = (None, None) if a is None or b is None else (a[:, rows], b[..., columns])
        da_shuffled, db_shuffled = gradients(*shuffled, a_shuffled, b_shuffled, 7)
        assert torch.equal(da_shuffled, da[:, rows])
        assert torch.equal(db_shuffled, db[..., columns])


def test_fixed_point_neither_cancels_nor_overflows():
    big = torch.finfo(torch.float32).max
    rows = [[1, 2.0**-38, -1, 0], [big, big, -big, -big], [big, big, big, big], [2.0**-149, 0, 0, 2.0**-149]]
    for row, expected in zip(rows, (2.0**-38, 0, INF, 2.0**-148), strict=True):
        dc = torch.tensor([[row]])
        da, _ = gradients(dc, torch.zeros(1, 1, 4, dtype=torch.int16), None, None, 1)
        assert da.item() == expected, row
    a, b = torch.full((1, 1, 1), big), torch.full((1, 1, 4), big)
    da, db = gradients(torch.tensor([[[1.0, 1.0, -1.0, -1.0]]]), torch.zeros(1, 1, 4, dtype=torch.int16), a, b, 1)
    assert da.item() == 0
    assert db.tolist() == [[[big, big, -big, -big]]]


@pytest.mark.parametrize("deterministic", [True, False], ids=["fixed-point", "fast"])
def test_what_is_not_finite_adds_up_as_it_does_in_floating_point(deterministic):
    rows = [[INF, 1, 2], [-INF, 1, -INF], [INF, 0, -INF], [NAN, 1, 2], [NAN, INF, 2], [3, 4, 5]]
    dc = torch.tensor([rows])
    da, db = gradients(dc, torch.zeros(1, 6, 3, dtype=torch.int16), None, None, 3, deterministic)
    assert_same(da[0, :, 0], torch.tensor([INF, -INF, NAN, NAN, NAN, 12]), exact=True)
    assert_same(db[0, 0], torch.tensor([NAN, INF, -INF]), exact=True)
    assert not da[..., 1:].any()
    assert not db[:, 1:].any()
    # 0 · ∞ of a product
    da, _ = gradients(
        torch.zeros(1, 1, 3), torch.zeros(1, 1, 3, dtype=torch.int16), dc[:, :1, :1], dc[:, :1], 1, deterministic
    )
    assert da.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=short)
@pytest.mark.parametrize("deterministic", [True, False], ids=["fixed-point", "fast"])
def test_sixteen_bit_gradients_are_rounded_once(dtype, deterministic):
    dc, winners, _, _ = problem(False, dtype)
    dc = torch.ones_like(dc)
    for x, expected in zip(
        gradients(dc, winners, None, None, 7, deterministic), exact(dc, winners, None, None, 7), strict=True
    ):
        assert_same(x, expected.to(dtype), exact=True)
    count = 512  # in bfloat16 a running sum of ones stops at 256
    ones, winners = torch.ones(1, 1, count, dtype=dtype), torch.zeros(1, 1, count, dtype=torch.int16)
    da, db = gradients(ones, winners, None, None, 1, deterministic, (True, False))
    assert da.item() == count
    assert db.shape == (0,)


@pytest.mark.parametrize("deterministic", [True, False], ids=["fixed-point", "fast"])
@pytest.mark.parametrize("bad", [4, -2, 2**31 - 1, -(2**31)])
def test_a_winner_out_of_range_adds_nothing(bad, deterministic):
    winners = torch.zeros(1, 2, 3, dtype=torch.int32)
    winners[0, 1, 2] = bad
    a, b = torch.ones(1, 2, 4), torch.ones(1, 4, 3)
    for factors in ((None, None), (a, b)):
        da, db = gradients(torch.ones(1, 2, 3), winners, *factors, 4, deterministic)
        assert da.tolist() == [[[3, 0, 0, 0], [2, 0, 0, 0]]]
        assert db.tolist() == [[[2, 2, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]]


@pytest.mark.parametrize("name", ["triton", "torch"])
def test_a_winner_out_of_range_is_an_index_error_where_it_can_be_looked_at(name, set_backend):
    """On the CPU always; on a GPU inside detect_anomaly."""
    set_backend(name)
    with torch.autograd.set_detect_anomaly(DEVICE.type == "cuda", check_nan=False):
        for bad in (4, -2):
            winners = torch.zeros(1, 2, 3, dtype=torch.int16, device=DEVICE)
            winners[0, 1, 2] = bad
            with pytest.raises(IndexError, match=r"winners are in \[.*\]; expected the forward's, in \[-1, 4\)"):
                OP(torch.ones(1, 2, 3, device=DEVICE), winners, None, None, 4, "max_plus", True, True)
        nowhere = torch.full_like(winners, -1)
        da, db = OP(torch.ones(1, 2, 3, device=DEVICE), nowhere, None, None, 4, "max_plus", True, True)
        assert not da.any()
        assert not db.any()


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_deterministic_mode_is_honoured_in_every_dtype(dtype, monkeypatch, set_backend):
    """float64 goes to torch, whose scatter_add has a deterministic form; the others to fixed point."""
    set_backend("triton")
    called = []
    original = by_triton._largest
    monkeypatch.setattr(by_triton, "_largest", lambda *args: (called.append(dtype), original(*args)))
    dc, winners = (
        torch.ones(1, 3, 4, dtype=dtype, device=DEVICE),
        torch.zeros(1, 3, 4, dtype=torch.int16, device=DEVICE),
    )
    torch.use_deterministic_algorithms(True)
    try:
        da, db = OP(dc, winners, None, None, 1, "max_plus", True, True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert (da == 4).all()
    assert (db == 3).all()
    assert bool(called) == (dtype != torch.float64)


@pytest.mark.parametrize("deterministic", [True, False], ids=["fixed-point", "fast"])
def test_gradients_may_lie_beyond_two_to_the_31(deterministic):
    far = (1 << 30) + 8
    dc = torch.empty(2 * far + 2, dtype=torch.float16, device=DEVICE).as_strided((1, 3, 2), (0, far, 1))
    dc.copy_(torch.arange(6.0).view(1, 3, 2))
    da, db = gradients(dc, torch.zeros(1, 3, 2, dtype=torch.int16), None, None, 1, deterministic)
    assert da.tolist() == [[[1], [5], [9]]]
    assert db.tolist() == [[[6, 9]]]


@needs_gpu
@pytest.mark.parametrize("product", [False, True], ids=["sum", "product"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=short)
def test_twenty_runs_give_the_same_bits(dtype, product):
    B, M, K, N = 2, 300, 17, 2000
    dc, winners = torch.randn(B, M, N).to(dtype), torch.randint(-1, K, (B, M, N), dtype=torch.int16)
    a, b = (torch.randn(B, M, K).to(dtype), torch.randn(B, K, N).to(dtype)) if product else (None, None)
    args = [None if x is None else x.to(DEVICE) for x in (dc, winners, a, b)]
    torch.use_deterministic_algorithms(True)
    try:
        runs = [OP(*args, K, "max_times" if product else "max_plus", True, True) for _ in range(20)]
    finally:
        torch.use_deterministic_algorithms(False)
    for da, db in runs[1:]:
        assert torch.equal(da, runs[0][0])
        assert torch.equal(db, runs[0][1])
