"""What log and shift demands beyond the conformance suite: naive Bayes, sparse counts, memory order, the logarithm."""

import math

import pytest
import torch

from tropigrad import autotune
from tropigrad.kernels import cooccurrence, log_shift
from tropigrad.kernels.log_shift import SparseLogShift, by_triton, definition, log_shift_ref
from tropigrad.kernels.runtime import backend, native

NO_COMPILER = native.why_no_compiler()
compiled = pytest.mark.skipif(bool(NO_COMPILER), reason=NO_COMPILER or "there is a compiler")
NO_INTERPRETER = backend.why_off("triton", torch.device("cpu"))
interpreted = pytest.mark.skipif(bool(NO_INTERPRETER), reason=NO_INTERPRETER or "Triton is interpreted here")
BACKENDS = ["torch", pytest.param("cpp", marks=compiled), pytest.param("triton", marks=interpreted)]


def counts_of(D: int, C: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 200, (D, C), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", BACKENDS)
def test_hand_values(name, set_backend):
    set_backend(name)
    result = log_shift(torch.tensor([[1, 0], [5, 2]]), smoothing=1.0, scale=2)
    expected = torch.tensor([[2.0, 1.0], [6.0, 3.0]], dtype=torch.float64).log()
    torch.testing.assert_close(result.log_mass, torch.tensor([8.0, 4.0], dtype=torch.float64).log())
    torch.testing.assert_close(result.weight, expected - 0.5 * result.log_mass)
    shares = log_shift(torch.tensor([[1, 0], [5, 2]]), scale=math.inf).weight.exp()
    torch.testing.assert_close(shares.sum(0), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_the_order_in_memory_is_that_of_the_counts(name, dtype, set_backend):
    set_backend(name)
    counts = counts_of(9, 4).to(dtype)
    for x in (counts, counts.t().contiguous().t()):
        result = log_shift(x, scale=3.0)
        assert result.weight.stride() == x.stride()
        expected = log_shift_ref(counts, scale=3.0)
        torch.testing.assert_close(tuple(result), tuple(expected))


@pytest.mark.parametrize("name", BACKENDS)
def test_rows_of_one_sum_have_the_logits_of_naive_bayes(name, set_backend):
    """With the class prior S, up to a number that all classes share; classes are skewed, and the sign counts."""
    set_backend(name)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((60, 8), generator=generator, dtype=torch.float64)
    labels = (torch.rand(60, generator=generator) * torch.rand(60, generator=generator) * 4).long()
    counts = cooccurrence(x, labels, 4, scale=6)
    rows = 6 * x / x.sum(1, keepdim=True)
    logits = rows @ log_shift(counts, scale=6).weight
    naive = log_shift(counts, scale=math.inf)
    torch.testing.assert_close(logits, rows @ naive.weight + naive.log_mass, rtol=1e-12, atol=1e-12)


def test_log_shares_are_those_of_multinomial_naive_bayes():
    naive_bayes = pytest.importorskip("sklearn.naive_bayes")
    x = torch.randint(0, 9, (100, 20), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(100) % 5
    model = naive_bayes.MultinomialNB(alpha=0.3).fit(x.numpy(), labels.numpy())
    weight = log_shift(cooccurrence(x, labels, 5), smoothing=0.3, scale=math.inf).weight
    torch.testing.assert_close(weight.t(), torch.from_numpy(model.feature_log_prob_), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.float32])
@pytest.mark.parametrize("smoothing", [0.3, torch.tensor([0.1, 1.0, 3.0, 0.5])], ids=["number", "of-each-class"])
def test_sparse_counts_are_the_dense_ones(dtype, smoothing):
    counts = counts_of(30, 4) * (counts_of(30, 4, 1) > 150)
    for scale in (1.0, 8.0, math.inf):
        dense = log_shift(counts.to(dtype), smoothing=smoothing, scale=scale)
        sparse = log_shift(counts.to(dtype).to_sparse_csr(), smoothing=smoothing, scale=scale)
        assert isinstance(sparse, SparseLogShift)
        weight, base, log_mass = sparse
        assert weight.layout == torch.sparse_csr
        assert weight.dtype == base.dtype == log_mass.dtype == dense.weight.dtype
        torch.testing.assert_close(base + weight.to_dense(), dense.weight)
        torch.testing.assert_close(log_mass, dense.log_mass)


def test_gradients_of_a_number_and_of_one_result():
    counts = torch.rand(5, 3, dtype=torch.float64, requires_grad=True)
    for use in (lambda r: r.weight, lambda r: r.log_mass, lambda r: r.weight + r.log_mass):
        assert torch.autograd.gradcheck(lambda x, use=use: use(log_shift(x, smoothing=0.5, scale=4)), (counts,))
    eps = torch.rand(3, dtype=torch.float64, requires_grad=True)
    integers = torch.arange(15).view(5, 3)
    assert torch.autograd.gradcheck(lambda e: tuple(log_shift(integers, smoothing=e, scale=4)), (eps,))


@compiled
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (300, 1), (1, 300), (5000, 3), (40_000, 2), (2, 40_000), (60, 1025)])
def test_blocks_and_threads_change_no_bit(shape):
    counts = counts_of(*shape)
    before = torch.get_num_threads()
    for x in (counts, counts.t().contiguous().t(), counts.float()):
        results = []
        try:
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                results.append(log_shift(x, scale=7.0))
        finally:
            torch.set_num_threads(before)
        for one in results:
            assert torch.equal(one.weight, results[0].weight)
            assert torch.equal(one.log_mass, results[0].log_mass)
        torch.testing.assert_close(tuple(results[0]), tuple(log_shift_ref(x, scale=7.0)))


@compiled
@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 700.0), (torch.float32, 86.0)], ids=str)
def test_the_logarithm_is_off_by_less_than_a_unit_in_the_last_place(dtype, most):
    generator = torch.Generator().manual_seed(0)
    exponents = torch.rand(100_000, generator=generator, dtype=torch.float64) * 2 * most - most
    near_one = 1 + torch.randn(100_000, generator=generator, dtype=torch.float64) / 64
    x = torch.cat((exponents.exp(), near_one)).to(dtype).unsqueeze(0)
    got = log_shift(x, smoothing=0.0).weight
    exact = x.double().log()  # within half a unit of float64's, which is nothing beside one of float32's
    unit = torch.finfo(dtype).eps * 2.0 ** exact.abs().log2().floor()
    assert bool(((got.double() - exact).abs() <= (1.0 if dtype == torch.float32 else 1.5) * unit).all())


@pytest.mark.parametrize("name", BACKENDS)
def test_special_counts_are_those_of_torch(name, set_backend):
    set_backend(name)
    x = torch.tensor([[0.0, math.inf, math.nan, -1.0, 5e-324, 1e-310, 1.0]], dtype=torch.float64)
    got, expected = log_shift(x, smoothing=0.0).weight, x.log()
    torch.testing.assert_close(got, expected, equal_nan=True)


@interpreted
def test_any_config_of_the_triton_kernels_gives_the_same_bits():
    counts = counts_of(270, 18)
    expected = by_triton.forward(counts, None, 1.0, 0.5)
    for kernel in (by_triton.FORWARD, by_triton.MASS):
        for config in list(kernel.space)[:: len(list(kernel.space)) - 1]:
            with autotune.override(kernel.name, config):
                got = by_triton.forward(counts, None, 1.0, 0.5)
            assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))
    torch.testing.assert_close(expected, definition.log_and_mass(counts, None, 1.0, 0.5))
