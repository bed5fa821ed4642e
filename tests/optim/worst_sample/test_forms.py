"""The sparse subgradient method's iterations in every form of C++; conformance's `forms` has the registered ops."""

import pytest
import torch

import tropigrad.optim  # noqa: F401  registers worst_sample
from tropigrad import autotune
from tropigrad.kernels.contract.conformance import FORMS
from tropigrad.kernels.runtime import native

SHAPE = {"N": 150, "d": 9, "p": 37, "q": 21, "K": 5}  # whole vectors, and what is left of them


def results(dtype):
    calls = autotune.TUNABLE["worst_sample"].calls(SHAPE, dtype, torch.device("cpu"))
    return {call.name: [x.clone() for x in call.fresh()()] for call in calls if call.fresh}


@pytest.mark.skipif(bool(native.why_no_compiler()), reason=native.why_no_compiler() or "there is a compiler")
@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        pytest.param(
            form,
            dtype,
            id=f"{form}-{str(dtype).removeprefix('torch.')}",
            marks=[] if form.processor == "x86-64" and dtype == torch.float32 else pytest.mark.slow,
        )
        for form in FORMS
        if not form.by_fma  # the loop's sums are no sums of native.hpp's
        for dtype in (torch.float32, torch.float64)
    ],
)
def test_iterations_are_the_same_bits_in_every_form(form, dtype):
    if reason := native.why_not(form):
        pytest.skip(reason)
    expected = results(dtype)
    assert len(expected) == 2  # memories
    with native.building(form):
        got = results(dtype)
        assert native.loaded()
    for name, tensors in expected.items():
        for ours, default in zip(got[name], tensors, strict=True):
            assert torch.equal(ours, default), name
