"""torch's sparse_csr tensors, made without torch's remark that they are in beta."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def csr_tensor(crow: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """A sparse_csr tensor on its parts' device, of rows whose columns ascend; nothing is copied or checked."""
    with _without_remark():  # torch would take the default device
        return torch.sparse_csr_tensor(crow, columns, values, shape, device=values.device, check_invariants=False)


def as_sparse_csr(x: Tensor) -> Tensor:
    """x, dense or sparse, in torch's sparse_csr layout."""
    with _without_remark():
        return x.to_sparse_csr()


@contextmanager
def _without_remark() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state", UserWarning)
        warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled", UserWarning)
        yield
