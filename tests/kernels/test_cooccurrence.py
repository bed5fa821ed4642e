"""What class-wise sums demand beyond the conformance suite: exactness, naive Bayes, shards, threads, values by hand."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tropigrad.kernels import cooccurrence
from tropigrad.kernels.cooccurrence import by_cpp, by_triton, cooccurrence_ref, definition
from tropigrad.kernels.runtime import backend, native

NO_COMPILER = native.why_no_compiler()
compiled = pytest.mark.skipif(bool(NO_COMPILER), reason=NO_COMPILER or "there is a compiler")
NO_INTERPRETER = backend.why_off("triton", torch.device("cpu"))
interpreted = pytest.mark.skipif(bool(NO_INTERPRETER), reason=NO_INTERPRETER or "Triton is interpreted here")
BACKENDS = ["torch", pytest.param("cpp", marks=compiled), pytest.param("triton", marks=interpreted)]


def data(N: int, D: int, C: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (N, D), generator=generator, dtype=torch.uint8)
    return x, torch.randint(0, C, (N,), generator=generator)


@pytest.mark.parametrize("name", BACKENDS)
def test_hand_values(name, set_backend):
    set_backend(name)
    x, labels = torch.tensor([[1, 2], [3, 4], [5, 6]]), torch.tensor([1, 0, 1])
    sums = cooccurrence(x, labels, 3)
    assert sums.tolist() == [[3, 6, 0], [4, 8, 0]]
    assert sums.dtype == torch.int64
    assert sums.t().is_contiguous()
    normalised = cooccurrence(torch.tensor([[1.0, 3.0], [0.0, 2.0]]), torch.tensor([0, 0]), 1, scale=8)
    assert normalised.dtype == torch.float64
    assert normalised.flatten().tolist() == [2.0, 14.0]
    shifted = cooccurrence(torch.tensor([[1, 3]]), torch.tensor([0]), 1, scale=3, offset=1)
    assert shifted.flatten().tolist() == [1.0, 2.0]


@pytest.mark.parametrize("name", ["cpp", "torch"])
def test_tokens_count_pairs(name, set_backend):
    set_backend(name)
    counts = cooccurrence(torch.tensor([2, 0, 2, 2]), torch.tensor([1, 0, 1, 0]), 2, features=4)
    assert counts.layout == torch.sparse_csr
    assert counts.crow_indices().tolist() == [0, 1, 1, 3, 3]
    assert counts.col_indices().tolist() == [0, 0, 1]
    assert counts.values().tolist() == [1, 1, 2]
    assert counts.dtype == torch.int64


@compiled
@pytest.mark.parametrize("dtype", definition.DTYPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"scale": 32.0}, {"scale": 32.0, "offset": 0.25}], ids=str)
def test_threads_change_no_bit(dtype, options):
    """Several segments of a class, and classes that have one row or none."""
    x, labels = data(5000, 131, 3)
    labels[7] = 5
    x = (x > 128) if dtype == torch.bool else (x // 2).to(dtype)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            results.append(cooccurrence(x, labels, 9, **options))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(each, results[0]) for each in results[1:])
    torch.testing.assert_close(results[0], cooccurrence_ref(x, labels, 9, **options), rtol=1e-13, atol=0)


@compiled
@pytest.mark.parametrize("N", [255, 256, 257, 264, 1023, 1024, 1025, 2049])
def test_lanes_of_bytes_never_overflow(N):
    for D in (31, 32, 2047, 2048, 2049, 2081, 4129):
        x = torch.full((1, D), 255, dtype=torch.uint8).expand(N, D)
        sums = cooccurrence(x, torch.zeros(N, dtype=torch.int64), 1)
        assert bool((sums == 255 * N).all())


@compiled
def test_rows_of_more_bytes_than_32_bits_add_up():
    D = 2**24 + 2**17
    sums = cooccurrence(torch.full((1, D), 255, dtype=torch.uint8), torch.tensor([0]), 1, scale=float(D))
    assert sums[[0, -1]].flatten().tolist() == [1.0, 1.0]


@compiled
def test_integers_of_every_size_are_exact():
    for dtype in (torch.int8, torch.int16, torch.int32):
        most = torch.iinfo(dtype).max
        x = torch.full((3000, 40), most, dtype=dtype)
        assert bool((cooccurrence(x, torch.zeros(3000, dtype=torch.int64), 1) == 3000 * most).all())
    x = torch.tensor([[(1 << 53) + 1], [1 << 53]])
    assert cooccurrence(x, torch.tensor([0, 0]), 1).item() == (1 << 54) + 1


@given(st.integers(0, 60), st.integers(1, 70), st.integers(1, 12), st.integers(0, 1 << 16))
@settings(max_examples=40, deadline=None)
def test_shards_add_up(N, D, C, seed):
    """Bit for bit, as integers; and rows that are normalised do so within rounding."""
    x, labels = data(N, D, C, seed)
    cut = seed % (N + 1)
    parts = [cooccurrence(x[rows], labels[rows], C) for rows in (slice(cut), slice(cut, N))]
    assert torch.equal(parts[0] + parts[1], cooccurrence(x, labels, C))
    whole = cooccurrence(x, labels, C, scale=3.0, offset=0.5)
    parts = [cooccurrence(x[rows], labels[rows], C, scale=3.0, offset=0.5) for rows in (slice(cut), slice(cut, N))]
    torch.testing.assert_close(parts[0] + parts[1], whole, rtol=1e-13, atol=1e-13)


def test_a_scale_is_a_factor():
    """F(K) = K F(1), exactly for a power of two; and each class's sum is K times its number of rows."""
    x, labels = data(200, 30, 4)
    one = cooccurrence(x, labels, 4, scale=1, offset=1)
    assert torch.equal(cooccurrence(x, labels, 4, scale=64, offset=1), 64 * one)
    torch.testing.assert_close(one.sum(0), torch.bincount(labels, minlength=4).double())


