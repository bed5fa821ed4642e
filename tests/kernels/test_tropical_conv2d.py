"""What a convolution demands beyond the conformance suite: SciPy's and torch's results, hand values, algebra."""

import itertools
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn.functional import conv2d, max_pool2d, unfold

from tropigrad.autotune import override
from tropigrad.kernels import tropical_conv2d, tropical_matmul
from tropigrad.kernels.contract.comparison import assert_same
from tropigrad.kernels.runtime import native
from tropigrad.kernels.tropical_conv2d import by_cpp
from tropigrad.kernels.tropical_conv2d.spec import oracle

NAN, INF = float("nan"), float("inf")
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
DTYPES = (*FLOATS, torch.int32, torch.int16, torch.int8)
NO_COMPILER = native.why_no_compiler()
compiled = pytest.mark.skipif(bool(NO_COMPILER), reason=NO_COMPILER or "there is a compiler")


# ------------------------------------------------------------------------------------------------ other definitions


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (5, 3), (7, 7)], ids=str)
@pytest.mark.parametrize("flat", [False, True], ids=["function", "flat"])
def test_dilation_and_erosion_are_scipys(size, flat):
    image = torch.rand(3, 11, 14, dtype=torch.float64)
    structure = torch.zeros(size, dtype=torch.float64) if flat else torch.rand(size, dtype=torch.float64)
    weight, options = structure.expand(3, 1, *size), {"padding": (size[0] // 2, size[1] // 2), "groups": 3}
    dilated, eroded = tropical_conv2d(image, weight, **options), tropical_conv2d(
        image, -weight, semiring="min_plus", **options
    )  # fmt: skip
    mirrored = structure.flip(0, 1).numpy()  # SciPy's dilation looks at p − k
    for channel in range(3):
        plane = image[channel].numpy()
        expected = ndimage.grey_dilation(plane, structure=mirrored, mode="constant", cval=-INF)
        np.testing.assert_array_equal(dilated[channel].numpy(), expected)
        expected = ndimage.grey_erosion(plane, structure=structure.numpy(), mode="constant", cval=INF)
        np.testing.assert_array_equal(eroded[channel].numpy(), expected)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(3, 1, 1, 1), (2, 2, 0, 1), ((3, 2), (2, 3), (1, 0), (1, 2)), (3, 1, 1, 2), (5, 3, 2, 1)],
    ids=str,
)
@pytest.mark.parametrize("values", ["random", "ties", "nan", "lost"])
def test_a_flat_filter_is_max_pooling(kernel, stride, padding, dilation, values):
    x = torch.randint(-2, 3, (2, 3, 13, 21)).float() if values == "ties" else torch.randn(2, 3, 13, 21)
    x[torch.rand_like(x) < {"nan": 0.05, "lost": 0.9}.get(values, 0)] = NAN if values == "nan" else -INF
    kh, kw = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    got, k = tropical_conv2d(x, torch.zeros(3, 1, kh, kw), groups=3, return_indices=True, **options)
    expected, positions = max_pool2d(x, kernel, **options, return_indices=True)
    assert_same(got, expected, True)
    if values != "nan":  # torch.max_pool2d keeps the last NaN, torch.max the first
        (s_p, s_q), (pad_p, pad_q), (d_p, d_q) = (n if isinstance(n, tuple) else (n, n) for n in options.values())
        row = torch.arange(got.shape[2]).view(-1, 1) * s_p - pad_p + k // kw * d_p
        assert torch.equal(row * 21 + torch.arange(got.shape[3]) * s_q - pad_q + k % kw * d_q, positions)


@pytest.mark.parametrize("semiring", ["max_plus", "min_plus"])
def test_it_is_the_matrix_product_of_the_unfolded_image(semiring):
    x, weight = torch.randn(2, 4, 9, 8, requires_grad=True), torch.randn(5, 4, 3, 2, requires_grad=True)
    ours = tropical_conv2d(x, weight, semiring=semiring, stride=2, dilation=(1, 3), return_indices=True)
    patches = unfold(x, (3, 2), stride=2, dilation=(1, 3))
    theirs = tropical_matmul(weight.flatten(1), patches, semiring=semiring, return_indices=True)
    for got, expected in zip(ours, theirs, strict=True):
        assert torch.equal(got.flatten(2), expected)
    dy = torch.randint(-3, 4, ours.values.shape).float()
    got = torch.autograd.grad(ours.values, (x, weight), dy)
    expected = torch.autograd.grad(theirs.values, (x, weight), dy.flatten(2))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_outputs_are_laid_out_as_conv2ds():
    options = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}
    for x in (
        torch.zeros(2, 4, 9, 8),
        torch.zeros(4, 9, 8),
        torch.zeros(0, 4, 9, 8),
        torch.zeros(2, 4, 9, 8).to("meta"),
    ):
        weight = torch.zeros(6, 2, 3, 2, device=x.device)
        got = tropical_conv2d(x, weight, return_indices=True, **options)
        assert got.values.shape == got.indices.shape == conv2d(x, weight, **options).shape


