"""The tuner's view of the iterations: every kernel is reached, whatever runs them, and what it is given proves itself.

Run as a script without TRITON_INTERPRET, this file plans the launches of a call for the compute capability that it is
given, with a stand-in for the GPU's driver, and prints how many there are.
"""

import os
import subprocess
import sys

import pytest
import torch

from tropigrad import autotune
from tropigrad.autotune import tuning
from tropigrad.autotune.machine import ahead_of_time
from tropigrad.autotune.tunable import launches
from tropigrad.kernels.contract.launches import without_a_gpu
from tropigrad.kernels.runtime import backend
from tropigrad.optim.worst_sample import by_triton, tuning_calls
from tropigrad.optim.worst_sample.captured_loop import Repeated

CPU = torch.device("cpu")
SHAPE = {"N": 12, "d": 4, "p": 5, "q": 3, "K": 3}
TUNABLE = autotune.TUNABLE["worst_sample"]
FORMS = {"program": (by_triton.PROGRAM, 512), "graph": (by_triton.ITERATION, 0)}
interpreted = pytest.mark.skipif(
    bool(backend.why_off("triton", CPU)), reason="triton's interpreter runs programs on the CPU"
)


@pytest.fixture(params=FORMS)
def kernel(request, monkeypatch):
    """The kernel that few samples, or many, are served by: at samples and iterations few enough to interpret."""
    kernel, largest = FORMS[request.param]
    monkeypatch.setattr(tuning_calls, "ITERATIONS", 4)
    monkeypatch.setattr(by_triton, "LARGEST", largest)
    with backend.forcing("triton"):
        yield kernel


def test_the_tuner_knows_every_kernel_with_a_config():
    assert {kernel.name for kernel in TUNABLE.kernels} == {
        "worst_sample.cpp",
        "worst_sample_program.triton",
        "worst_sample_iteration.triton",
    }


def test_the_standard_shapes_lead_to_each_form():
    counts = [shape["N"] for shape in TUNABLE.shapes.values()]
    assert min(counts) <= by_triton.LARGEST < max(counts)


@interpreted
def test_calls_on_triton_launch_and_prove_themselves(kernel):
    with autotune.mode("off"):
        seen = list(launches(TUNABLE, SHAPE, torch.float32, CPU))
    assert {launched.kernel.name for launched in seen} == {kernel.name}
    assert {launched.problem["loss"] for launched in seen} == {"hinge", "cross_entropy"}
    for launched in seen:
        assert launched.choice.config == kernel.default(launched.problem)
        assert launched.choice.config in kernel.space
        assert launched.call.fresh
        trace, *weights = launched.call.fresh()()
        assert len(trace) == tuning_calls.ITERATIONS
        launched.call.check((trace, *weights))
        weights[0].view(-1)[3] += 1
        with pytest.raises(AssertionError, match="W1"):
            launched.call.check((trace, *weights))


@interpreted
def test_a_call_that_was_made_already_takes_another_config(kernel):
    """As the tuner times rivals: in turn, on what the call wrote before."""
    call, *_ = TUNABLE.calls(SHAPE, torch.float32, CPU)
    default = kernel.default({"loss": "hinge", "dtype": "torch.float32"})
    other = {**default, "ROWS": 16 if default["ROWS"] != 16 else 4}
    expected = TUNABLE.calls(SHAPE, torch.float32, CPU)
    ours, theirs = call, next(iter(expected))
    for config in (default, other, default):
        with autotune.override(kernel.name, config), autotune.recorded() as choices:
            got = [x.clone() for x in ours.run()]
        assert choices[kernel.name].config == config
        assert all(torch.equal(x, y) for x, y in zip(got, theirs.run(), strict=True))


@interpreted
def test_a_kernel_is_tuned_in_the_midst_of_a_run(kernel, monkeypatch, tmp_path):
    monkeypatch.setenv("TROPIGRAD_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tuning, "IN_A_CALL_S", 0.01)
    autotune.reload()
    try:
        with autotune.mode("tune"), autotune.recorded() as choices:
            by_triton.Cached(tuning_calls.begin(SHAPE, torch.float32)).run(2, torch.empty(2, dtype=torch.float64))
    finally:
        monkeypatch.undo()
        autotune.reload()
    assert choices[kernel.name].source != "default"


def test_what_is_off_leaves_nothing_to_tune():
    """A variable that forces what has no such kernel, or cannot run here, is no error of the tuner's."""
    for name, device in (("torch", CPU), ("cpp", torch.device("meta"))):
        with backend.forcing(name):
            assert not list(TUNABLE.calls(SHAPE, torch.float32, device))


def test_integers_and_half_precision_have_no_calls():
    assert not list(TUNABLE.calls(SHAPE, torch.float16, CPU))


# ------------------------------------------------------------------------------------------------ planned launches


def test_a_launch_that_is_only_planned_is_not_captured():
    """A graph of it would hold nothing, and be replayed when the launches are meant."""
    made = []

    def planned() -> None:
        made.append(1)  # Triton returns the kernel that it launched, and nothing where it launched none

    repeated = Repeated(planned, torch.device("cuda"))
    for _ in range(2):
        made.clear()
        repeated(100)
        assert len(made) >= 100


@interpreted
def test_a_run_whose_launches_write_nothing_ends(kernel):
    loop = by_triton.Cached(tuning_calls.begin(SHAPE, torch.float32))
    loop._iterate = lambda count: None
    assert loop.run(3, torch.empty(3, dtype=torch.float64)) == 0


@pytest.mark.parametrize("form", FORMS)
def test_launches_are_planned(form):
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, __file__, "80", form]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    expected = {"program": ["_program_kernel"], "graph": ["_advance_kernel"] + ["_iteration_kernel"] * 16}
    assert done.stdout.split() == expected[form]


def main(capability: int, form: str) -> None:
    without_a_gpu(capability)
    by_triton.LARGEST = FORMS[form][1]
    loop = by_triton.Cached(tuning_calls.begin(SHAPE, torch.float32))
    trace = torch.empty(16, dtype=torch.float64)
    print(*(plan.function for plan in ahead_of_time.plan(lambda: loop.run(16, trace))))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
