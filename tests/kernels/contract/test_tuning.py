"""The tuner's view of the ops: their calls, what proves them, and forecasts from machine code without a GPU.

Run as a script without TRITON_INTERPRET, this file plans launches for the compute capability that it is given, with a
stand-in for the GPU's driver, compiles what they need, and prints it.
"""

import copy
import json
import os
import subprocess
import sys
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from tropigrad import autotune
from tropigrad.autotune import Prediction
from tropigrad.autotune import tuning as autotune_tuning
from tropigrad.autotune.forecast import forecast
from tropigrad.autotune.machine import ahead_of_time
from tropigrad.kernels import (
    Tournament,
    largest_path,
    path_norm,
    path_values,
    scatter_step,
    tropical_conv2d,
    tropical_matmul,
    tropical_matvec,
)
from tropigrad.kernels.contract import launches, tuning
from tropigrad.kernels.contract.registry import REGISTRY
from tropigrad.kernels.runtime import backend
from tropigrad.kernels.scatter_step import RULES
from tropigrad.kernels.tropical_matmul import by_triton
from tropigrad.optim import GSGD, BasisPaths

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
        assert "log" in names
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


@pytest.mark.skipif(bool(backend.why_off("cpp", CPU)), reason="no C++ compiler")
@pytest.mark.parametrize("op", ["scatter_step", "Tournament", "path_step", "tropical_matmul"])
def test_another_default_device_is_none_to_tune_on(op, monkeypatch, tmp_path):
    shape = dict(REGISTRY[op].small_shapes[-1])
    with torch.device("meta"):
        autotune.warm_up(op, shape, device=CPU)  # compiled, outside the cache that follows
        monkeypatch.setenv("TROPIGRAD_CACHE_DIR", str(tmp_path))
        found = autotune.tune(op, shape, device=CPU, budget_s=0.5)
    assert found
    assert all(finding.kernel.endswith(".cpp") for finding in found)


def trained(function, *inputs: torch.Tensor):
    def call():
        function(*(x.detach().requires_grad_(x.is_floating_point()) for x in inputs)).sum().backward()

    return call


def stepped(model: nn.Module, *size: int, **options):
    def call():
        one = copy.deepcopy(model)
        optimizer = GSGD(BasisPaths(one), 1e-3, **options)
        one(torch.ones(size)).sum().backward()
        optimizer.step()

    return call


def moved(shape: tuple[int, ...], pairs: bool, dtype=torch.float32, **options):
    def call():
        at = torch.tensor([1, 2])
        values = torch.ones(2, *shape[2 if pairs else 1 :], dtype=dtype)
        scatter_step(torch.ones(shape, dtype=dtype), (at, at) if pairs else at, values, lr=0.1, **options)

    return call


def updated(shape: tuple[int, ...], touched: int):
    return lambda: Tournament(torch.ones(shape)).update(torch.arange(touched), torch.zeros(touched))


def mlp(*widths: int) -> nn.Module:
    layers = [layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def weights(*widths: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.ones(o, i) for i, o in pairwise(widths))


def paths(layers: int) -> torch.Tensor:
    return torch.zeros(5, layers + 1, dtype=torch.int64)


A, B, X = torch.ones(9, 7), torch.ones(7, 5), torch.ones(2, 4, 8, 9)
FORMS = {
    **{
        f"matmul-{name}": trained(partial(tropical_matmul, semiring=name), A, B)
        for name in ("max_plus", "min_plus", "max_times")
    },
    "matmul-batched": trained(tropical_matmul, A.expand(3, 9, 7), B),
    "matmul-winners": lambda: tropical_matmul(A, B, return_indices=True),
    "matmul-int32": lambda: tropical_matmul(A.int(), B.int()),
    "matvec": trained(tropical_matvec, A, torch.ones(7)),
    "matvec-batched": trained(tropical_matvec, A, torch.ones(3, 7)),
    "conv2d": trained(tropical_conv2d, X, torch.ones(5, 4, 3, 3)),
    "conv2d-oblong": trained(tropical_conv2d, X, torch.ones(5, 4, 2, 1)),
    "conv2d-groups": trained(partial(tropical_conv2d, groups=2, stride=2, padding=1), X, torch.ones(4, 2, 3, 3)),
    "conv2d-depthwise": trained(partial(tropical_conv2d, groups=4, dilation=2), X, torch.ones(4, 1, 3, 3)),
    "conv2d-min-plus": lambda: tropical_conv2d(X, torch.ones(5, 4, 3, 3), semiring="min_plus"),
    **{f"scatter-rows-{rule}": moved((9, 7), False, rule=rule) for rule in RULES},
    **{f"scatter-pairs-{rule}": moved((8, 6), True, rule=rule) for rule in RULES},
    "scatter-vector": moved((11,), False),
    "scatter-filters": moved((10, 3, 3, 2), False),
    "scatter-rows-of-filters": moved((10, 4, 3, 2), True),
    "scatter-float64": moved((9, 7), False, torch.float64),
    "tournament": updated((50,), 1),
    "tournament-batched": updated((3, 4, 70), 60),
    "values-1": trained(lambda *w: path_values(w, paths(1)), *weights(4, 6)),
    "values-2": trained(lambda *w: path_values(w, paths(2)), *weights(4, 6, 3)),
    "values-4": trained(lambda *w: path_values(w, paths(4)), *weights(4, 6, 9, 20, 3)),
    "values-conv": trained(
        lambda *w: path_values(w, paths(2), input_size=5), torch.ones(6, 4, 3, 3), torch.ones(3, 54)
    ),
    **{f"norm-{n}": trained(lambda *w: path_norm(w, p=2), *weights(*(4, 6, 3, 5, 8)[: n + 1])) for n in (1, 2, 4)},
    "largest-path": lambda: largest_path(weights(4, 6, 3, 5)),
    "gsgd-2": stepped(mlp(4, 6, 3), 2, 4),
    "gsgd-3": stepped(mlp(4, 6, 20, 3), 2, 4, momentum=0.9),
    "gsgd-6": stepped(mlp(4, 6, 20, 7, 9, 3, 2), 2, 4),
    "gsgd-conv": stepped(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 3)), 2, 3, 8, 8),
    "gsgd-depthwise": stepped(
        nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8)), 2, 8, 8, 8
    ),
}


@pytest.mark.skipif(bool(backend.why_off("cpp", CPU)), reason="no C++ compiler")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_of_a_call_can_be_tuned_in_its_midst(form, monkeypatch, tmp_path):
    """Whatever kernels it launches, at whatever problems: warnings, of which one is that nothing leads there, fail."""
    form()  # compiled, outside the cache that follows
    monkeypatch.setenv("TROPIGRAD_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(autotune_tuning, "IN_A_CALL_S", 0.01)
    autotune.reload()
    try:
        with autotune.mode("tune"), autotune.recorded() as choices:
            form()
    finally:
        monkeypatch.undo()
        autotune.reload()
    assert choices
    assert not {name: choice for name, choice in choices.items() if choice.source == "default"}


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
    launches.without_a_gpu(capability)
    a, b = torch.zeros(1, 64, 40), torch.zeros(1, 40, 130)
    call = autotune.Call(
        "", lambda: by_triton.forward(a, b, "max_plus", False, False), print, autotune.Work(64 * 40 * 130, 1, "add_max")
    )
    with autotune.override(by_triton.FORWARD.name, CONFIGS[0]):
        plans = ahead_of_time.plan(call.run)
    names = ("function", "blocks", "threads", "capability")
    forecasts = forecast(CPU, call, by_triton.FORWARD, CONFIGS)
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
