"""The tuner's view of the ops: their calls, what proves them, and forecasts from machine code without a GPU.

Run as a script without TRITON_INTERPRET, this file plans launches for the compute capability that it is given, with a
stand-in for the GPU's driver, compiles what they need, and prints it.
"""

import json
import os
import subprocess
import sys

import pytest
import torch

from tropigrad import autotune
from tropigrad.autotune import Prediction
from tropigrad.kernels import ahead_of_time, backend, tuning
from tropigrad.kernels.spec import REGISTRY
from tropigrad.kernels.tropical_matmul import portable

CPU = torch.device("cpu")
SHAPE = {"M": 24, "K": 40, "N": 33}
CONFIGS = [
    {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 8, "num_warps": 4},
    {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 8, "num_warps": 2},
]


def test_every_op_can_be_tuned_by_its_name():
    assert set(REGISTRY) <= set(autotune.TUNABLE)


@pytest.mark.parametrize("path", ["cpp", "triton"])
def test_calls_cover_values_winners_and_training_and_prove_themselves(path):
    if backend.why_off(path, CPU):
        pytest.skip(backend.why_off(path, CPU))
    with backend.forcing(path):
        calls = list(tuning.calls(REGISTRY["tropical_matmul"], SHAPE, torch.float32, CPU))
        names = [call.name for call in calls]
        assert names[:3] == ["max_plus", "max_plus, with winners", "max_plus, trained"]
        assert ("log" in names) == (path == "triton")  # the log semiring has no C++ kernel, and torch no config
        for call in calls:
            call.check(call.run())
            assert call.work.steps == 24 * 40 * 33


@pytest.mark.parametrize("name", ["max_plus", "max_plus, with winners", "max_plus, trained"])
@pytest.mark.parametrize("output", [0, -1], ids=["first", "last"])
def test_a_result_that_is_off_is_no_proof(name, output):
    calls = {call.name: call for call in tuning.calls(REGISTRY["tropical_matmul"], SHAPE, torch.float32, CPU)}
    if name not in calls:
        pytest.skip("no kernel with a config runs here")
    got = [x.clone() for x in calls[name].run()]
    got[output].view(-1)[7] += 1
    with pytest.raises(AssertionError):
        calls[name].check(tuple(got))


def test_integers_are_called_without_a_gradient():
    names = [call.name for call in tuning.calls(REGISTRY["tropical_matmul"], SHAPE, torch.int32, CPU)]
    assert not any("trained" in name or "log" in name for name in names)


def test_an_op_that_works_in_place_is_timed_on_what_it_wrote_and_proven_on_fresh_inputs():
    spec = REGISTRY["scatter_step"]
    call, *_ = tuning.calls(spec, spec.small_shapes[-1], torch.float32, CPU)
    assert call.fresh
    call.run()
    moved = call.run()
    with pytest.raises(AssertionError, match="not close"):
        call.check(moved)
    call.check(call.fresh()())


@pytest.mark.skipif(bool(backend.why_off("cpp", CPU)), reason="no C++ compiler")
def test_an_op_that_works_in_place_is_tuned(monkeypatch, tmp_path):
    monkeypatch.setenv("TROPIGRAD_CACHE_DIR", str(tmp_path))
    found = autotune.tune("scatter_step", {"R": 50, "C": 50, "nnz": 200}, device=CPU, budget_s=5)
    assert [finding.kernel for finding in found] == ["scatter_step.cpp"]
    rivals = found[0].evidence["rivals"]
    assert any(rival["ratio"] > 0 for rival in rivals)
    # a result that is off would be among the reasons
    assert {rival["rejected"] for rival in rivals if "threads, torch" not in rival["rejected"]} == {""}


def planned(capability: int) -> dict:
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, __file__, str(capability)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_launches_are_planned_compiled_in_parallel_and_judged():
    found = planned(80)
    (plan,) = found["plans"]
    assert plan == {"function": "_tropical_matmul_fwd_kernel", "blocks": 2 * 3, "threads": 128, "capability": 80}
    good, spilling = found["forecasts"]
    assert good["seconds"] > 0
    assert good["limiter"] in ("ALU pipe", "issue slots", "load and store pipe", "memory bandwidth", "FMA pipe")
    assert "spills" in spilling
    assert "bytes of registers a thread" in spilling


def main(capability: int) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Driver:
        """A GPU that is not there: Triton asks of it what to compile for, and gets to launch nothing."""

        def get_current_target(self):
            return GPUTarget("cuda", capability, 32)

        def get_current_device(self):
            return 0

        def get_current_stream(self, device):
            return 0

    driver.set_active(Driver())  # type: ignore[arg-type]
    a, b = torch.zeros(1, 64, 40), torch.zeros(1, 40, 130)
    call = autotune.Call(
        "", lambda: portable.forward(a, b, "max_plus", False, False), print, autotune.Work(64 * 40 * 130, 1, "add_max")
    )
    with autotune.override(portable.FORWARD.name, CONFIGS[0]):
        plans = ahead_of_time.plan(call.run)
    names = ("function", "blocks", "threads", "capability")
    forecasts = tuning.forecast(CPU, call, portable.FORWARD, CONFIGS)
    print(
        json.dumps(
            {
                "plans": [{name: getattr(plan, name) for name in names} for plan in plans],
                "forecasts": [vars(f) if isinstance(f, Prediction) else f for f in forecasts],
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
