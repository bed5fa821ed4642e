"""First results in fresh processes: what is waited for is named, and positive."""

import pytest

from tropigrad.perf_reports import startup


def test_imports_and_first_calls_are_measured():
    steps = []
    found = list(startup.measure(quick=True, progress=lambda *step: steps.append(step)))
    assert [record["what"] for record in found] == [
        "import tropigrad",
        "and its kernels and layers",
        "tropical_conv2d, float64, nothing compiled",
        "tropical_conv2d, float64, compiled",
        "tropical_matmul, float64, nothing compiled",
        "tropical_matmul, float64, compiled",
        "tropical_matmul, 8 × 8, values",
        "torch.matmul, 8 × 8, values",
        "tropical_matmul, 8 × 8, values, for a gradient",
        "torch.matmul, 8 × 8, values, for a gradient",
    ]
    assert all(record["kind"] == "startup" and record["seconds"] > 0 for record in found)
    assert steps[-1][:2] == (3, 3)


def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match="a fresh process failed: ValueError: no luck"):
        startup._run("raise ValueError('no luck')")
