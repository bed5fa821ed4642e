"""The Triton kernels as a GPU's compiler sees them: the interpreter accepts what no GPU would compile.

The launches are those that the ops make on the CPU, recorded (kernels/contract/launches.py). Run as a script without
TRITON_INTERPRET, this file compiles those it is asked for and prints the machine code's costs.
"""

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Collection, Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tropigrad.kernels
import tropigrad.optim
from tropigrad import autotune
from tropigrad.autotune.machine import ahead_of_time
from tropigrad.kernels.contract.launches import Launch, launches, recording
from tropigrad.kernels.contract.operators import covering
from tropigrad.kernels.contract.registry import REGISTRY
from tropigrad.kernels.runtime import backend
from tropigrad.kernels.runtime.arguments import PLAIN_FLOATS
from tropigrad.kernels.tropical_matmul import by_triton
from tropigrad.optim.worst_sample import by_triton as worst_sample
from tropigrad.optim.worst_sample import tuning_calls
from tropigrad.optim.worst_sample.definition import LOSSES, Moves

pytest.importorskip("triton", reason="triton is not installed")

DTYPES = ("float32", "float16", "bfloat16", "float64", "int32", "int16", "int8")
# beside the first and the last standard shape and a small one: large and small blocks, and blocks of few columns
SHAPES = {
    "tropical_matmul": (
        {"M": 1024, "K": 1024, "N": 1024},
        {"M": 128, "K": 64, "N": 64},
        {"M": 1024, "K": 1024, "N": 64},
    ),
}
# of MI300: waves of 64; of RX 7900: of 32, so that a thread has twice the outputs and products of fp64 and int32 spill
AMD = ("gfx942", "gfx1100")
MATMUL = ("tropical_matmul_fwd", "tropical_winners_scatter", "largest", "from_fixed_point")
MAX_PLUS = {"MINIMUM": False, "PRODUCT": False, "IGNORE_NAN": False}
WATCHED = {"POLYAK": True, "WATCHED": True}  # a run of the worst-sample iterations that the tuner does not make
# the first two are no spills: 56 and 48 registers are in use; the third is, 128 being all that its warps leave a thread
STACKS = {("advance", 90, 8), ("gather_softmax_bwd", 90, 8), ("visit", 100, 8)}
ON_AMD = ("tropical_matmul_fwd", "tropical_winners_scatter", "tropical_conv2d_fwd")


def recorded(dtype: str, names: Collection[str], every: bool) -> list[Launch]:
    """The launches of these kernels, or of all: each flag of a kernel at least once; or each form in which its flags
    come, and each of its tiles.
    """
    made = []
    for op, tunable in autotune.TUNABLE.items():
        spec = REGISTRY.get(op)
        if spec is not None and ("triton" not in spec.tuned or getattr(torch, dtype) not in spec.dtypes):
            continue  # what has no kernels of its own launches another op's
        first, *_, last = tunable.shapes.values()
        shapes = [*SHAPES.get(op, ()), first, last, *(spec.small_shapes[-1:] if spec else ())]
        made += launches(op, shapes, getattr(torch, dtype))
    made += _visits(getattr(torch, dtype))
    for x in [x for x in made if "WATCHED" in x.constants]:
        watched = {name: value for name, value in WATCHED.items() if name in x.constants}
        made.append(replace(x, constants={**x.constants, **watched}))
    made = [launch for launch in made if not names or launch.name in names]
    return covering(made, forms if every else flags)


def _visits(dtype: torch.dtype) -> list[Launch]:
    """The launches of the worst-sample iterations on one of several ranks, which the tuner does not make."""
    if dtype not in PLAIN_FLOATS:
        return []
    with recording() as made:
        for loss in LOSSES:
            state = tuning_calls.begin(tuning_calls.SHAPES["digits"], dtype, loss=loss)
            worst_sample.Cached(state, is_shared=True).follow(Moves([(0, 0)], [(0, 0)], []))
    return made


def flags(launch: Launch) -> set[Hashable]:
    return {launch.name, *((launch.name, *flag) for flag in launch.flags.items())}


