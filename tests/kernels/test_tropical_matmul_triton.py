"""The Triton product, interpreted where there is no GPU: values and winners of both forms of its kernel."""

import pytest
import torch

from tropigrad.autotune import override
from tropigrad.kernels.contract.comparison import assert_same
from tropigrad.kernels.contract.samples import INF, NAN, short
from tropigrad.kernels.mathematics.semiring import SELECTIVE, winner_dtype
from tropigrad.kernels.runtime import backend
from tropigrad.kernels.runtime.arguments import FLOATS, INTEGERS
from tropigrad.kernels.tropical_matmul import by_triton
from tropigrad.kernels.tropical_matmul.definition import tropical_matmul_ref

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

pytestmark = pytest.mark.skipif(
    bool(backend.why_off("triton", DEVICE)), reason="the kernels need a GPU or triton's interpreter"
)
needs_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="no GPU")


def operands(dtype: torch.dtype, K: int) -> tuple[torch.Tensor, torch.Tensor]:
    """a [2, 2, K], b [2, K, 35]: floats with ties, NaN and infinities, some rows without a candidate; any integers."""
    a, b = torch.randn(2, 2, K).mul(3).round(), torch.randn(2, K, 35).mul(3).round()
    if not dtype.is_floating_point:
        bounds = torch.iinfo(dtype)
        a, b = (torch.randint(bounds.min, bounds.max + 1, x.shape) for x in (a, b))
        a[0], b[0] = a[0] % 5, b[0] % 5  # ties without saturation
        a[1, 0], a[1, 1] = bounds.min, bounds.max
        return a.to(DEVICE, dtype), b.to(DEVICE, dtype)
    for x in (a, b):
        chance = torch.rand(x.shape)
        x[chance < 0.1] = NAN
        x[chance > 0.8] = -INF
        x[chance > 0.95] = INF
    a[0, 0] = NAN
    a[0, 1] = -INF
    a[1, 0, : K // 2], a[1, 0, K // 2 :] = NAN, -INF
    return a.to(DEVICE, dtype), b.to(DEVICE, dtype)


@pytest.mark.parametrize("block_k", [1, 8], ids=["winner-each-k", "winner-by-block"])
@pytest.mark.parametrize(
    ("dtype", "semiring"),
    [
        pytest.param(
            dtype,
            semiring,
            id=f"{short(dtype)}-{semiring}",
            marks=[] if semiring == "max_plus" or dtype in (torch.float32, torch.int16) else [pytest.mark.slow],
        )
        for dtype in (*FLOATS, *INTEGERS)
        for semiring in SELECTIVE
    ],
)
def test_values_and_winners_equal_the_oracle(dtype, semiring, block_k):
    """K = 21 is two blocks of eight and a short one; NaN both ways; the values of both kinds of call."""
    a, b = operands(dtype, 21)
    config = {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": block_k, "num_warps": 4}
    for ignore_nan in (False, True) if dtype.is_floating_point else (False,):
        nan = "ignore" if ignore_nan else "propagate"
        expected, indices = tropical_matmul_ref(a, b, semiring=semiring, nan=nan)
        with override("tropical_matmul.triton", config):
            values, winners = by_triton.forward(a, b, semiring, True, ignore_nan)
            alone, nothing = by_triton.forward(a, b, semiring, False, ignore_nan)
        assert_same(values, expected, exact=True)
        assert_same(alone, expected, exact=True)
        assert_same(winners, indices.to(torch.int16), exact=True)
        assert nothing.numel() == 0


@pytest.mark.parametrize("K", [1, 2, 5, 8, 9])
@pytest.mark.parametrize("block_k", [1, 32])
def test_sums_shorter_than_a_block(K, block_k):
    a, b = operands(torch.float32, K)
    with override("tropical_matmul.triton", {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": block_k, "num_warps": 2}):
        values, winners = by_triton.forward(a, b, "max_plus", True, False)
    expected, indices = tropical_matmul_ref(a, b)
    assert_same(values, expected, exact=True)
    assert_same(winners.long(), indices, exact=True)


def test_winners_take_two_bytes_where_they_suffice():
    for K in (1 << 15, (1 << 15) + 1):
        a, b = torch.zeros(1, 1, K, dtype=torch.int8, device=DEVICE), torch.zeros(1, K, 1, dtype=torch.int8)
        a[..., -1] = 1
        with override("tropical_matmul.triton", {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 32, "num_warps": 2}):
            _, winners = by_triton.forward(a[..., -40:], b[..., -40:, :].to(DEVICE), "max_plus", True, False)
        assert winners.dtype == torch.int16
        assert winners.item() == 39
        assert winner_dtype(K) == (torch.int16 if K == 1 << 15 else torch.int32)


def packed(a, block_k):
    return by_triton._packed(a.shape, a.stride(), a.data_ptr() % 8 == 0, a.dtype, block_k)


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=short)
def test_rows_read_in_words_give_the_same(dtype):
    """Of A, as many k as eight bytes hold; read one by one where rows are not aligned, or K no multiple."""
    a, b = operands(dtype, 24)
    count = 8 // a.element_size()
    assert packed(a, 8) == count
    shifted = torch.cat([a.new_zeros(1), a.flatten()])[1:].view(a.shape)
    expected, indices = tropical_matmul_ref(a, b)
    for layout in (a, shifted, a.mT.contiguous().mT):
        if layout is not a:
            assert packed(layout, 8) == 1
        values, winners = by_triton.forward(layout, b, "max_plus", True, False)
        assert_same(values, expected, exact=True)
        assert_same(winners.long(), indices, exact=True)
    if count > 1:
        assert packed(a[..., :-1], 8) == 1
        assert packed(a, 1) == 1


def test_strides_may_reach_beyond_two_to_the_31():
    """Memory that is reserved and hardly touched: three rows and columns, each almost 2^31 bytes from the last."""
    far = (1 << 31) - 8
    a = torch.empty(2 * far + 2, dtype=torch.int8, device=DEVICE).as_strided((1, 3, 2), (0, far, 1))
    b = a.mT
    a.copy_(torch.tensor([[[1, 2], [3, 4], [5, -6]]]))
    for x, y in ((a, b), (b, a)):
        values, winners = by_triton.forward(x, y, "max_plus", True, False)
        expected, indices = tropical_matmul_ref(x.clone(), y.clone())
        assert_same(values, expected, exact=True)
        assert_same(winners.long(), indices, exact=True)


@needs_gpu
def test_results_of_more_than_two_to_the_31_elements():
    a, b = (
        torch.zeros(1, 1 << 16, 1, dtype=torch.int16, device=DEVICE),
        torch.zeros(1, 1, (1 << 15) + 8, dtype=torch.int16, device=DEVICE),
    )
    a[0, -1], b[..., -1] = 1, 2
    values, winners = by_triton.forward(a, b, "max_plus", True, False)
    assert values[0, -1, -1].item() == 3
    assert values[0, -1, :-1].eq(1).all()
    assert values[0, :-1].sum().item() == 2 * (a.shape[1] - 1)
    assert not winners.any()
