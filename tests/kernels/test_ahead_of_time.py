"""The Triton kernels as a GPU's compiler sees them: the interpreter accepts what no GPU would compile.

Run as a script without TRITON_INTERPRET, this file compiles what it is told and prints the machine code's costs.
"""

import json
import os
import subprocess
import sys

import pytest

from tropigrad.kernels import ahead_of_time, backend
from tropigrad.kernels.tropical_matmul import log, portable

pytest.importorskip("triton", reason="triton is not installed")

DTYPES = ("fp32", "fp16", "bf16", "fp64", "i32")
STRIDES = [f"stride_{x}" for x in ("ab", "am", "ak", "bb", "bk", "bn")]
PROBLEM = {"M": 1024, "N": 1024, "K": 1024}


def forward(dtype: str, minimum=False, product=False, winners=False, ignore_nan=False):
    """The selective forward kernel at its default config: kernel, signature, constants, warps."""
    zero = -(2**31) if dtype == "i32" else float("-inf")
    signature = {"a_ptr": f"*{dtype}", "b_ptr": f"*{dtype}", "c_ptr": f"*{dtype}", "winner_ptr": "*i32"}
    signature |= dict.fromkeys(["M", "N", "K", *STRIDES], "i32")
    config = dict(portable.FORWARD.default(PROBLEM))
    warps = config.pop("num_warps")
    flags = {"MINIMUM": minimum, "PRODUCT": product, "WINNERS": winners, "IGNORE_NAN": ignore_nan}
    return portable._tropical_matmul_fwd_kernel, signature, {"WORST": zero, "EMPTY": zero} | flags | config, warps


def scatter(dtype: str, product=False):
    wide = "fp64" if dtype == "fp64" else "fp32"
    signature = {"dc_ptr": f"*{dtype}", "winner_ptr": "*i32", "a_ptr": f"*{dtype}", "b_ptr": f"*{dtype}"}
    signature |= {"da_ptr": f"*{wide}", "db_ptr": f"*{wide}"}
    signature |= dict.fromkeys(["M", "N", "K", "stride_cb", "stride_cm", "stride_cn", *STRIDES], "i32")
    config = dict(portable.SCATTER.default(PROBLEM))
    warps = config.pop("num_warps")
    flags = {"PRODUCT": product, "NEEDS_A": True, "NEEDS_B": True}
    return portable._tropical_winners_scatter_kernel, signature, flags | config, warps


def log_forward(dtype: str):
    wide = "fp64" if dtype == "fp64" else "fp32"
    signature = {"a_ptr": f"*{dtype}", "b_ptr": f"*{dtype}", "c_ptr": f"*{dtype}", "t_ptr": f"*{wide}"}
    signature |= dict.fromkeys(["M", "N", "K", *STRIDES], "i32")
    config = dict(log.FORWARD.default(PROBLEM))
    warps = config.pop("num_warps")
    return log._log_matmul_fwd_kernel, signature, {"IGNORE_NAN": False} | config, warps


def log_backward(dtype: str):
    wide = "fp64" if dtype == "fp64" else "fp32"
    signature = {f"{name}_ptr": f"*{dtype}" for name in ("dc", "c", "a", "b", "da")} | {"t_ptr": f"*{wide}"}
    gradients = [f"stride_{x}" for x in ("gb", "gm", "gn", "cb", "cm", "cn")]
    signature |= dict.fromkeys(["M", "N", "K", *gradients, *STRIDES], "i32")
    config = dict(log.BACKWARD.default(PROBLEM))
    warps = config.pop("num_warps")
    return log._log_matmul_bwd_kernel, signature, {"IGNORE_NAN": True} | config, warps


COMPILED = {
    "forward": forward,
    "forward-min": lambda dtype: forward(dtype, minimum=True),
    "forward-product": lambda dtype: forward(dtype, product=True),
    "forward-winners": lambda dtype: forward(dtype, winners=True),
    "forward-winners-ignore": lambda dtype: forward(dtype, winners=True, ignore_nan=dtype != "i32"),
    "scatter": scatter,
    "scatter-product": lambda dtype: scatter(dtype, product=True),
    "log": log_forward,
    "log-backward": log_backward,
}


def costs(dtype: str, names: list[str], capabilities: list[int]) -> dict[str, dict[str, int]]:
    """Registers and stack of each kernel on each capability, from a process in which Triton compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, __file__, dtype, ",".join(names), ",".join(map(str, capabilities))],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def names_for(dtype: str) -> list[str]:
    return [name for name in COMPILED if dtype != "i32" or name.startswith("forward")]


@pytest.mark.parametrize(
    ("dtype", "names", "capabilities"),
    [
        ("fp32", ["forward", "forward-winners", "scatter", "log", "log-backward"], [80, 90, 100]),
        ("fp16", ["forward-winners", "scatter-product"], [90]),
        ("bf16", ["forward"], [90]),
        ("i32", ["forward-winners"], [90]),
        *(pytest.param(dtype, names_for(dtype), [80, 90, 100], marks=pytest.mark.slow) for dtype in DTYPES),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)),
)
def test_default_configs_compile_without_spills(dtype, names, capabilities):
    found = costs(dtype, names, capabilities)
    assert len(found) == len(names) * len(capabilities)
    for name, cost in found.items():
        assert cost["stack"] == 0, f"{name} spills: {cost}"
        assert 0 < cost["registers"] <= 255


def test_nan_costs_nothing_in_the_running_maximum():
    """Each fp32 step is one add and one NaN-propagating maximum."""
    code = costs("fp32", ["forward"], [90])["forward-sm_90"]
    config = portable.FORWARD.default(PROBLEM)
    per_thread = config["BLOCK_M"] * config["BLOCK_N"] // (32 * config["num_warps"])
    assert code["FADD"] == per_thread
    assert code["FMNMX.NAN"] == per_thread


@pytest.mark.skipif(not backend.interpreted(), reason="Triton compiles here: no kernel is interpreted")
def test_an_interpreted_kernel_is_refused():
    with pytest.raises(RuntimeError, match="is not jitted: unset TRITON_INTERPRET"):
        ahead_of_time.compile(portable._tropical_matmul_fwd_kernel, {}, {}, 90)


def main(dtype: str, names: str, capabilities: str) -> None:
    found = {}
    for name in names.split(","):
        for capability in map(int, capabilities.split(",")):
            kernel, signature, constants, warps = COMPILED[name](dtype)
            code = ahead_of_time.compile(kernel, signature, constants, capability, warps)
            cost = {"registers": code.registers, "stack": code.stack} | dict(code.instructions)
            found[f"{name}-sm_{capability}"] = cost
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