def forms(launch: Launch) -> set[Hashable]:
    return {(launch.name, *launch.flags.items()), (launch.name, launch.warps, *launch.tile.items())}


@functools.cache
def costs(dtype: str, names: tuple[str, ...], capabilities: tuple[int | str, ...], every: bool) -> list[dict[str, Any]]:
    """The machine code of each recorded launch on each capability, from a process in which Triton compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, __file__, dtype, ",".join(names), ",".join(map(str, capabilities)), "every" * every],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def code_of(costs: list[dict[str, Any]], name: str, capability: int | str = 90, **constants) -> dict[str, Any]:
    """The first of these launches that has such constants: at the largest shape."""
    return next(
        cost
        for cost in costs
        if (cost["name"], cost["capability"]) == (name, capability) and constants.items() <= cost["constants"].items()
    )


QUICK = [  # a process each
    ("float32", (), (90,), False),
    ("float16", (), (90,), False),
    ("float32", (), (80, 100), False),
    ("bfloat16", (), (90,), False),
    ("int16", (), (90,), False),
    ("int8", (), (90,), False),
    ("float32", ON_AMD, AMD, False),
]


@pytest.mark.parametrize(
    ("dtype", "names", "capabilities", "every"),
    [
        *QUICK,
        *(pytest.param(dtype, (), (80, 90, 100, AMD[0]), True, marks=pytest.mark.slow) for dtype in DTYPES),
    ],
    ids=lambda value: (
        value if isinstance(value, str) else "-".join(map(str, value)) if isinstance(value, tuple) else None
    ),
)
def test_default_configs_compile_without_spills(dtype, names, capabilities, every):
    compiled = costs(dtype, names, capabilities, every)
    assert compiled
    stacks = [(cost["name"], cost["capability"], cost["stack"]) for cost in compiled if cost["stack"]]
    assert set(stacks) <= STACKS
    assert all(0 < cost["registers"] <= 256 for cost in compiled)


def test_every_kernel_is_recorded():
    folders = (Path(str(package.__file__)).resolve().parent for package in (tropigrad.kernels, tropigrad.optim))
    sources = [path for folder in folders for path in folder.rglob("*.py") if "gluon" not in path.name]
    written = {name for path in sources for name in re.findall(r"^def _(\w+)_kernel\(", path.read_text(), re.MULTILINE)}
    assert written == {cost["name"] for cost in costs(*QUICK[0])}


@pytest.mark.parametrize("keep", ["nothing", "block"])
def test_a_step_is_one_addition_and_one_maximum(keep):
    """Of fp32, which propagates NaN; loads, addresses and the k-block add little."""
    code = code_of(costs(*QUICK[0]), "tropical_matmul_fwd", KEEP=keep, **MAX_PLUS)
    loop, tile = code["loop"], code["constants"]
    unrolled = 8 * tile["BLOCK_M"] * tile["BLOCK_N"] // (32 * code["warps"])
    assert loop["FADD"] == unrolled
    assert loop["FMNMX.NAN"] == unrolled
    assert sum(loop.values()) <= 2.6 * unrolled


def test_a_gradient_of_paths_is_one_relaxed_addition_an_edge():
    code = code_of(costs(*QUICK[0]), "path_values_bwd", ADD=True)["instructions"]
    assert sum(count for opcode, count in code.items() if opcode.startswith("RED")) == 1
    assert not any(opcode.startswith(("MEMBAR", "ATOM")) for opcode in code)


@pytest.mark.parametrize("fixed", [False, True])
def test_atomic_additions_wait_for_nothing(fixed):
    """Relaxed and without a result: a reduction that the multiprocessor hands to the cache and forgets."""
    code = code_of(costs(*QUICK[0]), "tropical_winners_scatter", FIXED=fixed)["instructions"]
    assert sum(count for opcode, count in code.items() if opcode.startswith("RED")) >= 4
    assert not any(opcode.startswith(("MEMBAR", "ATOM")) for opcode in code)


def test_amd_adds_without_loops_of_compare_and_swap():
    """On gfx942 alone: for gfx1100 Triton knows no atomic addition of floats. There only the fixed point's is one."""
    codes = {
        (capability, fixed): code_of(costs(*QUICK[-1]), "tropical_winners_scatter", capability, FIXED=fixed)
        for capability in AMD
        for fixed in (False, True)
    }
    for (capability, fixed), addition in (
        (("gfx942", False), "_f32"),
        (("gfx942", True), "_x2"),
        (("gfx1100", True), "_u64"),
    ):
        assert f"global_atomic_add{addition}" in codes[capability, fixed]["instructions"]
    assert not [opcode for opcode in codes["gfx942", False]["instructions"] if "cmpswap" in opcode]


