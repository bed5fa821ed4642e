"""First results in fresh processes: what is waited for is named, and positive."""

import json
import subprocess
import sys

import pytest

from tropigrad.perf_reports.measuring import startup


def test_imports_small_calls_and_first_calls_are_measured(monkeypatch):
    asked, run = [], startup._run

    def first_calls_made_up(program, *arguments, limit_s=None):
        if program == startup._IMPORT:
            return run(program)
        asked.append((arguments, limit_s))
        return {"tropical_matmul, float32, nothing compiled": 9.0, "tropical_matmul, float32, compiled": 0.1}

    monkeypatch.setattr(startup, "IMPORTS", 1)
    monkeypatch.setattr(startup, "_run", first_calls_made_up)
    steps = []
    measured = list(startup.measure(["tropical_matmul"], budget_s=20.0, progress=lambda *step: steps.append(step)))
    assert [record["what"] for record in measured] == [
        "import tropigrad",
        "and its kernels and layers",
        "tropical_matmul, 8 × 8, values",
        "torch.matmul, 8 × 8, values",
        "tropical_matmul, 8 × 8, values, for a gradient",
        "torch.matmul, 8 × 8, values, for a gradient",
        "tropical_matmul, float32, nothing compiled",
        "tropical_matmul, float32, compiled",
    ]
    assert all(record["kind"] == "startup" and record["seconds"] > 0 for record in measured)
    ((ops, limit_s),) = asked
    assert ops == ("tropical_matmul",)
    assert 5 <= limit_s < 20
    assert steps[-1][:2] == (3, 3)


def test_first_calls_are_those_of_the_ops_asked_for():
    # the cache folder of the tests, in which most is compiled
    program = [sys.executable, "-c", startup._FIRST_CALLS, "soft_threshold"]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    first, *others = [name for line in done.stdout.splitlines() for name in json.loads(line)]
    assert first == "the operators, nothing compiled"
    assert others[:2] == [f"soft_threshold, float32, {when}" for when in ("nothing compiled", "compiled")]
    assert {name.split(", ")[0] for name in others} == {"soft_threshold"}


def test_a_process_out_of_time_leaves_what_it_had_written():
    program = "import time; print('{\"a\": 1.5}', flush=True); print('{\"b\"', end='', flush=True); time.sleep(60)"
    assert startup._run(program, limit_s=2.0) == {"a": 1.5}


def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match="a fresh process failed: ValueError: no luck"):
        startup._run("raise ValueError('no luck')")
