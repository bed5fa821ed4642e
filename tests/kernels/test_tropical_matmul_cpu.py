"""The C++ kernel against the definition: the same values and winners, exactly, in any layout, blocking and threads."""

import itertools
from contextlib import nullcontext

import pytest
import torch

from tropigrad.autotune import override
from tropigrad.kernels.mathematics.semiring import candidates, semiring_zero, value_dtype, winner_dtype
from tropigrad.kernels.runtime import native
from tropigrad.kernels.runtime.native import libraries
from tropigrad.kernels.tropical_matmul import by_cpp
from tropigrad.kernels.tropical_winners_scatter import by_cpp as winners_scatter

NAN, INF = float("nan"), float("inf")
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int32, torch.int16, torch.int8)
DTYPES = (*FLOATS, *INTEGERS)
SEMIRINGS = ("max_plus", "min_plus", "max_times")
SHAPES = [(1, 1, 1, 1), (2, 3, 17, 5), (1, 65, 130, 33), (1, 13, 7, 70), (3, 9, 3, 40), (1, 1, 300, 1)]  # B, M, K, N
CONFIGS = {
    "default": None,
    "small blocks": {"KC": 8, "MC": 8, "NC": 16, "threads": 0},
    "two threads": {"KC": 4, "MC": 100, "NC": 1, "threads": 2},
    "odd": {"KC": 7, "MC": 1, "NC": 1000, "threads": 3},
}

pytestmark = pytest.mark.skipif(
    bool(native.why_no_compiler()), reason=native.why_no_compiler() or "there is a compiler"
)


def oracle(a, b, semiring, nan):
    """[B, M, K] and [B, K, N] to values and winners, over the materialised [B, M, K, N]."""
    sign = -1.0 if semiring == "min_plus" else 1.0
    x = sign * candidates(a.unsqueeze(-1), b.unsqueeze(-3), semiring).double()  # every dtype is exact in float64
    if nan == "propagate":
        value, winner = x.max(-2)
        return sign * value, winner
    value = x.masked_fill(x.isnan(), -INF).amax(-2)
    winner, nothing = (x == value.unsqueeze(-2)).int().argmax(-2), x.isnan().all(-2)
    return (sign * value).masked_fill(nothing, 0.0 if semiring == "max_times" else -sign * INF), winner.masked_fill(
        nothing, -1
    )


def integers(shape, dtype):
    return torch.randint(-3, 4, shape).to(dtype)  # many ties


def ordinary(shape, dtype):
    return torch.randn(shape).mul(9).to(dtype)


def special(shape, dtype):
    """One in ten each of NaN, ∞ and −∞; of an integer's bounds, so that sums and products saturate."""
    x = integers(shape, dtype)
    bounds = None if dtype.is_floating_point else torch.iinfo(dtype)
    for value in (NAN, INF, -INF) if bounds is None else (bounds.max, bounds.min, bounds.max >> 11):
        x[torch.rand(shape) < 0.1] = value
    return x


def lowest(dtype):
    return semiring_zero("max_plus", dtype)


def mostly_missing(shape, dtype):
    """Columns and rows with nothing but NaN, −∞, or an integer's lowest."""
    x = special(shape, dtype)
    x[torch.rand(shape) < 0.9] = NAN if dtype.is_floating_point else lowest(dtype)
    return x


def mostly_zero_of_the_semiring(shape, dtype):
    x = ordinary(shape, dtype)
    x[torch.rand(shape) < 0.95] = lowest(dtype)
    return x


NAN_RULES = [(dtype, nan) for dtype in DTYPES for nan in ("propagate", "ignore")[: 1 + dtype.is_floating_point]]
KINDS = (integers, ordinary, special, mostly_missing, mostly_zero_of_the_semiring)


def identical(got, expected):
    return bool(((got == expected) | (got.isnan() & expected.isnan())).all())


def check(a, b, semiring, nan, configs=(None,)):
    values, winners = oracle(a, b, semiring, nan)
    for config in configs:
        with override(by_cpp.FORWARD.name, config) if config else nullcontext():
            got, won = by_cpp.forward(a, b, semiring, True, nan == "ignore")
            alone, none = by_cpp.forward(a, b, semiring, False, nan == "ignore")
        assert got.dtype == value_dtype(a.dtype)
        assert got.is_contiguous()
        assert won.dtype == winner_dtype(a.shape[-1])
        assert none.shape == (0,)
        assert identical(got.double(), values)
        assert torch.equal(won.long(), winners)
        assert identical(alone.double(), values)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("semiring", SEMIRINGS)
