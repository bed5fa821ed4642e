"""sparse_csr tensors as the library makes them: where their parts are, and without a remark."""

import warnings

import pytest
import torch

from tropigrad.kernels.runtime.csr import as_sparse_csr, csr_tensor


@pytest.fixture
def default_device_meta():
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def test_it_lies_where_its_parts_do(default_device_meta):
    dense = torch.tensor([[0.0, 1.0], [2.0, 0.0]], device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = as_sparse_csr(dense)
        made = csr_tensor(x.crow_indices(), x.col_indices(), x.values(), (2, 2))
    assert made.device.type == "cpu"
    assert torch.equal(made.to_dense(), dense)