# ------------------------------------------------------------------------------------------------ by hand


def test_hand_values():
    x, weight = torch.tensor([[[1.0, 5.0, 2.0], [0.0, 3.0, 9.0]]]), torch.tensor([[[[0.0, -3.0], [1.0, 1.0]]]])
    got = tropical_conv2d(x, weight, return_indices=True)
    assert got.values.tolist() == [[[4.0, 10.0]]]
    assert got.indices.tolist() == [[[3, 3]]]
    got = tropical_conv2d(x, weight, semiring="min_plus", return_indices=True)
    assert got.values.tolist() == [[[1.0, -1.0]]]
    assert got.indices.tolist() == [[[0, 1]]]


@pytest.mark.parametrize("backend", ["torch", "cpp"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_window_over_padding_alone_gives_the_zero_and_no_gradient(dtype, backend, set_backend):
    """One row, seen by taps one above and one below it."""
    if backend == "cpp" and NO_COMPILER:
        pytest.skip(NO_COMPILER)
    set_backend(backend)
    x, weight = torch.ones(1, 1, 5, dtype=dtype), torch.ones(2, 1, 2, 1, dtype=dtype)
    x, weight = (y.requires_grad_(dtype.is_floating_point) for y in (x, weight))
    for semiring, zero in (("max_plus", -INF), ("min_plus", INF)):
        values, indices = tropical_conv2d(
            x, weight, semiring=semiring, padding=(1, 0), dilation=(2, 1), return_indices=True
        )
        if not dtype.is_floating_point:
            bounds = torch.iinfo(values.dtype)
            zero = bounds.max if zero > 0 else bounds.min
        assert (values == zero).all()
        assert (indices == -1).all()
        if dtype.is_floating_point:
            assert not any(gradient.any() for gradient in torch.autograd.grad(values.sum(), (x, weight)))


def test_an_infinite_weight_over_the_padding_makes_no_nan():
    x = torch.zeros(1, 3, 3)
    got = tropical_conv2d(x, torch.full((1, 1, 3, 3), INF), padding=1, return_indices=True)
    assert (got.values == INF).all()
    assert got.indices[0].tolist() == [[4, 3, 3], [1, 0, 0], [1, 0, 0]]


def test_gradient_goes_to_the_first_winner():
    x, weight = torch.zeros(1, 2, 2, requires_grad=True), torch.zeros(1, 1, 2, 2, requires_grad=True)
    dx, dweight = torch.autograd.grad(tropical_conv2d(x, weight, padding=1).sum(), (x, weight))
    assert dx.tolist() == [[[4.0, 2.0], [2.0, 1.0]]]
    assert dweight.tolist() == [[[[4.0, 2.0], [2.0, 1.0]]]]


def test_sixteen_bit_gradients_accumulate_in_fp32():
    for dtype in (torch.float16, torch.bfloat16):  # in fp16 a running sum of ones stops at 2048
        x, weight = torch.zeros(1, 64, 64, dtype=dtype), torch.zeros(1, 1, 1, 1, dtype=dtype, requires_grad=True)
        (gradient,) = torch.autograd.grad(tropical_conv2d(x, weight).sum(), weight)
        assert gradient.item() == 4096


def test_numbers_may_be_numpys_and_no_bool_is_one():
    x, weight, two = torch.randn(1, 4, 6, 7), torch.randn(2, 2, 3, 2), np.int64(2)
    numbers: dict[str, Any] = {"stride": two, "padding": (np.int32(1), 0), "dilation": [1, two], "groups": two}
    got = tropical_conv2d(x, weight, **numbers)
    assert torch.equal(got, tropical_conv2d(x, weight, stride=2, padding=(1, 0), dilation=(1, 2), groups=2))
    wrong: list[tuple[str, Any]] = [("stride", True), ("stride", 2.0), ("padding", "1"), ("dilation", (1, None))]
    for name, bad in wrong:
        with pytest.raises(ValueError, match=f"tropical_conv2d: {name} is .*; expected an int or a pair of ints"):
            tropical_conv2d(x, weight, groups=2, **{name: bad})
    wrong_groups: list[Any] = [True, 2.0, None]
    for bad in wrong_groups:
        with pytest.raises(ValueError, match=r"tropical_conv2d: groups is .*; expected a divisor"):
            tropical_conv2d(x, weight, groups=bad)


@pytest.mark.parametrize("backend", ["torch", "cpp"])
@pytest.mark.parametrize("shift", [-60, 60, 100])
@pytest.mark.parametrize("semiring", ["max_plus", "min_plus"])
def test_rescaling_by_a_power_of_two_changes_no_bit(semiring, shift, backend, set_backend):
    if backend == "cpp" and NO_COMPILER:
        pytest.skip(NO_COMPILER)
    set_backend(backend)
    found = []
    for factor in (1.0, 2.0**shift):
        torch.manual_seed(0)
        x, weight = (torch.randn(size).mul(factor).requires_grad_() for size in ((2, 3, 6, 7), (4, 3, 3, 2)))
        y, k = tropical_conv2d(x, weight, semiring=semiring, padding=1, return_indices=True)
        found.append((y.detach() / factor, k, *torch.autograd.grad(y.sum(), (x, weight))))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# ------------------------------------------------------------------------------------------------ algebra


small = st.integers(-4, 4)


@st.composite
def convolutions(draw):
    """An image, a filter and how it moves, in small integers."""
    kh, kw = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    H, W = draw(st.integers(kh, 7)), draw(st.integers(kw, 7))
    options = {
        "stride": draw(st.integers(1, 3)),
        "padding": (draw(st.integers(0, kh - 1)), draw(st.integers(0, kw - 1))),
    }
    x, weight = (
        torch.tensor(draw(st.lists(small, min_size=a * b, max_size=a * b))).view(1, a, b).double()
        for a, b in ((H, W), (kh, kw))
    )
    return x, weight.unsqueeze(0), options


@settings(max_examples=60, deadline=None)
@given(convolutions(), small)
def test_shifts_duality_and_monotonicity(convolution, c):
    x, weight, options = convolution
    y = tropical_conv2d(x, weight, **options)
    assert torch.equal(tropical_conv2d(x + c, weight, **options), y + c)
    assert torch.equal(-tropical_conv2d(-x, -weight, semiring="min_plus", **options), y)
    assert (tropical_conv2d(x + 1.0 * (x > 0), weight, **options) >= y).all()


@settings(max_examples=60, deadline=None)
@given(convolutions())
def test_closing_is_extensive_and_idempotent(convolution):
    """The erosion by the mirrored filter is the dilation's adjoint, where the window fits."""
    x, weight, _ = convolution
    kh, kw = weight.shape[2:]

    def close(x):
        dilated = tropical_conv2d(x, weight.flip(2, 3), padding=(kh - 1, kw - 1))
        return tropical_conv2d(dilated, -weight, semiring="min_plus")

    closed = close(x)
    assert (closed >= x).all()
    assert torch.equal(close(closed), closed)


# ------------------------------------------------------------------------------------------------ every form, C++


def draw_case(generator):
    """Sizes, strides, groups and values at random: (x, weight, options)."""

    def integer(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    def values(shape, dtype):
        kind = integer(0, 3)
        if kind == 0:
            return torch.randint(-3, 4, shape, generator=generator).to(dtype)  # ties
        if not dtype.is_floating_point:
            bounds = torch.iinfo(dtype)
            return torch.randint(bounds.min, bounds.max + 1, shape, generator=generator).to(dtype)
        x = torch.randn(shape, generator=generator).mul(9).to(dtype)
        where = torch.rand(shape, generator=generator)
        if kind == 1:
            x[where < 0.1], x[where > 0.8] = NAN, -INF
            x[(where > 0.3) & (where < 0.4)] = INF
        if kind == 2:
            x[where < 0.95] = -INF
        return x

    dtype = DTYPES[integer(0, len(DTYPES) - 1)]
    groups, kernel = integer(1, 3), (integer(1, 4), integer(1, 4))
    dilation = integer(1, 3), integer(1, 3)
    padding = tuple(integer(0, d * (k - 1)) for d, k in zip(dilation, kernel, strict=True))
    sizes = (
        integer(max(1, d * (k - 1) + 1 - 2 * pad), most)
        for d, k, pad, most in zip(dilation, kernel, padding, (20, 40), strict=True)
    )
    x = values((integer(1, 2), groups * integer(1, 3), *sizes), dtype)
    weight = values((groups * integer(1, 14), x.shape[1] // groups, *kernel), dtype)
    options = {"stride": (integer(1, 3), integer(1, 3)), "padding": padding, "dilation": dilation, "groups": groups}
    options |= {"semiring": ("max_plus", "min_plus")[integer(0, 1)], "nan": ("propagate", "ignore")[integer(0, 1)]}
    return x, weight, options


@compiled
@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 40))])
def test_any_form_equals_the_definition(seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(40):
        x, weight, options = draw_case(generator)
        expected = oracle(x, weight, **options, return_indices=True)
        threads = int(torch.randint(0, 4, (), generator=generator))
        forced = {"positions": 1 << int(torch.randint(0, 13, (), generator=generator)), "threads": threads}
        for config in (None, forced):
            with override(by_cpp.FORWARD.name, config) if config else nullcontext():
                got = tropical_conv2d(x, weight, **options, return_indices=True)
                alone = tropical_conv2d(x, weight, **options)
            assert_same(got, expected, True, f"{tuple(x.shape)}, {tuple(weight.shape)}, {options}, {config}")
            assert_same(alone, expected[0], True, f"values alone: {options}, {config}")


@compiled
@pytest.mark.parametrize("seed", range(3))
def test_any_gradient_equals_the_definitions(seed):
    """On small integers, whose sums are exact in any order; upstream gradients of any stride."""
    generator = torch.Generator().manual_seed(100 + seed)
    for _ in range(30):
        x, weight, options = draw_case(generator)
        dtype = FLOATS[int(torch.randint(0, 4, (), generator=generator))]
        factors = [torch.randint(-3, 4, y.shape, generator=generator).to(dtype).requires_grad_() for y in (x, weight)]
        exact = [y.detach().double().requires_grad_() for y in factors]
        y, expected = tropical_conv2d(*factors, **options), oracle(*exact, **options)
        dy = torch.randint(-3, 4, (y.shape[3], *y.shape[:3]), generator=generator).permute(1, 2, 3, 0)
        for upstream in (dy, dy[:1, :1, :1, :1].expand_as(y)):
            got = torch.autograd.grad(y, factors, upstream.to(dtype), retain_graph=True)
            wanted = torch.autograd.grad(expected, exact, upstream.double(), retain_graph=True)
            assert_same(got, tuple(g.to(dtype) for g in wanted), True, str(options))


@compiled
@pytest.mark.parametrize("taps", [639, 640, 643, 40_000], ids=lambda taps: f"K={taps}")
def test_winners_of_many_taps_are_found_in_their_groups(taps):
    """Above a number of taps one comparison serves four; above 2^15 winners take four bytes."""
    x, weight = torch.randint(-2, 3, (1, taps, 2, 3)).float(), torch.randint(-2, 3, (3, taps, 1, 1)).float()
    weight[0, -1] = 9  # the last tap, not in a whole group
    assert_same(
        tropical_conv2d(x, weight, return_indices=True), oracle(x, weight, return_indices=True), True, str(taps)
    )


@compiled
def test_backward_gives_the_same_bits_on_any_number_of_threads():
    before, results = torch.get_num_threads(), []
    x, weight = torch.randn(2, 3, 90, 70, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    dy = torch.randn(2, 4, 90, 70)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(torch.autograd.grad(tropical_conv2d(x, weight, padding=1), (x, weight), dy))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@compiled
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32], ids=str)
@pytest.mark.parametrize("winner", [-2, 9, 32767, 0, 2], ids=str)
def test_a_winner_that_no_forward_gives_is_refused(winner, dtype):
    """Outside the window, or at the image's corner in the padding: nothing is written out of bounds."""
    winners = torch.full((1, 1, 4, 4), 4, dtype=dtype)
    winners[0, 0, 0, 3] = winner
    window = [1, 1], [1, 1], [1, 1], 1
    arguments = winners, [1, 1, 4, 4], [1, 1, 3, 3], *window, True, True
    with pytest.raises(IndexError, match="winners name a tap outside the image or the window"):
        torch.ops.tropigrad.tropical_conv2d_scatter(torch.ones(1, 1, 4, 4), *arguments)
    winners[0, 0, 0, 3] = -1
    dx, _ = torch.ops.tropigrad.tropical_conv2d_scatter(torch.ones(1, 1, 4, 4), *arguments)
    assert dx.sum() == 15


# ------------------------------------------------------------------------------------------------ Triton


@pytest.mark.parametrize("case", range(4))
def test_the_interpreted_kernels_equal_the_definition(case, set_backend):
    from tropigrad.kernels.runtime import backend

    reason = backend.why_off("triton", torch.device("cpu"))
    if reason:
        pytest.skip(reason)
    set_backend("triton")
    forms = list(itertools.product(("max_plus", "min_plus"), ("propagate", "ignore")))
    options = {"semiring": forms[case][0], "nan": forms[case][1], "stride": (2, 1), "padding": (1, 2), "groups": 2}
    options["dilation"] = (1, 2)
    x, weight = torch.randint(-2, 3, (1, 4, 6, 7)).float(), torch.randint(-2, 3, (6, 2, 3, 2)).float()
    x[torch.rand_like(x) < 0.1] = NAN
    got = tropical_conv2d(x, weight, **options, return_indices=True)
    assert_same(got, oracle(x, weight, **options, return_indices=True), True)
    for y in (x.nan_to_num_(), weight):
        y.requires_grad_()
    dy = torch.randint(-3, 4, got.values.shape).float()
    got, expected = (torch.autograd.grad(op(x, weight, **options), (x, weight), dy) for op in (tropical_conv2d, oracle))
    assert_same(got, expected, True, "gradient")
