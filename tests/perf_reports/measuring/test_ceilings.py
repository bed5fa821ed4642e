"""The ceilings' loops do what they are said to do; on small sizes, since no figure is checked here."""

import ctypes
import json
from pathlib import Path

import pytest
import torch

from tropigrad.kernels.runtime.native import library, why_no_compiler
from tropigrad.perf_reports.measuring import ceilings

needs_compiler = pytest.mark.skipif(bool(why_no_compiler()), reason=f"no C++ compiler: {why_no_compiler()}")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(ceilings, "_TRIAD_BYTES_AT_MOST", 3 << 18)
    monkeypatch.setattr(ceilings, "_SAMPLE_S", 1e-4)
    matmul = ceilings._matmul
    monkeypatch.setattr(ceilings, "_matmul", lambda threads, rounds: matmul(threads, rounds, n=16))


@pytest.fixture(scope="module")
def native():
    found = library(Path(ceilings.__file__).with_name("ceilings.cpp"))
    assert isinstance(found, ctypes.CDLL)
    ceilings._declare(found)
    return found


@needs_compiler
def test_every_ceiling_is_measured_and_is_the_best_of_its_samples():
    progress = []
    found = list(ceilings.measure(quick=True, progress=lambda *step: progress.append(step)))
    measured = [record for record in found if record["kind"] == "ceiling"]
    assert {record["name"] for record in measured} >= {"add_max", "mul_max", "cache", "memory", "matmul"}
    assert all(record["value"] == max(record["samples"]) > 0 for record in measured)
    assert all(len(record["samples"]) >= 5 for record in measured)
    assert json.loads(json.dumps(measured))
    assert [done for done, _, _ in progress] == list(range(len(measured) + 1))


@needs_compiler
@pytest.mark.parametrize("mix", range(3), ids=ceilings.MIXES)
def test_a_mix_counts_its_steps(native, mix):
    steps = native.tropigrad_mix(mix, 1000)
    if steps == 0:
        pytest.skip(f"this processor has no instruction for {ceilings.MIXES[mix]}")
    assert steps == 12 * native.tropigrad_vector_floats() * 1000


@needs_compiler
def test_an_unknown_mix_makes_no_steps(native):
    assert native.tropigrad_mix(7, 1000) == 0


@needs_compiler
def test_the_triad_is_a_triad(native):
    x, y, out = torch.randn(101), torch.randn(101), torch.empty(101)
    moved = native.tropigrad_triad(out.data_ptr(), x.data_ptr(), y.data_ptr(), 101, 2)
    assert moved == 2 * 3 * 4 * 101
    torch.testing.assert_close(out, x + 3 * y)


def test_without_a_compiler_the_bandwidth_comes_from_torch_and_the_rest_is_left_out_with_its_reason(monkeypatch):
    monkeypatch.setattr(ceilings, "library", lambda source, *defines: None)
    monkeypatch.setattr(ceilings, "why_no_compiler", lambda: "no C++ compiler was found")
    found = list(ceilings.measure(quick=True))
    assert {record["name"] for record in found if record["kind"] == "ceiling"} == {"memory", "matmul"}
    left_out = [record for record in found if record["kind"] == "left_out"]
    assert [record["what"] for record in left_out] == [f"ceiling {name}" for name in (*ceilings.MIXES, "cache")]
    assert all(record["reason"] == "no C++ compiler was found" for record in left_out)


def test_the_threads_of_torch_are_as_before():
    before = torch.get_num_threads()
    list(ceilings.measure(quick=True))
    assert torch.get_num_threads() == before


def test_a_triad_that_may_fit_the_cache_says_so(monkeypatch):
    monkeypatch.setattr(ceilings, "_cache_size", lambda level: 1 << 30)
    assert "part of this may be cache" in ceilings._triad_size()[1]
    monkeypatch.setattr(ceilings, "_cache_size", lambda level: 1 << 10)
    assert "part of this may be cache" not in ceilings._triad_size()[1]
