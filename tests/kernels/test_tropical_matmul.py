"""The oracle against brute force and hand values, and what the mathematics demands of the op."""

import itertools
import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tropigrad.kernels import tropical_matmul
from tropigrad.kernels.tropical_matmul import SEMIRINGS, tropical_matmul_ref

NAN, INF = float("nan"), float("inf")


def brute_force(a, b, semiring, temperature=1.0):
    """Three loops over Python numbers: values, and the first winner."""
    combine = (lambda x, y: x * y) if semiring == "max_times" else (lambda x, y: x + y)
    M, K, N = a.shape[0], a.shape[1], b.shape[1]
    values, winners = torch.zeros(M, N, dtype=torch.float64), torch.zeros(M, N, dtype=torch.int64)
    for m, n in itertools.product(range(M), range(N)):
        row = [combine(float(a[m, k]), float(b[k, n])) for k in range(K)]
        best = min(row) if semiring == "min_plus" else max(row)
        if semiring == "log":
            values[m, n] = best + temperature * math.log(sum(math.exp((x - best) / temperature) for x in row))
        else:
            values[m, n], winners[m, n] = best, row.index(best)
    return values, winners


@pytest.mark.parametrize("semiring", SEMIRINGS)
def test_oracle_equals_brute_force(semiring):
    a, b = (torch.randint(-3, 4, size).double() for size in ((5, 7), (7, 6)))
    values, winners = tropical_matmul_ref(a, b, semiring=semiring, temperature=0.5)
    expected, first = brute_force(a, b, semiring, 0.5)
    torch.testing.assert_close(values, expected, rtol=1e-14, atol=1e-14)
    if semiring != "log":
        assert torch.equal(values, expected)
        assert torch.equal(winners, first)


@pytest.mark.parametrize(
    ("semiring", "values", "indices"),
    [
        ("max_plus", [[6.0, 3.0], [8.0, 5.0]], [[0, 1], [0, 1]]),
        ("min_plus", [[5.0, 0.0], [7.0, 2.0]], [[1, 0], [1, 0]]),
        ("max_times", [[6.0, 2.0], [15.0, 4.0]], [[1, 1], [0, 1]]),
    ],
    ids=["max_plus", "min_plus", "max_times"],
)
def test_hand_values(semiring, values, indices):
    a, b = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, -1.0], [3.0, 1.0]])
    got = tropical_matmul(a, b, semiring=semiring, return_indices=True)
    assert got.values.tolist() == values
    assert got.indices.tolist() == indices


def test_result_is_a_named_tuple_as_of_torch_max():
    values, indices = result = tropical_matmul(torch.zeros(2, 3), torch.zeros(3, 4), return_indices=True)
    assert result.values is values
    assert result.indices is indices
    assert indices.dtype == torch.int64


small = st.integers(-4, 4)
sizes = st.integers(1, 6)


@st.composite
def matrices(draw, count):
    """`count` matrices of small integers that can be multiplied in turn."""
    dims = [draw(sizes) for _ in range(count + 1)]
    rows = [draw(st.lists(small, min_size=m * k, max_size=m * k)) for m, k in itertools.pairwise(dims)]
    return [torch.tensor(x).view(m, k).double() for x, (m, k) in zip(rows, itertools.pairwise(dims), strict=True)]


@settings(max_examples=60, deadline=None)
@given(matrices(2), small)
def test_shift_equivariance(ab, c):
    a, b = ab
    for semiring in ("max_plus", "min_plus"):
        assert torch.equal(tropical_matmul(a + c, b, semiring=semiring), tropical_matmul(a, b, semiring=semiring) + c)


@settings(max_examples=60, deadline=None)
@given(matrices(3))
def test_associativity(abc):
    a, b, c = abc
    for semiring in ("max_plus", "min_plus"):

        def product(x, y, semiring=semiring):
            return tropical_matmul(x, y, semiring=semiring)

        assert torch.equal(product(product(a, b), c), product(a, product(b, c)))


@settings(max_examples=60, deadline=None)
@given(matrices(2))
def test_duality_and_monotonicity(ab):
    a, b = ab
    top = tropical_matmul(a, b)
    assert torch.equal(-tropical_matmul(-a, -b, semiring="min_plus"), top)
    assert (tropical_matmul(a + 1.0 * (a > 0), b) >= top).all()


@settings(max_examples=60, deadline=None)
@given(matrices(2))
def test_first_winner_at_ties(ab):
    a, b = ab
    for semiring in ("max_plus", "min_plus", "max_times"):
        got = tropical_matmul(a, b, semiring=semiring, return_indices=True)
        values, winners = brute_force(a, b, semiring)
        assert torch.equal(got.values, values)
        assert torch.equal(got.indices, winners)