def test_amd_selects_by_one_maximum_a_step():
    """And by a comparison and a move, as these architectures have no maximum that keeps a NaN."""
    code = code_of(costs(*QUICK[-1]), "tropical_matmul_fwd", "gfx942", KEEP="nothing", **MAX_PLUS)
    loop, tile = code["loop"], code["constants"]
    steps = 8 * tile["BLOCK_M"] * tile["BLOCK_N"] // (64 * code["warps"])
    comparisons = sum(count for opcode, count in loop.items() if opcode.startswith("v_cmp_o_f32"))  # in two encodings
    assert 2 * loop["v_pk_add_f32"] == comparisons == steps
    assert steps <= loop["v_max_f32_e32"] <= 1.2 * steps


@pytest.mark.parametrize("quick", QUICK[:2], ids=["float32", "float16"])
def test_addresses_are_computed_in_64_bits(quick):
    """A product in 32 bits is a scalar: of tile counts, which number programs, or of blocks and their size."""
    compiled = [cost for cost in costs(*quick) if cost["name"] in MATMUL and cost["capability"] == 90]
    assert {cost["name"] for cost in compiled} == set(MATMUL)
    for cost in compiled:
        name, ir = cost["name"], cost["ir"]
        products = re.findall(r"arith\.muli (%\w+), (%\w+) : (.*?) loc", ir)
        arguments = set(re.findall(r"(%\w+): (?:!tt\.ptr<\w+>|i\d+)", ir.split("tt.func", 1)[1].split("{\n", 1)[0]))
        assert any("i64" in kind for *_, kind in products)
        for *factors, kind in products:
            assert kind in ("i32", "i64") or kind.endswith("xi64>"), f"{name}: {factors} are {kind}"
            assert kind != "i32" or not arguments.intersection(factors), f"{name}: {factors} are multiplied in {kind}"


@pytest.mark.skipif(not backend.interpreted(), reason="Triton compiles here: no kernel is interpreted")
def test_an_interpreted_kernel_is_refused():
    with pytest.raises(RuntimeError, match="is not jitted: unset TRITON_INTERPRET"):
        ahead_of_time.compile(by_triton._tropical_matmul_fwd_kernel, {}, {}, 90)


def main(dtype: str, names: str, capabilities: str, every: str) -> None:
    def compiled(launch: Launch, capability: str) -> dict[str, Any]:
        target = int(capability) if capability.isdigit() else capability
        code = ahead_of_time.compile(
            launch.kernel,
            launch.signature,
            launch.constants,
            target,
            launch.warps,
            enable_fp_fusion=launch.fuses,
        )
        constants = {name: value for name, value in launch.constants.items() if isinstance(value, bool | int | str)}
        figures = {"registers": code.registers, "stack": code.stack, "ir": code.ir}
        mix = {"instructions": dict(code.instructions), "loop": dict(code.loop)}
        return (
            figures | mix | {"name": launch.name, "constants": constants, "warps": launch.warps, "capability": target}
        )

    made = recorded(dtype, tuple(filter(None, names.split(","))), bool(every))
    print(json.dumps([compiled(launch, capability) for capability in capabilities.split(",") for launch in made]))


if __name__ == "__main__":
    main(*sys.argv[1:])