@pytest.mark.parametrize(("dtype", "nan"), NAN_RULES, ids=str)
def test_forward_equals_the_definition(dtype, nan, semiring, kind):
    for B, M, K, N in SHAPES:
        check(kind((B, M, K), dtype), kind((B, K, N), dtype), semiring, nan, CONFIGS.values())


@pytest.mark.parametrize("semiring", SEMIRINGS)
@pytest.mark.parametrize(("dtype", "nan"), NAN_RULES, ids=str)
def test_few_rows_or_columns_in_any_layout(dtype, nan, semiring):
    """Lanes along k where they are contiguous (K from one span to several chunks), along the other side elsewhere."""
    sizes = [(9, 128, 1), (6, 333, 2), (5, 2500, 3), (13, 140, 4), (4, 2100, 2)]
    for kind, (many, K, few) in zip(KINDS, sizes, strict=True):
        a, b = kind((2, many, K), dtype), kind((2, few, K), dtype).mT
        by_columns = a.mT.contiguous().mT
        for left, right in ((a, b), (b.mT, a.mT), (by_columns, b), (b.mT, by_columns.mT), (a, b[:1].expand_as(b))):
            check(left, right, semiring, nan)
        check(a, b, semiring, nan, [{**by_cpp.FORWARD.default({}), "threads": 2}])


@pytest.mark.parametrize("where", [0, 63, 64, 1023, 1024, 4095, 4096, 4999])
def test_the_first_of_equals_and_the_first_nan_along_k(where):
    x = torch.zeros(1, 1, 5000)
    x[..., where] = 1
    b = torch.zeros(1, 5000, 2)
    assert by_cpp.forward(x, b.mT.contiguous().mT, "max_plus", True, False)[1].flatten().tolist() == [where, where]
    x[..., where:] = 1
    assert by_cpp.forward(x, b.mT.contiguous().mT, "max_plus", True, False)[1].flatten().tolist() == [where, where]
    x[..., where:] = NAN
    values, winners = by_cpp.forward(x, b.mT.contiguous().mT, "max_plus", True, False)
    assert values.isnan().all()
    assert winners.flatten().tolist() == [where, where]


@pytest.mark.parametrize("K", [2**15, 2**15 + 1])
def test_winners_are_as_wide_as_the_largest_k(K):
    a, b = torch.zeros(1, 2, K), torch.zeros(1, K, 3)
    a[:, 1, -1] = 1
    values, winners = by_cpp.forward(a, b, "max_plus", True, False)
    assert winners.tolist() == [[[0] * 3, [K - 1] * 3]]
    da, db = winners_scatter.scatter(values, winners, None, None, K, "max_plus", True, True)
    assert da[0, 1, -1].item() == 3
    assert db[0, -1].tolist() == [1] * 3


def test_blocks_of_every_size_meet_at_their_edges():
    for M, K, N in itertools.product((1, 7, 8, 9, 17), (1, 3, 4, 5, 8, 9, 1025), (1, 31, 32, 33, 65)):
        check(
            integers((1, M, K), torch.float32),
            integers((1, K, N), torch.float32),
            "max_plus",
            "propagate",
            CONFIGS.values(),
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("semiring", SEMIRINGS)
def test_any_stride(dtype, semiring):
    B, M, K, N = 3, 20, 37, 50
    forms = [
        lambda shape: special(shape, dtype),  # contiguous
        lambda shape: special((shape[0], shape[2], shape[1]), dtype).mT,  # transposed
        lambda shape: special((1, *shape[1:]), dtype).expand(shape),  # batch expanded
        lambda shape: special((shape[0], 1, shape[2]), dtype).expand(shape),  # rows expanded
        lambda shape: special((*shape[:2], 1), dtype).expand(shape),  # columns expanded
        lambda shape: special([size * 2 + 1 for size in shape], dtype)[1::2, 1::2, 1::2],  # sliced, offset
    ]
    for i, of_a in enumerate(forms):
        of_b = forms[(i + 1) % len(forms)]
        check(of_a((B, M, K)), of_b((B, K, N)), semiring, "propagate")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("semiring", SEMIRINGS)
def test_every_half_precision_value(dtype, semiring):
    everything = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    partners = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0**-24, 3.7e-5, 1e-3, 0.33, 2047.0, 60000.0, -65504.0]).to(dtype)
    check(everything.view(1, 1 << 16, 1), partners.view(1, 1, -1), semiring, "propagate")
    check(everything.view(1, 1 << 12, 16), partners[:8].repeat(2).view(1, 16, 1), semiring, "ignore")


