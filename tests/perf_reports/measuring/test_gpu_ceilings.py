"""Each loop of the GPU's ceilings is what it says, by its machine code; nothing here runs on a GPU.

Run as a script without TRITON_INTERPRET, this file prints the instructions of the loops.
"""

import json
import os
import subprocess
import sys

import pytest
import torch

from tropigrad.autotune.machine import ahead_of_time
from tropigrad.perf_reports.measuring import gpu_ceilings

pytest.importorskip("triton", reason="triton is not installed")

STEPS = gpu_ceilings.CHAINS * gpu_ceilings.UNROLLED  # of a thread, in one iteration
NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.int32: "i32"}
LOOPS = {
    ("add_max", 80): {"FADD": STEPS, "FMNMX": STEPS},
    ("add_max", 90): {"FADD": STEPS, "FMNMX": STEPS},
    ("add_max_half", 80): {"HADD2": STEPS // 2, "HMNMX2": STEPS // 2},
    ("add_max_half", 90): {"HADD2": STEPS // 2, "HMNMX2": STEPS // 2},
    ("add_max_int", 80): {"IMAD.IADD": STEPS, "IMNMX": STEPS},
    ("add_max_int", 90): {"VIADDMNMX": STEPS},
    ("add_max_int", 100): {"VIADDMNMX": STEPS},
}


@pytest.fixture(scope="module")
def compiled() -> dict:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(("mix", "capability"), LOOPS, ids=str)
def test_a_mix_is_its_instructions_and_next_to_nothing_else(compiled, mix, capability):
    loop, wanted = compiled[f"{mix}-{capability}"], LOOPS[mix, capability]
    assert {name: loop[name] for name in wanted} == wanted
    assert sum(loop.values()) <= sum(wanted.values()) + 8  # the counter, and the branch back


def test_the_triad_loads_twice_what_it_stores_sixteen_bytes_at_a_time(compiled):
    code = compiled["triad"]
    assert code["LDG.E.128"] == 2 * code["STG.E.128"]
    assert not any(name.startswith(("LDG", "STG")) and not name.endswith("128") for name in code)


def test_the_empty_kernel_is_empty(compiled):
    assert set(compiled["empty"]) <= {"LDC", "EXIT", "BRA", "NOP"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU to measure")
def test_every_ceiling_is_measured():
    found = list(gpu_ceilings.measure(torch.device("cuda"), quick=True))
    assert [record["name"] for record in found] == [*gpu_ceilings.MIXES, "memory", "launch"]
    assert all(record["value"] > 0 for record in found)


def main() -> None:
    found = {}
    for mix, capability in LOOPS:
        kind = f"*{NAMES[gpu_ceilings.MIXES[mix]]}"
        constants = {"SIZE": gpu_ceilings.CHAINS * 32 * gpu_ceilings.WARPS, "UNROLLED": gpu_ceilings.UNROLLED}
        signature = {"x_ptr": kind, "s_ptr": kind, "iterations": "i32"}
        code = ahead_of_time.compile(gpu_ceilings._mix_kernel, signature, constants, capability, gpu_ceilings.WARPS)
        found[f"{mix}-{capability}"] = code.loop
    floats = dict.fromkeys(("out_ptr", "x_ptr", "y_ptr"), "*fp32") | {"s": "fp32", "n": "i32"}
    block = {"BLOCK": gpu_ceilings._TRIAD_BLOCK}
    found["triad"] = ahead_of_time.compile(gpu_ceilings._triad_kernel, floats, block, 90, divisible=["n"]).instructions
    found["empty"] = ahead_of_time.compile(gpu_ceilings._empty_kernel, {}, {}, 90).instructions
    print(json.dumps(found))


if __name__ == "__main__":
    main()