def test_log_tends_to_max_plus_from_above():
    a, b = torch.randn(4, 9, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64)
    top = tropical_matmul(a, b)
    for temperature in (1.0, 0.1, 0.001):
        excess = tropical_matmul(a, b, semiring="log", temperature=temperature) - top
        assert (excess >= -1e-12).all()
        assert (excess <= temperature * math.log(9) + 1e-12).all()


def test_gradient_routes_to_one_winner_at_ties():
    a, b = torch.zeros(1, 3, requires_grad=True), torch.zeros(3, 2, requires_grad=True)
    da, db = torch.autograd.grad(tropical_matmul(a, b), (a, b), torch.tensor([[2.0, 5.0]]))
    assert da.tolist() == [[7.0, 0.0, 0.0]]
    assert db.tolist() == [[2.0, 5.0], [0.0, 0.0], [0.0, 0.0]]


def test_no_gradient_where_nothing_won():
    a, b = torch.full((2, 3), NAN, requires_grad=True), torch.zeros(3, 2, requires_grad=True)
    values, indices = tropical_matmul(a, b, nan="ignore", return_indices=True)
    assert (values == -INF).all()
    assert (indices == -1).all()
    da, db = torch.autograd.grad(values.sum(), (a, b))
    assert not da.any()
    assert not db.any()
    empty = torch.zeros(2, 0, requires_grad=True)
    (gradient,) = torch.autograd.grad(tropical_matmul(empty, torch.zeros(0, 3)).sum(), empty)
    assert gradient.shape == (2, 0)


def test_sixteen_bit_gradients_accumulate_in_fp32():
    count = 4096  # in fp16 a running sum of ones stops at 2048
    for dtype in (torch.float16, torch.bfloat16):
        a, b = torch.zeros(1, 1, dtype=dtype, requires_grad=True), torch.zeros(1, count, dtype=dtype)
        (da,) = torch.autograd.grad(tropical_matmul(a, b).sum(), a)
        assert da.item() == count


def test_gradient_is_deterministic():
    a, b = torch.randn(70, 90, requires_grad=True), torch.randn(90, 130, requires_grad=True)
    dc = torch.randn(70, 130)
    first = torch.autograd.grad(tropical_matmul(a, b), (a, b), dc)
    for _ in range(20):
        again = torch.autograd.grad(tropical_matmul(a, b), (a, b), dc)
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


def test_gradients_sum_over_broadcast_batches():
    a, b = torch.randn(3, 4, 5, requires_grad=True), torch.randn(5, 6, requires_grad=True)
    da, db = torch.autograd.grad(tropical_matmul(a, b).sum(), (a, b))
    parts = [torch.autograd.grad(tropical_matmul(a[i], b).sum(), (a, b)) for i in range(3)]
    torch.testing.assert_close(da, sum(x for x, _ in parts))
    torch.testing.assert_close(db, sum(x for _, x in parts))


def test_meta_tensors_give_shapes():
    a, b = torch.empty(2, 3, 4, device="meta"), torch.empty(4, 5, device="meta")
    assert tropical_matmul(a, b, return_indices=True).indices.shape == (2, 3, 5)
    assert tropical_matmul(a, b, semiring="log").shape == (2, 3, 5)


def test_a_forced_backend_that_cannot_run_says_why(set_backend):
    a = torch.zeros(2, 2)
    set_backend("cuda")
    with pytest.raises(ValueError, match="TROPIGRAD_BACKEND is 'cuda'; expected one of auto"):
        tropical_matmul(a, a)
    set_backend("gluon")
    with pytest.raises(RuntimeError, match="BACKEND=gluon cannot run: Gluon kernels take NVIDIA GPUs"):
        tropical_matmul(a, a)


WITHOUT_COMPILER = """
import warnings
import torch
from tropigrad.kernels import tropical_matmul
a = torch.randn(9, 11, requires_grad=True)
b = torch.randn(11, 7)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for _ in range(3):
        values, indices = tropical_matmul(a, b, return_indices=True)
        tropical_matmul(a, b).sum().backward()
expected = (a[:, :, None] + b).max(1)
assert torch.equal(values, expected.values) and torch.equal(indices, expected.indices)
(warning,) = said
assert WHY in str(warning.message), warning
"""


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"PATH": ""}, "no C++ compiler found"),
        ({"CXX": "no-such-compiler"}, "CXX is 'no-such-compiler', which does not answer"),
        ({"CXX": "c++ -include no-such-header.h"}, "by_cpp.cpp did not compile"),
    ],
    ids=["none", "misnamed", "failing"],
)
def test_without_a_compiler_torch_stands_in_with_one_warning(environment, why, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER.replace("WHY", repr(why))],
        capture_output=True,
        text=True,
        env=os.environ | {"TROPIGRAD_CACHE_DIR": str(tmp_path)} | environment,
    )
    assert done.returncode == 0, done.stderr
