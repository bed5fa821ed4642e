"""Peak memory of known allocations, and the geometric mean."""

import math

import pytest
import torch

from tropigrad.perf_reports.measuring import memory
from tropigrad.perf_reports.measuring.memory import peak_memory


@pytest.mark.skipif(torch.cuda.is_available(), reason="the resident set is measured where there is no GPU")
def test_peak_memory_sees_scratch_that_is_freed_again():
    mebibyte = 1 << 20

    def call():
        scratch = torch.ones(64 * mebibyte // 4)
        return (scratch[: mebibyte // 4].clone(),)

    call()
    results, peak = peak_memory(call)
    if peak is None:
        pytest.skip("this system does not let a process reset its high-water mark")
    assert results[0].numel() == mebibyte // 4
    assert peak.result_bytes == mebibyte
    assert 63 * mebibyte < peak.peak_bytes < 80 * mebibyte


def test_peak_memory_is_unknown_where_the_mark_cannot_be_reset(monkeypatch):
    monkeypatch.setattr(memory, "_reset_high_water_mark", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    results, peak = peak_memory(lambda: (torch.ones(3),))
    assert peak is None
    assert math.isclose(float(results[0].sum()), 3)
