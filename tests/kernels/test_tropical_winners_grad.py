"""The sparse backward against the dense one: the same gradient, and nothing written but winners."""

import pytest
import torch

from tropigrad.kernels import tropical_matmul, tropical_winners_grad

SEMIRINGS = ("max_plus", "min_plus", "max_times")
SIZES = [(3, 4, 5), (17, 9, 2), (1, 1, 1), (0, 3, 2), (3, 0, 2)]


def integers(*shape: int) -> torch.Tensor:
    return torch.randint(-3, 4, shape).double()


def both(a, b, semiring, nan="propagate"):
    """Gradients under one upstream gradient: by autograd, and by the sparse backward."""
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    values, indices = tropical_matmul(a, b, semiring=semiring, nan=nan, return_indices=True)
    dc = integers(*values.shape)
    factors = {"a": a.detach(), "b": b.detach()} if semiring == "max_times" else {}
    sparse = tropical_winners_grad(dc, indices, a.shape[-1], **factors)
    return torch.autograd.grad(values, (a, b), dc), sparse, indices


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)], ids=str)
@pytest.mark.parametrize("semiring", SEMIRINGS)
def test_adds_up_to_the_dense_gradient(semiring, batch, sizes):
    M, K, N = sizes
    dense, sparse, indices = both(integers(*batch, M, K), integers(*batch, K, N), semiring)
    for ours, expected in zip(sparse, dense, strict=True):
        assert ours.is_sparse
        assert ours.shape == expected.shape
        assert ours._nnz() == (indices >= 0).sum()
        assert torch.equal(ours.to_dense(), expected)


def test_what_was_skipped_routes_nothing():
    a = torch.full((3, 4), float("nan"), dtype=torch.float64)
    a[1] = 0
    dense, sparse, indices = both(a, integers(4, 5), "max_plus", nan="ignore")
    assert (indices < 0).sum() == 10
    for ours, expected in zip(sparse, dense, strict=True):
        assert ours._nnz() == 5
        assert torch.equal(ours.to_dense(), expected)


def test_entries_come_in_the_order_of_the_outputs():
    grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    sparse = tropical_winners_grad(grad, torch.tensor([[2, 0], [0, 2]]), 3)
    assert sparse.a._indices().tolist() == [[0, 0, 1, 1], [2, 0, 0, 2]]
    assert sparse.b._indices().tolist() == [[2, 0, 0, 2], [0, 1, 0, 1]]
    assert sparse.a._values().tolist() == sparse.b._values().tolist() == [1.0, 2.0, 3.0, 4.0]


def test_sparse_adam_takes_it():
    a, weight = torch.randn(5, 6), torch.nn.Parameter(torch.randn(6, 4))
    before = weight.detach().clone()
    optimizer = torch.optim.SparseAdam([weight], lr=0.1)
    values, indices = tropical_matmul(a, weight.detach(), return_indices=True)
    weight.grad = tropical_winners_grad(torch.ones_like(values), indices, 6).b
    optimizer.step()
    touched = torch.zeros(6, 4, dtype=torch.bool)
    touched[indices, torch.arange(4)] = True
    assert torch.equal(weight != before, touched)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"grad": [[1.0]]}, TypeError, "grad is a list; expected a torch.Tensor"),
        ({"grad": torch.ones(2, 3, dtype=torch.int32)}, TypeError, "grad is torch.int32; expected a float dtype"),
        ({"indices": torch.zeros(2, 3)}, TypeError, "indices is torch.float32; expected int64"),
        ({"grad": torch.ones(3, 2)}, ValueError, r"grad has shape \(3, 2\) and indices \(2, 3\)"),
        ({"grad": torch.ones(2, 3, device="meta")}, ValueError, "grad is on meta and indices on cpu"),
        ({"inner_size": -1}, ValueError, "inner_size is -1; expected K, at least 0"),
        ({"a": torch.ones(2, 4)}, ValueError, "b is None; expected both factors"),
        ({"a": torch.ones(2, 5), "b": torch.ones(4, 3)}, ValueError, r"a has shape \(2, 5\) on cpu; expected \(2, 4\)"),
        ({"indices": torch.full((2, 3), 4)}, IndexError, r"indices reach from 4 to 4; expected \[-1, 4\)"),
        ({"indices": torch.full((2, 3), -2)}, IndexError, r"indices reach from -2 to -2"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else None,
)
def test_misuse_is_named(change, error, match):
    arguments = {"grad": torch.ones(2, 3), "indices": torch.zeros(2, 3, dtype=torch.int64), "inner_size": 4} | change
    with pytest.raises(error, match=match):
        tropical_winners_grad(**arguments)


@pytest.mark.parametrize("semiring", ["max_plus", "max_times"])
def test_another_default_device_changes_nothing(semiring):
    a, b = torch.rand(4, 6), torch.rand(6, 5)
    factors = {"a": a, "b": b} if semiring == "max_times" else {}
    values, indices = tropical_matmul(a, b, semiring=semiring, return_indices=True)
    grad = torch.randn(values.shape)
    expected = tropical_winners_grad(grad, indices, 6, **factors)
    with torch.device("meta"):
        found = tropical_winners_grad(grad, indices, 6, **factors)
    for one, other in zip(found, expected, strict=True):
        assert one.device.type == "cpu"
        assert torch.equal(one.to_dense(), other.to_dense())
