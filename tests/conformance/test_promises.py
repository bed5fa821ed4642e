"""Every promise of every registered op; tropigrad/kernels/contract/conformance/ holds the table."""

import pytest
import torch

import tropigrad.kernels  # noqa: F401  registers the ops
from tropigrad.kernels.contract import conformance

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else [])
        for case in conformance.cases(DEVICE)
    ],
)
def test_promise(case):
    try:
        case.run()
    except conformance.NotHere as reason:
        pytest.skip(str(reason))
