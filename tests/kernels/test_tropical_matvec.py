"""What one column demands beyond the conformance suite: the matrix product's own results, and hand values."""

import pytest
import torch

from tropigrad.kernels import tropical_matmul, tropical_matvec
from tropigrad.kernels.tropical_matmul import SEMIRINGS

INF = float("inf")


@pytest.mark.parametrize(
    ("semiring", "values", "indices"),
    [("max_plus", [6.0, 8.0], [0, 0]), ("min_plus", [5.0, 7.0], [1, 1]), ("max_times", [6.0, 15.0], [1, 0])],
    ids=["max_plus", "min_plus", "max_times"],
)
def test_hand_values(semiring, values, indices):
    a, x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([5.0, 3.0])
    got = tropical_matvec(a, x, semiring=semiring, return_indices=True)
    assert got.values.tolist() == values
    assert got.indices.tolist() == indices
    assert got.indices.dtype == torch.int64


@pytest.mark.parametrize("semiring", SEMIRINGS)
def test_vectors_of_one_matrix_are_the_columns_of_a_product(semiring):
    a, x = torch.randn(9, 33), torch.randn(7, 33)
    product = tropical_matmul(x, a.mT, semiring=semiring, temperature=0.5)
    torch.testing.assert_close(tropical_matvec(a, x, semiring=semiring, temperature=0.5), product)


@pytest.mark.parametrize(
    ("a", "x", "y"),
    [
        ((4, 5), (5,), (4,)),
        ((3, 4, 5), (5,), (3, 4)),
        ((4, 5), (3, 5), (3, 4)),
        ((2, 1, 4, 5), (3, 5), (2, 3, 4)),
        ((0, 4, 5), (0, 5), (0, 4)),
        ((3, 4, 0), (3, 0), (3, 4)),
    ],
    ids=str,
)
def test_batches_broadcast(a, x, y):
    for device in ("cpu", "meta"):
        values, indices = tropical_matvec(
            torch.zeros(a, device=device), torch.zeros(x, device=device), return_indices=True
        )
        assert values.shape == indices.shape == y


def test_it_is_linear_over_max_plus():
    """A ⊗ (x ⊕ y) = A ⊗ x ⊕ A ⊗ y, and A ⊗ (c + x) = c + A ⊗ x, exactly, on integers."""
    a, x, y = (torch.randint(-9, 10, size).float() for size in ((11, 23), (23,), (23,)))
    assert torch.equal(
        tropical_matvec(a, torch.maximum(x, y)), torch.maximum(tropical_matvec(a, x), tropical_matvec(a, y))
    )
    assert torch.equal(tropical_matvec(a, x + 4), tropical_matvec(a, x) + 4)


def test_gradient_goes_to_the_first_winner_and_sums_over_broadcast_batches():
    a, x = torch.zeros(2, 3, 4, requires_grad=True), torch.zeros(4, requires_grad=True)
    dy = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    da, dx = torch.autograd.grad(tropical_matvec(a, x), (a, x), dy)
    assert torch.equal(da[..., 0], dy)
    assert not da[..., 1:].any()
    assert dx.tolist() == [21.0, 0.0, 0.0, 0.0]


def test_no_candidate_gives_the_zero_of_the_semiring():
    a, x = torch.zeros(2, 0), torch.zeros(0)
    for semiring, zero in (("max_plus", -INF), ("min_plus", INF), ("max_times", 0.0), ("log", -INF)):
        assert tropical_matvec(a, x, semiring=semiring).tolist() == [zero, zero]
