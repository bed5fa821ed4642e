"""First results in fresh processes: what is waited for is named, and positive."""

import pytest

from tropigrad.perf_reports.measuring import startup


def test_imports_and_first_calls_are_measured():
    steps = []
    found = list(startup.measure(quick=True, progress=lambda *step: steps.append(step)))
    found_of = [record["what"] for record in found]
    assert found_of[:2] == ["import tropigrad", "and its kernels and layers"]
    assert {f"tropical_matmul, float64, {when}" for when in ("nothing compiled", "compiled")} < {*found_of}
    assert found_of[-4:] == [
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