def test_rounding_makes_ties_and_the_first_wins():
    a = torch.tensor(
        [[[256.0, 256.0, 256.0, 256.0, 1.0]]], dtype=torch.bfloat16
    )  # 256 + 0.5 and 256 + 0.75 round to 256
    b = torch.tensor([[[-1.0], [0.0], [0.5], [0.75], [0.0]]], dtype=torch.bfloat16)
    assert by_cpp.forward(a, b, "max_plus", True, False)[1].item() == 1


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16], ids=str)
def test_integers_saturate(dtype):
    low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    a = torch.tensor([[[low, high, 7]]], dtype=dtype)
    for semiring, column, value, winner in [
        ("max_plus", [low, 1, 0], high, 1),
        ("max_plus", [-1, low, low], -1, 1),
        ("min_plus", [-1, low, high], low, 0),
        ("max_times", [low, high, high], high, 0),
        ("max_times", [1, low, low], low, 0),
    ]:
        b = torch.tensor(column, dtype=dtype).view(1, 3, 1)
        values, winners = by_cpp.forward(a, b, semiring, True, False)
        assert (values.item(), winners.item()) == (value, winner), (semiring, column)


@pytest.mark.parametrize("semiring", SEMIRINGS)
def test_every_pair_of_int8(semiring):
    every = torch.arange(-128, 128).to(torch.int8)
    check(every.view(1, -1, 1), every.view(1, 1, -1), semiring, "propagate")


@pytest.mark.parametrize("semiring", SEMIRINGS)
def test_every_int16(semiring):
    every = torch.arange(-(2**15), 2**15).to(torch.int16)
    partners = torch.tensor([0, 1, -1, 2, 3, -3, 181, -182, 255, 16384, -16384, 32767, -32768]).to(torch.int16)
    check(every.view(1, -1, 1), partners.view(1, 1, -1), semiring, "propagate")
    check(every.view(1, 1 << 12, 16), partners[:8].repeat(2).view(1, 16, 1), semiring, "propagate")


def test_nan_rules_by_hand():
    a = torch.tensor([[[NAN, -INF]], [[-INF, -INF]], [[NAN, NAN]], [[1.0, NAN]], [[INF, 0.0]]])
    b = torch.tensor([[[0.0], [0.0]]] * 4 + [[[-INF], [0.0]]])
    values, winners = by_cpp.forward(a, b, "max_plus", True, True)
    assert values.flatten().tolist() == [-INF, -INF, -INF, 1.0, 0.0]
    assert winners.flatten().tolist() == [1, 0, -1, 0, 1]
    values, winners = by_cpp.forward(a, b, "max_plus", True, False)
    assert values.isnan().flatten().tolist() == [True, False, True, True, True]
    assert winners.flatten().tolist() == [0, 0, 0, 1, 0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty_sizes_need_no_kernel(dtype):
    product = torch.ops.tropigrad.tropical_matmul
    for B, M, K, N in [(0, 2, 3, 4), (2, 0, 3, 4), (2, 3, 4, 0)]:
        values, winners = product(torch.ones(B, M, K).to(dtype), torch.ones(B, K, N).to(dtype), "max_plus", True, False)
        assert values.shape == winners.shape == (B, M, N)
    for semiring in SEMIRINGS:
        values, winners = product(torch.ones(1, 2, 0).to(dtype), torch.ones(1, 0, 3).to(dtype), semiring, True, False)
        assert (values == semiring_zero(semiring, value_dtype(dtype))).all()
        assert (winners == -1).all()
        assert values.shape == (1, 2, 3)


@pytest.mark.parametrize("by_fma", [False, True], ids=["addition", "fma"])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)], ids=str)
def test_sums_in_either_form_are_the_definitions(dtype, by_fma):
    """Whichever of them the probe of this processor prefers."""
    form = native.Form(by_fma=by_fma)
    if native.why_not(form):
        pytest.skip(native.why_not(form))
    with native.building(form):
        for fill, (B, M, K, N), semiring in itertools.product((ordinary, special), SHAPES, SEMIRINGS[:2]):
            a, b = fill((B, M, K), dtype), fill((B, K, N), dtype)
            values, winners = by_cpp.forward(a, b, semiring, True, False)
            expected, positions = oracle(a, b, semiring, "propagate")
            assert torch.equal(values.double().nan_to_num(), expected.nan_to_num())
            assert torch.equal(winners.long(), positions)


@pytest.mark.parametrize("by_fma", [False, True], ids=["addition", "fma"])
def test_availability_is_told_before_a_call(monkeypatch, by_fma):
    monkeypatch.setattr(libraries, "adds_by_fma", lambda: by_fma)
    assert native.library_of(by_cpp.SOURCE, torch.float64 if by_fma else torch.float32) or native.why_not(
        native.Form(by_fma=by_fma)
    )
    monkeypatch.setattr(libraries, "library", lambda source, *defines: None)
    assert not native.library_of(by_cpp.SOURCE, torch.float32)


