"""Where there is no GPU, Triton's interpreter stands in for one; it must be chosen before triton is imported."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers fill the cores already


@pytest.fixture(autouse=True)
def _own_random_numbers():
    torch.manual_seed(0)
