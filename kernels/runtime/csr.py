"""torch's sparse_csr tensors, made without torch's remark that they are in beta."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


def csr_tensor(crow: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """A sparse_csr tensor of rows whose columns ascend; nothing is copied or checked."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state", UserWarning)
        return torch.sparse_csr_tensor(crow, columns, values, shape, check_invariants=False)