def test_shift_equivariance_and_monotonicity():
    a, b = integers((2, 30, 40), torch.float32), integers((2, 40, 50), torch.float32)
    values, winners = by_cpp.forward(a, b, "max_plus", True, False)
    shifted, same = by_cpp.forward(a + 5, b - 2, "max_plus", True, False)
    assert torch.equal(shifted, values + 3)
    assert torch.equal(same, winners)
    raised, _ = by_cpp.forward(a, b + torch.rand_like(b), "max_plus", False, False)
    assert (raised >= values).all()


# ------------------------------------------------------------------------------------------------ scatter


def scattered(dc, winners, a, b, K):
    """The definition, one k at a time, in float64."""
    g = [(winners == k) * dc.double() for k in range(K)]
    da = [(gk * (1 if b is None else b[:, k, None, :].double())).sum(-1) for k, gk in enumerate(g)]
    db = [(gk * (1 if a is None else a[:, :, k, None].double())).sum(-2) for k, gk in enumerate(g)]
    return torch.stack(da, -1), torch.stack(db, -2)


@pytest.mark.parametrize("of_winners", [torch.int16, torch.int32], ids=str)
@pytest.mark.parametrize("semiring", ["max_plus", "max_times"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_scatter_equals_the_definition(dtype, semiring, of_winners):
    for B, M, K, N in [*SHAPES, (2, 70, 5, 100)]:
        winners = torch.randint(-1, K, (B, M, N), dtype=of_winners)
        a, b = (integers((B, K, M), dtype).mT, integers((B, K, N), dtype)) if semiring == "max_times" else (None, None)
        for dc in (
            integers((B, M, N), dtype),
            integers((1, 1, 1), dtype).expand(B, M, N),
            integers((B, N, M), dtype).mT,
        ):
            expected = scattered(dc, winners, a, b, K)
            for got, want in zip(
                winners_scatter.scatter(dc, winners, a, b, K, semiring, True, True), expected, strict=True
            ):
                assert got.dtype == dtype
                assert torch.equal(got.double(), want.to(dtype).double())


def test_scatter_gives_the_same_bits_on_any_number_of_threads():
    winners = torch.randint(-1, 40, (1, 300, 500), dtype=torch.int32)
    dc, before, results = torch.randn(1, 300, 500), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(winners_scatter.scatter(dc, winners, None, None, 40, "max_plus", True, True))
    finally:
        torch.set_num_threads(before)
    for da, db in results[1:]:
        assert torch.equal(da, results[0][0])
        assert torch.equal(db, results[0][1])


def test_scatter_of_half_precision_sums_in_float32():
    dc, winners = torch.ones(1, 1, 5000, dtype=torch.float16), torch.zeros(1, 1, 5000, dtype=torch.int32)
    da, _ = winners_scatter.scatter(dc, winners, None, None, 1, "max_plus", True, False)
    assert da.item() == 5000  # adding in float16 stops at 2048


def test_scatter_leaves_out_what_is_not_needed():
    dc, winners = torch.ones(1, 2, 3), torch.zeros(1, 2, 3, dtype=torch.int32)
    for needs_a, needs_b in itertools.product((True, False), repeat=2):
        da, db = winners_scatter.scatter(dc, winners, None, None, 4, "max_plus", needs_a, needs_b)
        assert da.shape == ((1, 2, 4) if needs_a else (0,))
        assert db.shape == ((1, 4, 3) if needs_b else (0,))


@pytest.mark.parametrize("needs", [(True, False), (False, True)], ids=["da", "db"])
@pytest.mark.parametrize("bad", [4, -2, 2**31 - 1, -(2**31)])
def test_a_winner_out_of_range_is_an_index_error(bad, needs):
    winners = torch.zeros(1, 2, 3, dtype=torch.int16 if abs(bad) < 2**15 else torch.int32)
    winners[0, 1, 2] = bad
    with pytest.raises(IndexError, match=r"outside \[-1, 4\)"):
        winners_scatter.scatter(torch.ones(1, 2, 3), winners, None, None, 4, "max_plus", *needs)


def test_winners_of_another_dtype_are_a_type_error():
    with pytest.raises(TypeError, match=r"winners are torch\.int64; expected the forward's int16 or int32"):
        winners_scatter.scatter(torch.ones(1, 2, 3), torch.zeros(1, 2, 3).long(), None, None, 4, "max_plus", True, True)
