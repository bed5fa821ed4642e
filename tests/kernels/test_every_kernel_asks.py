"""Every kernel asks the tuner which config to run with, runs its default unless told, and gives the same bits with any.

The ops are those of the registry: one that is added and fixes its own threads or blocks, or whose choices change a
result, fails here.
"""

import random

import pytest
import torch

from tropigrad import autotune
from tropigrad.autotune.tunable import launches
from tropigrad.kernels import backend
from tropigrad.kernels.conformance import assert_same
from tropigrad.kernels.spec import REGISTRY

CPU = torch.device("cpu")
# several blocks and tasks of each C++ kernel; an op that is not listed is called at the largest of its small shapes
MIDDLE = {
    "Tournament": {"B": 70, "n": 3000, "t": 90},
    "largest_path": {"M": 70, "N": 90},
    "path_norm": {"M": 260, "N": 1100},
    "path_values": {"M": 64, "N": 300, "K": 10, "P": 40_000},
    "scatter_step": {"R": 300, "C": 300, "nnz": 40_000},
    "tropical_conv2d": {"N": 3, "G": 1, "C": 5, "O": 7, "H": 60, "W": 61, "k": 3},
    "tropical_matmul": {"M": 130, "K": 1100, "N": 150},
    "tropical_matvec": {"M": 333, "K": 700, "B": 2},
}
INTERPRETED = {
    "tropical_conv2d": {"N": 1, "G": 1, "C": 2, "O": 3, "H": 6, "W": 7, "k": 3},
    "tropical_matmul": {"M": 9, "K": 17, "N": 8},
    "tropical_matvec": {"M": 9, "K": 17, "B": 1},
}
PATHS = [
    pytest.param(op, path, id=f"{op}-{path}")
    for op, spec in REGISTRY.items()
    for path in ("cpp", "triton")
    if path in spec.backends
]


def shape_of(op: str, path: str) -> dict[str, int]:
    return (MIDDLE if path == "cpp" else INTERPRETED).get(op) or dict(REGISTRY[op].small_shapes[-1])


@pytest.mark.parametrize(("op", "path"), PATHS)
def test_a_call_asks_and_runs_with_the_default(op, path):
    if backend.why_off(path, CPU):
        pytest.skip(backend.why_off(path, CPU))
    known = {kernel for spec in REGISTRY.values() for kernels in spec.tuned.values() for kernel in kernels}
    with backend.forcing(path), autotune.mode("off"):
        seen = list(launches(autotune.TUNABLE[op], shape_of(op, path), torch.float32, CPU))
    assert seen, f"{op} runs on {path} and asks for no config"
    for launched in seen:
        assert launched.kernel in known, f"no spec lists {launched.kernel.name}"
        assert launched.choice.config == launched.kernel.default(launched.problem)
        assert launched.choice.config in launched.kernel.space
    listed = {kernel.name for kernel in REGISTRY[op].tuned.get(path, ())}
    assert listed <= {launched.kernel.name for launched in seen}


@pytest.mark.parametrize(
    ("op", "kernel"),
    [pytest.param(op, kernel, id=kernel.name) for op, s in REGISTRY.items() for kernel in s.tuned.get("cpp", ())],
)
def test_any_config_gives_the_same_bits(op, kernel):
    """Sums of floats included: neither threads nor blocks change the order in which anything is added."""
    if backend.why_off("cpp", CPU):
        pytest.skip(backend.why_off("cpp", CPU))
    with backend.forcing("cpp"):
        found = [x for x in launches(autotune.TUNABLE[op], shape_of(op, "cpp"), torch.float32, CPU)
                 if x.kernel is kernel]  # fmt: skip
        call = found[0].call
        expected = [x.clone() for x in result(call)]
        configs = [config for config in kernel.space if config.get("threads", 0) <= 4]
        for config in random.Random(0).sample(configs, min(len(configs), 12)):
            with autotune.override(kernel.name, config):
                assert_same(result(call), expected, True, f"{kernel.name} with {dict(config)}")


def result(call: autotune.Call):
    return call.fresh()() if call.fresh else call.run()