def test_csr_and_dense_rows_agree():
    x, labels = data(200, 30, 4)
    x = x.float() * (x > 200)
    x[:, 3] = 1
    each: list[dict[str, Any]] = [{}, {"scale": 5.0}]
    for options in each:
        dense = cooccurrence(x, labels, 4, **options)
        torch.testing.assert_close(cooccurrence(x.to_sparse_csr(), labels, 4, **options), dense, rtol=1e-13, atol=0)
    assert torch.equal(cooccurrence(x.long().to_sparse_csr(), labels, 4), cooccurrence(x.long(), labels, 4))


@pytest.mark.parametrize("name", BACKENDS)
def test_rows_beyond_a_float64s_range(name, set_backend):
    """A sum that overflows, and one whose inverse does."""
    set_backend(name)
    x = torch.tensor([[1e308, 1e308, 0.0], [5e-324, 0, 5e-324]], dtype=torch.float64)
    for rows in (x, x.to_sparse_csr()):
        sums = cooccurrence(rows, torch.tensor([0, 1]), 2, scale=2)
        assert sums.t().tolist() == [[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]]


def test_counts_have_no_gradient():
    x = torch.ones(2, 2)
    for rows in (x.clone().requires_grad_(), x.to_sparse_csr().requires_grad_()):
        assert not cooccurrence(rows, torch.tensor([0, 1]), 2).requires_grad


@pytest.mark.parametrize("name", BACKENDS)
def test_the_first_bad_row_is_named(name, set_backend):
    set_backend(name)
    x, labels = data(50, 37, 3)
    x = x.double() + 1
    x[31], x[40, 2] = 0, -1
    with pytest.raises(ValueError, match=r"x is negative in row 40: feature 2 is -1\.0"):
        cooccurrence(x, labels, 3)
    x[40, 2] = 1
    with pytest.raises(ValueError, match="row 31 of x sums to 0"):
        cooccurrence(x, labels, 3, scale=1)
    assert cooccurrence(x, labels, 3, scale=1, offset=1e-3).isfinite().all()
    labels[[17, 20]] = 3
    with pytest.raises(ValueError, match=r"labels\[17\] is 3; expected an integer in \[0, 3\), as classes is 3"):
        cooccurrence(x, labels, 3)


@pytest.mark.parametrize("name", BACKENDS)
def test_minus_zero_is_not_negative(name, set_backend):
    set_backend(name)
    x = torch.tensor([[-0.0, 1.0]]).expand(9, 2)
    assert cooccurrence(x, torch.zeros(9, dtype=torch.int64), 1).flatten().tolist() == [0.0, 9.0]


def test_vmap():
    x = torch.randint(0, 9, (3, 20, 5))
    labels = torch.randint(0, 4, (3, 20))
    expected = torch.stack([cooccurrence(a, b, 4) for a, b in zip(x, labels, strict=True)])
    assert torch.equal(torch.vmap(lambda a, b: cooccurrence(a, b, 4))(x, labels), expected)
    shared = torch.stack([cooccurrence(a, labels[0], 4) for a in x])
    assert torch.equal(torch.vmap(lambda a: cooccurrence(a, labels[0], 4))(x), shared)


def test_sums_are_the_counts_of_multinomial_naive_bayes():
    naive_bayes = pytest.importorskip("sklearn.naive_bayes")
    x, labels = data(300, 20, 5)
    model = naive_bayes.MultinomialNB().fit(x.numpy(), labels.numpy())
    assert (torch.from_numpy(model.feature_count_) == cooccurrence(x, labels, 5).t()).all()


@compiled
def test_labels_of_a_long_list_are_sorted_in_pieces():
    """More rows than a thread sorts alone, in any dtype of labels."""
    x = torch.arange(100_000, dtype=torch.int64).unsqueeze(1)
    labels = torch.randint(0, 7, (100_000,))
    expected = torch.zeros(7, dtype=torch.int64).index_add_(0, labels, x[:, 0])
    before = torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        try:
            for dtype in definition.LABELS:
                assert torch.equal(by_cpp.sums(x, labels.to(dtype), 7, None, 0.0)[:, 0], expected)
        finally:
            torch.set_num_threads(before)


@interpreted
def test_segments_of_a_class_are_joined():
    x, labels = torch.randint(0, 9, (300, 3)), torch.zeros(300, dtype=torch.int64)
    labels[200:] = 2
    assert torch.equal(by_triton.sums(x, labels, 4, None, 0.0), definition.sums(x, labels, 4, None, 0.0))
